"""A U-Net over several grids of a slice, each entering and leaving at its own resolution.

    finest grid ──▶ blocks ─────────────── skip ─────────────▶ blocks ──▶ head of the finest grid
                      │                                          ▲
    coarser grid ─ + ─▶ blocks ─────────── skip ───────▶ blocks ─┴──────▶ head of this grid
                      │                                    ▲
    coarsest grid ─ + ─▶ blocks, attention, blocks ────────┴────────────▶ head of this grid

Convolutions see the surroundings of a token, attention on all grids but the finest sees the whole slice.
It takes slices of any size: where a token lies is told by Fourier features of its coordinates.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

HEAD_DIM = 32
GROUPS = 8
COORDINATE_OCTAVES = 4
COORDINATES = 4 * COORDINATE_OCTAVES  # channels: sine and cosine, of row and column


def coordinates(rows: int, columns: int, like: Tensor) -> Float[Tensor, "1 c rows columns"]:
    """Return Fourier features of the centre of each cell, as fractions of the slice."""
    axes = torch.meshgrid(
        (torch.arange(rows, device=like.device) + 0.5) / rows,
        (torch.arange(columns, device=like.device) + 0.5) / columns,
        indexing="ij",
    )
    octaves = math.pi * 2.0 ** torch.arange(COORDINATE_OCTAVES, device=like.device)
    angles = torch.cat([axis * octaves[:, None, None] for axis in axes])
    return torch.cat([angles.sin(), angles.cos()])[None].to(like.dtype)


class ResidualBlock(nn.Module):
    """Two convolutions; the conditions scale and shift between them (Dhariwal & Nichol 2021, section 3)."""

    def __init__(self, inputs: int, outputs: int, conditions: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.film = nn.Linear(conditions, 2 * outputs)
        self.norm2 = nn.GroupNorm(GROUPS, outputs, affine=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        # The block starts as its skip connection.
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Float[Tensor, "b c h w"], conditions: Float[Tensor, "b d"]) -> Tensor:
        """Return features of `outputs` channels."""
        scale, shift = self.film(conditions)[:, :, None, None].chunk(2, 1)
        h = self.conv1(functional.silu(self.norm1(x)))
        h = functional.silu(self.norm2(h) * (1 + scale) + shift)
        out: Tensor = self.skip(x) + self.conv2(h)
        return out


class SelfAttention(nn.Module):
    """Attention of all cells of a grid to each other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_DIM
        self.norm = nn.GroupNorm(GROUPS, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Tensor:
        """Return features of the same shape."""
        batch, width, rows, columns = x.shape
        # [3, b, heads, cells, HEAD_DIM]
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, HEAD_DIM, rows * columns)
        queries, keys, values = qkv.permute(1, 0, 2, 4, 3)
        seen = functional.scaled_dot_product_attention(queries, keys, values)
        out: Tensor = x + self.out(seen.transpose(2, 3).reshape(batch, width, rows, columns))
        return out


class _Stage(nn.Module):
    """Residual blocks of one resolution, with attention after each where the grid is coarse."""

    def __init__(self, inputs: int, width: int, conditions: int, blocks: int, attention: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(inputs if index == 0 else width, width, conditions) for index in range(blocks)
        )
        self.attention = nn.ModuleList(
            SelfAttention(width) if attention else nn.Identity() for _ in self.blocks
        )

    def forward(self, x: Tensor, conditions: Tensor) -> Tensor:
        for block, attention in zip(self.blocks, self.attention, strict=True):
            x = attention(block(x, conditions))
        return x


class GridUNet(nn.Module):
    """U-Net over grids of several strides.

    Args:
        strides: Of each grid, in pixels; each is one of `resolutions`.
        inputs: Channels of each grid.
        outputs: Channels that are returned for each grid; 0 for a grid that is only read.
        resolutions: Strides at which the network works, finest first, each a multiple of the one before.
        widths: Channels at each resolution.
        conditions: Channels of the conditions.
        blocks: Residual blocks at each resolution, on the way down and again on the way up.
        attention: For each resolution, whether its cells attend to each other.
    """

    def __init__(
        self,
        strides: Sequence[int],
        inputs: Sequence[int],
        outputs: Sequence[int],
        *,
        resolutions: Sequence[int],
        widths: Sequence[int],
        conditions: int,
        blocks: int,
        attention: Sequence[bool],
    ) -> None:
        super().__init__()
        self.level = [list(resolutions).index(stride) for stride in strides]
        self.enter = nn.ModuleList(
            nn.Conv2d(channels + COORDINATES, widths[level], 3, padding=1)
            for channels, level in zip(inputs, self.level, strict=True)
        )
        self.down = nn.ModuleList(
            _Stage(width, width, conditions, blocks, attends)
            for width, attends in zip(widths, attention, strict=True)
        )
        ratios = [coarse // fine for fine, coarse in itertools.pairwise(resolutions)]
        pairs = list(zip(ratios, widths, widths[1:], strict=False))
        self.shrink = nn.ModuleList(nn.Conv2d(fine, coarse, n, stride=n) for n, fine, coarse in pairs)
        self.grow = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, n, stride=n) for n, fine, coarse in pairs)
        coarsest = len(widths) - 1
        self.up = nn.ModuleList(
            _Stage(width if level == coarsest else 2 * width, width, conditions, blocks, attends)
            for level, (width, attends) in enumerate(zip(widths, attention, strict=True))
        )
        self.heads = nn.ModuleList(
            _head(widths[level], channels) if channels else nn.Identity()
            for channels, level in zip(outputs, self.level, strict=True)
        )

    def forward(
        self, grids: Sequence[Float[Tensor, "b _ _ _"]], conditions: Float[Tensor, "b d"]
    ) -> list[Float[Tensor, "b _ _ _"]]:
        """Return the outputs of all grids that have one, in the order of the grids."""
        entered: list[Tensor | None] = [None] * len(self.down)
        for grid, enter, level in zip(grids, self.enter, self.level, strict=True):
            place = coordinates(grid.shape[-2], grid.shape[-1], like=grid).expand(len(grid), -1, -1, -1)
            x = enter(torch.cat([grid, place], 1).contiguous(memory_format=torch.channels_last))
            others = entered[level]
            entered[level] = x if others is None else others + x
        skips: list[Tensor] = []
        for level, stage in enumerate(self.down):
            x = self.shrink[level - 1](skips[-1]) if level else torch.zeros(())
            own = entered[level]
            skips.append(stage(x if own is None else x + own, conditions))
        features = [self.up[-1](skips[-1], conditions)]  # coarsest first
        for level in reversed(range(len(self.grow))):
            x = torch.cat([self.grow[level](features[-1]), skips[level]], 1)
            features.append(self.up[level](x, conditions))
        return [
            head(features[len(features) - 1 - level])
            for head, level in zip(self.heads, self.level, strict=True)
            if not isinstance(head, nn.Identity)
        ]


def _head(width: int, channels: int) -> nn.Sequential:
    last = nn.Conv2d(width, channels, 1)
    nn.init.zeros_(last.weight)
    return nn.Sequential(nn.GroupNorm(GROUPS, width), nn.SiLU(), last)
