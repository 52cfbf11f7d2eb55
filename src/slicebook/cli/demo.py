"""The demo: phantom data, preparation, training, reconstruction, generation and evaluation."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from slicebook import text
from slicebook.config import Recipe
from slicebook.data.dataset import PreparedData
from slicebook.data.prepare import prepare
from slicebook.devices import choose_device
from slicebook.errors import DataError
from slicebook.evaluation.evaluate import evaluate
from slicebook.evaluation.report import Evaluation
from slicebook.inference.generate import GenerateSummary, generate
from slicebook.inference.reconstruct import ReconstructSummary, reconstruct
from slicebook.io.atomic import replacing_folder, write_text
from slicebook.io.nifti import write_nifti
from slicebook.phantom import simulator
from slicebook.reporting.html import PAGE_NAME, write_page
from slicebook.training.generator import GeneratorSummary, train_generator
from slicebook.training.run import TrainingOptions
from slicebook.training.tokenizer import TrainingSummary, train_tokenizer
from slicebook.version import __version__

PATIENTS = (20, 4, 6)  # in train, validation and test
SLICES = 12  # per patient
SEGMENTER_STEPS = 100
SAMPLES = 64
SHAPE = (256, 128)  # pixels left-right and front-back, as in the HipMRI study
STARTER = "starter:generate"
FROM_SCRATCH = (
    "training.learning_rate=1e-3",
    "training.max_minutes=10",
    "labels.training.learning_rate=2e-3",
    "labels.training.max_minutes=2",
    "prior.training.learning_rate=1e-3",
    "prior.training.max_minutes=20",
    "decoder.training.learning_rate=2e-3",
    "decoder.training.max_minutes=12",
)
"""Settings of the recipe `demo` for a training from random weights."""


@dataclass(frozen=True)
class DemoSummary:
    """What the demo wrote, and how long this call took."""

    folder: Path
    training: TrainingSummary
    reconstruction: ReconstructSummary
    generator: GeneratorSummary
    generation: GenerateSummary
    evaluation: Evaluation
    seconds: float


def run_demo(
    out: str | Path,
    recipe: Recipe,
    *,
    start_from: str | Path | None = STARTER,
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> DemoSummary:
    """Run every step on phantom patients, from volumes to scores on held-out patients.

    An interrupted demo resumes with the same call; finished steps are kept.

    Args:
        out: New or empty folder, or that of a demo with the same settings.
        recipe: Settings of all models; its seed is used for the phantom too.
        start_from: Model that all trainings start from; None starts from random weights.
        device: auto, cpu, cuda or mps.
        say: Called with one line per step.

    Raises:
        DataError: `out` is not empty and is not a demo, or is a demo with other settings.
    """
    began, computing = time.perf_counter(), choose_device(device)
    # Which precision is faster would be measured for longer than these trainings could gain by it.
    precision = "32-true" if computing.type == "cpu" else "auto"
    options = TrainingOptions(device=device, precision=precision, start_from=start_from)
    out, seed = Path(out), recipe.training.seed
    _mark_folder(out, recipe, start_from)
    data, prepared, run = out / "phantom", out / "prepared", out / "run"
    held_out = out / "held-out.nii.gz"

    say(f"1/7 phantom      {sum(PATIENTS)} patients, {SLICES} slices each → {data}")
    _make_patients(data, held_out, seed)
    say(f"2/7 prepare      → {prepared}")
    if not (prepared / "dataset.json").is_file():
        prepare(data, prepared)
    start = "random weights" if start_from is None else start_from
    say(f"3/7 train        recipe {recipe.name}, from {start} → {run}")
    training = train_tokenizer(prepared, recipe, run, options)
    say(f"4/7 reconstruct  {held_out} → {out / 'reconstruction'}")
    reconstruction = reconstruct(run, held_out, out / "reconstruction", device=device)
    say(f"5/7 generator    masks, prior, decoder → {run / 'prior'}")
    generator = train_generator(run, data=prepared, options=options)
    say(f"6/7 generate     {SAMPLES} slices with masks → {out / 'generated'}")
    for name in ("generated", "generated.partial"):  # may be from a prior that was since retrained
        shutil.rmtree(out / name, ignore_errors=True)
    generation = generate(run, out / "generated", count=SAMPLES, seed=seed, device=device)
    say(f"7/7 evaluate     {PATIENTS[2]} test patients → {out / 'evaluation' / PAGE_NAME}")
    evaluation = evaluate(
        run,
        PreparedData.open(prepared),
        out / "evaluation",
        steps=SEGMENTER_STEPS,
        device=computing,
        seed=seed,
    )
    write_page(out / "evaluation")
    write_text(out / "table.txt", text.table(evaluation.table()) + "\n")
    seconds = time.perf_counter() - began
    return DemoSummary(out, training, reconstruction, generator, generation, evaluation, seconds)


def _mark_folder(out: Path, recipe: Recipe, start_from: str | Path | None) -> None:
    """Create the file that marks a folder as this demo's, or check it."""
    mark = out / "demo.json"
    settings = {
        "slicebook_version": __version__,
        "recipe": recipe.model_dump(mode="json"),
        "start_from": None if start_from is None else str(start_from),
    }
    if mark.is_file():
        if json.loads(mark.read_text(encoding="utf-8")) != settings:
            raise DataError(f"{out}: contains a demo with other settings; remove it or choose another --out")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists and is not a demo; choose another --out")
    else:
        write_text(mark, json.dumps(settings, indent=2) + "\n")


def _make_patients(data: Path, held_out: Path, seed: int) -> None:
    """Write the data set, and the first test patient as a volume too."""
    if not data.is_dir():
        with replacing_folder(data) as partial:
            simulator.write_hipmri(partial, patients=PATIENTS, weeks=1, slices=SLICES, seed=seed, shape=SHAPE)
    if not held_out.is_file():
        first_test = simulator.FIRST_CASE + PATIENTS[0] + PATIENTS[1]
        volume = simulator.patient_volume(first_test, 0, seed=seed, slices=SLICES, shape=SHAPE)
        write_nifti(held_out, volume.image, affine=volume.affine)
