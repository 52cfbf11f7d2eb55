"""Rate-distortion curves: the scores of partial decodings, and of image codecs at several rates."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float

from slicebook.data.dataset import SliceSet
from slicebook.evaluation.slices import unit
from slicebook.metrics import codecs as codec_metrics
from slicebook.metrics.image_quality import HEADLINE, scores
from slicebook.metrics.statistics import patient_means
from slicebook.models.checkpoint import LoadedTokenizer
from slicebook.records import Record

FACTORS = (0.5, 1, 2, 4)  # of the tokenizer's bits: the codecs' budgets
MAX_SLICES = 18
CURVE_SCORES = (HEADLINE, "ssim_whole", "psnr_whole")

CONVENTION = (
    "Mean of patients over a few slices, spread evenly over the split. The tokenizer decodes its coarsest "
    "level, its two coarsest, … all, with finer levels at their mean code, at the bits of those levels; the "
    f"codecs' budgets are {', '.join(f'{factor:g}' for factor in FACTORS)} times the bits of all levels, and "
    "their points are at the bits they used"
)


class RatePoint(Record):
    """One point of a rate-distortion curve.

    Attributes:
        bits_per_pixel: Mean of slices.
        scores: Mean of patients, by name; None where no slice has a value.
    """

    bits_per_pixel: float
    scores: dict[str, float | None]


class RateDistortion(Record):
    """Curves of scores over bits.

    Attributes:
        convention: How they were measured.
        slices: Number of slices.
        curves: Points in order of increasing bits, by tokenizer or codec.
    """

    convention: str
    slices: int
    curves: dict[str, tuple[RatePoint, ...]]


def measure_rate_distortion(
    loaded: LoadedTokenizer, slices: SliceSet, *, codecs: bool, refine: int = 0
) -> RateDistortion:
    """Score partial decodings, and the codecs at several rates, on the same few slices.

    Args:
        loaded: The tokenizer.
        slices: Slices of one split; at most 18 are used.
        codecs: Whether to encode with JPEG 2000 and JPEG XL (extra `codecs`).
        refine: Steps of the search for better tokens.

    Raises:
        ConfigError: `codecs` is requested and imagecodecs is not installed.
    """
    tokenizer, count = loaded.tokenizer, min(MAX_SLICES, len(slices))
    indices = np.linspace(0, len(slices) - 1, count).round().astype(int).tolist()
    trials: dict[tuple[str, int], list[tuple[float, Mapping[str, float | None]]]] = {}
    quality: dict[tuple[str, float], float] = {}
    for index in indices:
        image, original = slices[index], unit(slices[index][None])[0]
        size = (original.shape[0], original.shape[1])
        for level, copy in enumerate(decode_prefixes(loaded, image, refine), 1):
            bits = tokenizer.bits(size, levels=level)
            _add(trials, ("tokenizer", level), bits, original, unit(copy[None])[0])
        for name, codec in codec_metrics.CODECS.items() if codecs else ():
            for step, factor in enumerate(FACTORS):
                start = quality.get((name, factor), 0.4)
                coded = codec_metrics.code(codec, original, factor * tokenizer.bits(size), start=start)
                quality[name, factor] = coded.quality  # adjacent slices need about the same
                _add(trials, (codec.title, step), coded.bits, original, coded.image)
    patients = [slices.records[index].patient for index in indices]
    curves: dict[str, list[RatePoint]] = {}
    for (title, _), trial in trials.items():
        means = {
            name: patient_means([values[name] for _, values in trial], patients) for name in CURVE_SCORES
        }
        curves.setdefault(title, []).append(
            RatePoint(
                bits_per_pixel=float(np.mean([bits for bits, _ in trial])),
                scores={
                    name: float(np.mean(list(by_patient.values()))) if by_patient else None
                    for name, by_patient in means.items()
                },
            )
        )
    return RateDistortion(
        convention=CONVENTION,
        slices=count,
        curves={title: tuple(points) for title, points in curves.items()},
    )


def decode_prefixes(
    loaded: LoadedTokenizer, image: Float[torch.Tensor, "1 h w"], refine: int = 0
) -> list[Float[torch.Tensor, "1 h w"]]:
    """Return a slice decoded from its coarsest level, from its two coarsest, … from all."""
    tokenizer = loaded.tokenizer
    device = next(tokenizer.parameters()).device
    size = (image.shape[-2], image.shape[-1])
    with torch.inference_mode():
        tokens = loaded.encode(image[None].to(device), refine)
        counts = range(1, tokenizer.levels + 1)
        return [tokenizer.decode(tokens, size, levels=count)[0].float().cpu() for count in counts]


def _add(
    trials: dict[tuple[str, int], list[tuple[float, Mapping[str, float | None]]]],
    key: tuple[str, int],
    bits: float,
    original: Float[np.ndarray, "h w"],
    copy: Float[np.ndarray, "h w"],
) -> None:
    values = scores(original, copy, volume_max=1.0).named()
    trials.setdefault(key, []).append((bits / original.size, {name: values[name] for name in CURVE_SCORES}))
