"""Measure the noise of slices, and remove it for training.

A tokenizer that reconstructs noise spends its tokens on it, and a prior cannot predict them.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

RADIUS = 2  # of the filter's windows, in pixels
SMALLEST = 1e-3  # noise level below which a slice counts as noise-free, on [-1, 1]


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


def _moments(images: Float[Tensor, "b 1 h w"]) -> tuple[Tensor, Tensor]:
    """Mean and variance of the window around each pixel."""
    mean = _box(images)
    return mean, (_box(images * images) - mean * mean).clamp(min=0)


def _box(images: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
    padded = functional.pad(images, (RADIUS,) * 4, mode="replicate")
    return functional.avg_pool2d(padded, 2 * RADIUS + 1, stride=1)
