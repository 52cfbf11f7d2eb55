"""Time Slicebook and its peers in one run: quantizer steps, networks, sampling, data path, command line.

    python benchmarks/speed.py --threads 2

The contenders of a comparison take turns, so that load of the machine affects all of them; a ratio is the
median of the ratios per turn. Peers that are not installed are listed in the result. To install them:

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

# Return freed blocks to the system, so that they do not hide in the next measurement.
EAGER_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


def quantizers(seconds: float, threads: int) -> dict[str, Any]:
    """Time a training step of each quantizer and measure its memory, for each size of codebook."""
    settings: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    for k, d in product(CODES, DIMENSIONS):
        steps, missing = _build(QUANTIZERS, VECTORS, k, d)
        contenders = take_turns(steps, seconds, against=OURS)
        for name in contenders:
            if name != FLOOR:
                contenders[name]["extra_memory_mib"] = _extra_memory(name, k, d, threads)
        settings.append({"codes": k, "dimension": d, "contenders": contenders})
        _say(settings[-1])
    return {
        "vectors": VECTORS,
        "memory": "Increase of the peak resident memory during one step, forward and backward, in a separate "
        "process after a small step; model and input are not counted.",
        "missing": missing,
        "settings": settings,
    }


def networks(seconds: float, precision: str) -> dict[str, Any]:
    """Time training steps and encoding of whole networks, for each slice size and precision."""
    settings: list[dict[str, Any]] = []
    modules, missing = _build(NETWORKS)
    modules = {name: module.to(memory_format=torch.channels_last) for name, module in modules.items()}
    for side, mode in product(SIDES, dict.fromkeys(("32-true", precision))):
        images = torch.rand(BATCH, 1, side, side).mul(2).sub(1).to(memory_format=torch.channels_last)
        for task, make_step in (("training", training_step), ("encoding", encoding)):
            steps = {name: make_step(module, images, mode) for name, module in modules.items()}
            contenders = take_turns(steps, seconds, against="ladder")
            for contender in contenders.values():
                contender["images_per_second"] = BATCH / contender["seconds"]
            settings.append({"task": task, "side": side, "precision": mode, "contenders": contenders})
            _say(settings[-1])
    parameters = {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
    return {"batch_size": BATCH, "missing": missing, "parameters": parameters, "settings": settings}


def generation(seconds: float) -> dict[str, Any]:
    """Time the sampling of a slice's tokens, and a peer's sampling of as many with about as many parameters.

    The peer has no key-value cache, so a whole slice takes minutes. Its sampler is timed for one token after
    prefixes of evenly spaced lengths; the sum over all lengths is by Simpson's rule, which is exact for a
    cost quadratic in the length.
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
        f"{name} after {length}": peer.step(length, BATCH)
        for name, peer in peers.items()
        for length in lengths
    }
    times = take_turns(steps, seconds)
    own_seconds = times[OURS]["seconds"]
    contenders = {
        OURS: {
            "seconds_per_slice": own_seconds / BATCH,
            "parameters": parameters,
            "turns": times[OURS]["turns"],
        }
    }
    for name, peer in peers.items():
        taken = [times[f"{name} after {length}"]["seconds"] for length in lengths]
        whole = _sum_over_lengths(lengths, taken)
        contenders[name] = {
            "seconds_per_slice": whole / BATCH,
            "parameters": peer.parameters,
            "turns": times[OURS]["turns"],
            "ratio": whole / own_seconds,
            "prefixes": lengths,
            "seconds_per_token": taken,
        }
    _say(
        {
            "task": "sampling",
            "contenders": {n: {"seconds": o["seconds_per_slice"]} for n, o in contenders.items()},
        }
    )
    return {
        "rows": SLICE[0],
        "columns": SLICE[1],
        "batch_size": BATCH,
        "precision": "32-true",
        "tokens": {stage.name: len(stage) for stage in layout.stages},
        "prior": recipe.prior.model_dump(mode="json", include={"coarse", "fine", "embedding"}),
        "decoding_seconds_per_slice": times["decoding"]["seconds"] / BATCH,
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

        times = take_turns({"read": read(lambda images: images), "augmented": read(augmented)}, seconds)
        rates = {name: len(train) / timing["seconds"] for name, timing in times.items()}
        return {
            "data": data.info.model_dump(mode="json"),
            "batch_size": BATCH,
            "workers": 0,
            "slices": len(train),
            "slices_per_second": rates,
        }


def command_line() -> dict[str, float]:
    """Return the median seconds of `slicebook --help` and of `import torch`."""
    commands = {"slicebook --help": ["-m", "slicebook", "--help"], "import torch": ["-c", "import torch"]}
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(STARTS):
        for name, words in commands.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, capture_output=True)
            taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def take_turns(
    steps: Mapping[str, Step], seconds: float, *, against: str | None = None
) -> dict[str, dict[str, Any]]:
    """Run steps in turns until the time is used up, after an unmeasured warm-up of each.

    Returns:
        Per step: median seconds, lowest and highest seconds, number of turns, and with `against` the median
        over turns of the ratio of its seconds to those of `against`.
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
            started = time.perf_counter()
            steps[name]()
            taken[name].append(time.perf_counter() - started)
    summary: dict[str, dict[str, Any]] = {}
    for name, times in taken.items():
        summary[name] = {
            "seconds": statistics.median(times),
            "range": [min(times), max(times)],
            "turns": turn,
        }
        if against:
            summary[name]["ratio"] = statistics.median(
                a / b for a, b in zip(times, taken[against], strict=True)
            )
    return summary


def extra_memory(name: str, k: int, d: int) -> int:
    """Return by how many bytes one step of a quantizer raises the peak resident memory (Linux)."""
    QUANTIZERS[name](1024, 16, d)()  # warm-up: allocations that persist
    step = QUANTIZERS[name](VECTORS, k, d)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current resident memory
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
    """Build every contender that is installed; return the reasons for the others."""
    made, missing = {}, {}
    for name, make in makers.items():
        try:
            made[name] = make(*size)
        except ModuleNotFoundError as error:  # noqa: PERF203 (four contenders)
            missing[name] = f"not installed: {error.name}"
    return made, missing


def _say(comparison: Mapping[str, Any]) -> None:
    setting = " ".join(str(value) for key, value in comparison.items() if key != "contenders")
    seconds = " ".join(
        f"{name} {contender['seconds']:.4f}" for name, contender in comparison["contenders"].items()
    )
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
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    if options.memory:
        name, k, d = options.memory
        print(extra_memory(name, int(k), int(d)))
        return 0
    peers = [name for name in QUANTIZERS if name not in (OURS, FLOOR)]
    result = machine.surroundings(options.threads, *peers) | {
        "seed": SEED,
        "seconds_per_comparison": options.seconds,
    }
    result |= {"quantizers": quantizers(options.seconds, options.threads)}
    result |= {"networks": networks(options.seconds, result["precision"])}
    result |= {"generation": generation(options.seconds)}
    result |= {"data_path": data_path(options.seconds), "command_line": command_line()}
    machine.write(options.results / "speed.json", result)
    print(json.dumps(result["command_line"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
