"""Power spectra and intensity histograms of generated slices, compared with those of real slices."""

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

BINS = 256  # of intensity: 8 bits
SHOWN_BINS = 64  # of the intensity curve; finer bins are noisy
SMALLEST_SIDE = 8  # pixels: four rings
_LEAST_POWER = 1e-8  # -80 dB: the floor of a spectrum, far below 8-bit quantisation (1e-6)

CONVENTIONS: Mapping[str, str] = MappingProxyType(
    {
        "spectrum": "Root mean square difference in dB, over rings, of two mean spectra. A slice's spectrum "
        "is 10 log10 of its radially averaged power, in rings one cycle per smaller side wide, up to 0.5 "
        "cycles/pixel; computed from the slice in [0, 1] minus its mean, under a Hann window, background "
        "included; floored at -80 dB.",
        "intensity": f"Wasserstein-1 distance of the intensities of all pixels in [0, 1], in {BINS} bins, "
        "background included.",
    }
)


@dataclass(frozen=True)
class Curves:
    """Mean curves of generated and of real slices, and their distance.

    Attributes:
        at: Position of each value: spatial frequency in cycles/pixel, or intensity in [0, 1].
        generated, real: Mean over slices: power in dB, or share of pixels.
        real_low, real_high: 5th and 95th percentile of the patients' mean curves.
        distance: Distance of the mean curves, and the same between groups of real patients.
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
    """Compare radially averaged power spectra; blur lowers the high frequencies, noise raises them.

    Args:
        generated: Generated slices in [0, 1].
        real: Slices of patients that were never trained on, of the same shape.
        patients: Patient of each real slice.
        seed: Seed of the splits of patients.
        draws: Number of splits; see `statistics.draw_groups`.

    Raises:
        DataError: A value is not finite or outside [0, 1], or there are too few patients or slices.
        ShapeError: The slices differ in shape or have a side under 8 pixels, or the numbers of real slices
            and patients differ.
    """
    if generated.shape[1:] != real.shape[1:]:
        sizes = [f"{images.shape[1]}×{images.shape[2]}" for images in (generated, real)]
        raise ShapeError(
            f"generated slices are {sizes[0]}, real ones {sizes[1]}, so their frequencies in cycles/pixel "
            "are not comparable; compare slices of one size"
        )
    frequencies, _, _ = _rings(*real.shape[1:])
    decibels = spectra(generated), spectra(real)
    distance = measure_relative(
        CONVENTIONS["spectrum"], _rms_difference, *decibels, patients, seed=seed, draws=draws
    )
    return _curves(frequencies, *decibels, patients, distance)


def compare_intensities(
    generated: Float32[np.ndarray, "m h w"],
    real: Float32[np.ndarray, "n _ _"],
    patients: Sequence[str],
    *,
    seed: int,
    draws: int = DRAWS,
) -> Curves:
    """Compare intensity histograms. Arguments and errors are those of `compare_spectra`."""
    shares = histograms(generated), histograms(real)
    distance = measure_relative(
        CONVENTIONS["intensity"], _wasserstein, *shares, patients, seed=seed, draws=draws
    )
    centres = (np.arange(SHOWN_BINS) + 0.5) / SHOWN_BINS
    generated_shares, real_shares = (rows.reshape(len(rows), SHOWN_BINS, -1).sum(axis=2) for rows in shares)
    return _curves(centres, generated_shares, real_shares, patients, distance)


def spectra(images: Float32[np.ndarray, "n h w"]) -> Float64[np.ndarray, "n rings"]:
    """Return the radially averaged power spectrum of each slice in dB, from low to high frequency.

    0 dB is a variance of 1, so that white noise of standard deviation s is flat at 20 log10 s. A blank slice
    is flat at -80 dB. Errors are those of `compare_spectra`.
    """
    check_slices(images, "spectrum", SMALLEST_SIDE)
    rows, columns = images.shape[1:]
    frequencies, ring, count = _rings(rows, columns)
    window = np.outer(hann(rows, sym=False), hann(columns, sym=False))
    window /= np.sqrt((window**2).mean() * window.size)  # so that the mean power is the variance
    decibels = np.empty((len(images), len(frequencies)))
    for index, image in enumerate(images.astype(np.float64)):
        power = np.abs(fft2((image - image.mean()) * window)) ** 2
        totals = np.bincount(ring.ravel(), weights=power.ravel(), minlength=len(frequencies) + 1)
        decibels[index] = 10 * np.log10(np.maximum(totals[1 : len(frequencies) + 1] / count, _LEAST_POWER))
    return decibels


def histograms(images: Float32[np.ndarray, "n h w"]) -> Float64[np.ndarray, "n bins"]:
    """Return the share of each slice's pixels in each of 256 equal bins of [0, 1]; 1 is in the last bin."""
    check_slices(images, "histogram")
    shares = np.empty((len(images), BINS))
    for index, image in enumerate(images):
        levels = np.clip((image * BINS).astype(np.int64), 0, BINS - 1)
        shares[index] = np.bincount(levels.ravel(), minlength=BINS) / levels.size
    return shares


def _curves(
    at: Float64[np.ndarray, " f"],
    generated: Float64[np.ndarray, "m f"],
    real: Float64[np.ndarray, "n f"],
    patients: Sequence[str],
    distance: RelativeMeasure,
) -> Curves:
    names = np.asarray(patients)
    means = np.array([real[names == name].mean(axis=0) for name in sorted(set(patients))])
    low, high = np.quantile(means, [0.05, 0.95], axis=0)
    return Curves(
        at=tuple(at.tolist()),
        generated=tuple(generated.mean(axis=0).tolist()),
        real=tuple(real.mean(axis=0).tolist()),
        real_low=tuple(low.tolist()),
        real_high=tuple(high.tolist()),
        distance=distance,
    )


def _rms_difference(x: Float64[np.ndarray, "n f"], y: Float64[np.ndarray, "m f"]) -> float:
    return float(np.sqrt(((x.mean(axis=0) - y.mean(axis=0)) ** 2).mean()))


def _wasserstein(x: Float64[np.ndarray, "n f"], y: Float64[np.ndarray, "m f"]) -> float:
    """Return the Wasserstein-1 distance of two mean histograms: the area between their cumulative sums."""
    return float(np.abs(np.cumsum(x.mean(axis=0) - y.mean(axis=0))).sum() / BINS)


@lru_cache(maxsize=8)
def _rings(
    rows: int, columns: int
) -> tuple[Float64[np.ndarray, " r"], Int64[np.ndarray, "h w"], Int64[np.ndarray, " r"]]:
    """Return the rings of a spectrum.

    Returns:
        The frequency of each ring in cycles/pixel, without ring 0 (the mean); the ring of each coefficient;
        and the number of coefficients per ring.
    """
    smaller = min(rows, columns)
    radius = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.fftfreq(columns)[None])
    ring = np.rint(radius * smaller).astype(np.int64)
    last = smaller // 2  # beyond 0.5 cycles/pixel there are only diagonal frequencies
    return np.arange(1, last + 1) / smaller, ring, np.bincount(ring.ravel())[1 : last + 1]
