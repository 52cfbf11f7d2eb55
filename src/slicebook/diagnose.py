"""Eight numbers that tell early, in minutes, whether generation will work; and the pictures to them."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from slicebook import pictures, sheets, text
from slicebook.baselines import free_baselines
from slicebook.book import Book
from slicebook.checkpoint import MODEL_NAME, LoadedPrior, load_prior, load_tokenizer
from slicebook.config import PriorConfig
from slicebook.dataset import PreparedData, SliceSet
from slicebook.devices import choose_device
from slicebook.errors import ConfigError, DataError
from slicebook.layouts import Split
from slicebook.likelihood import likelihood
from slicebook.manifest import SliceRecord
from slicebook.metrics.distances import kernel_distance, standardise
from slicebook.metrics.generation import kernel_distance_floor
from slicebook.metrics.texture import texture_features
from slicebook.prior_training import find_data
from slicebook.probes import (
    OVERFIT_SLICES,
    brittleness,
    copies,
    hierarchy,
    learning,
    noise_flips,
    overfit,
    thumbnails,
)
from slicebook.sampling import SamplingSettings, sample
from slicebook.symptoms import (
    Brittleness,
    Copies,
    Hierarchy,
    Learning,
    NoiseFlips,
    Overfit,
    Resampled,
    Row,
    StageCost,
)
from slicebook.synthesis import decode_pages, draw
from slicebook.tensor_file import hash_tensors
from slicebook.token_set import TokenSet, encode_slices

MOST_JUDGED, MOST_LEARNED = 128, 2048  # slices of validation and of training
RESAMPLED, SAMPLES = 32, 16
ORDERS = 2  # of drawing, for the likelihood
SHOWN = 8  # slices a row of a sheet
LEVELS_SHOWN = 4
SECONDS = 60.0


@dataclass(frozen=True)
class Diagnosis:
    """The eight numbers, on validation patients; None where there is no prior, or nothing to measure.

    Attributes:
        size: Rows and columns of the slices: the most frequent ones of the training.
        slices: Validation slices judged, at most 128, spread over their patients.
        patients: Of those.
        training_slices: That counts and neighbours come from, at most 2048, spread over their patients.
        noise_flips: 1, tokens that noise flips.
        brittleness: 2, what near codes cost.
        hierarchy: 3, what coarser tokens tell of the finest.
        costs: 4, of each stage, without a network and under the prior.
        resampled: 5, each stage of the slice drawn anew, the others kept.
        overfit: 6, whether a fresh prior can learn a few slices by heart.
        learning: 7, validation nats against the training tokens seen.
        copies: 8, nearest training slices.
    """

    size: tuple[int, int]
    slices: int
    patients: int
    training_slices: int
    noise_flips: NoiseFlips
    brittleness: Brittleness
    hierarchy: Hierarchy | None
    costs: tuple[StageCost, ...]
    resampled: tuple[Resampled, ...]
    overfit: Overfit | None
    learning: Learning | None
    copies: Copies | None

    def table(self) -> list[Row]:
        """Return what was measured as rows of text: number, what was found, what it should be, verdict."""
        found: list[Row] = [("", "found", "should be", "verdict")]
        for one in (self.noise_flips, self.brittleness, self.hierarchy, *self.costs, *self.resampled):
            found += [] if one is None else one.rows()
        if self.resampled:
            broken = next((one.stage for one in self.resampled if one.breaks), "none")
            found.append(("5 the first stage that breaks", broken, "none", ""))
        for later in (self.overfit, self.learning, self.copies):
            found += [] if later is None else later.rows()
        if self.copies is None:
            found.append(("3, 5, 7, 8", "–", "", "want a prior: slicebook train prior RUN"))
        return found


@dataclass(frozen=True)
class _Split:
    """Some slices of one size, and their tokens."""

    slices: SliceSet
    tokens: TokenSet

    @property
    def rows(self) -> Int64[Tensor, "b n"]:
        return self.tokens.tokens[:, 0].long()

    @property
    def patients(self) -> list[str]:
        return [record.patient for record in self.slices.records]


def diagnose(
    run: str | Path,
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    overfit_seconds: float = SECONDS,
    device: str = "auto",
    seed: int = 0,
    say: Callable[[str], None] | None = None,
) -> Diagnosis:
    """Measure the eight numbers, or those that need no prior where `run` holds none.

    `out` receives `diagnosis.json`, `levels.png` (what each level decides) and, with a prior, `resampled.png`
    (real tokens; each stage drawn anew; all drawn) and `nearest.png` (samples, and under each its nearest
    training slice).

    Args:
        run: Folder of a tokenizer's training, or of a demo; its prior is that in `run`/prior.
        data: The prepared folder, where it is no longer where the tokenizer's training found it.
        out: Folder for the pictures, made if missing.
        overfit_seconds: For number 6, at most; 0 leaves it out.
        device: auto, cpu, cuda or mps.
        seed: Of all that is drawn; sample i is drawn from seed + i.
        say: Called with each part as it begins.

    Raises:
        CheckpointError: There is no trained tokenizer, or a damaged file.
        ConfigError: Other data than the tokenizer's, or a prior of another tokenizer.
        DataError: The prepared folder is not there, or holds no validation slice of the training's size.
    """
    if overfit_seconds < 0:
        raise ConfigError(f"{overfit_seconds:g} seconds to overfit: wanted 0 (left out) or more")
    tell = say or (lambda line: None)
    where = choose_device(device)
    tokenizer = load_tokenizer(run, where)
    opened = find_data(tokenizer, data)
    loaded = _prior(tokenizer.path.parent / "prior", hash_tensors(tokenizer.tokenizer.token_state()), where)
    book = loaded.book if loaded else Book(tokenizer.tokenizer)
    tell("slices to tokens")
    judged, learned = (_split(opened, name, book, where) for name in ("validation", "train"))
    images = torch.stack([judged.slices[index] for index in range(len(judged.slices))])
    folder = Path(out) if out is not None else None
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        _draw_levels(book, judged, images, folder / "levels.png")
    tell("1 and 2: noise, and near codes")
    flips, swaps = noise_flips(book.images, images, seed), brittleness(book.images, images, seed)
    tell("4: counts")
    costs = _costs(judged, learned, loaded, seed)
    fit = None
    if overfit_seconds:
        tell("6: a fresh prior")
        recipe = (loaded.info if loaded else tokenizer.info).recipe
        fit = _overfit(recipe.prior, book, learned, overfit_seconds, seed)
    asked = _ask(loaded, judged, learned, folder, seed, tell) if loaded else _Asked()
    found = Diagnosis(
        size=judged.tokens.size,
        slices=len(judged.slices),
        patients=len(judged.slices.patients),
        training_slices=len(learned.slices),
        noise_flips=flips,
        brittleness=swaps,
        hierarchy=asked.hierarchy,
        costs=costs,
        resampled=asked.resampled,
        overfit=fit,
        learning=asked.learning,
        copies=asked.copies,
    )
    if folder:
        (folder / "diagnosis.json").write_text(text.to_json(found) + "\n", encoding="utf-8")
    return found


@dataclass(frozen=True)
class _Asked:
    """What a trained prior alone can tell; fields as in `Diagnosis`."""

    hierarchy: Hierarchy | None = None
    resampled: tuple[Resampled, ...] = ()
    learning: Learning | None = None
    copies: Copies | None = None


def _ask(
    loaded: LoadedPrior,
    judged: _Split,
    learned: _Split,
    folder: Path | None,
    seed: int,
    tell: Callable[[str], None],
) -> _Asked:
    """Measure the numbers 3, 5, 7 and 8."""
    size, layout, conditions = judged.tokens.size, judged.tokens.layout, judged.tokens.conditions
    tell("3: own coarse tokens, and strangers'")
    chain = hierarchy(loaded.prior, layout, judged.rows, conditions, judged.patients, seed)
    tell("5: stages drawn anew")
    real = decode_pages(loaded, judged.rows, size).images
    resampled, drawn = _resample(loaded, judged, real, seed)
    tell("7 and 8: curve, and nearest training slices")
    samples = _samples(loaded, size, seed)
    training = decode_pages(loaded, learned.rows, size).images
    small, likely = thumbnails(training), thumbnails(samples)
    if folder:
        _draw_rows([real, *drawn, samples], folder / "resampled.png", _aspect(judged))
        nearest = training[(likely @ small.T).argmax(1)]
        _draw_rows([samples, nearest], folder / "nearest.png", _aspect(judged))
    return _Asked(
        chain,
        resampled,
        _learning(loaded, layout.starts[-1]),
        copies(likely, thumbnails(real), small, learned.patients),
    )


def _prior(folder: Path, token_hash: str, device: torch.device) -> LoadedPrior | None:
    if not (folder / MODEL_NAME).is_file():
        return None
    loaded = load_prior(folder, device)
    if hash_tensors(loaded.book.images.token_state()) != token_hash:
        raise ConfigError(
            f"{folder}: its prior was trained on the tokens of another tokenizer than the one beside it; "
            "move it away, or train a prior again"
        )
    return loaded


def _split(data: PreparedData, name: Split, book: Book, device: torch.device) -> _Split:
    """Return slices of the training's most frequent size, with their tokens."""
    sizes = Counter((record.rows, record.columns) for record in data.split("train").records)
    size, _ = sizes.most_common(1)[0]
    of_size = [record for record in data.split(name).records if (record.rows, record.columns) == size]
    if not of_size:
        raise DataError(
            f"{data.folder}: its split {name!r} holds no slice of {size[0]}×{size[1]} pixels, as most "
            "training slices have; prepare it with one --size"
        )
    chosen = spread(of_size, MOST_LEARNED if name == "train" else MOST_JUDGED)
    slices = SliceSet(data.folder, tuple(chosen))
    return _Split(slices, encode_slices(book, slices, device=device)[0])


def _overfit(config: PriorConfig, book: Book, learned: _Split, seconds: float, seed: int) -> Overfit:
    few = _even(len(learned.slices), OVERFIT_SLICES)
    tokens, conditions = learned.rows[few], learned.tokens.conditions[few]
    layout = learned.tokens.layout
    return overfit(config, book.codebooks, layout, tokens, conditions, seconds=seconds, seed=seed)


def spread(records: list[SliceRecord], most: int) -> list[SliceRecord]:
    """Return at most so many slices, as many of each patient, evenly along it."""
    patients = sorted({record.patient for record in records})
    patients = [patients[i] for i in _even(len(patients), most).tolist()]
    found = []
    for patient in patients:
        own = [record for record in records if record.patient == patient]
        found += [own[i] for i in _even(len(own), most // len(patients)).tolist()]
    return found


def _even(count: int, most: int) -> Int64[Tensor, " n"]:
    """Return at most so many indices, evenly from first to last."""
    return torch.from_numpy(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _costs(judged: _Split, learned: _Split, loaded: LoadedPrior | None, seed: int) -> tuple[StageCost, ...]:
    """Return what the tokens of each stage cost; a slice without a mask has none of its tokens."""
    layout, tokens = judged.tokens.layout, judged.rows
    nats = None
    if loaded:
        conditions = judged.tokens.conditions
        nats = likelihood(loaded.prior, layout, tokens, conditions, orders=ORDERS, seed=seed).nats
    found = []
    for index, stage in enumerate(layout.stages):
        part = layout.part(index)
        sides = []
        for rows in (learned.rows[:, part], tokens[:, part]):
            known = rows[(rows < stage.size).all(1)]
            sides.append(known.view(-1, stage.rows, stage.columns).numpy())
        if all(len(side) for side in sides):
            known = tokens[:, part] < stage.size
            under = None if nats is None else float(nats[:, part][known].mean())
            found.append(StageCost(stage.name, free_baselines(sides[0], sides[1], stage.size), under))
    return tuple(found)


def _resample(
    loaded: LoadedPrior, judged: _Split, real: Float[Tensor, "b 1 h w"], seed: int
) -> tuple[tuple[Resampled, ...], list[Float[Tensor, "m 1 h w"]]]:
    """Draw one stage of the slice at a time, all others real; return what that does, and its pictures."""
    layout, rows = judged.tokens.layout, _even(len(real), RESAMPLED)
    seeds = list(range(seed, seed + len(rows)))
    raw = _texture(real)
    usual = standardise(raw, raw)
    floor = None
    if len(judged.slices.patients) > 1:
        floor = kernel_distance_floor(usual, judged.patients, len(rows), seed=seed).percentile_95
    found, drawn = [], []
    for index, stage in enumerate(layout.stages):
        if stage.kind == "mask":
            continue
        keep = torch.ones(len(rows), layout.starts[-1], dtype=torch.bool)
        keep[:, layout.part(index)] = False
        tokens = sample(
            loaded.prior,
            layout,
            seeds,
            judged.tokens.conditions[rows],
            SamplingSettings(),
            given=judged.rows[rows],
            keep=keep,
        )
        images = decode_pages(loaded, tokens, judged.tokens.size).images
        distance = kernel_distance(standardise(_texture(images), raw), usual[rows.numpy()])
        found.append(Resampled(stage.name, distance, floor))
        drawn.append(images)
    return tuple(found), drawn


def _texture(images: Float[Tensor, "b 1 h w"]) -> Float64[np.ndarray, "b f"]:
    return texture_features(((images[:, 0].clamp(-1, 1) + 1) / 2).numpy().astype(np.float32))


def _samples(loaded: LoadedPrior, size: tuple[int, int], seed: int) -> Float[Tensor, "b 1 h w"]:
    """Draw slices spread evenly along the volume."""
    positions = np.linspace(0, 1, SAMPLES).tolist()
    tokens, _ = draw(loaded, size, list(range(seed, seed + SAMPLES)), positions, SamplingSettings())
    return decode_pages(loaded, tokens, size).images


def _learning(loaded: LoadedPrior, tokens: int) -> Learning | None:
    path = loaded.path.parent / "metrics.csv"
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        history = list(csv.DictReader(file))
    return learning(history, loaded.info.recipe.prior.training.batch_size * tokens)


def _aspect(split: _Split) -> float:
    record = split.slices.records[0]
    return record.row_mm / record.column_mm


def _draw_levels(book: Book, judged: _Split, images: Float[Tensor, "b 1 h w"], path: Path) -> None:
    few = _even(len(images), LEVELS_SHOWN)
    tokens = judged.rows[few].to(next(book.images.parameters()).device)
    partials = [
        list(book.decode(tokens, judged.tokens.size, levels=levels).images[:, 0].cpu())
        for levels in range(1, book.images.levels + 1)
    ]
    caption = "What each level decides, finer ones at their mean code; the first should show the organs"
    pictures.levels(list(images[few, 0]), partials, path, aspect=_aspect(judged), caption=caption)


def _draw_rows(rows: list[Float[Tensor, "_ 1 h w"]], path: Path, aspect: float) -> None:
    """Draw some slices of each set in a row of its own."""
    count = min(SHOWN, *(len(images) for images in rows))
    shown = [images[_even(len(images), count)] for images in rows]
    panels = [sheets.gray(image[0].numpy(), aspect) for images in shown for image in images]
    sheets.write_sheet(panels, path, columns=count)
