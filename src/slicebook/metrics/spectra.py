"""How bright and how fine-grained generated slices are on the whole, beside real ones: curves to look at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np
from jaxtyping import Float32, Float64, Int64
from scipy.fft import fft2
from scipy.signal.windows import hann

from slicebook.errors import ShapeError
from slicebook.metrics.image_quality import check_slices
from slicebook.metrics.statistics import DRAWS, RelativeMeasure, measure_relative

BINS = 256  # of intensity: what a screen shows
SHOWN_BINS = 64  # of the curve of intensities: finer ones are ragged
SMALLEST_SIDE = 8  # pixels: four rings
_LEAST_POWER = 1e-8  # far below the steps of 8 bits (1e-6): with it a blank slice has a spectrum too

CONVENTIONS: Mapping[str, str] = MappingProxyType(
    {
        "spectrum": "Root mean square difference in dB, over rings, of two mean spectra. A slice's spectrum "
        "is 10 log10 of its power, averaged over rings as wide as a cycle over the smaller side, up to 0.5 "
        "cycles a pixel; of the slice in [0, 1] less its mean under a Hann window, background included; no "
        "less than -80 dB.",
        "intensity": f"Wasserstein-1 distance of the intensities of all pixels in [0, 1], in {BINS} bins, "
        "background included.",
    }
)


@dataclass(frozen=True)
class Curves:
    """What slices have on the average, generated beside real, and how far apart that is.

    Attributes:
        at: Where each value belongs: cycles a pixel, or intensity in [0, 1].
        generated, real: Mean over slices there: power in dB, or the share of pixels.
        real_low, real_high: 5th and 95th percentile of the means of real patients.
        distance: Between the two means, beside that between real patients.
    """

    at: tuple[float, ...]
    generated: tuple[float, ...]
    real: tuple[float, ...]
    real_low: tuple[float, ...]
    real_high: tuple[float, ...]
    distance: RelativeMeasure


def compare_spectra(
    generated: Float32[np.ndarray, "m h w"],
    real: Float32[np.ndarray, "n _ _"],
    patients: Sequence[str],
    *,
    seed: int,
    draws: int = DRAWS,
) -> Curves:
    """Compare how much of each fineness slices hold: blur lowers the right end of a spectrum, noise lifts it.

    Args:
        generated: Generated slices in [0, 1].
        real: Slices of patients that were never trained on, of the same shape.
        patients: The patient of each.
        seed: Seeds the draws of patients.
        draws: How often they are parted; see `beside.draw_groups`.

    Raises:
        DataError: A value is not finite or outside [0, 1], or there are too few patients or slices.
        ShapeError: The slices differ in shape or have a side under 8 pixels, or there is not a patient a
            slice.
    """
    if generated.shape[1:] != real.shape[1:]:
        sizes = [f"{one.shape[1]}×{one.shape[2]}" for one in (generated, real)]
        raise ShapeError(
            f"generated slices are {sizes[0]}, real ones {sizes[1]}, and cycles a pixel mean something else "
            "in each; compare slices of one size"
        )
    frequencies, _, _ = _rings(*real.shape[1:])
    found = spectra(generated), spectra(real)
    distance = measure_relative(
        CONVENTIONS["spectrum"], _decibels_apart, *found, patients, seed=seed, draws=draws
    )
    return _curves(frequencies, *found, patients, distance)


def compare_intensities(
    generated: Float32[np.ndarray, "m h w"],
    real: Float32[np.ndarray, "n _ _"],
    patients: Sequence[str],
    *,
    seed: int,
    draws: int = DRAWS,
) -> Curves:
    """Compare how many pixels have which brightness. Arguments and errors are those of `compare_spectra`."""
    found = histograms(generated), histograms(real)
    distance = measure_relative(CONVENTIONS["intensity"], _shift, *found, patients, seed=seed, draws=draws)
    centres = (np.arange(SHOWN_BINS) + 0.5) / SHOWN_BINS
    ours, theirs = (one.reshape(len(one), SHOWN_BINS, -1).sum(axis=2) for one in found)
    return _curves(centres, ours, theirs, patients, distance)


def spectra(images: Float32[np.ndarray, "n h w"]) -> Float64[np.ndarray, "n rings"]:
    """Return the radially averaged power spectrum of each slice in dB, from the lowest ring to the finest.

    0 dB is a variance of 1: white noise of standard deviation s is flat at 20 log10 s, wherever it reaches
    over the whole slice. A blank slice is flat at -80 dB. Errors are those of `compare_spectra`.
    """
    check_slices(images, "spectrum", SMALLEST_SIDE)
    rows, columns = images.shape[1:]
    frequencies, ring, count = _rings(rows, columns)
    window = np.outer(hann(rows, sym=False), hann(columns, sym=False))
    window /= np.sqrt((window**2).mean() * window.size)  # the mean power of a slice is its variance
    found = np.empty((len(images), len(frequencies)))
    for index, image in enumerate(images.astype(np.float64)):
        power = np.abs(fft2((image - image.mean()) * window)) ** 2
        sums = np.bincount(ring.ravel(), weights=power.ravel(), minlength=len(frequencies) + 1)
        found[index] = 10 * np.log10(np.maximum(sums[1 : len(frequencies) + 1] / count, _LEAST_POWER))
    return found


def histograms(images: Float32[np.ndarray, "n h w"]) -> Float64[np.ndarray, "n bins"]:
    """Return the share of each slice's pixels in each of 256 equal bins of [0, 1]; 1 is in the last."""
    check_slices(images, "histogram")
    found = np.empty((len(images), BINS))
    for index, image in enumerate(images):
        levels = np.clip((image * BINS).astype(np.int64), 0, BINS - 1)
        found[index] = np.bincount(levels.ravel(), minlength=BINS) / levels.size
    return found


def _curves(
    at: Float64[np.ndarray, " f"],
    generated: Float64[np.ndarray, "m f"],
    real: Float64[np.ndarray, "n f"],
    patients: Sequence[str],
    distance: RelativeMeasure,
) -> Curves:
    names = np.asarray(patients)
    own = np.array([real[names == name].mean(axis=0) for name in sorted(set(patients))])
    low, high = np.quantile(own, [0.05, 0.95], axis=0)
    return Curves(
        at=tuple(at.tolist()),
        generated=tuple(generated.mean(axis=0).tolist()),
        real=tuple(real.mean(axis=0).tolist()),
        real_low=tuple(low.tolist()),
        real_high=tuple(high.tolist()),
        distance=distance,
    )


def _decibels_apart(x: Float64[np.ndarray, "n f"], y: Float64[np.ndarray, "m f"]) -> float:
    return float(np.sqrt(((x.mean(axis=0) - y.mean(axis=0)) ** 2).mean()))


def _shift(x: Float64[np.ndarray, "n f"], y: Float64[np.ndarray, "m f"]) -> float:
    """Return the Wasserstein-1 distance of two pooled histograms: the area between their cumulated shares."""
    return float(np.abs(np.cumsum(x.mean(axis=0) - y.mean(axis=0))).sum() / BINS)


@lru_cache(maxsize=8)
def _rings(
    rows: int, columns: int
) -> tuple[Float64[np.ndarray, " r"], Int64[np.ndarray, "h w"], Int64[np.ndarray, " r"]]:
    """Return the frequency of each ring but the one at 0, the ring of each coefficient, and their number."""
    smaller = min(rows, columns)
    radius = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.fftfreq(columns)[None])
    ring = np.rint(radius * smaller).astype(np.int64)
    last = smaller // 2  # the corners beyond 0.5 cycles a pixel hold diagonals alone
    return np.arange(1, last + 1) / smaller, ring, np.bincount(ring.ravel())[1 : last + 1]
