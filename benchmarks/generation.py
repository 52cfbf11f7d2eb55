"""Judge what a prior draws beside patients that were never trained on.

    python benchmarks/generation.py RUN DATA --name phantom --title 'Phantom, 256×128' --sheets runs/sheets

RUN is a tokenizer's run with its prior (or the prior's own folder), DATA the prepared folder of both. Samples
are drawn at the positions of training slices and compared with *test* patients: texture beside what real ones
score against each other, anatomy of the masks, and a small segmenter that learns from samples alone, beside
the same one that learns from the training set. Contact sheets go to a folder outside the repository: they may
show patients.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import machine
import numpy as np
import segmenter
import torch
from torch import Tensor

from slicebook import sheets
from slicebook.checkpoint import LoadedPrior, SliceKind, load_prior
from slicebook.dataset import PreparedData, SliceSet
from slicebook.errors import ConfigError, DataError, SlicebookError
from slicebook.generating import decode_pages, draw, noise_levels, put_noise_back
from slicebook.metrics import masks
from slicebook.metrics.beside import Beside
from slicebook.metrics.generation import Comparison, compare
from slicebook.metrics.texture import CONVENTION, texture_features
from slicebook.sampling import GROUP, SamplingSettings
from slicebook.token_set import encode_slices

SEED = 42  # of the positions, of the draws of patients, and of the bootstrap
FIRST_SAMPLE = 1_000_000  # sample i is drawn from this seed + i: none that a picture was chosen by
SHOWN = 64
PELVIS = [0, 1, 2, 3, 4, 5]  # the labels that the rules of anatomy know


@dataclass(frozen=True)
class Side:
    """Slices of one size: in [-1, 1], with their masks if they have any, and whose they are."""

    images: Tensor
    masks: Tensor | None
    patients: tuple[str, ...]
    spacings: tuple[masks.Spacing, ...]


def measure(
    loaded: LoadedPrior,
    data: PreparedData,
    *,
    count: int,
    settings: SamplingSettings,
    steps: int,
    grain: bool,
    sheets_to: Path,
) -> dict[str, Any]:
    """Draw samples and judge them; write the contact sheets.

    Raises:
        ConfigError: The prior was trained on other data.
        DataError: There is no test slice of the size that is drawn.
    """
    if data.split_hash != loaded.info.provenance.split_hash:
        raise ConfigError(
            f"{data.folder}: holds other patients, or another split, than {loaded.path} was trained on"
        )
    kind = loaded.info.slices[0]
    real, train = (_read(data, name, kind) for name in ("test", "train"))
    positions = _positions(data, kind, count)
    print(f"{count} samples of {kind.rows}×{kind.columns}", file=sys.stderr)
    seeds = [FIRST_SAMPLE + index for index in range(count)]
    began = time.perf_counter()
    tokens, _ = draw(loaded, (kind.rows, kind.columns), seeds, positions, settings, progress=_count)
    seconds = time.perf_counter() - began
    page = decode_pages(loaded, tokens, (kind.rows, kind.columns))
    spacing = (kind.row_mm, kind.column_mm)
    noise = noise_levels(loaded, page.images, seeds) if grain else [0.0] * count
    images = put_noise_back(loaded, page.images, noise, seeds)
    ours = Side(images, page.masks, ("",) * count, (spacing,) * count)
    _draw_sheets(ours, real, kind, sheets_to)
    drawn = _textures(ours.images)
    beside = compare(drawn, _textures(real.images), real.patients, seed=SEED)
    layout = loaded.book.layout((kind.rows, kind.columns))
    found = {
        "samples": count,
        "settings": asdict(settings),
        "noise_put_back": float(np.mean(noise)),
        "seeds": {"first_sample": FIRST_SAMPLE, "all_else": SEED},
        "rows": kind.rows,
        "columns": kind.columns,
        "test": {"patients": len(set(real.patients)), "slices": len(real.images)},
        "sampling": {
            "seconds_a_slice": seconds / (-(-count // GROUP) * GROUP),
            "batch_size": GROUP,
            "tokens": {stage.name: len(stage) for stage in layout.stages},
            "parameters": sum(p.numel() for p in loaded.prior.parameters()),
        },
        "texture": _texture(beside),
        "tokenizer_alone": _tokenizer_alone(loaded, data, kind, real, grain),
        "anatomy": None,
        "segmenter": None,
    }
    if ours.masks is not None and real.masks is not None and train.masks is not None:
        if list(data.info.label_values) == PELVIS:
            found["anatomy"] = _anatomy(ours, real, train)
        found["segmenter"] = _segment(ours, real, train, list(data.info.label_values), steps)
    return found


def _texture(beside: Comparison) -> dict[str, Any]:
    found: dict[str, Any] = {"features": CONVENTION, "as_near_as_real": beside.as_near_as_real}
    for field in fields(beside):
        value = getattr(beside, field.name)
        found[field.name] = asdict(value) | {"share": value.share} if isinstance(value, Beside) else value
    covered = beside.covered
    return found | {"covered": None if covered is None else covered.model_dump(mode="json")}


def _read(data: PreparedData, split: Any, kind: SliceKind) -> Side:
    """Return the slices of a size; those with a mask alone, where the data have masks."""
    slices = _of_size(data, split, kind)
    images = torch.stack([slices[index] for index in range(len(slices))])
    labelled = all(record.label_offset >= 0 for record in slices.records)
    labels = torch.stack([slices.labels(i) for i in range(len(slices))]) if labelled else None
    spacings = tuple((record.row_mm, record.column_mm) for record in slices.records)
    return Side(images, labels, tuple(record.patient for record in slices.records), spacings)


def _of_size(data: PreparedData, split: Any, kind: SliceKind) -> SliceSet:
    labelled = any(record.split == split and record.label_offset >= 0 for record in data.records)
    records = data.split(split, labelled=labelled).records
    chosen = tuple(one for one in records if (one.rows, one.columns) == (kind.rows, kind.columns))
    if not chosen:
        raise DataError(f"{data.folder}: its split {split!r} holds no slice of {kind.rows}×{kind.columns}")
    return SliceSet(data.folder, chosen)


def _positions(data: PreparedData, kind: SliceKind, count: int) -> list[float]:
    """Draw positions as training slices have them."""
    known = [record.position for record in _of_size(data, "train", kind).records]
    return np.random.default_rng(SEED).choice(known, count).tolist()


def _textures(images: Tensor) -> Any:
    return texture_features(((images[:, 0].clamp(-1, 1) + 1) / 2).numpy().astype(np.float32))


def _tokenizer_alone(
    loaded: LoadedPrior, data: PreparedData, kind: SliceKind, real: Side, grain: bool
) -> dict[str, float | None]:
    """Return how far the real slices' own tokens, drawn anew, are: nearer no prior over them comes."""
    tokens = encode_slices(loaded.book, _of_size(data, "test", kind))[0].tokens[:, 0].long()
    again = decode_pages(loaded, tokens, (kind.rows, kind.columns)).images
    if grain:
        seeds = list(range(len(again)))
        again = put_noise_back(loaded, again, noise_levels(loaded, again, seeds), seeds)
    beside = compare(_textures(again), _textures(real.images), real.patients, seed=SEED)
    return {
        "kernel_distance": beside.kernel_distance.generated,
        "percentile_95": beside.kernel_distance.real_range[1],
        "coverage": beside.coverage.generated if beside.coverage else None,
    }


def _anatomy(ours: Side, real: Side, train: Side) -> dict[str, Any]:
    """Return how many masks meet the rules, beside held-out ones; the rules' ranges are the training's."""
    reference = masks.learn_reference(_maps(train), train.spacings)
    verdicts = [
        [masks.anatomy_rules(one, mm, reference) for one, mm in zip(_maps(side), side.spacings, strict=True)]
        for side in (ours, real)
    ]
    rate = masks.pass_rate(verdicts[0], verdicts[1], real.patients, seed=SEED)
    return {
        "generated": rate.generated,
        "generated_interval": _ends(rate.generated_interval),
        "real": rate.real,
        "real_interval": _ends(rate.real_interval),
        "ratio": rate.ratio,
        "by_rule": {rule: list(shares) for rule, shares in rate.by_rule.items()},
        "rules": dict(masks.RULES),
    }


def _ends(interval: Any) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def _segment(ours: Side, real: Side, train: Side, values: list[int], steps: int) -> dict[str, Any]:
    """Return the Dice of a segmenter that learned from samples, and of one that learned from patients."""
    found: dict[str, Any] = {"steps": steps, "batch_size": segmenter.BATCH, "seed": SEED}
    for name, side in (("generated", ours), ("training_set", train)):
        print(f"segmenter on {len(side.images)} pairs of {name}", file=sys.stderr)
        assert side.masks is not None
        network = segmenter.train(side.images, side.masks, values, steps=steps, seed=SEED)
        drawn = segmenter.segment(network, real.images, values)
        scores = masks.dice([one.numpy() for one in drawn], _maps(real), real.patients, values[1:], seed=SEED)
        means = [one.mean_of_patients for one in scores.values() if one.mean_of_patients is not None]
        found[name] = {
            "pairs": len(side.images),
            "labels": {str(value): one.model_dump(mode="json") for value, one in scores.items()},
            "mean": float(np.mean(means)),
        }
    theirs = found["training_set"]["mean"]
    return found | {"ratio": found["generated"]["mean"] / theirs if theirs else None}


def _maps(side: Side) -> list[Any]:
    assert side.masks is not None
    return [one.numpy() for one in side.masks]


def _draw_sheets(ours: Side, real: Side, kind: SliceKind, folder: Path) -> None:
    """Write samples left and real test slices right, none of them picked; the same with masks; a figure."""
    aspect = kind.row_mm / kind.column_mm
    chosen = np.random.default_rng(SEED).permutation(len(real.images))[:SHOWN].tolist()
    pages: dict[str, list[list[Any]]] = {"sheet": [], "sheet-masks": []}
    for side, rows in ((ours, list(range(min(SHOWN, len(ours.images))))), (real, chosen)):
        images = [side.images[row, 0].numpy() for row in rows]
        pages["sheet"].append([sheets.gray(image, aspect) for image in images])
        if ours.masks is not None and side.masks is not None:
            over = [side.masks[row].numpy() for row in rows]
            pairs = zip(images, over, strict=True)
            pages["sheet-masks"].append([sheets.tinted(image, mask, aspect) for image, mask in pairs])
    for name, page in pages.items():
        if len(page) == 2:
            sheets.write_sheet(_side_by_side(*page), folder / f"{name}.png", columns=17)
    if len(pages["sheet-masks"]) == 2:
        first = [page[0][start : start + 4] for start in (0, 4) for page in pages.values()]
        rows = [*first, pages["sheet"][1][:4]]  # samples, their masks, and again; then real ones
        sheets.write_sheet([cell for row in rows for cell in row], folder / "figure.png", columns=4)


def _side_by_side(left: list[Any], right: list[Any]) -> list[Any]:
    """Return rows of eight, a dark gap, and eight."""
    gap = np.zeros_like(left[0])
    found = []
    for start in range(0, max(len(left), len(right)), 8):
        for part in (left, right):
            row = part[start : start + 8]
            found += [*row, *[gap] * (8 - len(row)), *([gap] if part is left else [])]
    return found


def _count(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\rsample {done} of {total}", end="\n" if done == total else "", file=sys.stderr)


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
    parser.add_argument("--steps", type=int, default=600, help="of each segmenter's training")
    parser.add_argument("--grain", action=argparse.BooleanOptionalAction, default=True, help="put noise back")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", metavar="DIR", type=Path, default=machine.RESULTS)
    usual = SamplingSettings()
    for name, value in asdict(usual).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=value)
    asked = parser.parse_args(arguments)
    if not re.fullmatch(r"[a-z0-9-]+", asked.name):
        parser.error(f"--name {asked.name}: wanted small letters, digits and dashes, such as phantom-64")
    torch.set_num_threads(asked.threads)
    try:
        settings = SamplingSettings(**{name: getattr(asked, name) for name in asdict(usual)})
        loaded, data = load_prior(asked.run), PreparedData.open(asked.data)
        found = measure(
            loaded,
            data,
            count=asked.n,
            settings=settings,
            steps=asked.steps,
            grain=asked.grain,
            sheets_to=asked.sheets,
        )
    except SlicebookError as error:
        print(f"generation: {error}", file=sys.stderr)
        return 1
    info = loaded.info
    header: Mapping[str, Any] = {
        "title": asked.title or asked.name,
        "data": data.info.model_dump(mode="json"),
        "recipe": info.recipe.model_dump(mode="json"),
        "provenance": info.provenance.model_dump(mode="json"),
        "tokenizer_seconds": info.tokenizer_provenance.seconds,
        "decoder_seconds": info.decoder_provenance.seconds if info.decoder_provenance else None,
        "model_sha256": info.weights_sha256,
    }
    path = asked.results / f"generation-{asked.name}.json"
    machine.write(path, machine.surroundings(asked.threads) | dict(header) | found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
