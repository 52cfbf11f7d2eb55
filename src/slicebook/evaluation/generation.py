"""How like real slices a prior's samples are, beside patients that were never trained on.

Samples are drawn at positions of training slices, and compared with held-out slices of the same size: on
features, by the rules of anatomy for their masks, and beside what the tokenizer alone makes of the same
held-out slices: what that loses, no prior over it can win back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np
from jaxtyping import Float
from torch import Tensor

from slicebook.data.dataset import PreparedData, SliceSet
from slicebook.data.manifest import SliceKind
from slicebook.data.splits import Split
from slicebook.evaluation.features import Descriptor, descriptors
from slicebook.evaluation.slices import SliceCollection, check_trained_on, of_size, unit
from slicebook.inference.synthesis import draw, render
from slicebook.metrics.anatomy import PassRate, Spacing, anatomy_rules, learn_reference, pass_rate
from slicebook.metrics.distribution import Comparison, compare
from slicebook.metrics.diversity import Diversity, compare_diversity
from slicebook.metrics.spectra import Curves, compare_intensities, compare_spectra
from slicebook.metrics.statistics import RelativeMeasure
from slicebook.models.checkpoint import LoadedPrior
from slicebook.models.sampling import GROUP, SamplingSettings
from slicebook.records import Record
from slicebook.training.token_dataset import encode_slices

FIRST_SAMPLE = 1_000_000  # sample i is drawn from this seed + i: none that a picture was chosen by
TITLES = {"frechet_distance": "Fréchet distance"}
PELVIS = (0, 1, 2, 3, 4, 5)  # the labels that the rules of anatomy know


class SamplingInfo(Record):
    """How samples were drawn."""

    samples: int
    rows: int
    columns: int
    settings: dict[str, float]
    first_seed: int
    """Sample i was drawn from this seed + i."""
    noise: bool
    """Whether noise was to be put back, as `generate` does unless told not to."""
    noise_level: float
    """Mean level, on [-1, 1]."""
    seconds_per_slice: float
    """At groups of 16, without decoding."""
    tokens: dict[str, int]
    """Of each grid of a slice."""
    parameters: int


class Features(Record):
    """Samples beside held-out slices, as one kind of features sees them."""

    convention: str
    samples: Comparison
    tokenizer_only: Comparison
    """One half of the held-out patients, drawn anew from their own tokens, beside the other half."""


class Measure(Record):
    """One measure of samples beside real patients, as a row of a table.

    Attributes:
        measure: Its name.
        features: That it is taken on; empty where it looks at the slices themselves.
        generated, real: Of samples, and of real patients among each other.
        interval: Of `generated`, 95 %, by patient.
        real_range: 5th and 95th percentile over draws of patients; of MS-SSIM its interval by patient.
        tokenizer_only: Of held-out slices drawn anew from their own tokens.
        convention: What it is.
    """

    measure: str
    features: str
    generated: float
    interval: tuple[float, float] | None
    real: float
    real_range: tuple[float, float] | None
    tokenizer_only: float | None
    convention: str


class GenerationResult(Record):
    """Samples beside held-out slices of the same size."""

    held_out_patients: int
    held_out_slices: int
    features: dict[str, Features]
    """By name: `texture`, and `efficientnet-lite0` where its weights are installed."""
    diversity: Diversity
    spectrum: Curves
    intensity: Curves
    anatomy: PassRate | None
    """None without masks of an axial pelvis."""

    def measures(self) -> tuple[Measure, ...]:
        """Return every measure that has one of real patients beside it."""
        found = []
        for name, features in self.features.items():
            alone = vars(features.tokenizer_only)
            for measure, one in vars(features.samples).items():
                if isinstance(one, RelativeMeasure):
                    title = TITLES.get(measure, measure.replace("_", " "))
                    found.append(_measure(title, name, one, alone[measure].generated))
        found.append(_measure("spectrum", "", self.spectrum.distance, None))
        found.append(_measure("intensities", "", self.intensity.distance, None))
        many = self.diversity
        found.append(
            Measure(
                measure="MS-SSIM of pairs",
                features="",
                generated=many.generated,
                interval=many.generated_interval,
                real=many.real,
                real_range=many.real_interval,
                tokenizer_only=None,
                convention=many.convention,
            )
        )
        return tuple(found)


def evaluate_generation(
    loaded: LoadedPrior,
    data: PreparedData,
    split: Split,
    ours: SliceCollection,
    real: SliceCollection,
    *,
    noise: bool = True,
    seed: int,
    kinds: Sequence[Descriptor] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> GenerationResult:
    """Compare samples with held-out slices, and with what the tokenizer alone makes of those.

    Args:
        loaded: The prior that drew the samples.
        data: What it was trained on.
        split: That the held-out slices are of.
        ours: The samples, as `draw_samples` makes them.
        real: The held-out slices, as `read_slices` reads them.
        noise: Whether noise was put back into the samples.
        seed: Of every draw of patients, and of the bootstrap.
        kinds: Of features; all there are by default.
        say: Called before each part.

    Raises:
        DataError: There are fewer than 2 held-out patients.
    """
    say(f"{len(ours)} samples beside {len(real)} slices of {len(set(real.patients))} patients")
    again = redraw(loaded, data, split, noise=noise)
    sets = [unit(images) for images in (ours.images, again, real.images)]
    features = {}
    for kind in kinds or descriptors():
        say(f"{kind.name} of {sum(map(len, sets))} slices")
        samples, redrawn, theirs = map(kind, sets)
        features[kind.name] = Features(
            convention=kind.convention,
            samples=compare(samples, theirs, real.patients, seed=seed, one_unit=kind.one_unit),
            tokenizer_only=compare(
                redrawn, theirs, real.patients, seed=seed, one_unit=kind.one_unit, paired=True
            ),
        )
    say("diversity, spectra, intensities, anatomy")
    anatomy = None
    pelvis = (data.info.label_values, data.info.plane) == (PELVIS, "axial")
    if ours.masks is not None and real.masks is not None and pelvis:
        train = of_size(data, "train", (ours.images.shape[-2], ours.images.shape[-1]))
        anatomy = measure_anatomy(ours, real, train, seed=seed)
    return GenerationResult(
        held_out_patients=len(set(real.patients)),
        held_out_slices=len(real),
        features=features,
        diversity=compare_diversity(sets[0], sets[2], real.patients, seed=seed),
        spectrum=compare_spectra(sets[0], sets[2], real.patients, seed=seed),
        intensity=compare_intensities(sets[0], sets[2], real.patients, seed=seed),
        anatomy=anatomy,
    )


def draw_samples(
    loaded: LoadedPrior,
    data: PreparedData,
    count: int,
    *,
    settings: SamplingSettings | None = None,
    noise: bool = True,
    seed: int = 42,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[SliceCollection, SamplingInfo]:
    """Draw samples of the most frequent size, at positions of training slices.

    Args:
        loaded: The prior.
        data: What it was trained on.
        count: Samples.
        settings: How boldly tokens are drawn.
        noise: Whether to put noise back, as `generate` does.
        seed: Of the positions.
        progress: Called with samples done and all samples.

    Raises:
        ConfigError: The prior was trained on other data.
    """
    check_trained_on(loaded, data)
    kind, settings = loaded.info.slices[0], settings or SamplingSettings()
    size = (kind.rows, kind.columns)
    known = [record.position for record in of_size(data, "train", size).records]
    positions = np.random.default_rng(seed).choice(known, count).tolist()
    seeds = [FIRST_SAMPLE + index for index in range(count)]
    began = time.perf_counter()
    tokens, _ = draw(loaded, size, seeds, positions, settings, progress=progress)
    seconds = time.perf_counter() - began
    slices = render(loaded, tokens, size, seeds, noise)
    side = SliceCollection(
        slices.images,
        slices.masks,
        ("",) * count,
        (_spacing(kind),) * count,
        tuple(seeds),
    )
    return side, SamplingInfo(
        samples=count,
        rows=kind.rows,
        columns=kind.columns,
        settings=asdict(settings),
        first_seed=FIRST_SAMPLE,
        noise=noise,
        noise_level=float(np.mean(slices.noise)),
        seconds_per_slice=seconds / (-(-count // GROUP) * GROUP),
        tokens={stage.name: len(stage) for stage in loaded.book.layout(size).stages},
        parameters=sum(parameter.numel() for parameter in loaded.prior.parameters()),
    )


def redraw(
    loaded: LoadedPrior, data: PreparedData, split: Split, *, noise: bool = True
) -> Float[Tensor, "n 1 h w"]:
    """Return real slices drawn anew from their own tokens."""
    kind = loaded.info.slices[0]
    size = (kind.rows, kind.columns)
    device = next(loaded.prior.parameters()).device
    (sets,) = encode_slices(loaded.book, of_size(data, split, size), device=device)
    tokens = sets.tokens[:, 0].long()
    return render(loaded, tokens, size, range(len(tokens)), noise).images


def measure_anatomy(
    samples: SliceCollection, real: SliceCollection, train: SliceSet, *, seed: int
) -> PassRate:
    """Return the share of masks that meet the anatomy rules, whose ranges come from the training set."""
    reference = learn_reference(
        [train.labels(row).numpy() for row in range(len(train))],
        [(record.row_mm, record.column_mm) for record in train.records],
    )
    generated_rules, real_rules = (
        [
            anatomy_rules(labels, spacing, reference)
            for labels, spacing in zip(slices.label_maps(), slices.spacings, strict=True)
        ]
        for slices in (samples, real)
    )
    return pass_rate(generated_rules, real_rules, real.patients, seed=seed)


def _measure(name: str, features: str, one: RelativeMeasure, alone: float | None) -> Measure:
    return Measure(
        measure=name,
        features=features,
        generated=one.generated,
        interval=one.interval,
        real=one.real,
        real_range=one.real_range,
        tokenizer_only=alone,
        convention=one.convention,
    )


def _spacing(kind: SliceKind) -> Spacing:
    return (kind.row_mm, kind.column_mm)
