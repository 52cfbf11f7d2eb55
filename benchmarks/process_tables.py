"""The tables of `processes.py`: one process against two, and the estimate for very many slices."""

from __future__ import annotations

from typing import Any

from cells import NOTHING, Results, table, where

TITLES = {
    "tokenizer": "tokenizer",
    "batch norm": "tokenizer, network of comp3710 (batch norm)",
    "masks": "tokenizer of masks",
    "prior": "prior",
    "decoder": "generation decoder",
}


def processes(results: Results) -> str:
    """Return how far trainings in two processes are from those in one, and their speed."""
    result = results["processes"]
    rows = []
    for name, training in result["trainings"].items():
        codes = training["code_difference"].values()
        rows.append(
            [
                TITLES[name],
                str(training["steps"]),
                *(f"{loss:.6g}" for loss in training["loss"]),
                f"{training['largest_relative_difference']:.1e}",
                NOTHING if not codes else "**yes**" if training["counts_equal"] else "no",
                f"{max(codes):.1e}" if codes else NOTHING,
                f"{training['reduced_bytes_per_step'] / 1e3:,.0f}",
                *(f"{speed:.0f}" for speed in training["images_per_second"]),
            ]
        )
    head = [
        "training",
        "steps",
        "last loss, 1 process",
        "2 processes",
        "largest relative difference of any score",
        "counts of codes equal",
        "largest difference of a code, in standard deviations",
        "kB reduced per step",
        "slices/s, 1 process",
        "2 processes",
    ]
    return (
        table(head, rows)
        + f"\n{result['slices']} slices in batches of {result['batch_size']} or fewer. "
        + where(result["machine"])
    )


def scale(results: Results) -> str:
    """Return the estimate for very many slices."""
    counted = results["processes"]["estimate"]
    rows = [
        ["images of the prepared folder, float32", _size(counted["image_bytes"])],
        ["`manifest.csv`", _size(counted["manifest_bytes"])],
        ["the manifest in memory, per process", _size(counted["record_bytes_in_memory"])],
        ["the order of an epoch in memory, per process", _size(counted["order_bytes_in_memory"])],
        ["all tokens of a prior in memory, per process", _size(counted["token_bytes_in_memory"])],
        ["operations per slice, forward and backward", f"{1000 * counted['teraflop_per_slice']:.1f} GFLOP"],
        ["steps", f"{counted['steps']:,.0f}"],
        ["gradients, float32", _size(counted["gradient_bytes"])],
        ["codebook statistics per step", _size(counted["codebook_bytes"])],
        ["sent by each process per step (ring all-reduce)", _size(counted["sent_bytes_per_step"])],
        ["sent by each process, whole training", _size(counted["sent_bytes"])],
        ["hours of computing", f"{counted['hours']:.1f}"],
        ["to be read from the disk, all processes", f"{_size(counted['read_bytes_per_second'])}/s"],
    ]
    assumed = (
        f"Recipe compact, {counted['slices']:,} slices of {counted['side']}×{counted['side']}, "
        f"{counted['epochs']} epochs, {counted['gpus']} GPUs, {counted['batch']} slices per step. "
        f"Assumed, not measured: {counted['teraflops_per_gpu']:g} TFLOP/s of each GPU."
    )
    return table(["", "estimate"], rows) + f"\n{assumed}"


def _size(count: Any) -> str:
    units = ["B", "kB", "MB", "GB", "TB", "PB"]
    value, unit = float(count), 0
    while value >= 1000 and unit < len(units) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g} {units[unit]}"
