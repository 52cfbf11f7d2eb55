"""Label masks as input and output of a network: one-hot in, logits out.

A mask is uint8, one label value per pixel. `TokenizerConfig.label_values` lists the values, one channel each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from slicebook.errors import DataError


def one_hot(labels: UInt8[Tensor, "b h w"], values: Sequence[int]) -> Float[Tensor, "b c h w"]:
    """Return masks, whose values are among `values`, as one channel of 0 and 1 per label value."""
    return functional.one_hot(channel_indices(labels, values), len(values)).permute(0, 3, 1, 2).float()


def labels_from(logits: Float[Tensor, "b c h w"], values: Sequence[int]) -> UInt8[Tensor, "b h w"]:
    """Return the most likely label of each pixel."""
    table = torch.tensor(values, dtype=torch.uint8, device=logits.device)
    return table[logits.argmax(1)]


def channel_indices(labels: UInt8[Tensor, "b h w"], values: Sequence[int]) -> Int64[Tensor, "b h w"]:
    """Return the index in `values` of each pixel's label; -1 for others (see `check_labels`)."""
    table = torch.full((256,), -1, device=labels.device)
    table[torch.tensor(values, device=labels.device)] = torch.arange(len(values), device=labels.device)
    return table[labels.long()]


def check_labels(labels: Iterable[int], values: Sequence[int]) -> None:
    """Refuse label values that are none of `values`.

    Raises:
        DataError: Names them.
    """
    unknown = sorted(set(labels) - set(values))
    if unknown:
        raise DataError(
            f"label {', '.join(map(str, unknown))} in a mask; known are {', '.join(map(str, values))}: "
            "use masks with the labels of the training, or train anew"
        )
