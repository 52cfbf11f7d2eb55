"""Peak memory and seconds of every command by the size of a study: once, four and sixteen times.

    python benchmarks/scale.py --work DIR

Writes phantom studies of 40, 160 and 640 patients with 60 slices of 64×64 each, and runs check, prepare, one
epoch of the tokenizer and of the prior, the evaluation of reconstructions, and the audit for copies. Patients
are a few simulated anatomies, each moved, stretched, and with its own noise, because simulating all of them
would take longer than what is measured. The result is `results/scale.json`. Steps that were measured in DIR
are not repeated.
"""

# mypy: allow-untyped-calls
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import machine
import nibabel as nib
import numpy as np
from scipy.ndimage import affine_transform

import slicebook
from slicebook.data.dataset import PreparedData
from slicebook.phantom.simulator import FIRST_CASE, PhantomVolume, patient_volume

PATIENTS = (40, 160, 640)
SLICES, SIDE = 60, 64
VOXEL_MM = [1.5, 1.5, 3.0, 1.0]  # thick slices, so that the plane of acquisition is axial
ANATOMIES = 8
SEED = 42
SAMPLED = 0.05  # seconds between two looks at the memory
SETTINGS = (
    *("tokenizer.scaling_rates=[8, 2]", "tokenizer.codebook_sizes=[32, 16]", "tokenizer.code_dim=4"),
    *("tokenizer.width=16", "tokenizer.residual_layers=1", "training.epochs=1", "training.batch_size=64"),
    "decoder=null",
    *("prior.widths=[32]", "prior.blocks=1", "prior.embedding=16"),
    *("prior.training.epochs=1", "prior.training.num_views=1", "prior.training.batch_size=64"),
)
ON_CPU = ("--device", "cpu", "--precision", "32-true")
STEPS: dict[str, tuple[str, ...]] = {
    "check": ("check", "raw", "--json"),
    "prepare": ("prepare", "raw", "-o", "prepared"),
    "prepare, 2 processes": ("prepare", "raw", "-o", "again", "--workers", "2"),
    "tokenizer, one epoch": (
        *("train", "tokenizer", "prepared", "--recipe", "generate", "-o", "run", *SETTINGS, *ON_CPU),
    ),
    "prior, encoding and one epoch": ("train", "prior", "run", "--no-masks", *ON_CPU),
    "evaluate, reconstruction": (
        *("evaluate", "run", "prepared", "-o", "report", "--parts", "reconstruction"),
        *("--no-codecs", "--device", "cpu"),
    ),
    "evaluate, audit for copies": (
        *("evaluate", "run", "prepared", "-o", "audit", "--parts", "memorization"),
        *("-n", "100", "--steps", "4", "--device", "cpu"),
    ),
}
"""By name: the words of the command, in a folder of the size."""


def write_study(folder: Path, patients: int) -> None:
    """Write the volumes of a study and their masks, in the names of the HipMRI study."""
    folder.mkdir(parents=True, exist_ok=True)
    bases = [
        patient_volume(FIRST_CASE + number, 0, seed=SEED, slices=SLICES, shape=(SIDE, SIDE))
        for number in range(min(ANATOMIES, patients))
    ]
    for number in range(patients):
        volume = varied(bases[number % len(bases)], np.random.default_rng([SEED, number]))
        stem = f"Case_{FIRST_CASE + number:03d}_Week0"
        for name, array in (("LFOV", volume.image.astype(np.int16)), ("SEMANTIC_LFOV", volume.labels)):
            image = nib.nifti1.Nifti1Image(array, volume.affine)
            nib.save(image, folder / f"{stem}_{name}.nii.gz")


def varied(base: PhantomVolume, draw: np.random.Generator) -> PhantomVolume:
    """Return an anatomy stretched and moved in the plane, with another gain and other noise."""
    stretch = np.diag([*draw.uniform(0.9, 1.1, 2), 1.0])
    centre = (np.array(base.image.shape) - 1) / 2
    offset = centre - stretch @ (centre + np.array([*draw.uniform(-3, 3, 2), 0.0]))
    image = affine_transform(base.image, stretch, offset, order=1, mode="nearest")
    labels = affine_transform(base.labels, stretch, offset, order=0, mode="nearest")
    image = image * draw.uniform(0.7, 1.4)
    noise = 0.02 * image.max() * draw.standard_normal((2, *image.shape))
    magnitude = np.rint(np.hypot(image + noise[0], noise[1])).astype(np.float32)
    return PhantomVolume(magnitude, labels, np.diag(VOXEL_MM))


def run(folder: Path, words: Sequence[str]) -> dict[str, float]:
    """Run a command in a folder; return its seconds, and the peak memory of its processes together.

    Raises:
        SystemExit: The command fails.
    """
    source = str(Path(slicebook.__file__).parents[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": source}
    errors = folder / "errors.txt"
    with errors.open("w", encoding="utf-8") as file:
        started = os.times().elapsed
        process = subprocess.Popen(
            [sys.executable, "-m", "slicebook", *words],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=file,
        )
        ended, peak = threading.Event(), [0]
        watcher = threading.Thread(target=watch, args=(process.pid, ended, peak))
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = os.times().elapsed - started
        ended.set()
        watcher.join()
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)}: {errors.read_text(encoding='utf-8')[-2000:]}")
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mib": peak[0] / 2**20,
    }


def watch(process: int, ended: threading.Event, peak: list[int]) -> None:
    """Keep the largest resident memory of a process and its descendants until the event is set."""
    while not ended.wait(SAMPLED):
        sizes = [memory(one) for one in descendants(process)]
        together = sum(now for now, _ in sizes)
        peak[0] = max(peak[0], together, *(largest for _, largest in sizes))


def descendants(process: int) -> list[int]:
    """Return a process and all that it has started, directly or not."""
    found = [process]
    for one in found:
        try:
            lists = list(Path(f"/proc/{one}/task").glob("*/children"))
            found += [int(child) for path in lists for child in path.read_text().split()]
        except OSError:  # it has ended meanwhile  # noqa: PERF203
            continue
    return found


def memory(process: int) -> tuple[int, int]:
    """Return the resident memory of a process, and the largest that it had, in bytes; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0, 0
    sizes = {name: text.split()[0] for name, text in (line.split(":", 1) for line in lines) if "kB" in text}
    return 1024 * int(sizes.get("VmRSS", 0)), 1024 * int(sizes.get("VmHWM", 0))


def measure(work: Path, patients: int) -> dict[str, Any]:
    """Return what every step takes on a study; steps that are done are read from the folder."""
    folder = work / str(patients)
    if not (folder / "written").exists():
        write_study(folder / "raw", patients)
        (folder / "written").touch()
    steps = {}
    for number, (name, words) in enumerate(STEPS.items()):
        path = folder / f"step-{number}.json"
        if not path.exists():
            print(f"{patients} patients: {name}", file=sys.stderr, flush=True)
            machine.write(path, run(folder, words))
        steps[name] = json.loads(path.read_text(encoding="utf-8"))
    counts = PreparedData.open(folder / "prepared").info.counts
    same = all(
        (folder / "again" / path.name).read_bytes() == path.read_bytes()
        for path in (folder / "prepared").iterdir()
        if path.is_file()
    )
    return {
        "patients": patients,
        "slices": sum(count.slices for count in counts.values()),
        "training_slices": counts["train"].slices,
        "test_slices": counts["test"].slices,
        "same_bytes_with_2_processes": same,
        "steps": steps,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", metavar="DIR", type=Path, required=True, help="for the studies; kept")
    parser.add_argument("--patients", metavar="N", type=int, nargs="+", default=PATIENTS)
    parser.add_argument("--results", metavar="DIR", type=Path, default=machine.RESULTS)
    options = parser.parse_args(arguments)
    result = {
        "machine": machine.surroundings(1),
        "slices_per_patient": SLICES,
        "side": SIDE,
        "sizes": [measure(options.work, patients) for patients in options.patients],
    }
    machine.write(options.results / "scale.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
