"""The prior: how likely one token is, given those already drawn. Coarse to fine, in any order within a level.

Grids are taken one after another, masks before images, coarse before fine: the stages. Within a stage the
tokens come in any order (σ-GPT, Pannatier et al. 2024, https://arxiv.org/abs/2404.09562), so one network
draws, fills gaps, and gives an exact likelihood for each order. A step knows the place it is asked about, the
drawn tokens around that place and those of coarser stages over it; attention over all earlier tokens does
the rest. One step of a trunk, which draws token t of its sequence:

    content of token t-1 ──┐
    window around place t ─┼─ + ─▶ blocks ─▶ norm ─▶ head ─▶ logits over the codes of token t
    conditions ────────────┘         ▲
                            keys and values of steps 0 … t-1
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from slicebook.config import PriorConfig
from slicebook.models.sequence import Layout, stage_windows
from slicebook.models.transformer import Conditions, PriorTransformer


class Prior(nn.Module):
    """Log-probability of token grids, stage by stage.

    Args:
        config: Sizes.
        codebooks: The codes of each stage, in the order the stages are drawn.
        groups: Classes that a slice may be of.
    """

    def __init__(
        self, config: PriorConfig, codebooks: Sequence[Float[Tensor, "_ _"]], groups: int = 0
    ) -> None:
        super().__init__()
        last = len(codebooks) - 1
        # The finest stage has nearly all the tokens and is mostly local: its own trunk can be small.
        transformers = [PriorTransformer(config, config.fine, last, codebooks, groups)]
        if last:
            transformers.insert(0, PriorTransformer(config, config.coarse, 0, codebooks[:last], groups))
        self._trunks = nn.ModuleList(transformers)

    @property
    def transformers(self) -> list[PriorTransformer]:
        """In the order they draw."""
        return [transformer for transformer in self._trunks if isinstance(transformer, PriorTransformer)]

    def forward(
        self,
        layout: Layout,
        tokens: Int64[Tensor, "b n"],
        orders: Int64[Tensor, "b n"],
        conditions: Conditions,
        heard: Int64[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n"]:
        """Return the negative log-likelihood of each token, in nats, in the order of the layout.

        A token that is unknown (it equals its stage's size) costs nothing and reads as such.

        Args:
            layout: Of the tokens.
            tokens: Every stage's grid, flattened and joined.
            orders: In which they are drawn: from `draw_orders`.
            conditions: What is known of each slice.
            heard: What the network is told of the tokens, when that differs from what they are.
        """
        heard, layout = tokens if heard is None else heard, layout.to(tokens.device)
        ranks = orders.argsort(1)
        losses = torch.zeros(tokens.shape, device=tokens.device)
        for transformer in self.transformers:
            begin = layout.starts[transformer.first]
            features = self._read(transformer, layout, heard, orders, ranks, conditions)
            for stage in transformer.own:
                part = layout.part(stage)
                logits = transformer.logits(stage, features[:, part.start - begin : part.stop - begin])
                wanted = tokens.gather(1, orders[:, part])
                found = functional.cross_entropy(
                    logits.float().transpose(1, 2),
                    wanted,
                    reduction="none",
                    ignore_index=layout.stages[stage].size,
                )
                losses = losses.scatter(1, orders[:, part], found)
        return losses

    def _read(
        self,
        transformer: PriorTransformer,
        layout: Layout,
        heard: Tensor,
        orders: Tensor,
        ranks: Tensor,
        conditions: Conditions,
    ) -> Tensor:
        """Return the features of a trunk's own steps."""
        begin, end = layout.starts[transformer.first], layout.starts[transformer.own[-1] + 1]
        places, centres = layout.places, layout.centres
        contents, questions = [], []
        for stage in range(transformer.own[-1] + 1):
            order = orders[:, layout.part(stage)]
            contents.append(transformer.content(stage, heard.gather(1, order), places[order]))
        for stage in transformer.own:
            part = layout.part(stage)
            order = orders[:, part]
            windows = stage_windows(layout, stage, heard, ranks, order - part.start)
            questions.append(transformer.question(stage, windows, places[order]))
        told = torch.cat(contents, 1)  # [b, end, width]: content of all tokens up to the trunk's last
        nothing = transformer.stage.weight[-1].expand(len(heard), 1, -1).to(told)
        # A step holds what was drawn before it; the first of a trunk's own holds nothing.
        # Both sums [b, end - begin, width]: one step per token of the trunk's own stages.
        steps = torch.cat([nothing, told[:, begin : end - 1]], 1) + torch.cat(questions, 1)
        # [b, end, width]: the content of earlier stages, then the trunk's own steps
        x = torch.cat([told[:, :begin], steps], 1) + transformer.known(conditions)[:, None]
        sequence = centres[orders[:, :end]]  # [b, end, 2]: the place that each step asks about
        # [b, end, 2]: the place of the content that each step holds, one behind; the first has its own
        held = torch.cat(
            [sequence[:, :begin], sequence[:, begin : begin + 1], sequence[:, begin : end - 1]], 1
        )
        return transformer.attend(x, sequence, held)[:, begin:]
