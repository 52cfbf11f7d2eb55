"""Train contenders for the same time on the same patients, and score all on the same test patients.

    python benchmarks/quality.py DATA --other-site DATA2 --work runs --minutes 20 --threads 2
    python benchmarks/quality.py DATA --founding RUN

DATA is a prepared folder. A contender with several settings trains each for a short time; the best on
*validation* patients is trained in full and scored on test patients. Each contender is compared with JPEG
2000 and JPEG XL at its own bits. Repeating a command resumes it; with `--only`, the results of the other
contenders are kept.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import torch

from slicebook.data.dataset import PreparedData
from slicebook.data.loader import SliceBatches
from slicebook.errors import ConfigError, SlicebookError
from slicebook.evaluation.evaluate import evaluate
from slicebook.io.tensors import STATE_NAME, load_state
from slicebook.metrics import codecs
from slicebook.metrics.image_quality import CONVENTIONS, difference, summarise
from slicebook.metrics.statistics import level_use
from slicebook.models.checkpoint import LoadedTokenizer, load_tokenizer
from slicebook.recipes import load_recipe
from slicebook.training.run import TrainingOptions
from slicebook.training.tokenizer import TrainingSummary, train_tokenizer

SEED = 42  # of the bootstrap
OURS = "compact"

# Numbers of the founding document, and how they were measured.
DOCUMENT: dict[str, Any] = {
    "goal": 0.6,
    "reported": 0.6044,
    "how": "mean over 30 training slices, scikit-image's default window",
}


@dataclass(frozen=True)
class Contender:
    """A recipe and the settings to try with it; the best on validation patients is scored."""

    name: str
    recipe: str
    tries: Mapping[str, tuple[str, ...]]


# The founding architecture with the loss, augmentation and codebook sizes of `compact`.
_VQVAE2 = (
    "tokenizer.architecture=vqvae2",
    "tokenizer.code_dim=128",
    "tokenizer.width=128",
    "training.loss.level_dropout=0",
)
CONTENDERS = (
    Contender("compact", "compact", {"compact": ()}),
    Contender("detail", "detail", {"detail": ()}),
    Contender("comp3710", "comp3710", {"comp3710": ()}),
    Contender(
        "vqvae2",
        "compact",
        {
            f"vqvae2-lr-{rate}": (*_VQVAE2, f"training.learning_rate={rate}")
            for rate in ("1e-3", "3e-4", "1e-4")
        },
    ),
)


def measure(
    contender: Contender,
    sites: Mapping[str, PreparedData],
    work: Path,
    minutes: float,
    search: float,
    device: str = "cpu",
) -> dict[str, Any]:
    """Train a contender with its best settings, then score it on the test patients of all sites.

    With several settings, each is trained for `search` minutes; the best by SSIM on validation patients is
    then trained from scratch for `minutes`.
    """
    data = sites["test"]
    summaries: dict[str, TrainingSummary] = {}
    chosen = next(iter(contender.tries))
    if len(contender.tries) > 1:
        summaries = {
            name: _train(contender, name, data, work / f"{name}-search", search, device)
            for name in contender.tries
        }
        chosen = max(summaries, key=lambda name: summaries[name].scores["validation_ssim"])
    trained = _train(contender, chosen, data, work / chosen, minutes, device)
    loaded = load_tokenizer(work / chosen)
    return {
        "run": chosen,
        "training": _training(trained, loaded, data),
        "tries": {name: _training(summary, loaded, data) for name, summary in summaries.items()},
        "recipe": loaded.info.recipe.model_dump(mode="json"),
        "provenance": loaded.info.provenance.model_dump(mode="json", exclude={"validation"}),
        "training_tokens": training_tokens(loaded, data),
        **{
            site: score_reconstruction(
                loaded, site_data, work / chosen / site, with_codecs=True, device=device
            )
            for site, site_data in sites.items()
        },
    }


def _train(
    contender: Contender, name: str, data: PreparedData, run: Path, minutes: float, device: str
) -> TrainingSummary:
    budget = (f"training.max_minutes={minutes:g}", "training.epochs=100000", "training.validate_every=5")
    recipe = load_recipe(contender.recipe, [*contender.tries[name], *budget])
    print(f"{run.name}: {minutes:g} minutes", file=sys.stderr)
    return train_tokenizer(data.folder, recipe, run, TrainingOptions(device=device))


def training_tokens(loaded: LoadedTokenizer, data: PreparedData) -> list[dict[str, Any]]:
    """Return the use of each codebook on the training slices without augmentation, finest level first."""
    counts = [torch.zeros(k, dtype=torch.int64) for k in loaded.tokenizer.config.codebook_sizes]
    for batch in SliceBatches(data.split("train"), 16):
        for count, grid in zip(counts, loaded.tokenizer.encode(batch.images), strict=True):
            count += torch.bincount(grid.flatten(), minlength=len(count))
    return [
        level_use(level, count).model_dump() | {"tokens_per_code": int(count.sum()) / len(count)}
        for level, count in enumerate(counts)
    ]


def lead(folder: Path, baseline: Path) -> dict[str, Any]:
    """Return the scores of a report minus those of a baseline, per slice, with intervals by patient."""
    rows, other_rows = _slices(folder), _slices(baseline)
    gains = [difference(_scores(row), _scores(other)) for row, other in zip(rows, other_rows, strict=True)]
    summaries = summarise(gains, [row["patient"] for row in rows], SEED)
    return _bare({name: summary.model_dump(mode="json") for name, summary in summaries.items()})


def founding(
    run: Path, data: PreparedData, settings: Sequence[str] = (), device: str = "cpu"
) -> dict[str, Any]:
    """Score a finished training of `comp3710` on test patients, to compare with the document's claim.

    `settings` are those that the training changed, which only a test does.

    Raises:
        ConfigError: Another recipe, or a training that is not finished.
    """
    loaded = load_tokenizer(run)
    recipe, expected = loaded.info.recipe, load_recipe("comp3710", settings)
    if recipe.tokenizer != expected.tokenizer or recipe.training != expected.training:
        raise ConfigError(f"{run}: was trained with other settings than those of recipe comp3710")
    progress = load_state(run / STATE_NAME).progress["progress"]
    if progress["epoch"] != expected.training.epochs:
        raise ConfigError(f"{run}: is at epoch {progress['epoch']} of {expected.training.epochs}; resume it")
    return {
        "document": DOCUMENT,
        "conventions": dict(CONVENTIONS),
        "data": data.info.model_dump(mode="json"),
        "epochs": progress["epoch"],
        "best_epoch": progress["best_epoch"],
        "steps": progress["step"],
        "seconds": progress["seconds"],
        "recipe": recipe.model_dump(mode="json"),
        "provenance": loaded.info.provenance.model_dump(mode="json"),
        "training_tokens": training_tokens(loaded, data),
        "test": score_reconstruction(loaded, data, run / "test", with_codecs=False, device=device),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="DATA", type=Path, help="prepared folder to train and test on")
    parser.add_argument("--other-site", metavar="DATA2", type=Path, help="prepared folder, all of it in test")
    parser.add_argument("--name", default="test patients", help="what DATA is called in the tables")
    parser.add_argument("--other-name", default="another site", help="what DATA2 is called in the tables")
    parser.add_argument("--work", metavar="DIR", type=Path, default=Path("runs/quality"), help="for the runs")
    parser.add_argument("--minutes", type=float, default=20, help="of training, for every contender")
    parser.add_argument(
        "--search-minutes", type=float, default=5, help="of training, for each of several tries"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--only", nargs="+", choices=[contender.name for contender in CONTENDERS], metavar="NAME"
    )
    parser.add_argument(
        "--founding", metavar="RUN", type=Path, help="score this finished run of comp3710 instead"
    )
    parser.add_argument("--results", metavar="DIR", type=Path, default=machine.RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        _founding(options) if options.founding else _quality(options)
    except SlicebookError as error:
        print(f"quality: {error}", file=sys.stderr)
        return 1
    return 0


def _founding(options: argparse.Namespace) -> None:
    result = founding(options.founding, PreparedData.open(options.data))
    machine.write(
        options.results / "founding.json",
        machine.surroundings(options.threads) | {"name": options.name} | result,
    )


def _quality(options: argparse.Namespace) -> None:
    codecs.versions()  # first, because the extra may be missing and training takes hours
    sites = {"test": PreparedData.open(options.data)}
    names = {"test": options.name}
    if options.other_site:
        sites["other_site"], names["other_site"] = PreparedData.open(options.other_site), options.other_name
    header = {
        "conventions": dict(CONVENTIONS),
        "minutes": options.minutes,
        "search_minutes": options.search_minutes,
        "seed": SEED,
        "sites": {
            site: {"name": names[site], "data": site_data.info.model_dump(mode="json")}
            for site, site_data in sites.items()
        },
    }
    path = options.results / "quality.json"
    measured = _kept(path, header)
    for contender in CONTENDERS:
        if options.only and contender.name not in options.only:
            continue
        result = measure(contender, sites, options.work, options.minutes, options.search_minutes)
        measured[contender.name] = machine.surroundings(options.threads, "imagecodecs") | result
        ordered = {other.name: measured[other.name] for other in CONTENDERS if other.name in measured}
        machine.write(
            path, header | {"contenders": ordered, "lead": _leads(measured, list(sites), options.work)}
        )


def _kept(path: Path, header: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contenders that were measured before on the same data for the same time."""
    if not path.is_file():
        return {}
    before = json.loads(path.read_text(encoding="utf-8"))
    if any(before.get(key) != json.loads(json.dumps(value)) for key, value in header.items()):
        raise ConfigError(
            f"{path}: holds results of other data or minutes; remove it, or give another --results"
        )
    contenders: dict[str, Any] = before["contenders"]
    return contenders


def _leads(measured: Mapping[str, Any], sites: Sequence[str], work: Path) -> dict[str, Any]:
    """Return the gains of `compact` over each other contender, by site."""
    if OURS not in measured:
        return {}
    ours = measured[OURS]["run"]
    return {
        name: {site: lead(work / ours / site, work / contender["run"] / site) for site in sites}
        for name, contender in measured.items()
        if name != OURS
        and all((work / run / site).is_dir() for run in (ours, contender["run"]) for site in sites)
    }


def _training(summary: TrainingSummary, loaded: LoadedTokenizer, data: PreparedData) -> dict[str, Any]:
    """Return the course of a training; its time includes validation and checkpoints."""
    slices = summary.steps * min(loaded.info.recipe.training.batch_size, len(data.split("train")))
    return {
        "validation_ssim": summary.scores["validation_ssim"],
        "best_epoch": summary.best_epoch,
        "epochs": summary.epochs,
        "steps": summary.steps,
        "seconds": summary.seconds,
        "slices_seen": slices,
        "slices_per_second": slices / summary.seconds,
    }


def score_reconstruction(
    loaded: LoadedTokenizer,
    data: PreparedData,
    out: Path,
    *,
    with_codecs: bool,
    refine: int = 0,
    device: str = "cpu",
) -> dict[str, Any]:
    """Evaluate reconstruction and return the report as plain values, without the definitions of scores."""
    report = evaluate(
        loaded.path,
        data,
        out,
        parts=["reconstruction"],
        codecs=with_codecs,
        refine=refine,
        device=device,
        seed=SEED,
    )
    about = {"split", "patients", "slices", "blank_slices_skipped", "warnings"}
    assert report.reconstruction is not None
    scores = report.reconstruction.model_dump(mode="json")
    for codec in (scores["codecs"] or {}).values():
        codec["scores"], codec["advantage"] = _bare(codec["scores"]), _bare(codec["advantage"])
    return report.model_dump(mode="json", include=about) | scores | {"scores": _bare(scores["scores"])}


def _bare(summaries: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: {key: value for key, value in summary.items() if key != "convention"}
        for name, summary in summaries.items()
    }


def _slices(folder: Path) -> list[dict[str, str]]:
    with (folder / "slices.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _scores(row: Mapping[str, str]) -> dict[str, float | None]:
    return {name: float(row[name]) if row[name] else None for name in CONVENTIONS}


if __name__ == "__main__":
    sys.exit(main())
