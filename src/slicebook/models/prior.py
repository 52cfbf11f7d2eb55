"""The prior: an autoregressive model of the tokens of a slice, coarse to fine, in any order within a grid.

The grids are predicted one after another: the mask's before the image's, coarse before fine. Within a
grid the tokens come in a random order (sigma-GPT, Pannatier et al. 2024,
https://arxiv.org/abs/2404.09562). One network therefore samples, inpaints, and gives the exact likelihood
of a slice for each order. Each step is given the position of the token that it predicts, the known tokens
in a window around that position and around its parents in the coarser grids, and attends to all earlier
steps.
One step of a transformer, which predicts token t:

    embedding of token t-1 ──────┐
    windows around position t ───┼─ + ─▶ blocks ─▶ norm ─▶ head ─▶ logits over the codes of token t
    embedding of the conditions ─┘         ▲
                               keys and values of steps 0 … t-1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from slicebook.config import PriorConfig
from slicebook.models.sequence import SequenceLayout, draw_orders, stage_windows
from slicebook.models.transformer import Conditions, PriorTransformer

LIKELIHOOD_BATCH = 16


class Prior(nn.Module):
    """Log-probability of token grids, stage by stage.

    Args:
        config: Sizes.
        codebooks: The codes of each stage, in the order of prediction.
        groups: Number of classes.
    """

    def __init__(
        self, config: PriorConfig, codebooks: Sequence[Float[Tensor, "_ _"]], groups: int = 0
    ) -> None:
        super().__init__()
        last = len(codebooks) - 1
        # The finest stage has nearly all the tokens and is mostly local: its own transformer can be small.
        transformers = [PriorTransformer(config, config.fine, last, codebooks, groups)]
        if last:
            transformers.insert(0, PriorTransformer(config, config.coarse, 0, codebooks[:last], groups))
        self._transformers = nn.ModuleList(transformers)

    @property
    def transformers(self) -> list[PriorTransformer]:
        """In the order of prediction."""
        return [
            transformer for transformer in self._transformers if isinstance(transformer, PriorTransformer)
        ]

    def forward(
        self,
        layout: SequenceLayout,
        tokens: Int64[Tensor, "b n"],
        orders: Int64[Tensor, "b n"],
        conditions: Conditions,
        input_tokens: Int64[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n"]:
        """Return the negative log-likelihood of each token, in nats, in the order of the layout.

        An unknown token (it equals the codebook size of its grid) costs nothing and is read as unknown.

        Args:
            layout: Where the tokens of each grid lie in the sequence.
            tokens: All grids, flattened and joined, in the order of the layout.
            orders: The order in which each slice's tokens are predicted, from `draw_orders`.
            conditions: Position in the volume and class of each slice; NaN and -1 where unknown.
            input_tokens: The tokens that the network sees, if they differ from those it predicts.
        """
        input_tokens, layout = tokens if input_tokens is None else input_tokens, layout.to(tokens.device)
        ranks = orders.argsort(1)
        losses = torch.zeros(tokens.shape, device=tokens.device)
        for transformer in self.transformers:
            begin = layout.starts[transformer.first]
            features = self._hidden_states(transformer, layout, input_tokens, orders, ranks, conditions)
            for stage in transformer.stages:
                part = layout.slice_of(stage)
                logits = transformer.logits(stage, features[:, part.start - begin : part.stop - begin])
                targets = tokens.gather(1, orders[:, part])
                nll = functional.cross_entropy(
                    logits.float().transpose(1, 2),
                    targets,
                    reduction="none",
                    ignore_index=layout.stages[stage].size,
                )
                losses = losses.scatter(1, orders[:, part], nll)
        return losses

    def _hidden_states(
        self,
        transformer: PriorTransformer,
        layout: SequenceLayout,
        input_tokens: Tensor,
        orders: Tensor,
        ranks: Tensor,
        conditions: Conditions,
    ) -> Tensor:
        """Return the features of the steps that a transformer predicts: [b, end - begin, width]."""
        begin, end = layout.starts[transformer.first], layout.starts[transformer.stages[-1] + 1]
        positions, centres = layout.positions, layout.centres
        embeddings, queries = [], []
        for stage in range(transformer.stages[-1] + 1):
            order = orders[:, layout.slice_of(stage)]
            embeddings.append(
                transformer.token_embedding(stage, input_tokens.gather(1, order), positions[order])
            )
        for stage in transformer.stages:
            part = layout.slice_of(stage)
            order = orders[:, part]
            windows = stage_windows(layout, stage, input_tokens, ranks, order - part.start)
            queries.append(transformer.query_embedding(stage, windows, positions[order]))
        # [b, end, width]: embeddings of all tokens up to the transformer's last
        context = torch.cat(embeddings, 1)
        start_embedding = transformer.stage.weight[-1].expand(len(input_tokens), 1, -1).to(context)
        # A step gets the token before it; the first step of a transformer gets none.
        # Both sums [b, end - begin, width]: one step per token that it predicts.
        steps = torch.cat([start_embedding, context[:, begin : end - 1]], 1) + torch.cat(queries, 1)
        # [b, end, width]: tokens of earlier grids, then the transformer's own steps
        x = torch.cat([context[:, :begin], steps], 1) + transformer.condition_embedding(conditions)[:, None]
        sequence = centres[orders[:, :end]]  # [b, end, 2]: the position that each step predicts
        # [b, end, 2]: the position of the token that each step gets, one behind; the first has its own
        previous = torch.cat(
            [sequence[:, :begin], sequence[:, begin : begin + 1], sequence[:, begin : end - 1]], 1
        )
        return transformer.forward_blocks(x, sequence, previous)[:, begin:]


@dataclass(frozen=True)
class Likelihood:
    """Negative log-likelihood of token sequences, in nats.

    Attributes:
        nats: Of each token, in the layout's order; the mean over orders of prediction.
        spread: Standard deviation over orders of a sequence's total.
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
    """Return the negative log-likelihood of token sequences.

    The likelihood is exact for each order of prediction. That of the prior over random orders is the mean of
    the likelihoods; the mean of their logarithms is a lower bound (Jensen). All sequences get the same
    orders, so their values are comparable.

    Args:
        prior: In evaluation mode.
        layout: Of the tokens.
        tokens: One sequence per slice.
        conditions: One per slice.
        orders: Number of orders to average over.
        seed: Of the orders.
    """
    device = next(prior.parameters()).device
    nats, spreads = [], []
    for start in range(0, len(tokens), LIKELIHOOD_BATCH):
        rows = torch.arange(start, min(start + LIKELIHOOD_BATCH, len(tokens)))
        batch, condition = tokens[rows].to(device), conditions[rows].to(device)
        generator = torch.Generator().manual_seed(seed)
        passes = torch.stack(
            [
                prior(
                    layout,
                    batch,
                    draw_orders(layout, 1, generator).repeat(len(batch), 1).to(device),
                    condition,
                )
                for _ in range(orders)
            ]
        ).cpu()
        nats.append(passes.mean(0))
        spreads.append(passes.sum(2).std(0, unbiased=False))
    return Likelihood(torch.cat(nats), torch.cat(spreads))
