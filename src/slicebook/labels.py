"""Label masks as a network takes and gives them: one-hot in, logits out, and what training minimises.

A mask is uint8, a label value a pixel. Its values are `TokenizerConfig.label_values`, a channel each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from slicebook.errors import DataError


def one_hot(labels: UInt8[Tensor, "b h w"], values: Sequence[int]) -> Float[Tensor, "b c h w"]:
    """Return masks as one channel of 0 and 1 a label value.

    Raises:
        DataError: A mask holds a value that is none of `values`.
    """
    return functional.one_hot(_places(labels, values), len(values)).permute(0, 3, 1, 2).float()


def labels_from(logits: Float[Tensor, "b c h w"], values: Sequence[int]) -> UInt8[Tensor, "b h w"]:
    """Return the most likely label of each pixel."""
    table = torch.tensor(values, dtype=torch.uint8, device=logits.device)
    return table[logits.argmax(1)]


@dataclass(frozen=True)
class LabelLoss:
    """How far logits are from masks, averaged over all pixels of a batch."""

    cross_entropy: Float[Tensor, ""]
    """In nats a pixel."""
    soft_dice: Float[Tensor, ""]
    """Of the probabilities, differentiable: the mean over the labels that occur, without the background."""
    dice: Float[Tensor, ""]
    """The same of the most likely labels."""


def compare(
    logits: Float[Tensor, "b c h w"], labels: UInt8[Tensor, "b h w"], values: Sequence[int]
) -> LabelLoss:
    """Compare logits with masks.

    Dice is 2|A∩B| / (|A| + |B|) over all pixels of the batch, a label at a time, the mean over the labels
    that occur. The lowest label value is the background, and has none. A batch of background alone scores 1.

    Raises:
        DataError: A mask holds a value that is none of `values`.
    """
    wanted = _places(labels, values)
    # Channels last: over them go the softmax and the maximum, which are slow on a CPU otherwise.
    logits = logits.float().contiguous(memory_format=torch.channels_last)
    log_likely = logits.log_softmax(1)
    likely = log_likely.exp()
    drawn = logits.detach().argmax(1)
    true = log_likely.new_tensor(1.0).expand(wanted.shape)
    # Sums by label, not products with one-hot masks: those are most of a step's time on a CPU.
    common = _by_label(likely.gather(1, wanted[:, None])[:, 0], wanted, len(values))
    met = _by_label((drawn == wanted).float(), wanted, len(values))
    size = _by_label(true, wanted, len(values))
    return LabelLoss(
        functional.nll_loss(log_likely, wanted),
        _dice(common, likely.sum((0, 2, 3)), size),
        _dice(met, _by_label(true, drawn, len(values)), size),
    )


def _by_label(
    amounts: Float[Tensor, "b h w"], places: Int64[Tensor, "b h w"], count: int
) -> Float[Tensor, " count"]:
    return amounts.new_zeros(count).index_add(0, places.flatten(), amounts.flatten())


def _dice(
    common: Float[Tensor, " c"], drawn: Float[Tensor, " c"], wanted: Float[Tensor, " c"]
) -> Float[Tensor, ""]:
    """Return the mean over the labels wanted, without the first; 1 where only that one is."""
    there = (wanted[1:] > 0).float()
    scores = (2 * common / (drawn + wanted).clamp(min=1))[1:] * there
    return torch.where(there.any(), scores.sum() / there.sum().clamp(min=1), torch.ones_like(scores[0]))


def _places(labels: UInt8[Tensor, "b h w"], values: Sequence[int]) -> Int64[Tensor, "b h w"]:
    """Return where in `values` each pixel's label stands."""
    table = torch.full((256,), -1, device=labels.device)
    table[torch.tensor(values, device=labels.device)] = torch.arange(len(values), device=labels.device)
    found = table[labels.long()]
    if (found < 0).any():
        unknown = sorted(set(labels[found < 0].tolist()))
        raise DataError(
            f"label {', '.join(map(str, unknown))} in a mask; known are {', '.join(map(str, values))}: "
            "use masks with the labels of the training, or train anew"
        )
    return found
