"""Comparison of a prior's samples with slices of held-out patients.

Samples are drawn at positions of training slices and compared with held-out slices of the same size: by
features, by anatomy rules for their masks, and relative to the tokenizer's reconstructions of the held-out
slices, which bound what a prior over its tokens can reach.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial

import numpy as np
from jaxtyping import Float32

from slicebook.data.dataset import PreparedData, SliceSet
from slicebook.data.manifest import SliceKind
from slicebook.evaluation.features import Descriptor, block_descriptor, descriptors
from slicebook.evaluation.kept import NOTHING_KEPT, Arrays, KeptWork
from slicebook.evaluation.slices import (
    SliceCollection,
    check_trained_on,
    of_size,
    read_slices,
    reconstruct,
    unit,
)
from slicebook.inference.synthesis import choose_sampling_precision, draw, render
from slicebook.metrics.anatomy import PassRate, Spacing, anatomy_rules, learn_reference, pass_rate
from slicebook.metrics.distribution import Comparison, compare
from slicebook.metrics.diversity import Diversity, compare_diversity
from slicebook.metrics.features import pixels
from slicebook.metrics.spectra import Curves, compare_intensities, compare_spectra
from slicebook.metrics.statistics import RelativeMeasure
from slicebook.metrics.two_sample import FOLDS, Detection, detection
from slicebook.models.checkpoint import LoadedPrior
from slicebook.models.sampling import SAMPLING_BATCH, SamplingSettings
from slicebook.records import Record

FIRST_SAMPLE = 1_000_000  # seed of sample 0, apart from the small seeds that users try
TITLES = {"frechet_distance": "Fréchet distance"}
PELVIS = (0, 1, 2, 3, 4, 5)  # the label values that the anatomy rules apply to


class SamplingInfo(Record):
    """How samples were drawn."""

    samples: int
    rows: int
    columns: int
    settings: dict[str, int | float]
    first_seed: int
    """Sample i was drawn from this seed + i."""
    precision: str
    """In which tokens were sampled."""
    seconds_per_slice: float
    """Time to draw and decode image and mask, in groups of 16."""
    tokens: dict[str, int]
    """Tokens per slice, by grid."""
    parameters: int


class Features(Record):
    """Samples compared with held-out slices on one kind of features."""

    convention: str
    samples: Comparison
    tokenizer_only: Comparison
    """Reconstructions of one half of the held-out patients, compared with the other half."""


class Measure(Record):
    """One measure of samples and of real patients, as a row of a table.

    Attributes:
        measure: Its name.
        features: Name of the features; empty for measures of the slices themselves.
        generated, real: Value for samples, and for real patients among each other.
        interval: 95 % interval of `generated`, by patient.
        real_range: 5th and 95th percentile over splits of the patients; for MS-SSIM and the AUC its interval.
        tokenizer_only: Value for held-out slices reconstructed by the tokenizer.
        convention: Definition of the measure.
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
    """Samples compared with held-out slices of the same size."""

    held_out_patients: int
    held_out_slices: int
    features: dict[str, Features]
    """By name: `texture`, `structure`, and `efficientnet-lite0` where its weights are installed."""
    detection: dict[str, Detection]
    """By name of the features, and `pixels`; empty with too few patients for folds."""
    diversity: Diversity
    spectrum: Curves
    intensity: Curves
    anatomy: PassRate | None
    """None without masks of an axial pelvis."""

    def measures(self) -> tuple[Measure, ...]:
        """Return every measure that has a counterpart for real patients."""
        measures = []
        for name, features in self.features.items():
            tokenizer_only = vars(features.tokenizer_only)
            for measure, relative in vars(features.samples).items():
                if isinstance(relative, RelativeMeasure):
                    title = TITLES.get(measure, measure.replace("_", " "))
                    measures.append(_measure(title, name, relative, tokenizer_only[measure].generated))
        measures += [
            Measure(
                measure="classifier AUC",
                features=name,
                generated=found.auc,
                interval=found.interval,
                real=found.reference,
                real_range=found.reference_interval,
                tokenizer_only=found.tokenizer_only,
                convention=found.convention,
            )
            for name, found in self.detection.items()
        ]
        measures.append(_measure("spectrum", "", self.spectrum.distance, None))
        measures.append(_measure("intensities", "", self.intensity.distance, None))
        diversity = self.diversity
        measures.append(
            Measure(
                measure="MS-SSIM of pairs",
                features="",
                generated=diversity.generated,
                interval=diversity.generated_interval,
                real=diversity.real,
                real_range=diversity.real_interval,
                tokenizer_only=None,
                convention=diversity.convention,
            )
        )
        return tuple(measures)


def evaluate_generation(
    loaded: LoadedPrior,
    data: PreparedData,
    samples: SliceCollection,
    real: SliceCollection,
    *,
    steps: int = SamplingSettings.decoder_steps,
    seed: int,
    kinds: Sequence[Descriptor] | None = None,
    say: Callable[[str], None] = lambda _: None,
    kept: KeptWork = NOTHING_KEPT,
) -> GenerationResult:
    """Compare samples with held-out slices, and with their reconstructions by the tokenizer.

    Args:
        loaded: The prior that drew the samples.
        data: The data that it was trained on.
        samples: The samples, as `draw_samples` makes them.
        real: The held-out slices, as `read_slices` reads them.
        steps: Of the generation decoder.
        seed: Seed of the splits of patients and of the bootstrap.
        kinds: Kinds of features; by default all that are installed.
        say: Called before each part.
        kept: Keeps each part.

    Raises:
        DataError: There are fewer than 2 held-out patients.
    """
    say(f"{len(samples)} samples and {len(real)} real slices of {len(set(real.patients))} patients")
    reconstructed = reconstruct(loaded, real.images, steps=steps, kept=kept)
    sets = [unit(images) for images in (samples.images, reconstructed, real.images)]
    features = {}
    chosen = kinds or descriptors()
    for kind in chosen:
        say(f"{kind.name} of {sum(map(len, sets))} slices")
        features[kind.name] = kept.record(
            f"comparison by {kind.name}", Features, partial(_compare, kind, sets, real.patients, seed)
        )
    say("diversity, spectra, intensities, anatomy")
    size = (samples.images.shape[-2], samples.images.shape[-1])
    anatomy = None
    pelvis = (data.info.label_values, data.info.plane) == (PELVIS, "axial")
    if samples.masks is not None and real.masks is not None and pelvis:
        train = of_size(data, "train", size)
        anatomy = kept.record("anatomy", PassRate, lambda: measure_anatomy(samples, real, train, seed=seed))
    pairs = (sets[0], sets[2], real.patients)
    return GenerationResult(
        held_out_patients=len(set(real.patients)),
        held_out_slices=len(real),
        features=features,
        detection=_detect(sets, chosen, data, real, seed, say, kept),
        diversity=kept.record("diversity", Diversity, lambda: compare_diversity(*pairs, seed=seed)),
        spectrum=kept.record("spectrum", Curves, lambda: compare_spectra(*pairs, seed=seed)),
        intensity=kept.record("intensities", Curves, lambda: compare_intensities(*pairs, seed=seed)),
        anatomy=anatomy,
    )


def _compare(
    kind: Descriptor,
    sets: Sequence[Float32[np.ndarray, "_ h w"]],
    patients: Sequence[str],
    seed: int,
) -> Features:
    """Compare samples and reconstructions with real slices on one kind of features."""
    generated, reconstructions, originals = map(kind, sets)
    return Features(
        convention=kind.convention,
        samples=compare(generated, originals, patients, seed=seed, one_unit=kind.one_unit),
        tokenizer_only=compare(
            reconstructions, originals, patients, seed=seed, one_unit=kind.one_unit, paired=True
        ),
    )


def _detect(
    sets: Sequence[Float32[np.ndarray, "_ h w"]],
    kinds: Sequence[Descriptor],
    data: PreparedData,
    real: SliceCollection,
    seed: int,
    say: Callable[[str], None],
    kept: KeptWork,
) -> dict[str, Detection]:
    """Return how well classifiers tell samples and reconstructions from real slices.

    `sets` are the samples, the reconstructions and the real slices, in [0, 1].
    """
    samples, reconstructed, originals = sets
    size = (originals.shape[-2], originals.shape[-1])
    others = read_slices(data, "train", size, limit=len(samples), seed=seed)
    if min(len(set(real.patients)), len(set(others.patients)), len(samples)) < FOLDS:
        return {}
    say("classifiers of samples and real slices")
    training = unit(others.images)

    def detect(kind: Descriptor) -> Detection:
        return detection(
            kind(samples),
            kind(reconstructed),
            kind(originals),
            real.patients,
            kind(training),
            others.patients,
            seed=seed,
            one_unit=kind.one_unit,
        )

    return {
        kind.name: kept.record(f"classifier by {kind.name}", Detection, partial(detect, kind))
        for kind in (*kinds, block_descriptor("pixels", pixels.PIXELS))
    }


def draw_samples(
    loaded: LoadedPrior,
    data: PreparedData,
    count: int,
    *,
    settings: SamplingSettings | None = None,
    precision: str = "32-true",
    seed: int = 42,
    kept: KeptWork = NOTHING_KEPT,
) -> tuple[SliceCollection, SamplingInfo]:
    """Draw samples of the most frequent size, at positions of training slices.

    Args:
        loaded: The prior.
        data: The data that it was trained on.
        count: Number of samples.
        settings: Steps of sampling, and guidance.
        precision: Precision of sampling; `auto` measures on a CPU which is faster.
        seed: Seed of the positions.
        kept: Keeps the samples, and the precision that was measured.

    Raises:
        ConfigError: The prior was trained on other data.
    """
    check_trained_on(loaded, data)
    kind, settings = loaded.info.slices[0], settings or SamplingSettings()
    size = (kind.rows, kind.columns)
    training_positions = [record.position for record in of_size(data, "train", size).records]
    positions = np.random.default_rng(seed).choice(training_positions, count).tolist()
    seeds = [FIRST_SAMPLE + index for index in range(count)]
    precision = kept.record("precision", str, lambda: choose_sampling_precision(loaded, precision))
    used = precision

    def part(first: int, end: int) -> Arrays:
        started, rows = time.perf_counter(), slice(first, end)
        tokens = draw(loaded, size, seeds[rows], positions[rows], settings, precision=used)
        slices = render(loaded, tokens, size, seeds[rows], settings.decoder_steps)
        masks = {} if slices.masks is None else {"masks": slices.masks}
        return {"images": slices.images, "seconds": np.array([time.perf_counter() - started]), **masks}

    drawn = kept.arrays("samples", "sample", count, SAMPLING_BATCH, part)
    samples = SliceCollection(
        drawn["images"],
        drawn.get("masks"),
        ("",) * count,
        (_spacing(kind),) * count,
        tuple(seeds),
    )
    return samples, SamplingInfo(
        samples=count,
        rows=kind.rows,
        columns=kind.columns,
        settings=asdict(settings),
        first_seed=FIRST_SAMPLE,
        precision=precision,
        seconds_per_slice=float(drawn["seconds"].sum()) / (-(-count // SAMPLING_BATCH) * SAMPLING_BATCH),
        tokens={stage.name: len(stage) for stage in loaded.tokenizer.layout(size).stages},
        parameters=sum(parameter.numel() for parameter in loaded.prior.parameters()),
    )


def measure_anatomy(
    samples: SliceCollection, real: SliceCollection, train: SliceSet, *, seed: int
) -> PassRate:
    """Return the share of masks that meet the anatomy rules; their reference is the training set."""
    reference = learn_reference(
        (train.labels(index).numpy() for index in range(len(train))),
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


def _measure(name: str, features: str, relative: RelativeMeasure, tokenizer_only: float | None) -> Measure:
    return Measure(
        measure=name,
        features=features,
        generated=relative.generated,
        interval=relative.interval,
        real=relative.real,
        real_range=relative.real_range,
        tokenizer_only=tokenizer_only,
        convention=relative.convention,
    )


def _spacing(kind: SliceKind) -> Spacing:
    return (kind.row_mm, kind.column_mm)
