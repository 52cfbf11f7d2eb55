"""The same trainings in one and in two processes, and an estimate for a hundred million slices.

    python benchmarks/processes.py

Trains a tokenizer, the founding document's network (batch norm), a tokenizer of masks, a prior and a decoder
on a small phantom, once in one process and once in two that `torchrun` starts (gloo on the CPU), with batches
that do not divide by two. The result is `results/processes.json`: how much scores and codes differ, speed,
and what the processes send each other. The estimate counts the operations of a training step; what a GPU does
per second is an assumption, and is named as such.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import machine
import torch
from torch.utils.flop_counter import FlopCounterMode

from slicebook.config import Recipe
from slicebook.data.dataset import PreparedData
from slicebook.data.manifest import read_manifest
from slicebook.data.prepare import PrepareOptions, prepare
from slicebook.io.tensors import STATE_NAME, load_state
from slicebook.models.tokenizer import Tokenizer
from slicebook.phantom.simulator import write_hipmri
from slicebook.recipes import load_recipe

PATIENTS, SLICES, SHAPE = (5, 2, 1), 7, (64, 32)
SMALL = (
    *("tokenizer.scaling_rates=[8, 2]", "tokenizer.codebook_sizes=[16, 8]", "tokenizer.code_dim=4"),
    *("tokenizer.width=32", "tokenizer.residual_layers=1", "tokenizer.quantizer.reset_every=3"),
    *("training.epochs=4", "training.batch_size=9", "training.learning_rate=1e-3"),
    *("labels.tokenizer.codebook_sizes=[16]", "labels.tokenizer.width=16"),
    *("decoder.widths=[32, 32]", "decoder.embedding=16", "prior.widths=[32]", "prior.blocks=1"),
    *("prior.embedding=16", "prior.training.num_views=2"),
)
PARTS = {
    "masks": ("labels", ("epochs=3", "batch_size=9")),
    "prior": ("prior", ("epochs=4", "batch_size=9", "validate_every=2")),
    "decoder": ("decoder", ("epochs=3", "batch_size=9")),
}
FOLDERS = {"tokenizer": "", "batch norm": "", "masks": "masks", "prior": "", "decoder": "decoder"}
UNTIMED = ("seconds", "images_per_second")
SIDE = 256  # pixels of a slice, for the estimate
ASSUMED = {"slices": 10**8, "epochs": 10, "gpus": 64, "batch": 2048, "teraflops_per_gpu": 30.0}


def slicebook(processes: int, *words: str) -> None:
    """Run a command in several processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "slicebook", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [*command, "--device", "cpu", "--precision", "32-true"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise SystemExit(ended.stderr[-2000:])


def train(work: Path, processes: int) -> dict[str, Path]:
    """Train all kinds in a number of processes; return their folders. Parts start from the same models."""
    data, out = work / "prepared", work / str(processes)
    made = {"tokenizer": out / "tokenizer", "batch norm": out / "vqvae2"}
    for path, more in zip(made.values(), ([], ["tokenizer.architecture=vqvae2"]), strict=True):
        words = [str(data), "--recipe", "compact", *SMALL, *more, "--out", str(path)]
        slicebook(processes, "train", "tokenizer", *words)
    run = str(work / "1" / "tokenizer")
    for part, (group, settings) in PARTS.items():
        generator = out / part
        if part != "masks":
            before = "masks" if part == "prior" else "prior"
            shutil.copytree(work / "1" / before, generator)
        words = [f"{group}.training.{setting}" for setting in settings]
        slicebook(processes, "train", part, run, *words, "--out", str(generator))
        made[part] = generator
    return made


def rows_of(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def compare(one: Path, two: Path) -> dict[str, Any]:
    """Return how far a training in two processes is from that in one."""
    rows, others = rows_of(one), rows_of(two)
    scores = [name for name in rows[0] if name not in (*UNTIMED, "epoch", "step", "learning_rate")]
    differences = [
        abs(row[name] - other[name]) / max(abs(row[name]), 1e-6)
        for row, other in zip(rows, others, strict=True)
        for name in scores
    ]
    states = [load_state(run / STATE_NAME) for run in (one, two)]
    counts = [name for name in states[0].tensors if name.endswith("ema_cluster_size")]
    codes = {}
    for name in counts:
        sums = name.replace("ema_cluster_size", "ema_embed_sum")
        books = [state.tensors[sums] / state.tensors[name][:, None] for state in states]
        codes[name.removesuffix(".ema_cluster_size").removeprefix("model.tokenizer.")] = float(
            (books[0] - books[1]).abs().max() / books[0].std()
        )
    moved = sum(tensor.numel() for name, tensor in states[0].tensors.items() if name.endswith(".exp_avg"))
    table = sum(
        tensor.numel() + len(tensor)
        for name, tensor in states[0].tensors.items()
        if name.endswith("ema_embed_sum")
    )
    return {
        "steps": int(rows[-1]["step"]),
        "loss": [run[-1]["train_loss"] for run in (rows, others)],
        "largest_relative_difference": max(differences),
        "counts_equal": all(states[0].tensors[name].equal(states[1].tensors[name]) for name in counts)
        if counts
        else None,
        "code_difference": codes,
        "images_per_second": [max(row["images_per_second"] for row in run) for run in (rows, others)],
        "reduced_bytes_per_step": 4 * (moved + table),
    }


def estimate(data: Path) -> dict[str, Any]:
    """Return what a training of the recipe `compact` on very many slices would take."""
    recipe: Recipe = load_recipe("compact")
    model = Tokenizer(recipe.tokenizer).train()
    images = torch.zeros(1, 1, SIDE, SIDE)
    with FlopCounterMode(display=False) as counter:
        model(images).images.sum().backward()
    records = read_manifest(data)
    tracemalloc.start()
    kept = read_manifest(data)
    record_bytes = tracemalloc.get_traced_memory()[0] / len(kept)
    tracemalloc.stop()
    manifest = (data / "manifest.csv").stat().st_size / len(records)
    slices, gpus, batch = ASSUMED["slices"], ASSUMED["gpus"], ASSUMED["batch"]
    steps = ASSUMED["epochs"] * slices / batch
    gradients = 4 * sum(p.numel() for p in model.parameters())
    table = 4 * sum(k * (recipe.tokenizer.code_dim + 1) for k in recipe.tokenizer.codebook_sizes)
    sent = 2 * (gpus - 1) / gpus * (gradients + table)
    tokens = sum(rows * columns for rows, columns in model.grids((SIDE, SIDE)))
    flops = counter.get_total_flops()
    return ASSUMED | {
        "side": SIDE,
        "image_bytes": 4 * SIDE**2 * slices,
        "manifest_bytes": manifest * slices,
        "record_bytes_in_memory": record_bytes * slices,
        "order_bytes_in_memory": (8 + 32) * slices,
        "token_bytes_in_memory": 4 * tokens * slices * load_recipe("generate").prior.training.num_views,
        "teraflop_per_slice": flops / 1e12,
        "steps": steps,
        "gradient_bytes": gradients,
        "codebook_bytes": table,
        "sent_bytes_per_step": sent,
        "sent_bytes": sent * steps,
        "hours": ASSUMED["epochs"] * slices * flops / (gpus * ASSUMED["teraflops_per_gpu"] * 1e12) / 3600,
        "read_bytes_per_second": 4 * SIDE**2 * gpus * ASSUMED["teraflops_per_gpu"] * 1e12 / flops,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", metavar="DIR", type=Path, default=machine.RESULTS)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_hipmri(work / "raw", patients=PATIENTS, weeks=1, slices=SLICES, seed=1, shape=SHAPE)
        prepare(work / "raw", work / "prepared", options=PrepareOptions())
        one, two = train(work, 1), train(work, 2)
        trainings = {name: compare(one[name] / FOLDERS[name], two[name] / FOLDERS[name]) for name in one}
        counted = estimate(work / "prepared")
        slices = len(PreparedData.open(work / "prepared").split("train"))
    result = {
        "machine": machine.surroundings(1),
        "slices": slices,
        "batch_size": 9,
        "trainings": trainings,
        "estimate": counted,
    }
    machine.write(options.results / "processes.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
