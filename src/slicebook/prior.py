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

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from slicebook.config import PriorConfig, TrunkConfig
from slicebook.stages import ABOVE, AROUND, Layout, stage_windows

HEAD_DIM = 64
FEW = 1024  # steps up to which all pairs of them are held at once
WAVES = 6  # octaves in which a place in the slice, or a slice in its volume, is told
NEAREST_WAVE, FARTHEST_WAVE = 4.0, 512.0  # pixels a radian of the rotary positions


@dataclass(frozen=True)
class Conditions:
    """What is known of each slice; NaN and -1 stand for unknown.

    Attributes:
        position: In the volume, 0 for the first slice and 1 for the last.
        group: Index of its class.
    """

    position: Float[Tensor, " b"]
    group: Int64[Tensor, " b"]

    def __getitem__(self, rows: Int64[Tensor, " _"]) -> Conditions:
        return Conditions(self.position[rows], self.group[rows])

    def to(self, device: torch.device) -> Conditions:
        """Move to a device."""
        return Conditions(self.position.to(device), self.group.to(device))

    @classmethod
    def unknown(cls, count: int) -> Conditions:
        """Nothing is known of any slice."""
        return cls(torch.full((count,), math.nan), torch.full((count,), -1))


def _waves(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape waves"]:
    """Sines and cosines of numbers in [0, 1], from half a turn up by octaves."""
    angles = values[..., None] * math.pi * 2.0 ** torch.arange(WAVES, device=values.device)
    return torch.cat([angles.sin(), angles.cos()], -1)


def _rotation(centres: Float[Tensor, "b n 2"]) -> Complex[Tensor, "b 1 n half"]:
    """Rotary angles of places as unit complex numbers: half of a head for rows, half for columns."""
    count = HEAD_DIM // 4
    octaves = torch.linspace(math.log(NEAREST_WAVE), math.log(FARTHEST_WAVE), count, device=centres.device)
    angles = (centres[..., None] / octaves.exp()).flatten(-2)[:, None]
    return torch.polar(torch.ones_like(angles), angles)


def _rotate(x: Float[Tensor, "b heads n dim"], by: Complex[Tensor, "b 1 n half"]) -> Tensor:
    """Rotate pairs of channels (Su et al. 2021, eq. 34, https://arxiv.org/abs/2104.09864)."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * by).flatten(-2).to(x)


def _attention(queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool) -> Tensor:
    """Attend to all keys, or if causal to those up to a query's own.

    On a CPU in half precision the fused kernel's backward pass takes twice the time of two plain products.
    """
    steps = queries.shape[2]
    plain = causal and steps <= FEW and queries.device.type == "cpu" and queries.dtype != torch.float32
    if not plain:
        return functional.scaled_dot_product_attention(queries, keys, values, is_causal=causal)
    later = torch.full((steps, steps), -math.inf, dtype=queries.dtype).triu(1)
    weights: Tensor = ((queries * HEAD_DIM**-0.5) @ keys.transpose(-1, -2) + later).softmax(-1)
    return weights @ values


class Cache:
    """Keys and values of the steps so far, for one block."""

    def __init__(self, count: int, width: int, steps: int, *, like: Tensor) -> None:
        self.keys = like.new_zeros(count, width // HEAD_DIM, steps, HEAD_DIM)
        self.values = torch.zeros_like(self.keys)
        self.filled = 0

    def add(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append, and return all."""
        end = self.filled + keys.shape[2]
        self.keys[:, :, self.filled : end] = keys
        self.values[:, :, self.filled : end] = values
        self.filled = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class _Block(nn.Module):
    """Pre-norm transformer block; a step attends to itself and to those before it."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.heads = width // HEAD_DIM
        self.before_attention = nn.LayerNorm(width)
        self.mix = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.think = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor, asked: Tensor, told: Tensor, cache: Cache | None) -> Tensor:
        mixed = self.mix(self.before_attention(x)).view(*x.shape[:2], 3, self.heads, HEAD_DIM)
        queries, keys, values = mixed.permute(2, 0, 3, 1, 4)
        queries, keys = _rotate(queries, asked), _rotate(keys, told)
        causal = x.shape[1] > 1
        if cache is not None:
            assert cache.filled == 0 or not causal
            keys, values = cache.add(keys, values)
        # No dropout in here: it would take the fused attention away.
        found = _attention(queries, keys, values, causal=causal)
        x = x + self.merge(found.transpose(1, 2).flatten(2))
        thought: Tensor = self.think(x)
        return x + thought


class Trunk(nn.Module):
    """Some consecutive stages, drawn by one transformer that reads all earlier ones.

    Its sequence is the content of the stages before its own, then a step for each of its own tokens. A step
    holds the content drawn last, and the place it is asked about.
    """

    def __init__(
        self,
        prior: PriorConfig,
        config: TrunkConfig,
        first: int,
        codebooks: Sequence[Float[Tensor, "_ _"]],
        groups: int,
    ) -> None:
        super().__init__()
        width, dim = config.width, prior.embedding
        self.first = first
        self.width = width
        self.own = range(first, len(codebooks))
        self.tokens = nn.ModuleList(_embedding(codes, dim) for codes in codebooks)
        self.contents = nn.ModuleList(nn.Linear(dim, width) for _ in codebooks)
        around, above = (2 * AROUND + 1) ** 2 - 1, (2 * ABOVE + 1) ** 2
        self.windows = nn.ModuleList(nn.Linear(dim * (around + above * stage), width) for stage in self.own)
        self.stage = nn.Embedding(len(codebooks) + 1, width)  # the last one: nothing drawn yet
        self.places = nn.Linear(4 * WAVES, 2 * width)  # one half for the content, one for the question
        self.blocks = nn.ModuleList(_Block(width, prior.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, len(codebooks[stage])) for stage in self.own)
        self.position = nn.Linear(2 * WAVES, width)
        self.unknown_position = nn.Parameter(torch.zeros(width))
        self.group = nn.Embedding(groups + 1, width)
        self.dropout = nn.Dropout(prior.dropout)
        for name, parameter in self.named_parameters():
            if name.endswith(("merge.weight", "think.3.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.layers))
            elif name.startswith("heads."):
                nn.init.zeros_(parameter)  # every code is equally likely at first

    def known(self, conditions: Conditions) -> Float[Tensor, "b width"]:
        """What is known of each slice."""
        missing = conditions.position.isnan()
        position = self.position(_waves(conditions.position.nan_to_num()))
        position = torch.where(missing[:, None], self.unknown_position.to(position), position)
        group: Tensor = self.group(conditions.group + 1)
        return position + group

    def content(self, stage: int, tokens: Int64[Tensor, "b n"], places: Float[Tensor, "b n 2"]) -> Tensor:
        """What drawn tokens say, and where they stand."""
        where = self.places(_waves(places).flatten(-2)).chunk(2, -1)[0]
        said: Tensor = self.contents[stage](self.tokens[stage](tokens)) + where + self.stage.weight[stage]
        return said

    def question(
        self, stage: int, windows: Sequence[Int64[Tensor, "b n _"]], places: Float[Tensor, "b n 2"]
    ) -> Tensor:
        """What is asked: a place, with the tokens drawn around it (first), then those above it, by stage."""
        around, *above = windows
        seen = [self.tokens[stage](around)] + [
            self.tokens[coarser](window) for coarser, window in enumerate(above)
        ]
        where = self.places(_waves(places).flatten(-2)).chunk(2, -1)[1]
        local = self.windows[stage - self.first](torch.cat([part.flatten(2) for part in seen], -1))
        asked: Tensor = local + where + self.stage.weight[stage]
        return asked

    def attend(
        self,
        x: Float[Tensor, "b n width"],
        asked: Float[Tensor, "b n 2"],
        told: Float[Tensor, "b n 2"],
        caches: Sequence[Cache] | None = None,
    ) -> Float[Tensor, "b n width"]:
        """Run the blocks over steps, given the centres (in pixels) of what each asks and of what it holds."""
        x, asked, told = self.dropout(x), _rotation(asked), _rotation(told)
        for index, block in enumerate(self.blocks):
            x = block(x, asked, told, caches[index] if caches else None)
        normed: Tensor = self.norm(x)
        return normed

    def logits(self, stage: int, x: Float[Tensor, "b n width"]) -> Float[Tensor, "b n k"]:
        """Unnormalised log-probability of each code."""
        found: Tensor = self.heads[stage - self.first](x)
        return found


def _embedding(codes: Float[Tensor, "k d"], dim: int) -> nn.Embedding:
    """A learned vector a code, begun at the code itself: like codes are alike. The last says 'unknown'."""
    table = nn.Embedding(len(codes) + 1, dim)
    scaled = (codes - codes.mean(0)) / codes.std().clamp(min=1e-6)
    with torch.no_grad():
        table.weight.normal_(std=0.1)
        shared = min(dim, scaled.shape[1])
        table.weight[:-1, :shared] += scaled[:, :shared]
        table.weight[-1] = 0
    return table


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
        trunks = [Trunk(config, config.fine, last, codebooks, groups)]
        if last:
            trunks.insert(0, Trunk(config, config.coarse, 0, codebooks[:last], groups))
        self._trunks = nn.ModuleList(trunks)

    @property
    def trunks(self) -> list[Trunk]:
        """In the order they draw."""
        return [trunk for trunk in self._trunks if isinstance(trunk, Trunk)]

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
        for trunk in self.trunks:
            begin = layout.starts[trunk.first]
            features = self._read(trunk, layout, heard, orders, ranks, conditions)
            for stage in trunk.own:
                part = layout.part(stage)
                logits = trunk.logits(stage, features[:, part.start - begin : part.stop - begin])
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
        trunk: Trunk,
        layout: Layout,
        heard: Tensor,
        orders: Tensor,
        ranks: Tensor,
        conditions: Conditions,
    ) -> Tensor:
        """Return the features of a trunk's own steps."""
        begin, end = layout.starts[trunk.first], layout.starts[trunk.own[-1] + 1]
        places, centres = layout.places, layout.centres
        contents, questions = [], []
        for stage in range(trunk.own[-1] + 1):
            order = orders[:, layout.part(stage)]
            contents.append(trunk.content(stage, heard.gather(1, order), places[order]))
        for stage in trunk.own:
            part = layout.part(stage)
            order = orders[:, part]
            windows = stage_windows(layout, stage, heard, ranks, order - part.start)
            questions.append(trunk.question(stage, windows, places[order]))
        told = torch.cat(contents, 1)  # [b, end, width]: content of all tokens up to the trunk's last
        nothing = trunk.stage.weight[-1].expand(len(heard), 1, -1).to(told)
        # A step holds what was drawn before it; the first of a trunk's own holds nothing.
        # Both sums [b, end - begin, width]: one step per token of the trunk's own stages.
        steps = torch.cat([nothing, told[:, begin : end - 1]], 1) + torch.cat(questions, 1)
        # [b, end, width]: the content of earlier stages, then the trunk's own steps
        x = torch.cat([told[:, :begin], steps], 1) + trunk.known(conditions)[:, None]
        sequence = centres[orders[:, :end]]  # [b, end, 2]: the place that each step asks about
        # [b, end, 2]: the place of the content that each step holds, one behind; the first has its own
        held = torch.cat(
            [sequence[:, :begin], sequence[:, begin : begin + 1], sequence[:, begin : end - 1]], 1
        )
        return trunk.attend(x, sequence, held)[:, begin:]
