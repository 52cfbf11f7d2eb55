"""The decoder of generation: what a tokenizer's decoder leaves out of a slice, drawn by a rectified flow.

A tokenizer reconstructs what its tokens tell: edges and organs, no noise and no grain. A slice decoded that
way is smoother than any scan. The flow starts from noise and ends at a residual, which is added:

    tokens ──▶ tokenizer's decoder ──▶ base ─────────────── + ──▶ slice
       │                                │                   ▲
       └─▶ codes of the finest grid ────┴─▶ U-Net ─▶ flow ──┘ residual
                                    noise ──┘

Many residuals fit the same tokens; the seed of a sample chooses one. Tokens do not change.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from slicebook.config import DecoderConfig
from slicebook.errors import ConfigError
from slicebook.models.flow import TIME_FEATURES, Grids, noisy, solve, time_features
from slicebook.models.tokenizer import Tokenizer
from slicebook.models.unet import GridUNet

CELL = 2  # pixels along a side of a cell of the U-Net's finest resolution


class FlowDecoder(nn.Module):
    """Velocity of residuals, given the tokenizer's slice and the codes of its finest grid.

    Args:
        config: Sizes of the network.
        tokenizer: Whose slices it completes; its weights are not part of this module.
    """

    spread: Float[Tensor, ""]
    codes: Float[Tensor, "k d"]

    def __init__(self, config: DecoderConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        codes = tokenizer.codebook(0).codes.detach()
        standard = (codes - codes.mean(0)) / codes.std(0, correction=0).clamp(min=1e-6)
        self.register_buffer("codes", standard, persistent=False)
        self.register_buffer("spread", torch.ones(()))
        self.time = nn.Sequential(
            nn.Linear(TIME_FEATURES, config.embedding),
            nn.SiLU(),
            nn.Linear(config.embedding, config.embedding),
            nn.SiLU(),
        )
        stride = tokenizer.config.scaling_rates[0]
        resolutions = [CELL * 2**level for level in range(len(config.widths))]
        if tokenizer.stride < resolutions[-1]:
            raise ConfigError(
                f"decoder.widths: {len(config.widths)} resolutions need slices padded to multiples of "
                f"{resolutions[-1]}, and this tokenizer pads to multiples of {tokenizer.stride}; give fewer "
                "widths"
            )
        entry = min(stride, resolutions[-1])  # where the codes enter
        self.repeat = stride // entry
        self.unet = GridUNet(
            [CELL, entry],
            [2 * CELL**2, codes.shape[1]],
            [CELL**2, 0],
            resolutions=resolutions,
            widths=config.widths,
            conditions=config.embedding,
            blocks=config.blocks,
            attention=[False] * len(resolutions),
        )

    def forward(
        self,
        samples: Float[Tensor, "b 1 h w"],
        base: Float[Tensor, "b 1 h w"],
        finest: Int64[Tensor, "b rows columns"],
        times: Float[Tensor, " b"],
    ) -> Float[Tensor, "b 1 h w"]:
        """Return the velocity of noisy residuals, in units of `spread`.

        Args:
            samples: Noisy residuals in units of `spread`, padded as the tokenizer pads.
            base: The tokenizer's slices, padded alike.
            finest: Tokens of the finest grid.
            times: Time of each slice.
        """
        pixels = functional.pixel_unshuffle(torch.cat([samples, base], 1), CELL)
        codes = functional.embedding(finest, self.codes).permute(0, 3, 1, 2)
        if self.repeat > 1:
            codes = codes.repeat_interleave(self.repeat, 2).repeat_interleave(self.repeat, 3)
        (velocity,) = self.unet([pixels, codes], self.time(time_features(times)))
        return functional.pixel_shuffle(velocity, CELL)

    def draw(
        self,
        base: Float[Tensor, "b 1 h w"],
        finest: Int64[Tensor, "b rows columns"],
        noise: Float[Tensor, "b 1 h w"],
        steps: int,
        *,
        known: Float[Tensor, "b 1 h w"] | None = None,
        where: Bool[Tensor, "b 1 h w"] | None = None,
    ) -> Float[Tensor, "b 1 h w"]:
        """Return slices with residuals drawn from noise, padded as the input.

        Args:
            base: The tokenizer's slices.
            finest: Tokens of the finest grid.
            noise: Standard normal.
            steps: Evaluations of the network.
            known: Slices whose pixels are kept, for inpainting: the residual around them is drawn to fit.
            where: Which pixels of `known` are kept.
        """
        residual = None if known is None else (known - base) / self.spread

        def estimate(samples: Grids, time: float) -> Sequence[Tensor]:
            times = torch.full((len(base),), time, device=base.device)
            (x,) = samples
            if residual is not None and where is not None:
                x = torch.where(where, noisy(residual, noise, times), x)
            data = x + (1 - time) * self(x, base, finest, times).float()
            return [data if residual is None or where is None else torch.where(where, residual, data)]

        (drawn,) = solve(estimate, [noise], steps)
        return base + self.spread * drawn
