"""The architecture of the founding document, exactly: a hierarchical VQ-VAE after Razavi et al. 2019.

Its document builds a decoder for every level and uses the finest one; so one is built here. Its code drops
to one channel after the second upsampling by mistake; here the widths mirror the encoder, as its text says.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from slicebook.config import TokenizerConfig
from slicebook.models.networks.base import Context, Network
from slicebook.models.networks.batch_norm import BatchNorm2d


class ResidualLayer(nn.Module):
    """x + α·f(x), where α is learned and starts at 0 (ReZero, Bachlechner et al. 2020, eq. 1)."""

    def __init__(self, width: int, inner_width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, inner_width, 3, padding=1),
            BatchNorm2d(inner_width),
            nn.ReLU(),
            nn.Conv2d(inner_width, width, 3, padding=1),
            BatchNorm2d(width),
            nn.ReLU(),
        )
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return x + α·f(x)."""
        mixed: Tensor = x + self.alpha * self.body(x)
        return mixed


def encoder(channels: int, width: int, rate: int, residual_width: int, residual_layers: int) -> nn.Sequential:
    """Downscale by `rate`, a power of 2: channels → width // 2 → width → … → width."""
    layers: list[nn.Module] = []
    following = width // 2
    for _ in range(rate.bit_length() - 1):
        layers += [
            nn.Conv2d(channels, following, 4, stride=2, padding=1),
            BatchNorm2d(following),
            nn.ReLU(),
        ]
        channels, following = following, width
    layers += [nn.Conv2d(channels, width, 3, padding=1), BatchNorm2d(width)]
    layers += [ResidualLayer(width, residual_width) for _ in range(residual_layers)]
    return nn.Sequential(*layers)


def decoder(channels: int, width: int, rate: int, residual_width: int, residual_layers: int) -> nn.Sequential:
    """Upscale by `rate` to one channel; the widths mirror the encoder: 128 → 128 → 64 → 64 → 1 for 8."""
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1)]
    layers += [ResidualLayer(width, residual_width) for _ in range(residual_layers)]
    steps = rate.bit_length() - 1
    widths = [width] * max(1, steps - 1) + [width // 2] * 2
    for before, after in itertools.pairwise(widths[: steps + 1]):
        layers += [
            nn.ConvTranspose2d(before, after, 4, stride=2, padding=1),
            BatchNorm2d(after),
            nn.ReLU(),
        ]
    layers += [nn.Conv2d(widths[steps], 1, 3, padding=1), BatchNorm2d(1)]
    return nn.Sequential(*layers)


class VQVAE2(Network):
    """Chained encoders; each level is quantised beside all coarser codes; one decoder reads all codes."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        rates, width, dim = config.scaling_rates, config.width, config.code_dim
        residual = (config.residual_width, config.residual_layers)
        self.encoders = nn.ModuleList(
            encoder(1 if level == 0 else width, width, rate, *residual) for level, rate in enumerate(rates)
        )
        self.to_latents = nn.ModuleList(
            nn.Conv2d(width + dim * (len(rates) - 1 - level), dim, 1) for level in range(len(rates))
        )
        self.decoder = decoder(dim * len(rates), width, rates[0], *residual)

    def features(self, images: Float[Tensor, "b 1 h w"]) -> Sequence[Float[Tensor, "b _ _ _"]]:
        """Encode slices to one feature map per level, finest first."""
        maps, x = [], images
        for stage in self.encoders:
            x = stage(x)
            maps.append(x)
        return maps

    def latents(
        self, level: int, features: Float[Tensor, "b _ gh gw"], context: Context
    ) -> Float[Tensor, "b d gh gw"]:
        """Return the latents of a level, given the coarser ones."""
        latents: Tensor = self.to_latents[level](_joined([features, *context], features))
        return latents

    def decode_level(self, level: int, context: Context, vectors: Float[Tensor, "b d gh gw"]) -> Context:
        """Add a level's vectors to the context."""
        return (*context, vectors)

    def image(self, context: Context) -> Float[Tensor, "b 1 h w"]:
        """Return the slice."""
        image: Tensor = self.decoder(_joined(context, context[-1]))
        return image


def _joined(maps: Sequence[Tensor], like: Tensor) -> Tensor:
    """Concatenate maps along channels, each resized (nearest) to the grid of `like`."""
    return torch.cat([functional.interpolate(x, size=like.shape[-2:]) for x in maps], 1)
