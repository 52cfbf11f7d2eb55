"""Reconstruction quality of a tokenizer: scores with intervals, tables, rate-distortion curves, figures.

Slices are scored in native geometry on [0, 1] = (x + 1) / 2 of the prepared slices. A patient's score is the
mean over their slices, and intervals come from resampling patients.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from slicebook.data.dataset import SliceSet
from slicebook.data.loader import Batch, SliceBatches
from slicebook.data.manifest import SliceRecord
from slicebook.evaluation.kept import NOTHING_KEPT, KeptWork
from slicebook.evaluation.rate_distortion import RateDistortion, decode_prefixes, measure_rate_distortion
from slicebook.io.atomic import write_csv
from slicebook.metrics import codecs as codec_metrics
from slicebook.metrics.image_quality import CONVENTIONS, HEADLINE, Scores, difference, scores, summarise
from slicebook.metrics.statistics import (
    AVERAGING,
    LevelUse,
    Rate,
    Summary,
    level_use,
    patient_means,
    summarise_rate,
)
from slicebook.models.checkpoint import LoadedTokenizer
from slicebook.records import Record
from slicebook.visualization import figures


class CodecReport(Record):
    """A codec on the same slices at the same bits; `advantage` is tokenizer score minus codec score."""

    title: str
    settings: str
    library_version: str
    bits_per_pixel: Rate
    header_bits_subtracted: float
    slices_over_budget: int
    scores: dict[str, Summary]
    advantage: dict[str, Summary]


class ReconstructionResult(Record):
    """Scores of a tokenizer's reconstructions, its bits per pixel and its code usage."""

    headline: str
    images: str
    refine: int
    """Steps of the search for better tokens."""
    averaging: str
    scores: dict[str, Summary]
    bits_per_pixel: Rate
    levels: tuple[LevelUse, ...]
    codecs: dict[str, CodecReport] | None
    rate_distortion: RateDistortion

    def table(self) -> tuple[tuple[str, ...], ...]:
        """Return the means of patients as rows of text, a header first."""
        columns = [("tokenizer", self.bits_per_pixel, self.scores)]
        columns += [(c.title, c.bits_per_pixel, c.scores) for c in (self.codecs or {}).values()]
        rows = [("mean of patients", *(title for title, _, _ in columns))]
        rows.append(("bits_per_pixel", *(f"{rate.mean_of_slices:.3f}" for _, rate, _ in columns)))
        rows += [(name, *(summaries[name].in_words() for _, _, summaries in columns)) for name in self.scores]
        return tuple(rows)


@dataclass(frozen=True)
class _CodecSlice:
    """One slice encoded by one codec, and its scores; see `codecs.Coded`."""

    bits: int
    header_bits: int
    quality: float
    within_budget: bool
    scores: Scores


@dataclass(frozen=True)
class _ScoredSlice:
    """One slice reconstructed by the tokenizer, and encoded by the codecs at the same bits."""

    index: int
    record: SliceRecord
    bits: float
    scores: Scores
    codecs: dict[str, _CodecSlice]

    @property
    def pixels(self) -> int:
        return self.record.rows * self.record.columns

    @property
    def rank(self) -> float:
        """Sort key: the headline score, or the SSIM of the whole slice if there is no foreground."""
        headline = self.scores[HEADLINE]
        return headline if headline is not None else self.scores["ssim_whole"] or 0.0


@dataclass(frozen=True)
class _ScoredBatch:
    """The slices of a batch, and how often each code was used, by level."""

    slices: list[_ScoredSlice]
    use: list[list[int]]


def evaluate_reconstruction(
    loaded: LoadedTokenizer,
    slices: SliceSet,
    out: Path,
    *,
    codecs: bool = False,
    refine: int = 0,
    seed: int = 42,
    batch_size: int = 16,
    kept: KeptWork = NOTHING_KEPT,
) -> ReconstructionResult:
    """Score a tokenizer on slices; write slices.csv, patients.csv, worst.png, pairs.png and levels.png.

    Args:
        loaded: The tokenizer; it runs where it is, scores are computed on the CPU.
        slices: Of one split.
        out: Output folder; created after scoring if it is missing.
        codecs: Whether to encode the slices with JPEG 2000 and JPEG XL at the same bits (extra `codecs`).
        refine: Steps of the search for better tokens (`models.refinement`).
        seed: Seed of the bootstrap.
        batch_size: Slices per batch of the tokenizer; scores do not depend on it.
        kept: Keeps the scores of each batch.

    Raises:
        ShapeError: A slice is smaller than the SSIM's window.
        ConfigError: `codecs` is requested and imagecodecs is not installed.
    """
    libraries = codec_metrics.versions() if codecs else {}  # first, because the extra may be missing
    batches = _score(loaded, slices, refine, batch_size, codecs, kept)
    use = [torch.tensor(counts).sum(0) for counts in zip(*(batch.use for batch in batches), strict=True)]
    scored = sorted((item for batch in batches for item in batch.slices), key=lambda item: item.index)
    patients = [item.record.patient for item in scored]
    codec_reports = {name: _codec_report(name, scored, library, seed) for name, library in libraries.items()}
    result = ReconstructionResult(
        headline=HEADLINE,
        images="Prepared slices before any padding, on [0, 1] = (x + 1) / 2, with intensities clipped at the "
        "percentiles of their volume; reconstructions clipped to [0, 1].",
        refine=refine,
        averaging=f"{AVERAGING}; seed {seed}.",
        scores=summarise([item.scores for item in scored], patients, seed),
        bits_per_pixel=summarise_rate(
            "tokens × log2 K, summed over levels, over the native pixels of the slice",
            [item.bits / item.pixels for item in scored],
        ),
        levels=tuple(level_use(level, counts) for level, counts in enumerate(use)),
        codecs=codec_reports or None,
        rate_distortion=kept.record(
            "rate-distortion",
            RateDistortion,
            lambda: measure_rate_distortion(loaded, slices, codecs=codecs, refine=refine),
        ),
    )
    out.mkdir(parents=True, exist_ok=True)
    _draw(loaded, slices, scored, refine, out)
    write_csv(out / "slices.csv", _slice_rows(scored))
    write_csv(out / "patients.csv", _patient_rows(scored))
    return result


def _score(
    loaded: LoadedTokenizer,
    slices: SliceSet,
    refine: int,
    batch_size: int,
    codecs: bool,
    kept: KeptWork,
) -> list[_ScoredBatch]:
    """Return the scores of all slices, batch by batch."""
    brightest = _volume_maxima(slices)
    quality = dict.fromkeys(codec_metrics.CODECS, 0.4) if codecs else {}
    progress, batches, done = kept.counter("slice"), [], 0
    for number, batch in enumerate(SliceBatches(slices, batch_size)):
        if progress:
            progress(done, len(slices))
        score = partial(_score_batch, loaded, slices, batch, refine, brightest, quality)
        batches.append(kept.record(f"scores of batch {number}", _ScoredBatch, score))
        done += len(batch.images)
        # Adjacent slices need about the same.
        quality = {name: passed.quality for name, passed in batches[-1].slices[-1].codecs.items()}
    if progress:
        progress(done, len(slices))
    return batches


def _score_batch(
    loaded: LoadedTokenizer,
    slices: SliceSet,
    batch: Batch,
    refine: int,
    brightest: Mapping[str, float],
    quality: Mapping[str, float],
) -> _ScoredBatch:
    """Score the slices of a batch; the search of each codec starts at a quality."""
    tokenizer, size = loaded.tokenizer, (batch.images.shape[-2], batch.images.shape[-1])
    device = next(tokenizer.parameters()).device
    with torch.inference_mode():
        tokens = loaded.encode(batch.images.to(device), refine)
        copies = tokenizer.decode(tokens, size).float().cpu()
    codes = zip(tokens, tokenizer.config.codebook_sizes, strict=True)
    use = [torch.bincount(grid.flatten().cpu(), minlength=count).tolist() for grid, count in codes]
    scored, quality = [], dict(quality)
    for index, image, copy in zip(batch.indices.tolist(), batch.images, copies, strict=True):
        record, bits, original = slices.records[index], tokenizer.bits(size), _unit(image)
        passed = {}
        for name, start in quality.items():
            coded = codec_metrics.code(codec_metrics.CODECS[name], original, bits, start=start)
            quality[name] = coded.quality
            codec_scores = scores(original, coded.image, volume_max=brightest[record.volume]).named()
            passed[name] = _CodecSlice(
                coded.bits, coded.header_bits, coded.quality, coded.within_budget, codec_scores
            )
        tokenizer_scores = scores(original, _unit(copy), volume_max=brightest[record.volume])
        scored.append(_ScoredSlice(index, record, bits, tokenizer_scores.named(), passed))
    return _ScoredBatch(scored, use)


def _unit(image: Float[Tensor, "1 h w"]) -> Float[np.ndarray, "h w"]:
    """Return a slice in [-1, 1] as an array in [0, 1]."""
    return np.asarray((image[0].numpy() + 1) / 2)


def _volume_maxima(slices: SliceSet) -> dict[str, float]:
    maxima: dict[str, float] = {}
    for index, record in enumerate(slices.records):
        brightest = float((slices[index].max() + 1) / 2)
        maxima[record.volume] = max(brightest, maxima.get(record.volume, 0.0))
    return maxima


def _codec_report(name: str, scored: Sequence[_ScoredSlice], library: str, seed: int) -> CodecReport:
    codec = codec_metrics.CODECS[name]
    passed = [item.codecs[name] for item in scored]
    patients = [item.record.patient for item in scored]
    gains = [difference(item.scores, item.codecs[name].scores) for item in scored]
    return CodecReport(
        title=codec.title,
        settings=codec.settings,
        library_version=library,
        bits_per_pixel=summarise_rate(
            "bits of the codestream minus those of a blank slice (its headers), over the native pixels; at "
            f"most {codec_metrics.LIMIT:.2f} times the tokenizer's bits, slice by slice, where the codec can",
            [item.bits / whole.pixels for item, whole in zip(passed, scored, strict=True)],
        ),
        header_bits_subtracted=float(np.mean([item.header_bits for item in passed])),
        slices_over_budget=sum(not item.within_budget for item in passed),
        scores=summarise([item.scores for item in passed], patients, seed),
        advantage=summarise(gains, patients, seed),
    )


def _draw(
    loaded: LoadedTokenizer, slices: SliceSet, scored: Sequence[_ScoredSlice], refine: int, out: Path
) -> None:
    """Draw the worst slices, slices from worst to best, and what each level adds."""
    ranked = sorted(scored, key=lambda item: item.rank)
    ranks = dict.fromkeys(round(share * (len(ranked) - 1)) for share in (0, 0.25, 0.5, 0.75, 1))
    spread = [ranked[rank] for rank in ranks]
    for name, chosen, caption in (
        (
            "worst.png",
            _worst(ranked, 6),
            f"Lowest {HEADLINE}; the lowest of every patient before the second lowest of any.",
        ),
        (
            "pairs.png",
            spread,
            f"Of {len(ranked)} slices the lowest, the quartiles and the highest {HEADLINE}.",
        ),
        (
            "levels.png",
            spread[1:4] or spread,
            "What each level changes, coarsest first: orange is brighter, blue is darker.",
        ),
    ):
        originals = [slices[item.index] for item in chosen]
        decoded = [decode_prefixes(loaded, image, refine) for image in originals]
        partials = [[copy[0] for copy in level] for level in zip(*decoded, strict=True)]
        aspect = [item.record.row_mm / item.record.column_mm for item in chosen]
        shown, path = [image[0] for image in originals], out / name
        if name == "levels.png":
            figures.levels(shown, partials, path, aspect=aspect, caption=caption)
            continue
        names = [f"{item.record.patient} · slice {item.record.slice}" for item in chosen]
        titles = [f"SSIM {item.rank:.3f}" for item in chosen]
        figures.pairs(shown, partials[-1], path, names=names, titles=titles, aspect=aspect, caption=caption)


def _worst(ranked: Sequence[_ScoredSlice], count: int) -> list[_ScoredSlice]:
    """Return the worst slices in rounds of one per patient, because adjacent slices look alike."""
    seen: Counter[str] = Counter()
    order = []  # (round, rank)
    for rank, item in enumerate(ranked):
        order.append((seen[item.record.patient], rank))
        seen[item.record.patient] += 1
    return [ranked[rank] for _, rank in sorted(order)[:count]]


def _slice_rows(scored: Sequence[_ScoredSlice]) -> list[dict[str, Any]]:
    rows = []
    for item in sorted(scored, key=lambda each: each.record.index):
        record = item.record
        row: dict[str, Any] = {
            "patient": record.patient,
            "volume": record.volume,
            "slice": record.slice,
            "rows": record.rows,
            "columns": record.columns,
            "bits": item.bits,
            "bits_per_pixel": item.bits / item.pixels,
            **item.scores,
        }
        for name, passed in item.codecs.items():
            row[f"{name}_bits"] = passed.bits
            row[f"{name}_bits_per_pixel"] = passed.bits / item.pixels
            row |= {f"{name}_{score}": value for score, value in passed.scores.items()}
        rows.append(row)
    return rows


def _patient_rows(scored: Sequence[_ScoredSlice]) -> list[dict[str, Any]]:
    patients = [item.record.patient for item in scored]
    slices = Counter(patients)
    means = {name: patient_means([item.scores[name] for item in scored], patients) for name in CONVENTIONS}
    return [
        {"patient": patient, "slices": slices[patient]}
        | {name: by_patient.get(patient) for name, by_patient in means.items()}
        for patient in sorted(slices)
    ]
