"""Training losses of tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from slicebook.config import LossConfig
from slicebook.distributed import current_part, summed
from slicebook.errors import ShapeError
from slicebook.models.masks import channel_indices
from slicebook.models.noise import denoise
from slicebook.models.tokenizer import Reconstruction


@dataclass(frozen=True)
class Loss:
    """The loss of a training step, and its parts."""

    total: Float[Tensor, ""]
    reconstruction: Float[Tensor, ""]
    """Distance of the images, without the commitment."""
    ssim: Float[Tensor, ""]
    """Structural similarity on [0, 1] (`ssim`), for the curves."""


def loss(reconstruction: Reconstruction, images: Float[Tensor, "b 1 h w"], config: LossConfig) -> Loss:
    """Return the training loss of reconstructed slices; both in [-1, 1].

    `l1_ssim` is L1 + (1 - SSIM), halved differences and SSIM on [0, 1]; `mse` is the mean squared
    error on [-1, 1]. Both add the commitment, times its weight. Where `config.denoise_strength` is set, they
    compare with the denoised slice; the SSIM for the curves always compares with the slice itself.
    """
    with torch.autocast(images.device.type, enabled=False):
        drawn = reconstruction.images.float()
        target = denoise(images, config.denoise_strength) if config.denoise_strength else images
        if config.kind == "l1_ssim":
            similarity = ssim((drawn + 1) / 2, (target + 1) / 2)
            distance = (drawn - target).abs().mean() / 2 + (1 - similarity)
        else:
            distance = functional.mse_loss(drawn, target)
        if config.kind != "l1_ssim" or config.denoise_strength:
            with torch.no_grad():
                similarity = ssim((drawn + 1) / 2, (images + 1) / 2)
        total = distance + config.commitment * reconstruction.commitment.float()
    return Loss(total, distance.detach(), similarity.detach())


def ssim(first: Float[Tensor, "b 1 h w"], second: Float[Tensor, "b 1 h w"]) -> Float[Tensor, ""]:
    """Mean structural similarity of slices on [0, 1] (Wang et al. 2004, eq. 13), differentiable.

    Gaussian windows of sigma 1.5 and radius 5 that lie wholly inside the slice, data range 1: the value
    that scikit-image gives with `gaussian_weights=True, sigma=1.5, use_sample_covariance=False`.
    """
    rows, columns = (_window(side, first) for side in first.shape[-2:])
    # A banded matrix on each side is the separable window: a convolution of one channel is slow on a CPU.
    moments = torch.stack([first, second, first * first, second * second, first * second])
    x, y, xx, yy, xy = rows @ moments @ columns.t()
    luminance = (2 * x * y + 0.01**2) / (x * x + y * y + 0.01**2)
    structure = (2 * (xy - x * y) + 0.03**2) / (xx - x * x + yy - y * y + 0.03**2)
    similarity: Tensor = (luminance * structure).mean()
    return similarity


def _window(side: int, like: Tensor, radius: int = 5, sigma: float = 1.5) -> Float[Tensor, "windows side"]:
    """A matrix whose row i averages pixels i to i + 2·radius with Gaussian weights."""
    if side <= 2 * radius:
        raise ShapeError(f"a side of {side} pixels is too small for SSIM: wanted at least {2 * radius + 1}")
    offsets = (
        torch.arange(side, device=like.device)[None, :]
        - torch.arange(side - 2 * radius, device=like.device)[:, None]
    )
    weights = torch.exp(-0.5 * ((offsets - radius) / sigma) ** 2) * ((offsets >= 0) & (offsets <= 2 * radius))
    return (weights / weights.sum(1, keepdim=True)).to(like)


@dataclass(frozen=True)
class LabelLoss:
    """Distance of logits from masks; Dice is over all pixels of a batch, of all processes that share it."""

    cross_entropy: Float[Tensor, ""]
    """In nats per pixel."""
    soft_dice: Float[Tensor, ""]
    """Dice of the probabilities, differentiable: mean over the labels that occur, without the background."""
    dice: Float[Tensor, ""]
    """Dice of the most likely labels."""


def compare(
    logits: Float[Tensor, "b c h w"], labels: UInt8[Tensor, "b h w"], values: Sequence[int]
) -> LabelLoss:
    """Compare logits with masks, whose values must be among `values` (`masks.check_labels`).

    Dice is 2|A∩B| / (|A| + |B|) over all pixels of the batch for each label, then the mean over the labels
    that occur. The lowest label value is the background, which is left out. Background alone scores 1.
    """
    wanted = channel_indices(labels, values)
    # Channels last: over them go the softmax and the maximum, which are slow on a CPU otherwise.
    logits = logits.float().contiguous(memory_format=torch.channels_last)
    log_likely = logits.log_softmax(1)
    likely = log_likely.exp()
    drawn = logits.detach().argmax(1)
    true = log_likely.new_tensor(1.0).expand(wanted.shape)
    # Sums by label, not products with one-hot masks: those are most of a step's time on a CPU.
    sums = [
        _by_label(likely.gather(1, wanted[:, None])[:, 0], wanted, len(values)),
        likely.sum((0, 2, 3)),
        _by_label((drawn == wanted).float(), wanted, len(values)),
        _by_label(true, drawn, len(values)),
        _by_label(true, wanted, len(values)),
    ]
    common, likely_size, met, drawn_size, size = summed(torch.stack(sums), current_part(len(labels)))
    return LabelLoss(
        functional.nll_loss(log_likely, wanted),
        _dice(common, likely_size, size),
        _dice(met, drawn_size, size),
    )


def _by_label(
    amounts: Float[Tensor, "b h w"], labels: Int64[Tensor, "b h w"], count: int
) -> Float[Tensor, " count"]:
    return amounts.new_zeros(count).index_add(0, labels.flatten(), amounts.flatten())


def _dice(
    common: Float[Tensor, " c"], drawn: Float[Tensor, " c"], wanted: Float[Tensor, " c"]
) -> Float[Tensor, ""]:
    """Return the mean over the labels that occur, without the first; 1 if no other occurs."""
    there = (wanted[1:] > 0).float()
    scores = (2 * common / (drawn + wanted).clamp(min=1))[1:] * there
    return torch.where(there.any(), scores.sum() / there.sum().clamp(min=1), torch.ones_like(scores[0]))
