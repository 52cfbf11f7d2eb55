"""Random augmentation of slices and masks: `draw_augmentation` draws parameters, `augment` applies them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional

from slicebook.config import AugmentConfig, ContrastConfig
from slicebook.distributed import Part


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

    def __getitem__(self, rows: slice) -> Augmentation:
        """Return the parameters of some slices."""
        return Augmentation(**{name: value[rows] for name, value in vars(self).items()})


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


def augment_slices(
    images: Float[Tensor, "b 1 h w"],
    config: AugmentConfig,
    generator: torch.Generator,
    part: Part | None = None,
) -> Float[Tensor, "b 1 h w"]:
    """Return slices in [-1, 1] with random geometry and intensity, and random contrast if it is set.

    Where they are a part of a batch, they change as they would in the whole batch.
    """
    part = part or Part.whole(len(images))
    images = augment(images, draw_augmentation(config, part.total, generator)[part.rows])
    return randomise_contrast(images, config.contrast, generator, part) if config.contrast else images


AIR = 0.04  # on [0, 1]: what is darker counts as air
BIAS_GRID = 4  # random values of the bias field along each side
BLUR_RADIUS = 4  # pixels


def randomise_contrast(
    images: Float[Tensor, "b 1 h w"],
    config: ContrastConfig,
    generator: torch.Generator,
    part: Part | None = None,
) -> Float[Tensor, "b 1 h w"]:
    """Change the contrast of slices in [-1, 1] by a random curve, bias field, blur and noise.

    The curve need not be monotone, so tissues also swap their order. The generator is on the CPU.
    """
    part = part or Part.whole(len(images))

    def drawn(*shape: int, draw: Callable[..., Tensor] = torch.rand) -> Tensor:
        """Return random numbers of these slices, out of those of the whole batch."""
        numbers = draw((part.total, *shape), generator=generator)[part.rows]
        return numbers.to(images.device, non_blocking=True)

    changed = (drawn() < config.probability)[:, None, None, None]
    curves = drawn(config.knots)
    fields = 1 - 2 * config.bias * drawn(1, BIAS_GRID, BIAS_GRID)
    sigmas = (config.blur * drawn()).clamp(min=1e-3)
    levels = config.noise * drawn(1, 1, 1)
    noise = drawn(*images.shape[1:], draw=torch.randn)

    unit = ((images + 1) / 2).clamp(0, 1)
    values = torch.where(unit < AIR, unit, _through_curves(unit, curves))
    bias = functional.interpolate(fields, images.shape[-2:], mode="bicubic", align_corners=True)
    values = _blur(values * bias.clamp(min=0), sigmas) + levels * noise
    return torch.where(changed, values.clamp(0, 1) * 2 - 1, images)


def _through_curves(
    unit: Float[Tensor, "b 1 h w"], curves: Float[Tensor, "b knots"]
) -> Float[Tensor, "b 1 h w"]:
    """Map intensities in [0, 1] through piecewise linear curves, stretched so that the slice fills [0, 1]."""
    last = curves.shape[1] - 1
    place = unit * last
    knot = place.floor().clamp(max=last - 1).long()
    low = curves.gather(1, knot.flatten(1)).view_as(unit)
    high = curves.gather(1, knot.flatten(1) + 1).view_as(unit)
    values = torch.lerp(low, high, place - knot)
    least, most = values.amin((2, 3), keepdim=True), values.amax((2, 3), keepdim=True)
    return (values - least) / (most - least + 1e-6)


def _blur(images: Float[Tensor, "b 1 h w"], sigmas: Float[Tensor, " b"]) -> Float[Tensor, "b 1 h w"]:
    """Blur each slice with its own Gaussian; the edge is repeated."""
    offsets = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=images.device)
    weights = torch.exp(-0.5 * (offsets / sigmas[:, None]) ** 2)
    weights = weights / weights.sum(1, keepdim=True)  # [b, 2 r + 1]
    stack = images.transpose(0, 1)  # [1, b, h, w]: each slice is a channel with a kernel of its own
    padded = functional.pad(stack, (BLUR_RADIUS,) * 4, mode="replicate")
    rows = functional.conv2d(padded, weights[:, None, :, None], groups=len(images))
    return functional.conv2d(rows, weights[:, None, None, :], groups=len(images)).transpose(0, 1)


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
