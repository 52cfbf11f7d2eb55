"""How likely a row of tokens is: exact for one order of drawing, averaged over several."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from slicebook.models.prior import Prior
from slicebook.models.sequence import SequenceLayout, draw_orders
from slicebook.models.transformer import Conditions

BATCH = 16


@dataclass(frozen=True)
class Likelihood:
    """Of some rows of tokens.

    Attributes:
        nats: Negative log-likelihood of each token, in the layout's order; the mean over orders.
        spread: Standard deviation over orders of a whole row's nats.
    """

    nats: Float[Tensor, "b n"]
    spread: Float[Tensor, " b"]


@torch.no_grad()
def likelihood(
    prior: Prior,
    layout: SequenceLayout,
    tokens: Int64[Tensor, "b n"],
    conditions: Conditions,
    *,
    orders: int = 4,
    seed: int = 0,
) -> Likelihood:
    """Return the negative log-likelihood of rows of tokens, in nats.

    Each order gives an exact likelihood of its own; that of the prior over random orders is their mixture,
    and the mean of the logarithms is a lower bound of it (Jensen). Every row meets the same orders, so that
    rows compare.

    Args:
        prior: In evaluation mode.
        layout: Of the tokens.
        tokens: One row a slice.
        conditions: One a slice.
        orders: To average over.
        seed: Of the orders.
    """
    device = next(prior.parameters()).device
    found, totals = [], []
    for start in range(0, len(tokens), BATCH):
        rows = torch.arange(start, min(start + BATCH, len(tokens)))
        part, known = tokens[rows].to(device), conditions[rows].to(device)
        draw = torch.Generator().manual_seed(seed)
        passes = torch.stack(
            [
                prior(layout, part, draw_orders(layout, 1, draw).repeat(len(part), 1).to(device), known)
                for _ in range(orders)
            ]
        ).cpu()
        found.append(passes.mean(0))
        totals.append(passes.sum(2).std(0, unbiased=False))
    return Likelihood(torch.cat(found), torch.cat(totals))
