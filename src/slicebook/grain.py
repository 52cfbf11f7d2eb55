"""The noise of a slice: how strong it is, a slice without most of it, and noise like it to put back.

A tokenizer that must rebuild noise spends its tokens on it, and no prior can foresee them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn import functional

RADIUS = 2  # of the filter's windows, in pixels
SMALLEST = 1e-3  # noise level below which a slice counts as free of it, on [-1, 1]
REACH = 3  # pixels over which noise is taken to hang together
INTENSITIES = 17  # from -1 to 1, at which the noise is measured
QUANTILES = 21
ALIKE = 1e-3  # spread of logarithms under which nothing can be told from them
ENOUGH = 1e-3  # share of all flat places that makes an intensity's noise worth measuring


def noise_level(
    images: Float[Tensor, "b 1 h w"], where: Bool[Tensor, "b 1 h w"] | None = None
) -> Float[Tensor, " b"]:
    """Return the standard deviation of each slice's noise, in units of its intensity.

    From the mean response to a mask that no smooth surface and no straight edge excites (Immerkær 1996,
    https://doi.org/10.1006/cviu.1996.0060, eq. 4).

    Args:
        images: Slices.
        where: Pixels to look at; all by default. A slice without any has no noise.
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


def smooth(images: Float[Tensor, "b 1 h w"], strength: float) -> Float[Tensor, "b 1 h w"]:
    """Return slices without detail that is weaker than `strength` times their noise; edges stay.

    The guided filter with the slice as its own guide (He et al. 2013,
    https://doi.org/10.1109/TPAMI.2012.213, eqs. 5, 6 and 8).
    """
    images = images.float()
    level = (strength * noise_level(images)).clamp(min=SMALLEST).square()[:, None, None, None]
    mean, variance = _moments(images)
    slope = variance / (variance + level)
    return _box(slope) * images + _box(mean - slope * mean)


class Grain(BaseModel):
    """The noise of a set of slices, so that its like can be made: how strong, where, how fine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: float
    slope: float
    """The logarithm of a slice's noise level is `base` + `slope` times its rebuilt form's, and more."""
    known: tuple[float, float]
    """Rebuilt forms' noise levels, logarithms, least and greatest: beyond them the line is not followed."""
    deviations: tuple[float, ...]
    """Quantiles of that more, evenly spaced from the least to the greatest."""
    spread: tuple[float, ...]
    """Standard deviation over a slice's level, at intensities evenly spaced from -1 to 1: air has less."""
    drawn: tuple[float, ...]
    """The same, but in units of intensity, of what rebuilt forms show by themselves."""
    correlation: tuple[tuple[float, ...], ...]
    """Between pixels, by rows and columns from -REACH to REACH."""

    def level(self, image: Float32[np.ndarray, "h w"], seed: int) -> float:
        """Draw the noise level for a slice that came from tokens: one with much detail gets more."""
        own = math.log(max(float(noise_level(torch.from_numpy(image)[None, None])), SMALLEST))
        own = min(max(own, self.known[0]), self.known[1])
        share = _generator(seed).random()
        more = np.interp(share, np.linspace(0, 1, len(self.deviations)), self.deviations)
        return math.exp(self.base + self.slope * own + float(more))

    def put_back(
        self, image: Float32[np.ndarray, "h w"], level: float, seed: int
    ) -> Float32[np.ndarray, "h w"]:
        """Return a slice with noise of a level, clipped to [-1, 1]."""
        rows, columns = image.shape
        wide = np.zeros((max(rows, 2 * REACH + 1), max(columns, 2 * REACH + 1)))
        wide[: 2 * REACH + 1, : 2 * REACH + 1] = self.correlation
        power = np.fft.fft2(np.roll(wide, (-REACH, -REACH), (0, 1))).real.clip(min=0)
        draw = _generator(seed)
        draw.random()  # that of the level
        white = np.fft.fft2(draw.standard_normal(wide.shape))
        field = np.fft.ifft2(white * np.sqrt(power / power.mean())).real[:rows, :columns]
        at = np.linspace(-1, 1, len(self.spread))
        wanted = level * np.interp(image, at, self.spread)
        # Variances add up: only what is missing is put back.
        missing = np.sqrt((wanted**2 - np.interp(image, at, self.drawn) ** 2).clip(min=0))
        noisy: Float32[np.ndarray, "h w"] = np.clip(image + missing * field, -1, 1).astype(np.float32)
        return noisy


def learn_grain(
    batches: Iterable[tuple[Float[Tensor, "b 1 h w"], Float[Tensor, "b 1 h w"]]], strength: float
) -> Grain:
    """Measure the noise that slices have, and what their rebuilt forms show of it, where the slices are flat.

    Args:
        batches: Slices in [-1, 1], and the same as the tokenizer rebuilds them; at least one.
        strength: As in `smooth`; a window is flat if it varies by less than so many times the noise.
    """
    levels: list[Tensor] = []
    owns: list[Tensor] = []
    # Sums over many millions of pixels: float32 stops counting at 2^24.
    power, drawn, places = torch.zeros(3, INTENSITIES, dtype=torch.float64)
    side = 2 * REACH + 1
    products, pairs = torch.zeros(2, side, side, dtype=torch.float64)
    for images, rebuilt in batches:
        images = images.float()
        level = noise_level(images).clamp(min=SMALLEST)
        levels.append(level.log())
        owns.append(noise_level(rebuilt).clamp(min=SMALLEST).log())
        scale = level[:, None, None, None]
        mean, variance = _moments(images)
        flat = (variance < (strength * scale).square()).float()
        noise = (images - mean) / scale * flat
        texture = (rebuilt - _box(rebuilt)) * flat
        at = ((mean + 1) / 2 * (INTENSITIES - 1)).round().long().clamp(0, INTENSITIES - 1).flatten()
        power.index_add_(0, at, noise.square().flatten().double())
        drawn.index_add_(0, at, texture.square().flatten().double())
        places.index_add_(0, at, flat.flatten().double())
        for down in range(side):
            for right in range(side):
                moved = (down - REACH, right - REACH)
                products[down, right] += (noise * noise.roll(moved, (-2, -1))).sum()
                pairs[down, right] += (flat * flat.roll(moved, (-2, -1))).sum()
    known = (places > ENOUGH * places.sum()).numpy()
    intensities = np.arange(INTENSITIES)

    def by_intensity(sums: Tensor) -> tuple[float, ...]:
        found = np.sqrt((sums / places.clamp(min=1)).numpy())
        found = np.interp(intensities, intensities[known], found[known]) if known.any() else found
        return tuple(found.tolist())

    covariance = products / pairs.clamp(min=1)
    correlation = covariance / covariance[REACH, REACH].clamp(min=1e-12)
    correlation[REACH, REACH] = 1  # also where there is no noise at all
    own = torch.cat(owns).double()
    base, slope, more = _line(own, torch.cat(levels).double())
    return Grain(
        base=base,
        slope=slope,
        known=(float(own.min()), float(own.max())),
        deviations=tuple(more.quantile(torch.linspace(0, 1, QUANTILES, dtype=more.dtype)).tolist()),
        spread=by_intensity(power),
        drawn=by_intensity(drawn),
        correlation=tuple(tuple(row) for row in correlation.tolist()),
    )


def _line(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> tuple[float, float, Float[Tensor, " n"]]:
    """Fit a line by least squares, level if the x are all alike; return start, slope, and what it leaves."""
    rise = x - x.mean()
    slope = float((rise * y).sum() / rise.square().sum()) if x.std(correction=0) > ALIKE else 0.0
    base = float(y.mean()) - slope * float(x.mean())
    return base, slope, y - base - slope * x


def _generator(seed: int) -> np.random.Generator:
    # Another stream than those of the tokens and of the position.
    return np.random.default_rng([seed, 2])


def _moments(images: Float[Tensor, "b 1 h w"]) -> tuple[Tensor, Tensor]:
    """Mean and variance of the window around each pixel."""
    mean = _box(images)
    return mean, (_box(images * images) - mean * mean).clamp(min=0)


def _box(images: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
    padded = functional.pad(images, (RADIUS,) * 4, mode="replicate")
    return functional.avg_pool2d(padded, 2 * RADIUS + 1, stride=1)
