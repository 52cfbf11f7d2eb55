"""Measure the memorisation audit: its false alarm rate, and the rate at which it detects planted copies.

    python benchmarks/audit.py RUN DATA

RUN is a tokenizer's run, DATA the prepared folder of the phantom that it was trained on. Clean samples are
slices of other phantom patients, so that nothing is copied. The nearest training slices of each slice are
searched once. A trial draws held-out patients and samples, and audits the samples without copies and with
tokenized copies in place of a few. Then the search is timed at the size of a real study.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch

from slicebook.data.dataset import PreparedData
from slicebook.errors import DataError, SlicebookError
from slicebook.metrics import memorization, nearest
from slicebook.metrics.memorization import audit
from slicebook.metrics.nearest import Nearest, describe, nearest_by_correlation, plant
from slicebook.models.checkpoint import load_tokenizer
from slicebook.models.tokenizer import Tokenizer
from slicebook.phantom.simulator import FIRST_CASE, patient_volume

SEED = 42
FIRST_FRESH = 1000  # number of the first phantom patient that DATA does not hold
SLICES, SHAPE = 20, (256, 128)  # of a patient, as DATA has them
EACH = 6  # samples per patient; fewer are less correlated
COPIES = 300
REAL_STUDY = (11_460, 540, 540)  # slices to train on, held out, generated: HipMRI at one sample a test slice
CASES = ("clean", "one_copy", "planted_1_percent", "planted_5_percent")


@dataclass(frozen=True)
class Table:
    """Nearest training slices of all slices that trials draw from; a slice is identified by its row."""

    nearest: Nearest
    held_out: np.ndarray[Any, Any]  # patients × slices, rows of the table
    fresh: np.ndarray[Any, Any]
    copies: np.ndarray[Any, Any]

    def search(self, rows: Any, _: Any) -> Nearest:
        """Look up neighbours; images of one pixel hold the rows of slices."""
        at = rows[:, 0, 0].astype(np.int64)
        return Nearest(*(getattr(self.nearest, field.name)[at] for field in fields(Nearest)))


def measure(
    data: PreparedData, tokenizer: Tokenizer, *, patients: int, trials: int, n: int
) -> dict[str, Any]:
    """Generate phantoms, search their neighbours, and run the trials."""
    train, training_patients = _train(data)
    described = describe(train)
    generator = np.random.default_rng(SEED)
    third = patients // 3
    held_out: list[np.ndarray[Any, Any]] = []
    fresh: list[np.ndarray[Any, Any]] = []
    for number in range(patients):
        slices = prepared_phantom(FIRST_FRESH + number)
        (held_out if number < third else fresh).append(
            slices if number < third else slices[generator.choice(SLICES, EACH, replace=False)]
        )
        _tell("patient", number + 1, patients)
    planted = plant(train, min(COPIES, len(train)), lambda x: reconstruct(tokenizer, x), generator)
    started = time.process_time()
    images = np.concatenate([*held_out, *fresh, planted.images])
    neighbours = nearest_by_correlation(images, None, described, training_patients)
    seconds = time.process_time() - started
    parts = np.split(np.arange(len(images)), np.cumsum([third * SLICES, len(fresh) * EACH]))
    table = Table(neighbours, parts[0].reshape(third, SLICES), parts[1], parts[2])
    return {
        "samples": n,
        "trials": trials,
        "training": {"slices": len(train), "patients": len(set(training_patients))},
        "fresh": {"patients": patients, "held_out": third, "slices_of_the_others": EACH},
        "search": {
            "convention": nearest.CORRELATION,
            "cpu_seconds_per_slice": seconds / len(images),
            "copies": len(planted.images),
            "source_found": float((neighbours.index[table.copies] == planted.sources).mean()),
            "mirror_found": float((neighbours.mirror[table.copies] == planted.mirror).mean()),
            "shift_found": float((neighbours.shift[table.copies] == planted.shift).all(axis=1).mean()),
        },
        "gap": {
            "convention": memorization.GAP,
            **{
                name: _quantiles(neighbours.gap[rows.ravel()])
                for name, rows in (
                    ("held_out", table.held_out),
                    ("fresh", table.fresh),
                    ("copies", table.copies),
                )
            },
            "training_without_own_patient": _quantiles(
                nearest_by_correlation(train, training_patients, described, training_patients).gap
            ),
        },
        "by_held_out_patients": {
            str(count): _trials(table, count, trials, n) for count in (3, 4, 6, 12, 20) if count <= third
        },
    }


def _trials(table: Table, patients: int, trials: int, n: int) -> dict[str, Any]:
    """Return the share of trials that found copies, for each case and statistic."""
    generator = np.random.default_rng([SEED, patients])
    counts = dict(zip(CASES, (0, 1, max(1, n // 100), max(1, n // 20)), strict=True))
    hits: dict[str, list[tuple[bool, ...]]] = {case: [] for case in CASES}
    valid = []
    for trial in range(trials):
        chosen = generator.choice(len(table.held_out), patients, replace=False)
        held_out, names = (
            _rows(table.held_out[chosen].ravel()),
            np.repeat(chosen.astype(str), SLICES).tolist(),
        )
        samples = generator.choice(table.fresh, n, replace=len(table.fresh) < n)
        copies = generator.permutation(table.copies)
        for case, count in counts.items():
            mixed = samples.copy()
            mixed[:count] = copies[:count]
            others = copies[count:]
            report = audit(
                _rows(mixed),
                held_out,
                names,
                _rows(others),
                table.nearest.index[others].tolist(),
                table.search,
                lambda rows: rows,
                seed=trial,
            )
            many, any_one = report.tests
            nearer = report.nearer
            hits[case].append(
                (report.copies_found, many.positive, any_one.positive, nearer.interval[0] > nearer.expected)
            )
            if case == "clean":
                valid.append(report.controls[-1].passed)
        _tell(f"trial with {patients} patients", trial + 1, trials)
    statistics = ("copies_found", "many_beyond", "one_far_beyond", "nearer_than_the_quantile")
    shares = {case: np.mean(rows, axis=0).tolist() for case, rows in hits.items()}
    return {
        "control_found": float(np.mean(valid)),
        **{case: dict(zip(statistics, values, strict=True)) for case, values in shares.items()},
    }


def _rows(rows: Any) -> Any:
    return rows.astype(np.float32)[:, None, None]


def timing() -> dict[str, Any]:
    """Time the search at the size of a real study, on noise; its cost does not depend on the images."""
    draw = np.random.default_rng(SEED)
    train, held_out, samples = REAL_STUDY
    rows, columns = 128, 256
    described = np.concatenate(
        [describe(draw.normal(size=(60, rows, columns)).astype(np.float32)) for _ in range(train // 60)]
    )
    patients = [f"patient-{i // 60:04d}" for i in range(train)]
    images = draw.normal(size=(held_out + samples, rows, columns)).astype(np.float32)
    clock, cpu = time.perf_counter(), time.process_time()
    nearest_by_correlation(images, None, described, patients)
    return {
        "training_slices": train,
        "sought_slices": held_out + samples,
        "seconds": time.perf_counter() - clock,
        "cpu_seconds": time.process_time() - cpu,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def reconstruct(tokenizer: Tokenizer, images: Any) -> Any:
    """Return slices reconstructed by a tokenizer, in [-1, 1]."""
    with torch.no_grad():
        parts = [
            tokenizer(torch.from_numpy(images[i : i + 16])[:, None]).images for i in range(0, len(images), 16)
        ]
    return torch.cat(parts)[:, 0].clamp(-1, 1).numpy()


def prepared_phantom(patient: int) -> Any:
    """Return a phantom patient's slices as `slicebook prepare` makes them: upright, in [-1, 1]."""
    volume = patient_volume(patient, 0, slices=SLICES, shape=SHAPE).image
    low, high = np.percentile(volume, [0.5, 99.5])
    upright = volume.transpose(2, 1, 0)[:, ::-1, ::-1]
    return np.clip((upright - low) / (high - low) * 2 - 1, -1, 1).astype(np.float32)


def _train(data: PreparedData) -> tuple[Any, list[str]]:
    slices = data.split("train")
    shape = (slices.records[0].rows, slices.records[0].columns)
    chosen = [i for i, record in enumerate(slices.records) if (record.rows, record.columns) == shape]
    return torch.cat([slices[i] for i in chosen]).numpy(), [slices.records[i].patient for i in chosen]


def _expect_phantom(data: PreparedData) -> None:
    first, again = data.split("train")[0][0].numpy(), prepared_phantom(FIRST_CASE)[0]
    if again.shape != first.shape or np.abs(again - first).max() > 0.01:
        raise DataError(
            f"DATA is not the phantom of {SLICES} slices per patient, seed 42; prepare what `slicebook "
            "phantom` writes, for which other patients can be made"
        )


def _quantiles(values: Any) -> dict[str, float]:
    return {f"{share:g}": float(np.quantile(values, share)) for share in (0, 0.05, 0.5, 0.95, 0.99, 0.999, 1)}


def _tell(unit: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{unit} {done} of {total}", end="\n" if done == total else "", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a tokenizer's run")
    parser.add_argument("data", metavar="DATA", type=Path, help="the prepared phantom it was trained on")
    parser.add_argument("-n", type=int, default=500, help="samples a trial")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--patients", type=int, default=480, help="fresh ones, a third of them held out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", metavar="DIR", type=Path, default=machine.RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        loaded, data = load_tokenizer(options.run), PreparedData.open(options.data)
        _expect_phantom(data)
        speed = timing()
        result = measure(
            data, loaded.tokenizer.eval(), patients=options.patients, trials=options.trials, n=options.n
        )
    except SlicebookError as error:
        print(f"audit: {error}", file=sys.stderr)
        return 1
    header: Mapping[str, Any] = {
        "title": "Phantom, 256×128",
        "data": data.info.model_dump(mode="json"),
        "recipe": loaded.info.recipe.model_dump(mode="json"),
        "model_sha256": loaded.info.weights_sha256,
        "seed": SEED,
    }
    machine.write(
        options.results / "audit.json",
        machine.surroundings(options.threads) | dict(header) | result | {"speed": speed},
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
