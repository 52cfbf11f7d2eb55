"""The transformer of the prior: conditions, rotary positions, attention, key-value cache, blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from slicebook.config import PriorConfig, TrunkConfig
from slicebook.models.sequence import NEIGHBOUR_RADIUS, PARENT_RADIUS

HEAD_DIM = 64
MAX_DENSE_ATTENTION = 1024  # steps up to which attention is computed as a dense matrix
NUM_FREQUENCIES = 6  # octaves of the Fourier features of positions
NEAREST_WAVE, FARTHEST_WAVE = 4.0, 512.0  # pixels per radian of the rotary positions


@dataclass(frozen=True)
class Conditions:
    """Conditions of each slice; NaN and -1 mean unknown.

    Attributes:
        position: Position in the volume, 0 for the first slice and 1 for the last.
        group: Index of the class.
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
        """Return unknown conditions for `count` slices."""
        return cls(torch.full((count,), math.nan), torch.full((count,), -1))


def _waves(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape waves"]:
    """Fourier features of numbers in [0, 1]: sines and cosines of half a turn and its octaves."""
    angles = values[..., None] * math.pi * 2.0 ** torch.arange(NUM_FREQUENCIES, device=values.device)
    return torch.cat([angles.sin(), angles.cos()], -1)


def _rotation(centres: Float[Tensor, "b n 2"]) -> Complex[Tensor, "b 1 n half"]:
    """Rotary embedding of 2D positions as unit complex numbers: half of a head for rows, half for columns."""
    count = HEAD_DIM // 4
    octaves = torch.linspace(math.log(NEAREST_WAVE), math.log(FARTHEST_WAVE), count, device=centres.device)
    angles = (centres[..., None] / octaves.exp()).flatten(-2)[:, None]
    return torch.polar(torch.ones_like(angles), angles)


def _rotate(x: Float[Tensor, "b heads n dim"], by: Complex[Tensor, "b 1 n half"]) -> Tensor:
    """Rotate pairs of channels (Su et al. 2021, eq. 34, https://arxiv.org/abs/2104.09864)."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * by).flatten(-2).to(x)


def _attention(queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool) -> Tensor:
    """Scaled dot-product attention, optionally causal.

    On a CPU in half precision the fused kernel's backward pass takes twice the time of two plain products.
    """
    steps = queries.shape[2]
    plain = (
        causal
        and steps <= MAX_DENSE_ATTENTION
        and queries.device.type == "cpu"
        and queries.dtype != torch.float32
    )
    if not plain:
        return functional.scaled_dot_product_attention(queries, keys, values, is_causal=causal)
    later = torch.full((steps, steps), -math.inf, dtype=queries.dtype).triu(1)
    weights: Tensor = ((queries * HEAD_DIM**-0.5) @ keys.transpose(-1, -2) + later).softmax(-1)
    return weights @ values


class KVCache:
    """Keys and values of all previous steps, for one block."""

    def __init__(self, count: int, width: int, steps: int, *, like: Tensor) -> None:
        self.keys = like.new_zeros(count, width // HEAD_DIM, steps, HEAD_DIM)
        self.values = torch.zeros_like(self.keys)
        self.filled = 0

    def add(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values, and return all of them."""
        end = self.filled + keys.shape[2]
        self.keys[:, :, self.filled : end] = keys
        self.values[:, :, self.filled : end] = values
        self.filled = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class _Block(nn.Module):
    """Pre-norm transformer block with causal attention."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.heads = width // HEAD_DIM
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )

    def forward(
        self, x: Tensor, query_rotation: Tensor, key_rotation: Tensor, cache: KVCache | None
    ) -> Tensor:
        qkv = self.qkv(self.norm1(x)).view(*x.shape[:2], 3, self.heads, HEAD_DIM)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)
        queries, keys = _rotate(queries, query_rotation), _rotate(keys, key_rotation)
        causal = x.shape[1] > 1
        if cache is not None:
            assert cache.filled == 0 or not causal
            keys, values = cache.add(keys, values)
        # No dropout in here: it would take the fused attention away.
        attended = _attention(queries, keys, values, causal=causal)
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        update: Tensor = self.mlp(x)
        return x + update


class PriorTransformer(nn.Module):
    """A transformer that predicts consecutive stages, given all earlier ones.

    Its sequence has the tokens of all earlier stages, then one step for each of its own tokens. A step holds
    the previous token and the position to predict.
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
        self.stages = range(first, len(codebooks))
        self.tokens = nn.ModuleList(_embedding(codes, dim) for codes in codebooks)
        self.contents = nn.ModuleList(nn.Linear(dim, width) for _ in codebooks)
        around, above = (2 * NEIGHBOUR_RADIUS + 1) ** 2 - 1, (2 * PARENT_RADIUS + 1) ** 2
        self.windows = nn.ModuleList(
            nn.Linear(dim * (around + above * stage), width) for stage in self.stages
        )
        self.stage = nn.Embedding(len(codebooks) + 1, width)  # the last: start of the sequence
        # One half is for token embeddings, one for queries.
        self.position_proj = nn.Linear(4 * NUM_FREQUENCIES, 2 * width)
        self.blocks = nn.ModuleList(_Block(width, prior.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, len(codebooks[stage])) for stage in self.stages)
        self.position = nn.Linear(2 * NUM_FREQUENCIES, width)
        self.unknown_position = nn.Parameter(torch.zeros(width))
        self.group = nn.Embedding(groups + 1, width)
        self.dropout = nn.Dropout(prior.dropout)
        for name, parameter in self.named_parameters():
            if name.endswith((".proj.weight", ".mlp.3.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.layers))
            elif name.startswith("heads."):
                nn.init.zeros_(parameter)  # every code is equally likely at first

    def condition_embedding(self, conditions: Conditions) -> Float[Tensor, "b width"]:
        """Embed the conditions of each slice."""
        missing = conditions.position.isnan()
        position = self.position(_waves(conditions.position.nan_to_num()))
        position = torch.where(missing[:, None], self.unknown_position.to(position), position)
        group: Tensor = self.group(conditions.group + 1)
        return position + group

    def token_embedding(
        self, stage: int, tokens: Int64[Tensor, "b n"], positions: Float[Tensor, "b n 2"]
    ) -> Tensor:
        """Embed known tokens with their positions."""
        where = self.position_proj(_waves(positions).flatten(-2)).chunk(2, -1)[0]
        content = self.contents[stage](self.tokens[stage](tokens))
        embedding: Tensor = content + where + self.stage.weight[stage]
        return embedding

    def query_embedding(
        self, stage: int, windows: Sequence[Int64[Tensor, "b n _"]], positions: Float[Tensor, "b n 2"]
    ) -> Tensor:
        """Embed the position to predict, with the tokens in the window around it and around its parents.

        `windows` holds the neighbours in the same grid first, then the parents in each coarser grid.
        """
        around, *above = windows
        seen = [self.tokens[stage](around)] + [
            self.tokens[coarser](window) for coarser, window in enumerate(above)
        ]
        where = self.position_proj(_waves(positions).flatten(-2)).chunk(2, -1)[1]
        local = self.windows[stage - self.first](torch.cat([part.flatten(2) for part in seen], -1))
        embedding: Tensor = local + where + self.stage.weight[stage]
        return embedding

    def forward_blocks(
        self,
        x: Float[Tensor, "b n width"],
        query_centres: Float[Tensor, "b n 2"],
        key_centres: Float[Tensor, "b n 2"],
        caches: Sequence[KVCache] | None = None,
    ) -> Float[Tensor, "b n width"]:
        """Run the blocks, given the centres (in pixels) of each step's prediction and of its input token."""
        x, query_rotation, key_rotation = self.dropout(x), _rotation(query_centres), _rotation(key_centres)
        for index, block in enumerate(self.blocks):
            x = block(x, query_rotation, key_rotation, caches[index] if caches else None)
        normed: Tensor = self.norm(x)
        return normed

    def logits(self, stage: int, x: Float[Tensor, "b n width"]) -> Float[Tensor, "b n k"]:
        """Return the logits of each code."""
        logits: Tensor = self.heads[stage - self.first](x)
        return logits


def _embedding(codes: Float[Tensor, "k d"], dim: int) -> nn.Embedding:
    """A learned embedding per code, initialised from the code itself. The last row is the unknown token."""
    table = nn.Embedding(len(codes) + 1, dim)
    scaled = (codes - codes.mean(0)) / codes.std().clamp(min=1e-6)
    with torch.no_grad():
        table.weight.normal_(std=0.1)
        shared = min(dim, scaled.shape[1])
        table.weight[:-1, :shared] += scaled[:, :shared]
        table.weight[-1] = 0
    return table
