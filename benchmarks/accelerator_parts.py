"""The parts of `accelerator.py`, each a function from a job to its result."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import quality
import speed
import starters
import torch
from synthetic import SyntheticSet

from slicebook.data.dataset import PreparedData
from slicebook.devices import choose_precision
from slicebook.errors import ConfigError
from slicebook.io.tensors import STATE_NAME, load_state
from slicebook.models.checkpoint import load_tokenizer
from slicebook.phantom.simulator import patient_volume
from slicebook.recipes import load_recipe, recipe_names
from slicebook.training.run import TrainingOptions
from slicebook.training.tokenizer import train_tokenizer

GOAL = quality.DOCUMENT["goal"]  # SSIM
# As many slices as the founding study: 11,460 of training.
FOUNDING = SyntheticSet((573, 27, 27), slices=20, shape=(256, 128), seed=42, simulate=patient_volume)


@dataclass(frozen=True)
class Sizes:
    """How large the parts are. Recipes are trained with `settings` besides their own."""

    tests: tuple[str, ...] = ("tests",)
    """Arguments of pytest."""
    speed: speed.Sizes = speed.SIZES
    seconds: float = 3
    """For each comparison of speeds."""
    recipes: tuple[str, ...] = recipe_names()
    """Those whose training, reconstruction and sampling are timed."""
    founding: SyntheticSet = FOUNDING
    starters: SyntheticSet = starters.IMAGES
    minutes: float = 2.5
    """Of each training on real patients."""
    settings: tuple[str, ...] = ()
    founding_settings: tuple[str, ...] = ()


FULL = Sizes()
_SMALL = (
    *("tokenizer.width=16", "tokenizer.code_dim=8", "tokenizer.codebook_sizes=[16, 8, 4]"),
    *("tokenizer.quantizer.kmeans_slices=4", "training.batch_size=4", "training.epochs=2"),
)
_FEW = replace(FOUNDING, patients=(2, 1, 1), slices=4, shape=(64, 32))
TINY = Sizes(
    tests=("tests/training/test_gpu.py", "-k", "trains and 32"),
    speed=speed.Sizes(1024, (64,), (8,), (32,), batch=2, slice=(32, 16), labels=2),
    seconds=0,
    recipes=("compact",),
    founding=_FEW,
    starters=_FEW,  # random volumes take seconds each
    minutes=0.01,
    settings=_SMALL,
    founding_settings=(*_SMALL, "tokenizer.residual_width=8", "tokenizer.resize=[64, 64]"),
)


@dataclass(frozen=True)
class Job:
    """What all parts are given."""

    device: torch.device
    work: Path
    data: tuple[Path, ...]
    processes: int
    sizes: Sizes

    def patients(self, pixels: int) -> PreparedData | None:
        """Return the prepared folder whose slices have `pixels` along their longer side."""
        for folder in self.data:
            opened = PreparedData.open(folder)
            if max(opened.records[0].rows, opened.records[0].columns) == pixels:
                return opened
        return None


Part = Callable[[Job], dict[str, Any]]


def environment(job: Job) -> dict[str, Any]:
    """Return what the device can do; hardware and versions are part of every result."""
    return {"device": str(job.device), "auto_precision": choose_precision("auto", job.device)}


def tests(job: Job) -> dict[str, Any]:
    """Run the tests marked `gpu`.

    Raises:
        ConfigError: A test failed, or none ran.
    """
    report = job.work / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    status = subprocess.run(
        [*command, f"--junitxml={report}", *job.sizes.tests],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"SLICEBOOK_TEST_DEVICE": job.device.type},
        check=False,
    ).returncode
    if status:
        raise ConfigError(f"tests of the GPU path: pytest ended with status {status}; see its output above")
    cases = ElementTree.parse(report).getroot().iter("testcase")
    return {"passed": sorted(str(case.get("name")) for case in cases)}


def speed_and_memory(job: Job) -> dict[str, Any]:
    """Time quantizers, networks, samplers and every recipe, beside the peers that are installed."""
    torch.manual_seed(speed.SEED)
    seconds, device, sizes = job.sizes.seconds, job.device, job.sizes.speed
    precision = choose_precision("auto", device) or "32-true"
    names = job.sizes.recipes
    sampling = {name: speed.generation(seconds, device, sizes, name) for name in names}
    return {
        "seed": speed.SEED,
        "seconds_per_comparison": seconds,
        "quantizers": speed.quantizers(seconds, None, device, sizes),
        "networks": speed.networks(seconds, precision, device, sizes),
        "recipes": speed.recipes(names, seconds, precision, device, sizes),
        "sampling": sampling,
    }


def comp3710(job: Job) -> dict[str, Any]:
    """Train `comp3710` in full on as many phantom slices as the founding study has, and score it."""
    work, settings = job.work / "comp3710", job.sizes.founding_settings
    data = job.sizes.founding.prepared(work, job.processes)
    recipe = load_recipe("comp3710", settings)
    train_tokenizer(data, recipe, work / "run", TrainingOptions(device=job.device.type))
    curve = held_out_curve(work / "run")
    result = quality.founding(work / "run", PreparedData.open(data), settings, job.device.type)
    return result | {"curve": curve, "goal_step": passing_step(curve, GOAL)}


def held_out_curve(run: Path) -> list[dict[str, float]]:
    """Return step, seconds and SSIM of validation patients at each validation of a training."""
    history = load_state(run / STATE_NAME).progress["progress"]["history"]
    return [{key: row[key] for key in ("step", "seconds", "validation_ssim")} for row in history]


def passing_step(curve: Sequence[Mapping[str, float]], goal: float) -> float | None:
    """Return the step of the first validation whose SSIM is above the goal; None if there is none."""
    return next((row["step"] for row in curve if row["validation_ssim"] > goal), None)


def starter(name: str, job: Job) -> dict[str, Any]:
    """Train a starter; its score on real patients is added if there are any of 128 pixels."""
    work = job.work / "starters"
    settings = (*starters.SETTINGS, *job.sizes.settings)
    chosen = starters.Starter(name, job.sizes.starters, settings=settings)
    trained = starters.train(chosen, work, device=job.device.type, processes=job.processes)
    loaded, data = load_tokenizer(work / name), job.patients(128)
    return {
        "steps": trained.steps,
        "epochs": trained.epochs,
        "seconds": trained.seconds,
        "curve": held_out_curve(work / name),
        "provenance": loaded.info.provenance.model_dump(mode="json"),
        "weights_sha256": loaded.info.weights_sha256,
        "zero_shot": starters.score(chosen, work, data, {}) if data else None,
    }


def promise12(pixels: int, name: str, job: Job) -> dict[str, Any]:
    """Train a recipe on real patients for a few minutes and score it on others, beside the codecs."""
    data = job.patients(pixels)
    assert data is not None  # the part would be skipped
    contender = quality.Contender(name, name, {name: job.sizes.settings})
    work = job.work / f"promise12-{pixels}"
    measured = quality.measure(contender, {"test": data}, work, job.sizes.minutes, 0, job.device.type)
    return {"minutes": job.sizes.minutes, "data": data.info.model_dump(mode="json")} | measured


RECIPES = ("compact", "detail")
PIXELS = (128, 256)
PARTS: dict[str, Part] = {
    "environment": environment,
    "tests": tests,
    "speed": speed_and_memory,
    "comp3710": comp3710,
    **{f"starter-{name}": partial(starter, name) for name in RECIPES},
    **{f"promise12-{side}-{name}": partial(promise12, side, name) for side in PIXELS for name in RECIPES},
}
"""In the order in which they run."""


def reason_to_skip(name: str, job: Job) -> str | None:
    """Return why a part cannot run with these options."""
    for pixels in PIXELS:
        if name.startswith(f"promise12-{pixels}") and job.patients(pixels) is None:
            return f"no folder of --data has slices of {pixels} pixels"
    return None
