"""The ladder: a cheap stem, residual blocks on the token grids, and decoding from coarse to fine.

Nearly all work is done at the resolution of the grids, where a convolution is dense and cheap. The
features of coarser levels are passed down, so that a finer level encodes only what they lack.
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
    """Decode the finest grid to pixels: one residual block at twice its resolution, then unpatchify."""
    layers: list[nn.Module] = []
    if rate > 2:
        layers += [unpatchify(width, width // 2, 2), Block(width // 2)]
        width, rate = width // 2, rate // 2
    return nn.Sequential(
        *layers, nn.GroupNorm(GROUPS, width), nn.SiLU(), unpatchify(width, channels, rate, kernel=3)
    )


class Ladder(Network):
    """Encode by patchifying, decode from the coarsest level to the finest.

    The context is one feature map, at the resolution of the next finer level.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        rates, width, dim, depth = config.scaling_rates, config.width, config.code_dim, config.residual_layers
        levels = range(len(rates))
        self.folds = nn.ModuleList(
            # A mask has many channels and no noise to average, so its stem needs no 3×3 kernel.
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

    def features(self, images: Float[Tensor, "b c h w"]) -> Sequence[Float[Tensor, "b _ _ _"]]:
        """Encode slices to one feature map per level, finest first."""
        maps, x = [], images
        for step, stage in zip(self.folds, self.encoders, strict=True):
            x = stage(step(x))
            maps.append(x)
        return maps

    def latents(
        self, level: int, features: Float[Tensor, "b _ gh gw"], context: Context
    ) -> Float[Tensor, "b d gh gw"]:
        """Return the latents of a level, given the coarser ones."""
        if context:
            features = features + self.context_proj[level](context[0])
        latents: Tensor = self.to_latents[level](features)
        return latents

    def decode_level(self, level: int, context: Context, vectors: Float[Tensor, "b d gh gw"]) -> Context:
        """Add a level's vectors to the context."""
        features = self.code_proj[level](vectors)
        if context:
            features = features + context[0]
        return (self.unfolds[level](self.decoders[level](features)),)

    def image(self, context: Context) -> Float[Tensor, "b c h w"]:
        """Return the slice."""
        return context[0]
