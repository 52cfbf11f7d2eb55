"""Ours: a cheap stem, residual blocks on the grids, and decoding from coarse to fine.

Nearly all work is done at the resolution of the grids, where a convolution is dense and cheap. What the
coarser levels said is handed down as features, so a finer level spends its codes on what they could not say.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from slicebook.config import TokenizerConfig
from slicebook.models.networks.base import Context, Network

GROUPS = 8


class Block(nn.Module):
    """Pre-activation residual block (He et al. 2016) with group norm and SiLU; starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        last = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(last.weight)
        self.body = nn.Sequential(
            nn.GroupNorm(GROUPS, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(GROUPS, width),
            nn.SiLU(),
            last,
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return x + f(x)."""
        mixed: Tensor = x + self.body(x)
        return mixed


def blocks(width: int, count: int) -> nn.Sequential:
    """`count` residual blocks."""
    return nn.Sequential(*(Block(width) for _ in range(count)))


def patchify(channels: int, width: int, rate: int, kernel: int = 1) -> nn.Sequential:
    """Fold `rate`×`rate` pixels into channels, then mix."""
    mix = nn.Conv2d(channels * rate * rate, width, kernel, padding=kernel // 2)
    return nn.Sequential(nn.PixelUnshuffle(rate), mix)


def unpatchify(width: int, channels: int, rate: int, kernel: int = 1) -> nn.Sequential:
    """Mix, then unfold channels into `rate`×`rate` pixels."""
    mix = nn.Conv2d(width, channels * rate * rate, kernel, padding=kernel // 2)
    return nn.Sequential(mix, nn.PixelShuffle(rate))


def head(width: int, rate: int, channels: int) -> nn.Sequential:
    """Draw pixels from the finest grid: one residual block at twice its resolution, then unfold the rest."""
    layers: list[nn.Module] = []
    if rate > 2:
        layers += [unpatchify(width, width // 2, 2), Block(width // 2)]
        width, rate = width // 2, rate // 2
    return nn.Sequential(
        *layers, nn.GroupNorm(GROUPS, width), nn.SiLU(), unpatchify(width, channels, rate, kernel=3)
    )


class Ladder(Network):
    """Encode by folding, decode by climbing down from the coarsest level with context.

    The context is one map of features, already at the resolution of the next level to speak.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        rates, width, dim, depth = config.scaling_rates, config.width, config.code_dim, config.residual_layers
        levels = range(len(rates))
        self.folds = nn.ModuleList(
            # Channels of a mask make a wide stem, and noise to average over it has none.
            patchify(
                width if level else config.channels,
                width,
                rate,
                kernel=1 if level or config.label_values else 3,
            )
            for level, rate in enumerate(rates)
        )
        self.encoders = nn.ModuleList(blocks(width, depth) for _ in levels)
        self.to_latents = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(GROUPS, width), nn.SiLU(), nn.Conv2d(width, dim, 1)) for _ in levels
        )
        self.code_proj = nn.ModuleList(nn.Conv2d(dim, width, 3, padding=1) for _ in levels)
        self.decoders = nn.ModuleList(blocks(width, depth) for _ in levels)
        self.unfolds = nn.ModuleList(
            unpatchify(width, width, rate) if level else head(width, rate, config.channels)
            for level, rate in enumerate(rates)
        )
        self.context_proj = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in rates[1:])

    @property
    def pixel_decoder(self) -> nn.ModuleList:
        """What makes pixels of the finest codes and their context."""
        return nn.ModuleList([self.code_proj[0], self.decoders[0], self.unfolds[0]])

    def features(self, images: Float[Tensor, "b c h w"]) -> Sequence[Float[Tensor, "b _ _ _"]]:
        """Encode slices to one map a level, finest first."""
        maps, x = [], images
        for step, stage in zip(self.folds, self.encoders, strict=True):
            x = stage(step(x))
            maps.append(x)
        return maps

    def latents(
        self, level: int, features: Float[Tensor, "b _ gh gw"], context: Context
    ) -> Float[Tensor, "b d gh gw"]:
        """Say what a level would add to the coarser ones."""
        if context:
            features = features + self.context_proj[level](context[0])
        latents: Tensor = self.to_latents[level](features)
        return latents

    def decode_level(self, level: int, context: Context, vectors: Float[Tensor, "b d gh gw"]) -> Context:
        """Fold a level's vectors into the context."""
        features = self.code_proj[level](vectors)
        if context:
            features = features + context[0]
        return (self.unfolds[level](self.decoders[level](features)),)

    def image(self, context: Context) -> Float[Tensor, "b c h w"]:
        """Draw the slice."""
        return context[0]
