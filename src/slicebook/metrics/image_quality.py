"""Image quality of a reconstruction: SSIM, PSNR, MAE, NMSE and HFEN, each with its exact definition.

The SSIM of one pair of images depends on the window, the data range and the region, so every score is defined
in `CONVENTIONS` under its name. All functions take one slice in [0, 1] in its native geometry: padding would
raise every score without improving a pixel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Float, Float32
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.metrics import structural_similarity

from slicebook.errors import DataError, ShapeError
from slicebook.metrics.statistics import Summary, summarise_one

HEADLINE = "ssim_foreground"

Scores = Mapping[str, float | None]

_RECORD = (
    "SSIM of record: scikit-image structural_similarity(gaussian_weights=True, sigma=1.5, "
    "use_sample_covariance=False, data_range=1) on [0, 1]"
)
_FOREGROUND = (
    "over the foreground (computed from the original alone: above half its Otsu threshold, largest "
    "component, holes filled)"
)

CONVENTIONS: Mapping[str, str] = MappingProxyType(
    {
        "ssim_foreground": f"{_RECORD}; the mean of its map {_FOREGROUND}.",
        "ssim_whole": f"{_RECORD}; the mean over the whole slice, without a border of half a window.",
        "ssim_skimage_default": "scikit-image's default SSIM (uniform 7×7 window, sample covariance) "
        "on [-1, 1] with data_range=2, whole slice.",
        "ssim_fastmri": "fastMRI's SSIM (uniform 7×7 window, sample covariance) with data_range = the "
        "maximum of the original volume, here over its slices in [0, 1]; whole slice.",
        "psnr_whole": "PSNR in dB with data_range=1 on [0, 1], whole slice; an exact copy has 100 dB.",
        "psnr_foreground": f"PSNR in dB with data_range=1 on [0, 1], {_FOREGROUND}.",
        "mae_whole": "Mean absolute error on [0, 1], whole slice.",
        "mae_foreground": f"Mean absolute error on [0, 1], {_FOREGROUND}.",
        "nmse_whole": "Squared error over the squared norm of the original on [0, 1], per slice.",
        "nmse_foreground": f"Squared error over the squared norm of the original on [0, 1], {_FOREGROUND}.",
        "hfen_whole": "High-frequency error norm (Ravishankar and Bresler 2011, "
        "doi:10.1109/TMI.2010.2090538), normalised: norm of the error after a 15×15 Laplacian of Gaussian of "
        "sigma 1.5 pixels, over the norm of the original after it; whole slice.",
    }
)

# A Gaussian of sigma 1.5 cut at 3.5 sigma is 11 pixels wide, the widest window used here.
SMALLEST_SIDE = 11
_EXACT = 1e-10  # mean squared error of 100 dB


@dataclass(frozen=True)
class SliceScores:
    """The scores of one slice, each defined in `CONVENTIONS` under the same name.

    A score is None where its definition divides by zero: foreground scores of a slice without foreground,
    `nmse` of an all-zero original, `hfen` of a constant one, `ssim_fastmri` of an all-zero volume.
    """

    ssim_foreground: float | None
    ssim_whole: float
    ssim_skimage_default: float
    ssim_fastmri: float | None
    psnr_whole: float
    psnr_foreground: float | None
    mae_whole: float
    mae_foreground: float | None
    nmse_whole: float | None
    nmse_foreground: float | None
    hfen_whole: float | None

    def named(self) -> dict[str, float | None]:
        """Return the scores by name, in the order of `CONVENTIONS`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def foreground(original: Float[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Return the foreground mask: above half the Otsu threshold, largest component, holes filled.

    It is computed from the original alone, so that a reconstruction cannot affect which pixels are scored. A
    constant slice has no foreground. Components are 4-connected.
    """
    if original.size == 0 or original.min() == original.max():
        return np.zeros(original.shape, dtype=bool)
    threshold = float(threshold_otsu(original))  # type: ignore[no-untyped-call]  # scikit-image carries no types
    labels, _ = ndimage.label(original > threshold / 2)
    sizes = np.bincount(labels.ravel())
    return np.asarray(ndimage.binary_fill_holes(labels == 1 + np.argmax(sizes[1:])), dtype=bool)


def ssim_map(
    original: Float[np.ndarray, "h w"], reconstruction: Float[np.ndarray, "_ _"]
) -> tuple[float, Float[np.ndarray, "h w"]]:
    """Return the SSIM of record over the whole slice, and its map (Wang et al. 2004, eq. 13).

    Args:
        original: The slice in [0, 1].
        reconstruction: The same slice reconstructed, in [0, 1].

    Raises:
        ShapeError: The slices differ in shape, or are smaller than the window of 11×11.
    """
    _check_pair(original, reconstruction)
    mean, values = structural_similarity(  # type: ignore[no-untyped-call]  # scikit-image carries no types
        original,
        reconstruction,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
        full=True,
    )
    return float(mean), np.asarray(values)


def scores(
    original: Float[np.ndarray, "h w"], reconstruction: Float[np.ndarray, "_ _"], *, volume_max: float = 1.0
) -> SliceScores:
    """Score one reconstructed slice under every convention.

    Args:
        original: The slice in [0, 1].
        reconstruction: The same slice reconstructed; it is clipped to [0, 1].
        volume_max: Largest value of the original's volume, in [0, 1]: the data range of `ssim_fastmri`.

    Raises:
        ShapeError: The slices differ in shape, or are smaller than the SSIM's window.
        DataError: A value is not finite, or the original is not in [0, 1].
    """
    _check_pair(original, reconstruction)
    _check_values(original, reconstruction)
    # Float64: the variance terms of SSIM are differences of nearly equal numbers.
    truth = original.astype(np.float64)
    copy = np.clip(reconstruction.astype(np.float64), 0, 1)
    inside = foreground(original)
    whole, similarity = ssim_map(truth, copy)
    error = copy - truth
    return SliceScores(
        ssim_foreground=float(similarity[inside].mean()) if inside.any() else None,
        ssim_whole=whole,
        ssim_skimage_default=_default_ssim(2 * truth - 1, 2 * copy - 1, data_range=2.0),
        ssim_fastmri=_default_ssim(truth, copy, data_range=volume_max) if volume_max > 0 else None,
        psnr_whole=_psnr(error),
        psnr_foreground=_psnr(error[inside]) if inside.any() else None,
        mae_whole=float(np.abs(error).mean()),
        mae_foreground=float(np.abs(error[inside]).mean()) if inside.any() else None,
        nmse_whole=_share(error, truth, power=2),
        nmse_foreground=_share(error[inside], truth[inside], power=2),
        hfen_whole=_share(_edges(error), _edges(truth), power=1),
    )


def _default_ssim(
    truth: Float[np.ndarray, "h w"], copy: Float[np.ndarray, "h w"], data_range: float
) -> float:
    return float(structural_similarity(truth, copy, data_range=data_range))  # type: ignore[no-untyped-call]  # as above


def _psnr(error: Float[np.ndarray, "..."]) -> float:
    return float(-10 * np.log10(max(float(np.mean(error**2)), _EXACT)))


def _share(error: Float[np.ndarray, "..."], truth: Float[np.ndarray, "..."], *, power: int) -> float | None:
    """Return (norm of the error / norm of the truth) ** power, or None if the truth is zero."""
    norm = float(np.linalg.norm(truth))
    return float((np.linalg.norm(error) / norm) ** power) if norm > 1e-12 else None


def _edges(image: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    # Radius 7 makes the 15×15 kernel of Ravishankar and Bresler.
    return np.asarray(ndimage.gaussian_laplace(image, sigma=1.5, truncate=7 / 1.5))


def _check_pair(original: Float[np.ndarray, "..."], reconstruction: Float[np.ndarray, "..."]) -> None:
    if original.shape != reconstruction.shape:
        raise ShapeError(
            f"reconstruction is {_by(reconstruction.shape)}, its original {_by(original.shape)}; "
            "crop it back to the native size before scoring"
        )
    if original.ndim != 2 or min(original.shape) < SMALLEST_SIDE:
        raise ShapeError(
            f"slice is {_by(original.shape)}, SSIM needs sides of at least {SMALLEST_SIDE} pixels; "
            "prepare the data with a larger --size"
        )


def _check_values(original: Float[np.ndarray, "..."], reconstruction: Float[np.ndarray, "..."]) -> None:
    for name, values in (("original", original), ("reconstruction", reconstruction)):
        if not np.isfinite(values).all():
            raise DataError(
                f"{name} has values that are not finite, so it cannot be scored; exclude the slice"
            )
    if original.min() < -1e-4 or original.max() > 1 + 1e-4:
        raise DataError(
            f"original spans {original.min():.4g} to {original.max():.4g}, wanted [0, 1]; "
            "map a prepared slice x by (x + 1) / 2"
        )


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def summarise(slice_scores: Sequence[Scores], patients: Sequence[str], seed: int) -> dict[str, Summary]:
    """Summarise every score of `CONVENTIONS` over slices, given the scores and the patient of each slice."""
    return {
        name: summarise_one(convention, [values[name] for values in slice_scores], patients, seed)
        for name, convention in CONVENTIONS.items()
    }


def difference(scores: Scores, baseline: Scores) -> Scores:
    """Return each score minus that of a baseline; None where either is None."""
    return {
        name: None if value is None or (other := baseline[name]) is None else value - other
        for name, value in scores.items()
    }


_ROUNDING = 1e-4  # tolerance outside [0, 1]


def check_slices(images: Float32[np.ndarray, "n h w"], measure: str, smallest_side: int = 1) -> None:
    """Check that slices are in [0, 1] and large enough for a measure.

    Args:
        images: The slices.
        measure: Name of the measure, for the message.
        smallest_side: In pixels.

    Raises:
        DataError: A value is not finite or outside [0, 1]; the message has the index of the slice.
        ShapeError: A side is too short.
    """
    rows, columns = images.shape[1:]
    if min(rows, columns) < smallest_side:
        raise ShapeError(
            f"slices are {rows}×{columns}, {measure} needs sides of at least {smallest_side} pixels; "
            "prepare the data with a larger --size"
        )
    for index, image in enumerate(images):
        low, high = float(image.min()), float(image.max())
        if not (np.isfinite(low) and np.isfinite(high)):  # NaN and infinities show in the extremes
            raise DataError(
                f"slice {index} has values that are not finite, so its {measure} cannot be computed; "
                "exclude it and check the program that wrote it"
            )
        if low < -_ROUNDING or high > 1 + _ROUNDING:
            raise DataError(
                f"slice {index} spans {low:.4g} to {high:.4g}, wanted [0, 1]; map a prepared slice x by "
                "(x + 1) / 2, and clip a generated one"
            )
