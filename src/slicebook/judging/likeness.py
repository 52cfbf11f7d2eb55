"""How like real slices a prior's samples are, beside patients that were never trained on.

Samples are drawn at positions of training slices, and compared with held-out slices of the same size: on
features, by the rules of anatomy for their masks, and beside what the tokenizer alone makes of the same
held-out slices, for no prior over it comes nearer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, UInt8
from torch import Tensor

from slicebook.checkpoint import LoadedPrior, SliceKind
from slicebook.config import Record
from slicebook.dataset import PreparedData, SliceSet
from slicebook.errors import ConfigError, DataError
from slicebook.generating import decode_pages, draw, noise_levels, put_noise_back
from slicebook.layouts import Split
from slicebook.metrics import deep, masks, texture
from slicebook.metrics.appearance import Curves, compare_intensities, compare_spectra
from slicebook.metrics.diversity import Diversity, compare_diversity
from slicebook.metrics.generation import Comparison, compare
from slicebook.metrics.masks import Spacing
from slicebook.sampling import GROUP, SamplingSettings
from slicebook.token_set import encode_slices

FIRST_SAMPLE = 1_000_000  # sample i is drawn from this seed + i: none that a picture was chosen by
PELVIS = (0, 1, 2, 3, 4, 5)  # the labels that the rules of anatomy know

Describe: TypeAlias = Callable[[Float32[np.ndarray, "n h w"]], Float64[np.ndarray, "n f"]]


@dataclass(frozen=True)
class Side:
    """Slices of one size, to be compared with others.

    Attributes:
        images: In [-1, 1].
        masks: Label values, where the data have masks.
        patients: Whose each is; empty for samples.
        spacings: Height and width of each one's pixels, in mm.
        seeds: What each sample was drawn from; empty for real slices.
    """

    images: Float[Tensor, "n 1 h w"]
    masks: UInt8[Tensor, "n h w"] | None
    patients: tuple[str, ...]
    spacings: tuple[Spacing, ...]
    seeds: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def label_maps(self) -> list[UInt8[np.ndarray, "h w"]]:
        """Return the masks as arrays; none where there are none."""
        return [] if self.masks is None else [one.numpy() for one in self.masks]


class Drawing(Record):
    """How samples were drawn."""

    samples: int
    rows: int
    columns: int
    settings: dict[str, float]
    first_seed: int
    """Sample i was drawn from this seed + i."""
    noise_put_back: float
    """Mean level, on [-1, 1]; 0 where none was put back."""
    seconds_a_slice: float
    """At groups of 16, without decoding."""
    tokens: dict[str, int]
    """Of each grid of a slice."""
    parameters: int


class Anatomy(Record):
    """How many masks meet the rules of anatomy, whose ranges are the training set's."""

    generated: float
    generated_interval: tuple[float, float] | None
    real: float
    real_interval: tuple[float, float] | None
    ratio: float | None
    by_rule: dict[str, tuple[float | None, float | None]]
    rules: dict[str, str]


class Features(Record):
    """Samples beside held-out slices, as one kind of features sees them."""

    convention: str
    samples: Comparison
    tokenizer_alone: Comparison
    """The held-out slices' own tokens, drawn anew: nearer than that no prior over them comes."""


class Likeness(Record):
    """Samples beside held-out slices of the same size."""

    drawing: Drawing
    held_out_patients: int
    held_out_slices: int
    features: dict[str, Features]
    """By name: `texture`, and `efficientnet-lite0` where its weights are installed."""
    diversity: Diversity
    spectrum: Curves
    intensity: Curves
    anatomy: Anatomy | None
    """None without masks of a pelvis."""


def measure_likeness(
    loaded: LoadedPrior,
    data: PreparedData,
    split: Split,
    ours: Side,
    real: Side,
    drawing: Drawing,
    *,
    seed: int,
    say: Callable[[str], None] = lambda _: None,
) -> Likeness:
    """Compare samples with held-out slices, and with what the tokenizer alone makes of those.

    Args:
        loaded: The prior that drew the samples.
        data: What it was trained on.
        split: That the held-out slices are of.
        ours: The samples, as `draw_side` makes them.
        real: The held-out slices, as `read_side` reads them.
        drawing: How the samples were drawn.
        seed: Of every draw of patients, and of the bootstrap.
        say: Called before each part.

    Raises:
        DataError: There are fewer than 2 held-out patients.
    """
    say(f"{len(ours)} samples beside {len(real)} slices of {len(set(real.patients))} patients")
    again = redraw(loaded, data, split, grain=drawing.noise_put_back > 0)
    sets = [unit(images) for images in (ours.images, again, real.images)]
    kinds: dict[str, tuple[str, Describe, bool]] = {
        "texture": (texture.CONVENTION, texture.texture_features, False)
    }
    if deep.installed():
        kinds[deep.NAME] = (deep.CONVENTION, deep.deep_features, True)
    features = {}
    for name, (convention, describe, one_unit) in kinds.items():
        say(f"{name} of {sum(map(len, sets))} slices")
        samples, redrawn, theirs = (describe(one) for one in sets)
        features[name] = Features(
            convention=convention,
            samples=compare(samples, theirs, real.patients, seed=seed, one_unit=one_unit),
            tokenizer_alone=compare(redrawn, theirs, real.patients, seed=seed, one_unit=one_unit),
        )
    say("diversity, spectra, intensities, anatomy")
    anatomy = None
    if ours.masks is not None and real.masks is not None and data.info.label_values == PELVIS:
        train = read_side(data, "train", (drawing.rows, drawing.columns))
        anatomy = judge_anatomy(ours, real, train, seed=seed)
    return Likeness(
        drawing=drawing,
        held_out_patients=len(set(real.patients)),
        held_out_slices=len(real),
        features=features,
        diversity=compare_diversity(sets[0], sets[2], real.patients, seed=seed),
        spectrum=compare_spectra(sets[0], sets[2], real.patients, seed=seed),
        intensity=compare_intensities(sets[0], sets[2], real.patients, seed=seed),
        anatomy=anatomy,
    )


def unit(images: Float[Tensor, "n 1 h w"]) -> Float32[np.ndarray, "n h w"]:
    """Return slices in [-1, 1] as arrays in [0, 1], clipped."""
    return np.asarray(((images[:, 0].clamp(-1, 1) + 1) / 2).numpy(), dtype=np.float32)


def read_side(data: PreparedData, split: Split, size: tuple[int, int]) -> Side:
    """Return a split's slices of a size; where the data have masks, those with one.

    Raises:
        DataError: There is none.
    """
    slices = of_size(data, split, size)
    images = torch.stack([slices[index] for index in range(len(slices))])
    labelled = all(record.label_offset >= 0 for record in slices.records)
    labels = torch.stack([slices.labels(i) for i in range(len(slices))]) if labelled else None
    spacings = tuple((record.row_mm, record.column_mm) for record in slices.records)
    return Side(images, labels, tuple(record.patient for record in slices.records), spacings)


def of_size(data: PreparedData, split: Split, size: tuple[int, int]) -> SliceSet:
    """Return a split's slices of a size; where some have masks, those alone.

    Raises:
        DataError: There is none.
    """
    labelled = any(record.split == split and record.label_offset >= 0 for record in data.records)
    records = data.split(split, labelled=labelled).records
    chosen = tuple(one for one in records if (one.rows, one.columns) == size)
    if not chosen:
        raise DataError(
            f"{data.folder}: its split {split!r} holds no slice of {size[0]}×{size[1]}, the size that is "
            "drawn; evaluate another split, or prepare all data to one size (--size)"
        )
    return SliceSet(data.folder, chosen)


def draw_side(
    loaded: LoadedPrior,
    data: PreparedData,
    count: int,
    *,
    settings: SamplingSettings | None = None,
    grain: bool = True,
    seed: int = 42,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Side, Drawing]:
    """Draw samples of the most frequent size, at positions of training slices.

    Args:
        loaded: The prior.
        data: What it was trained on.
        count: Samples.
        settings: How boldly tokens are drawn.
        grain: Whether to put noise back, as `generate` does.
        seed: Of the positions.
        progress: Called with samples done and all samples.

    Raises:
        ConfigError: The prior was trained on other data.
    """
    if data.split_hash != loaded.info.provenance.split_hash:
        raise ConfigError(
            f"{data.folder}: holds other patients, or another split, than {loaded.path} was trained on; give "
            "the prepared folder of its training"
        )
    kind, settings = loaded.info.slices[0], settings or SamplingSettings()
    size = (kind.rows, kind.columns)
    known = [record.position for record in of_size(data, "train", size).records]
    positions = np.random.default_rng(seed).choice(known, count).tolist()
    seeds = [FIRST_SAMPLE + index for index in range(count)]
    began = time.perf_counter()
    tokens, _ = draw(loaded, size, seeds, positions, settings, progress=progress)
    seconds = time.perf_counter() - began
    page = decode_pages(loaded, tokens, size)
    noise = noise_levels(loaded, page.images, seeds) if grain else [0.0] * count
    side = Side(
        put_noise_back(loaded, page.images, noise, seeds),
        page.masks,
        ("",) * count,
        (_spacing(kind),) * count,
        tuple(seeds),
    )
    return side, Drawing(
        samples=count,
        rows=kind.rows,
        columns=kind.columns,
        settings=asdict(settings),
        first_seed=FIRST_SAMPLE,
        noise_put_back=float(np.mean(noise)),
        seconds_a_slice=seconds / (-(-count // GROUP) * GROUP),
        tokens={stage.name: len(stage) for stage in loaded.book.layout(size).stages},
        parameters=sum(parameter.numel() for parameter in loaded.prior.parameters()),
    )


def redraw(
    loaded: LoadedPrior, data: PreparedData, split: Split, *, grain: bool = True
) -> Float[Tensor, "n 1 h w"]:
    """Return real slices drawn anew from their own tokens."""
    kind = loaded.info.slices[0]
    size = (kind.rows, kind.columns)
    tokens = encode_slices(loaded.book, of_size(data, split, size))[0].tokens[:, 0].long()
    again = decode_pages(loaded, tokens, size).images
    seeds = list(range(len(again)))
    return put_noise_back(loaded, again, noise_levels(loaded, again, seeds), seeds) if grain else again


def judge_anatomy(ours: Side, real: Side, train: Side, *, seed: int) -> Anatomy:
    """Return how many masks meet the rules, beside held-out ones; the rules' ranges are the training's."""
    reference = masks.learn_reference(train.label_maps(), train.spacings)
    verdicts = [
        [
            masks.anatomy_rules(one, mm, reference)
            for one, mm in zip(side.label_maps(), side.spacings, strict=True)
        ]
        for side in (ours, real)
    ]
    rate = masks.pass_rate(verdicts[0], verdicts[1], real.patients, seed=seed)
    ends = [
        None if one is None else (one.low, one.high) for one in (rate.generated_interval, rate.real_interval)
    ]
    return Anatomy(
        generated=rate.generated,
        generated_interval=ends[0],
        real=rate.real,
        real_interval=ends[1],
        ratio=rate.ratio,
        by_rule=dict(rate.by_rule),
        rules=dict(masks.RULES),
    )


def _spacing(kind: SliceKind) -> Spacing:
    return (kind.row_mm, kind.column_mm)
