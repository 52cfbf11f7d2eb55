"""Measure the noise of slices, remove it for training, and add such noise to samples.

A tokenizer that reconstructs noise spends its tokens on it, and a prior cannot predict them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn import functional

RADIUS = 2  # of the filter's windows, in pixels
SMALLEST = 1e-3  # noise level below which a slice counts as noise-free, on [-1, 1]
REACH = 3  # pixels over which noise is assumed to be correlated
INTENSITIES = 17  # from -1 to 1, at which the noise is measured
QUANTILES = 21
ALIKE = 1e-3  # spread of log contrasts below which no slope is fitted
ENOUGH = 1e-3  # share of all flat pixels below which an intensity bin is interpolated


def noise_level(
    images: Float[Tensor, "b 1 h w"], where: Bool[Tensor, "b 1 h w"] | None = None
) -> Float[Tensor, " b"]:
    """Return the standard deviation of each slice's noise, in units of its intensity.

    From the mean response to a mask that no smooth surface and no straight edge excites (Immerkær 1996,
    https://doi.org/10.1006/cviu.1996.0060, eq. 4).

    Args:
        images: Slices.
        where: Pixels to use; all by default. A slice without any has no noise.
    """
    line = torch.tensor([1.0, -2.0, 1.0], device=images.device)
    mask = torch.outer(line, line)[None, None]
    response = functional.conv2d(images.float(), mask).abs()
    if where is None:
        mean = response.mean((1, 2, 3))
    else:
        whole = 1 - functional.max_pool2d((~where).float(), 3, stride=1)
        mean = (response * whole).sum((1, 2, 3)) / whole.sum((1, 2, 3)).clamp(min=1)
    return math.sqrt(math.pi / 2) / 6 * mean


def denoise(images: Float[Tensor, "b 1 h w"], strength: float) -> Float[Tensor, "b 1 h w"]:
    """Return slices without detail weaker than `strength` times their noise; edges are kept.

    The guided filter with the slice as its own guide (He et al. 2013,
    https://doi.org/10.1109/TPAMI.2012.213, eqs. 5, 6 and 8).
    """
    images = images.float()
    level = (strength * noise_level(images)).clamp(min=SMALLEST).square()[:, None, None, None]
    mean, variance = _moments(images)
    slope = variance / (variance + level)
    return _box(slope) * images + _box(mean - slope * mean)


class NoiseModel(BaseModel):
    """The noise of a set of slices: its level, its dependence on intensity, and its spatial correlation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: float
    slope: float
    """log(noise level) = `base` + `slope` · log(contrast) + residual, per slice."""
    known: tuple[float, float]
    """Lowest and highest log contrast of reconstructions; contrasts are clamped to this range."""
    bounds: tuple[float, float]
    """Lowest and highest log noise level of slices; levels of samples are clamped to this range."""
    deviations: tuple[float, ...]
    """Quantiles of the residuals, evenly spaced from 0 to 1."""
    spread: tuple[float, ...]
    """Noise standard deviation relative to the slice's level, at intensities evenly spaced from -1 to 1."""
    texture: tuple[float, ...]
    """Standard deviation of the texture of decoded images, in units of intensity, at the same intensities."""
    correlation: tuple[tuple[float, ...], ...]
    """Autocorrelation of the noise, at row and column offsets from -REACH to REACH."""

    def level(self, image: Float32[np.ndarray, "h w"], seed: int) -> float:
        """Sample the noise level of a decoded image, given its contrast."""
        contrast = min(max(math.log(max(float(image.std()), SMALLEST)), self.known[0]), self.known[1])
        share = _generator(seed).random()
        more = np.interp(share, np.linspace(0, 1, len(self.deviations)), self.deviations)
        level = self.base + self.slope * contrast + float(more)
        return math.exp(min(max(level, self.bounds[0]), self.bounds[1]))

    def add_noise(
        self, image: Float32[np.ndarray, "h w"], level: float, seed: int
    ) -> Float32[np.ndarray, "h w"]:
        """Add noise of a level to an image; clipped to [-1, 1]."""
        rows, columns = image.shape
        wide = np.zeros((max(rows, 2 * REACH + 1), max(columns, 2 * REACH + 1)))
        wide[: 2 * REACH + 1, : 2 * REACH + 1] = self.correlation
        power = np.fft.fft2(np.roll(wide, (-REACH, -REACH), (0, 1))).real.clip(min=0)
        draw = _generator(seed)
        draw.random()  # the number used by `level`
        white = np.fft.fft2(draw.standard_normal(wide.shape))
        field = np.fft.ifft2(white * np.sqrt(power / power.mean())).real[:rows, :columns]
        at = np.linspace(-1, 1, len(self.spread))
        wanted = level * np.interp(image, at, self.spread)
        # Variances add up: the texture already present is subtracted.
        missing = np.sqrt((wanted**2 - np.interp(image, at, self.texture) ** 2).clip(min=0))
        noisy: Float32[np.ndarray, "h w"] = np.clip(image + missing * field, -1, 1).astype(np.float32)
        return noisy


def fit_noise_model(
    pairs: Iterable[tuple[Float[Tensor, "b 1 h w"], Float[Tensor, "b 1 h w"]]],
    strength: float,
    decoded: Iterable[Float[Tensor, "b 1 h w"]] | None = None,
) -> NoiseModel:
    """Measure the noise of slices in flat regions, and the texture of decoded images there.

    A decoder produces more texture from sampled tokens than from encoded ones, so its texture is measured on
    samples. The noise level of a sample is predicted from its contrast, not from its texture, which is
    highest in failed samples.

    Args:
        pairs: Slices in [-1, 1] and their reconstructions; at least one.
        strength: As in `denoise`; a window is flat if it varies by less than this many times the noise.
        decoded: Images decoded from sampled tokens; by default the reconstructions.
    """
    levels: list[Tensor] = []
    contrasts: list[Tensor] = []
    reconstructions: list[Tensor] = []
    # float64: float32 cannot count beyond 2^24 pixels.
    power, counts = torch.zeros(2, INTENSITIES, dtype=torch.float64)
    side = 2 * REACH + 1
    products, both = torch.zeros(2, side, side, dtype=torch.float64)
    for images, reconstruction in pairs:
        images = images.float()
        level = noise_level(images).clamp(min=SMALLEST)
        levels.append(level.log())
        contrasts.append(reconstruction.std((1, 2, 3), correction=0).clamp(min=SMALLEST).log())
        if decoded is None:
            reconstructions.append(reconstruction)
        scale = level[:, None, None, None]
        mean, variance = _moments(images)
        flat = (variance < (strength * scale).square()).float()
        noise = (images - mean) / scale * flat
        at = _intensity(mean)
        power.index_add_(0, at, noise.square().flatten().double())
        counts.index_add_(0, at, flat.flatten().double())
        for down in range(side):
            for right in range(side):
                moved = (down - REACH, right - REACH)
                products[down, right] += (noise * noise.roll(moved, (-2, -1))).sum()
                both[down, right] += (flat * flat.roll(moved, (-2, -1))).sum()
    covariance = products / both.clamp(min=1)
    correlation = covariance / covariance[REACH, REACH].clamp(min=1e-12)
    correlation[REACH, REACH] = 1  # also without any noise
    level, contrast = torch.cat(levels).double(), torch.cat(contrasts).double()
    base, slope, left = _line(contrast, level)
    texture = _texture(
        reconstructions if decoded is None else decoded, strength, math.exp(float(level.mean()))
    )
    return NoiseModel(
        base=base,
        slope=slope,
        known=(float(contrast.min()), float(contrast.max())),
        bounds=(float(level.min()), float(level.max())),
        deviations=tuple(left.quantile(torch.linspace(0, 1, QUANTILES, dtype=left.dtype)).tolist()),
        spread=_by_intensity(power, counts),
        texture=texture,
        correlation=tuple(tuple(row) for row in correlation.tolist()),
    )


def _texture(decoded: Iterable[Float[Tensor, "_ 1 _ _"]], strength: float, level: float) -> tuple[float, ...]:
    """Return the texture of decoded images by intensity, where a slice of noise `level` would be flat."""
    power, counts = torch.zeros(2, INTENSITIES, dtype=torch.float64)
    for images in decoded:
        images = images.float()
        mean, variance = _moments(images)
        flat = (variance + level**2 < (strength * level) ** 2).float()
        at = _intensity(mean)
        power.index_add_(0, at, ((images - mean) * flat).square().flatten().double())
        counts.index_add_(0, at, flat.flatten().double())
    return _by_intensity(power, counts)


def _line(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> tuple[float, float, Float[Tensor, " n"]]:
    """Fit a line by least squares, of slope 0 if all x are equal; return intercept, slope and residuals."""
    rise = x - x.mean()
    slope = float((rise * y).sum() / rise.square().sum()) if x.std(correction=0) > ALIKE else 0.0
    base = float(y.mean()) - slope * float(x.mean())
    return base, slope, y - base - slope * x


def _intensity(means: Float[Tensor, "b 1 h w"]) -> Int64[Tensor, " n"]:
    """Return the index of each pixel's intensity bin."""
    return ((means + 1) / 2 * (INTENSITIES - 1)).round().long().clamp(0, INTENSITIES - 1).flatten()


def _by_intensity(power: Float[Tensor, " k"], counts: Float[Tensor, " k"]) -> tuple[float, ...]:
    """Return standard deviations per bin; bins with too few pixels are interpolated."""
    known = (counts > ENOUGH * counts.sum()).numpy()
    deviations = np.sqrt((power / counts.clamp(min=1)).numpy())
    at = np.arange(INTENSITIES)
    return tuple((np.interp(at, at[known], deviations[known]) if known.any() else deviations).tolist())


def _generator(seed: int) -> np.random.Generator:
    # A random stream separate from those of the tokens and the position.
    return np.random.default_rng([seed, 2])


def _moments(images: Float[Tensor, "b 1 h w"]) -> tuple[Tensor, Tensor]:
    """Mean and variance of the window around each pixel."""
    mean = _box(images)
    return mean, (_box(images * images) - mean * mean).clamp(min=0)


def _box(images: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
    padded = functional.pad(images, (RADIUS,) * 4, mode="replicate")
    return functional.avg_pool2d(padded, 2 * RADIUS + 1, stride=1)
