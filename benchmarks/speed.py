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
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import machine
import torch
from peers import (
    FLOOR,
    NETWORKS,
    OURS,
    QUANTIZERS,
    SAMPLERS,
    MonaiTransformer,
    Step,
    encoding,
    reconstruction,
    training_step,
)
from scipy.integrate import simpson
from timing import build, gpu_memory, take_turns
from torch import nn

from slicebook.config import AugmentConfig
from slicebook.data.augment import augment, draw_augmentation
from slicebook.data.dataset import PreparedData
from slicebook.data.loader import SliceBatches
from slicebook.data.prepare import prepare
from slicebook.models.conditions import Conditions
from slicebook.models.prior import Prior
from slicebook.models.sampling import sample
from slicebook.models.sequence import JointTokenizer
from slicebook.models.tokenizer import Tokenizer
from slicebook.phantom import simulator
from slicebook.recipes import load_recipe

SEED = 42
PATIENTS, SLICES = (6, 1, 1), 30  # of the phantom
STARTS = 7  # of the command line
PEER_WIDTH = 192  # of a transformer with about as many parameters as the prior
PREFIXES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of a slice's tokens


@dataclass(frozen=True)
class Sizes:
    """Sizes of what is timed."""

    vectors: int = 16_384
    codes: tuple[int, ...] = (1_024, 8_192)
    dimensions: tuple[int, ...] = (8, 64)
    sides: tuple[int, ...] = (128, 256)
    """Pixels of a square slice."""
    batch: int = 16
    slice: tuple[int, int] = (256, 128)
    """Pixels of a sampled slice."""
    labels: int = 6
    """Values of its mask."""


SIZES = Sizes()
CPU = machine.CPU

# Return freed blocks to the system, so that they do not hide in the next measurement.
EAGER_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


CPU_MEMORY = (
    "Increase of the peak resident memory during one step, forward and backward, in a separate process "
    "after a small step; model and input are not counted."
)
GPU_MEMORY = "Increase of the peak of the GPU memory in use by tensors during one step, after the timed ones."


def quantizers(
    seconds: float, threads: int | None, device: torch.device = CPU, sizes: Sizes = SIZES
) -> dict[str, Any]:
    """Time a training step of each quantizer and measure its memory, for each size of codebook.

    `threads` are those of the processes that measure the memory on a CPU; None leaves it out.
    """
    settings: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    on_gpu = device.type == "cuda"
    for k, d in product(sizes.codes, sizes.dimensions):
        steps, missing = build(QUANTIZERS, sizes.vectors, k, d, device=device)
        contenders = take_turns(steps, seconds, against=OURS)
        for name in contenders:
            if name != FLOOR:
                contenders[name]["extra_memory_mib"] = (
                    gpu_memory(steps[name]) if on_gpu else _extra_memory(name, k, d, threads)
                )
        settings.append({"codes": k, "dimension": d, "contenders": contenders})
        _say(settings[-1])
    return {
        "vectors": sizes.vectors,
        "memory": GPU_MEMORY if on_gpu else CPU_MEMORY,
        "missing": missing,
        "settings": settings,
    }


def networks(
    seconds: float, precision: str, device: torch.device = CPU, sizes: Sizes = SIZES
) -> dict[str, Any]:
    """Time training steps and encoding of whole networks, for each slice size and precision."""
    tasks = {"training": training_step, "encoding": encoding}
    return _compare_networks(NETWORKS, tasks, seconds, ("32-true", precision), device, sizes)


def recipes(
    names: Sequence[str], seconds: float, precision: str, device: torch.device = CPU, sizes: Sizes = SIZES
) -> dict[str, Any]:
    """Time training steps and reconstruction of the tokenizers of recipes."""
    makers = {name: partial(_tokenizer, name) for name in names}
    tasks = {"training": training_step, "reconstruction": reconstruction}
    return _compare_networks(makers, tasks, seconds, (precision,), device, sizes)


def _tokenizer(name: str) -> Tokenizer:
    return Tokenizer(load_recipe(name).tokenizer)


def _compare_networks(
    makers: Mapping[str, Callable[[], nn.Module]],
    tasks: Mapping[str, Callable[[nn.Module, torch.Tensor, str], Step]],
    seconds: float,
    precisions: Sequence[str],
    device: torch.device,
    sizes: Sizes,
) -> dict[str, Any]:
    """Time tasks of networks, and on a GPU measure their memory; ratios are to the first network."""
    settings: list[dict[str, Any]] = []
    modules, missing = build(makers)
    modules = {name: module.to(device, memory_format=torch.channels_last) for name, module in modules.items()}
    for side, mode in product(sizes.sides, dict.fromkeys(precisions)):
        images = torch.rand(sizes.batch, 1, side, side).mul(2).sub(1)
        images = images.to(device, memory_format=torch.channels_last)
        for task, make_step in tasks.items():
            steps = {name: make_step(module, images, mode) for name, module in modules.items()}
            contenders = take_turns(steps, seconds, against=next(iter(modules)))
            for name, contender in contenders.items():
                contender["images_per_second"] = sizes.batch / contender["seconds"]
                if device.type == "cuda":
                    contender["extra_memory_mib"] = gpu_memory(steps[name])
            settings.append({"task": task, "side": side, "precision": mode, "contenders": contenders})
            _say(settings[-1])
    parameters = {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
    memory = {"memory": GPU_MEMORY} if device.type == "cuda" else {}
    return {
        "batch_size": sizes.batch,
        "missing": missing,
        "parameters": parameters,
        "settings": settings,
    } | memory


def generation(
    seconds: float, device: torch.device = CPU, sizes: Sizes = SIZES, recipe_name: str = "compact"
) -> dict[str, Any]:
    """Time the sampling of a slice's tokens, and a peer's sampling of as many with about as many parameters.

    The peer has no key-value cache, so a whole slice takes minutes. Its sampler is timed for one token after
    prefixes of evenly spaced lengths; the sum over all lengths is by Simpson's rule, which is exact for a
    cost quadratic in the length.
    """
    recipe, batch = load_recipe(recipe_name), sizes.batch
    labels = recipe.for_labels(range(sizes.labels)).tokenizer
    joint_tokenizer = JointTokenizer(
        *(Tokenizer(config).eval().to(device) for config in (recipe.tokenizer, labels))
    )
    layout = joint_tokenizer.layout(sizes.slice)
    prior = Prior(recipe.prior, joint_tokenizer.codebooks, joint_tokenizer.strides).eval().to(device)
    parameters = sum(parameter.numel() for parameter in prior.parameters())
    conditions = Conditions(torch.linspace(0, 1, batch), torch.full((batch,), -1))
    count, codes = layout.starts[-1], max(stage.size for stage in layout.stages)
    tokens = torch.zeros(batch, count, dtype=torch.int64, device=device)

    def draw() -> None:
        sample(prior, layout, range(batch), conditions)

    def decode() -> None:
        joint_tokenizer.decode(tokens, sizes.slice)

    peers, missing = build(SAMPLERS, parameters, codes, count, PEER_WIDTH, device=device)
    lengths = [round(1 + share * (count - 1)) for share in PREFIXES]
    steps = {OURS: draw, "decoding": decode}
    with device:
        steps |= {
            f"{name} after {length}": peer.step(length, batch)
            for name, peer in peers.items()
            for length in lengths
        }
    times = take_turns(steps, seconds)
    contenders = _samplers(times, peers, lengths, parameters, batch)
    if device.type == "cuda":
        contenders[OURS]["extra_memory_mib"] = gpu_memory(draw)
    named = {n: {"seconds": o["seconds_per_slice"]} for n, o in contenders.items()}
    _say({"task": "sampling", "contenders": named})
    return {
        "rows": sizes.slice[0],
        "columns": sizes.slice[1],
        "batch_size": batch,
        "precision": "32-true",
        "tokens": {stage.name: len(stage) for stage in layout.stages},
        "prior": recipe.prior.model_dump(mode="json", include={"widths", "blocks", "embedding"}),
        "decoding_seconds_per_slice": times["decoding"]["seconds"] / batch,
        "peer": "one token of its own inferer after each prefix; all tokens by Simpson's rule",
        "missing": missing,
        "contenders": contenders,
    }


def _samplers(
    times: Mapping[str, Mapping[str, Any]],
    peers: Mapping[str, MonaiTransformer],
    lengths: Sequence[int],
    parameters: int,
    batch: int,
) -> dict[str, dict[str, Any]]:
    """Return the seconds per slice of our sampler and of the peers."""
    own_seconds, turns = times[OURS]["seconds"], times[OURS]["turns"]
    contenders: dict[str, dict[str, Any]] = {
        OURS: {"seconds_per_slice": own_seconds / batch, "parameters": parameters, "turns": turns}
    }
    for name, peer in peers.items():
        taken = [times[f"{name} after {length}"]["seconds"] for length in lengths]
        whole = _sum_over_lengths(lengths, taken)
        contenders[name] = {
            "seconds_per_slice": whole / batch,
            "parameters": peer.parameters,
            "turns": turns,
            "ratio": whole / own_seconds,
            "prefixes": lengths,
            "seconds_per_token": taken,
        }
    return contenders


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
        batches = SliceBatches(train, SIZES.batch, shuffle=True, seed=SEED)
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
            "batch_size": SIZES.batch,
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


def extra_memory(name: str, k: int, d: int) -> int:
    """Return by how many bytes one step of a quantizer raises the peak resident memory (Linux)."""
    QUANTIZERS[name](1024, 16, d)()  # warm-up: allocations that persist
    step = QUANTIZERS[name](SIZES.vectors, k, d)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current resident memory
    before = _resident("VmRSS")
    step()
    return _resident("VmHWM") - before


def _extra_memory(name: str, k: int, d: int, threads: int | None) -> float | None:
    if threads is None or not os.access("/proc/self/clear_refs", os.W_OK):
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
    result |= {"quantizers": quantizers(options.seconds, options.threads, sizes=SIZES)}
    result |= {"networks": networks(options.seconds, result["precision"], sizes=SIZES)}
    result |= {"generation": generation(options.seconds, sizes=SIZES)}
    result |= {"data_path": data_path(options.seconds), "command_line": command_line()}
    machine.write(options.results / "speed.json", result)
    print(json.dumps(result["command_line"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
