"""Random augmentation of slices and masks: `draw_augmentation` draws parameters, `augment` applies them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional

from slicebook.config import AugmentConfig


@dataclass(frozen=True)
class Augmentation:
    """Augmentation parameters, one value per slice of a batch; on the CPU.

    Attributes:
        mirror: Whether to reverse the columns (left and right).
        angle: Rotation in radians, about the centre, in pixels.
        scale: Magnification.
        shift: Translation down and right, as fractions of the number of rows and columns.
        gamma: Exponent that is applied to intensities scaled to [0, 1].
        gain: Factor that is applied to intensities in [0, 1], after the exponent.
    """

    mirror: Bool[Tensor, " b"]
    angle: Float[Tensor, " b"]
    scale: Float[Tensor, " b"]
    shift: Float[Tensor, "b 2"]
    gamma: Float[Tensor, " b"]
    gain: Float[Tensor, " b"]


def draw_augmentation(config: AugmentConfig, batch_size: int, generator: torch.Generator) -> Augmentation:
    """Draw the parameters for a batch.

    Angle and shift are uniform in [-setting, setting]; scale, gamma and gain in [1 - setting, 1 + setting].
    The number of random draws is fixed, so that disabling one setting does not change the other parameters.
    """
    draws = torch.rand((batch_size, 7), generator=generator)
    signed = 2 * draws[:, 1:] - 1

    return Augmentation(
        mirror=draws[:, 0] < config.flip_probability,
        angle=signed[:, 0] * math.radians(config.rotate_degrees),
        scale=1 + signed[:, 1] * config.scale,
        shift=signed[:, 2:4] * config.shift,
        gamma=1 + signed[:, 4] * config.gamma,
        gain=1 + signed[:, 5] * config.intensity_scale,
    )


def augment(images: Float[Tensor, "b 1 h w"], parameters: Augmentation) -> Float[Tensor, "b 1 h w"]:
    """Apply parameters to slices in [-1, 1]; pixels outside the slice repeat its edge.

    Interpolation is bicubic: bilinear interpolation would remove noise, and augmented slices would be easier
    to reconstruct than originals. A step that would not change any slice is skipped.
    """
    device = images.device
    mirror = parameters.mirror.to(device, non_blocking=True)[:, None, None, None]
    images = torch.where(mirror, images.flip(-1), images)
    moved = parameters.angle.any() or parameters.shift.any() or (parameters.scale != 1).any()
    if moved:
        matrix = _sampling_matrix(parameters, *images.shape[-2:]).to(device, images.dtype, non_blocking=True)
        where = functional.affine_grid(matrix, list(images.shape), align_corners=False)
        images = functional.grid_sample(
            images, where, mode="bicubic", padding_mode="border", align_corners=False
        ).clamp(-1, 1)
    if (parameters.gamma != 1).any() or (parameters.gain != 1).any():
        gamma, gain = (
            value.to(device, images.dtype, non_blocking=True)[:, None, None, None]
            for value in (parameters.gamma, parameters.gain)
        )
        unit = ((images + 1) / 2).clamp(0, 1)
        images = (gain * unit**gamma).clamp(0, 1) * 2 - 1
    return images


def augment_labels(labels: UInt8[Tensor, "b 1 h w"], parameters: Augmentation) -> UInt8[Tensor, "b 1 h w"]:
    """Apply the geometric parameters to masks, with nearest-neighbour interpolation."""
    labels = torch.where(parameters.mirror.to(labels.device)[:, None, None, None], labels.flip(-1), labels)
    matrix = _sampling_matrix(parameters, *labels.shape[-2:]).to(labels.device)
    where = functional.affine_grid(matrix, list(labels.shape), align_corners=False)
    moved = functional.grid_sample(
        labels.float(), where, mode="nearest", padding_mode="border", align_corners=False
    )
    return moved.to(torch.uint8)


def _sampling_matrix(parameters: Augmentation, rows: int, columns: int) -> Float[Tensor, "b 2 3"]:
    """Return where each output pixel comes from, in grid_sample's coordinates (x, y in [-1, 1])."""
    cosine = torch.cos(parameters.angle) / parameters.scale
    sine = torch.sin(parameters.angle) / parameters.scale
    down, right = parameters.shift.unbind(1)
    # x and y are in halves of the width and height: a rotation in pixels mixes them by the aspect.
    x = torch.stack([cosine, sine * rows / columns, -2 * right], dim=1)
    y = torch.stack([-sine * columns / rows, cosine, -2 * down], dim=1)
    return torch.stack([x, y], dim=1)
