"""Time Slicebook beside its peers in one run: quantiser steps, networks, sampling, data path, command line.

    python benchmarks/speed.py --threads 2

The contenders of a comparison take turns, so that a busy moment of the machine meets all of them; a ratio is
the median of the ratios turn by turn. A peer that is not installed is named in the result. To install them:

    pip install 'slicebook[bench]' && pip install --no-deps medtokenizers
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import machine
import torch
from peers import FLOOR, NETWORKS, OURS, QUANTIZERS, SAMPLERS, Step, encoding, training_step
from scipy.integrate import simpson

from slicebook.config import AugmentConfig
from slicebook.data.augment import augment, draw_augmentation
from slicebook.data.dataset import PreparedData
from slicebook.data.loader import SliceBatches
from slicebook.data.prepare import prepare
from slicebook.models.prior import Prior
from slicebook.models.sampling import sample
from slicebook.models.sequence import JointTokenizer
from slicebook.models.tokenizer import Tokenizer
from slicebook.models.transformer import Conditions
from slicebook.phantom import simulator
from slicebook.recipes import load_recipe

SEED = 42
VECTORS = 16_384
CODES = (1_024, 8_192)
DIMENSIONS = (8, 64)
SIDES = (128, 256)
BATCH = 16
PATIENTS, SLICES = (6, 1, 1), 30  # of the phantom
FEWEST_TURNS = 3
STARTS = 7  # of the command line
SLICE, LABELS = (256, 128), 6  # pixels, and values of its mask
PREFIXES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of a slice's tokens

# Small freed blocks would stay with the process and hide in the next measurement.
EAGER_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


def quantizers(seconds: float, threads: int) -> dict[str, Any]:
    """Time and weigh a training step of every library's quantiser, for each size of codebook."""
    settings: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    for k, d in product(CODES, DIMENSIONS):
        steps, missing = _build(QUANTIZERS, VECTORS, k, d)
        found = take_turns(steps, seconds, against=OURS)
        for name in found:
            if name != FLOOR:
                found[name]["extra_memory_mib"] = _extra_memory(name, k, d, threads)
        settings.append({"codes": k, "dimension": d, "contenders": found})
        _say(settings[-1])
    return {
        "vectors": VECTORS,
        "memory": "By how much one step, forward and backward, lifts the high-water mark of the resident set "
        "of a process of its own that has made a small step before; model and input are not counted.",
        "missing": missing,
        "settings": settings,
    }


def networks(seconds: float, precision: str) -> dict[str, Any]:
    """Time training steps and encoding of whole networks, at each size of slice and precision."""
    settings: list[dict[str, Any]] = []
    modules, missing = _build(NETWORKS)
    modules = {name: one.to(memory_format=torch.channels_last) for name, one in modules.items()}
    for side, mode in product(SIDES, dict.fromkeys(("32-true", precision))):
        images = torch.rand(BATCH, 1, side, side).mul(2).sub(1).to(memory_format=torch.channels_last)
        for task, of in (("training", training_step), ("encoding", encoding)):
            steps = {name: of(module, images, mode) for name, module in modules.items()}
            found = take_turns(steps, seconds, against="ladder")
            for one in found.values():
                one["images_a_second"] = BATCH / one["seconds"]
            settings.append({"task": task, "side": side, "precision": mode, "contenders": found})
            _say(settings[-1])
    parameters = {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
    return {"batch_size": BATCH, "missing": missing, "parameters": parameters, "settings": settings}


def generation(seconds: float) -> dict[str, Any]:
    """Time the drawing of a slice's tokens, and a peer's of as many tokens and about as many parameters.

    The peer keeps no cache, so that its later tokens cost more and a whole slice takes minutes: its sampler
    is timed for one token after prefixes of evenly spaced lengths, and the sum over all lengths is Simpson's,
    exact for a cost of first and second powers of the length.
    """
    recipe = load_recipe("compact")
    labels = recipe.for_labels(range(LABELS)).tokenizer
    joint_tokenizer = JointTokenizer(Tokenizer(recipe.tokenizer).eval(), Tokenizer(labels).eval())
    layout = joint_tokenizer.layout(SLICE)
    prior = Prior(recipe.prior, joint_tokenizer.codebooks).eval()
    parameters = sum(parameter.numel() for parameter in prior.parameters())
    conditions = Conditions(torch.linspace(0, 1, BATCH), torch.full((BATCH,), -1))
    count, codes = layout.starts[-1], max(stage.size for stage in layout.stages)

    def draw() -> None:
        sample(prior, layout, range(BATCH), conditions)

    def decode() -> None:
        joint_tokenizer.decode(torch.zeros(BATCH, count, dtype=torch.int64), SLICE)

    peers, missing = _build(SAMPLERS, parameters, codes, count, recipe.prior.coarse.width)
    lengths = [round(1 + share * (count - 1)) for share in PREFIXES]
    steps = {OURS: draw, "decoding": decode}
    steps |= {
        f"{name} after {length}": one.step(length, BATCH) for name, one in peers.items() for length in lengths
    }
    found = take_turns(steps, seconds)
    ours = found[OURS]["seconds"]
    contenders = {
        OURS: {"seconds_a_slice": ours / BATCH, "parameters": parameters, "turns": found[OURS]["turns"]}
    }
    for name, one in peers.items():
        taken = [found[f"{name} after {length}"]["seconds"] for length in lengths]
        whole = _sum_over_lengths(lengths, taken)
        contenders[name] = {
            "seconds_a_slice": whole / BATCH,
            "parameters": one.parameters,
            "turns": found[OURS]["turns"],
            "ratio": whole / ours,
            "prefixes": lengths,
            "seconds_a_token": taken,
        }
    _say(
        {
            "task": "sampling",
            "contenders": {n: {"seconds": o["seconds_a_slice"]} for n, o in contenders.items()},
        }
    )
    return {
        "rows": SLICE[0],
        "columns": SLICE[1],
        "batch_size": BATCH,
        "precision": "32-true",
        "tokens": {stage.name: len(stage) for stage in layout.stages},
        "prior": recipe.prior.model_dump(mode="json", include={"coarse", "fine", "embedding"}),
        "decoding_seconds_a_slice": found["decoding"]["seconds"] / BATCH,
        "peer": "one token of its own inferer after each prefix; all tokens by Simpson's rule",
        "missing": missing,
        "contenders": contenders,
    }


def _sum_over_lengths(lengths: Sequence[int], seconds: Sequence[float]) -> float:
    """Return the seconds of one step at each length from the first to the last."""
    mean = float(simpson(seconds, x=lengths)) / (lengths[-1] - lengths[0])
    return mean * (lengths[-1] - lengths[0] + 1)


def data_path(seconds: float) -> dict[str, Any]:
    """Time the way from a prepared folder to batches in memory, without and with augmentation."""
    with tempfile.TemporaryDirectory() as folder:
        simulator.write_hipmri(Path(folder, "phantom"), patients=PATIENTS, slices=SLICES, seed=SEED)
        prepare(Path(folder, "phantom"), Path(folder, "prepared"))
        data = PreparedData.open(Path(folder, "prepared"))
        train = data.split("train")
        batches = SliceBatches(train, BATCH, shuffle=True, seed=SEED)
        generator = torch.Generator().manual_seed(SEED)

        def read(change: Callable[[torch.Tensor], torch.Tensor]) -> Step:
            def epoch() -> None:
                for batch in batches:
                    change(batch.images)

            return epoch

        def augmented(images: torch.Tensor) -> torch.Tensor:
            return augment(images, draw_augmentation(AugmentConfig(), len(images), generator))

        found = take_turns({"read": read(lambda images: images), "augmented": read(augmented)}, seconds)
        rates = {name: len(train) / one["seconds"] for name, one in found.items()}
        return {
            "data": data.info.model_dump(mode="json"),
            "batch_size": BATCH,
            "workers": 0,
            "slices": len(train),
            "slices_a_second": rates,
        }


def command_line() -> dict[str, float]:
    """Time `slicebook --help`, and `import torch` beside it; median seconds."""
    commands = {"slicebook --help": ["-m", "slicebook", "--help"], "import torch": ["-c", "import torch"]}
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(STARTS):
        for name, words in commands.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, capture_output=True)
            taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def take_turns(
    steps: Mapping[str, Step], seconds: float, *, against: str | None = None
) -> dict[str, dict[str, Any]]:
    """Run steps in turns until the time is used up; each once before that, unmeasured.

    Returns:
        For each the median, the lowest and highest seconds, the number of turns, and with `against` the
        median over turns of its seconds over those of that one.
    """
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    end = time.perf_counter() + seconds
    turn = 0
    while turn < FEWEST_TURNS or time.perf_counter() < end:
        names = list(steps)
        turn += 1
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            began = time.perf_counter()
            steps[name]()
            taken[name].append(time.perf_counter() - began)
    found: dict[str, dict[str, Any]] = {}
    for name, times in taken.items():
        found[name] = {"seconds": statistics.median(times), "range": [min(times), max(times)], "turns": turn}
        if against:
            found[name]["ratio"] = statistics.median(
                a / b for a, b in zip(times, taken[against], strict=True)
            )
    return found


def extra_memory(name: str, k: int, d: int) -> int:
    """Return by how many bytes one step of a quantiser lifts this process's high-water mark (Linux)."""
    QUANTIZERS[name](1024, 16, d)()  # whatever a first step loads and keeps
    step = QUANTIZERS[name](VECTORS, k, d)
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to what is resident now
    before = _resident("VmRSS")
    step()
    return _resident("VmHWM") - before


def _extra_memory(name: str, k: int, d: int, threads: int) -> float | None:
    if not os.access("/proc/self/clear_refs", os.W_OK):
        return None
    words = ["--memory", name, str(k), str(d), "--threads", str(threads)]
    done = subprocess.run(
        [sys.executable, __file__, *words],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | EAGER_MALLOC,
    )
    return int(done.stdout.splitlines()[-1]) / 2**20


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _build(makers: Mapping[str, Callable[..., Any]], *size: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Make every contender that is installed; say of the others what is missing."""
    made, missing = {}, {}
    for name, make in makers.items():
        try:
            made[name] = make(*size)
        except ModuleNotFoundError as error:  # noqa: PERF203 (four contenders)
            missing[name] = f"not installed: {error.name}"
    return made, missing


def _say(found: Mapping[str, Any]) -> None:
    setting = " ".join(str(value) for key, value in found.items() if key != "contenders")
    seconds = " ".join(f"{name} {one['seconds']:.4f}" for name, one in found["contenders"].items())
    print(f"{setting}: {seconds}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=20, help="for each comparison, at least three turns")
    parser.add_argument("--results", metavar="DIR", type=Path, default=machine.RESULTS)
    parser.add_argument("--memory", nargs=3, metavar=("NAME", "K", "D"), help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    torch.manual_seed(SEED)
    if asked.memory:
        name, k, d = asked.memory
        print(extra_memory(name, int(k), int(d)))
        return 0
    peers = [name for name in QUANTIZERS if name not in (OURS, FLOOR)]
    result = machine.surroundings(asked.threads, *peers) | {
        "seed": SEED,
        "seconds_a_comparison": asked.seconds,
    }
    result |= {"quantizers": quantizers(asked.seconds, asked.threads)}
    result |= {"networks": networks(asked.seconds, result["precision"])}
    result |= {"generation": generation(asked.seconds)}
    result |= {"data_path": data_path(asked.seconds), "command_line": command_line()}
    machine.write(asked.results / "speed.json", result)
    print(json.dumps(result["command_line"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
