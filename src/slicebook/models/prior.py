"""The prior: a rectified flow over the codes of a slice's token grids, of the mask and of the image.

    noise ──▶ noisy codes of all grids ──▶ U-Net ──▶ probabilities of the codes ──▶ expected codes ─┐
                        ▲                                                                           │
                        └─────────────── noise of the next time (`sampling`) ◀─────────────────────┘

The data of the flow are the code vectors of the tokens, standardised. The network estimates them as the
expectation of the code under probabilities that it learns by cross-entropy (Dieleman et al. 2022, section
3, https://arxiv.org/abs/2211.15089). All grids are denoised together. Tokens may be known, for inpainting
and for given masks, or absent, for slices without a mask; the network is told which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from slicebook.config import PriorConfig
from slicebook.models.conditions import ConditionEmbedding, Conditions
from slicebook.models.flow import TIME_FEATURES, Grids, noisy, time_features
from slicebook.models.sequence import SequenceLayout
from slicebook.models.unet import GridUNet

UNKNOWN, KNOWN, ABSENT = 0, 1, 2  # states of a token
LIKELIHOOD_BATCH = 16
# Log ratios of data to noise (t / (1 - t)) over which a likelihood is integrated: below, the noisy codes
# tell next to nothing; what they leave open at the highest is counted as cross-entropy.
LOWEST, HIGHEST, RATIOS = -2.5, 1.0, 11


class Prior(nn.Module):
    """Probabilities of the codes of all tokens, given noisy codes.

    Args:
        config: Sizes of the network.
        codebooks: The codes of each grid, in the order of the layout.
        strides: Of each grid, in pixels.
        groups: Number of classes.
    """

    def __init__(
        self,
        config: PriorConfig,
        codebooks: Sequence[Float[Tensor, "_ _"]],
        strides: Sequence[int],
        groups: int = 0,
    ) -> None:
        super().__init__()
        self.fresh_noise = config.fresh_noise
        for index, codes in enumerate(codebooks):
            standard = (codes - codes.mean(0)) / codes.std(0, correction=0).clamp(min=1e-6)
            # A last row of zeros stands for absent tokens.
            self.register_buffer(f"codes_{index}", functional.pad(standard, (0, 0, 0, 1)), persistent=False)
        resolutions = sorted(set(strides))
        self.unet = GridUNet(
            strides,
            [codes.shape[1] + 2 for codes in codebooks],
            [len(codes) for codes in codebooks],
            resolutions=resolutions,
            widths=[config.widths[min(i, len(config.widths) - 1)] for i in range(len(resolutions))],
            conditions=config.embedding,
            blocks=config.blocks,
            attention=[i > 0 or len(resolutions) == 1 for i in range(len(resolutions))],
        )
        self.conditions = ConditionEmbedding(groups, config.embedding)
        self.time = nn.Sequential(
            nn.Linear(TIME_FEATURES, config.embedding),
            nn.SiLU(),
            nn.Linear(config.embedding, config.embedding),
        )

    def codes(self, grid: int) -> Float[Tensor, "k_and_one d"]:
        """Return the standardised codes of a grid, and a row of zeros."""
        return self.get_buffer(f"codes_{grid}")

    def embed(self, layout: SequenceLayout, tokens: Int64[Tensor, "b n"]) -> Grids:
        """Return the code vectors of all grids; zeros for absent tokens."""
        return [
            functional.embedding(part, self.codes(index)).permute(0, 3, 1, 2)
            for index, part in enumerate(layout.split(tokens))
        ]

    def forward(
        self,
        layout: SequenceLayout,
        samples: Grids,
        times: Float[Tensor, " b"],
        clean: Grids,
        states: Int64[Tensor, "b n"],
        conditions: Conditions,
    ) -> list[Float[Tensor, "b _ _ _"]]:
        """Return the logits of each token's code, by grid.

        Args:
            layout: Of the grids.
            samples: Noisy codes.
            times: Time of each slice.
            clean: Codes, of which those of known tokens are read.
            states: UNKNOWN, KNOWN or ABSENT, of each token.
            conditions: Of each slice.
        """
        t = times.view(-1, 1, 1, 1)
        scale = (t.square() + (1 - t).square()).rsqrt()  # to unit variance
        margins = _margins(layout)
        entered = []
        for x, data, state, margin in zip(samples, clean, layout.split(states), margins, strict=True):
            known, absent = (state == KNOWN)[:, None], (state == ABSENT)[:, None]
            x = torch.where(known, data, x * scale).masked_fill(absent, 0)
            x = functional.pad(torch.cat([x, known.to(x)], 1), margin)
            entered.append(torch.cat([x, functional.pad(absent.to(x), margin, value=1.0)], 1))
        embedding = self.time(time_features(times)) + self.conditions(conditions)
        padded: list[Tensor] = self.unet(entered, functional.silu(embedding))
        return [
            scores[..., top : top + stage.rows, left : left + stage.columns]
            for scores, stage, (left, _, top, _) in zip(padded, layout.stages, margins, strict=True)
        ]

    def expected_codes(self, logits: Sequence[Float[Tensor, "b _ _ _"]]) -> Grids:
        """Return the expectation of the code vectors."""
        return [
            torch.einsum("bkhw,kd->bdhw", scores.softmax(1), self.codes(index)[:-1])
            for index, scores in enumerate(logits)
        ]


def _margins(layout: SequenceLayout) -> list[tuple[int, int, int, int]]:
    """Return the tokens to add left, right, above and below each grid, so that all cover the same area.

    Each tokenizer pads slices to whole tokens of its own, half on each side, so grids may cover different
    areas. Here they are padded to whole tokens of the coarsest grid.
    """
    coarsest = max(stage.stride for stage in layout.stages)

    def missing(cells: int, stride: int, pixels: int) -> tuple[int, int]:
        count = math.ceil(pixels / coarsest) * coarsest // stride - cells
        return count // 2, count - count // 2

    rows = max(stage.rows * stage.stride for stage in layout.stages)
    columns = max(stage.columns * stage.stride for stage in layout.stages)
    return [
        (*missing(stage.columns, stage.stride, columns), *missing(stage.rows, stage.stride, rows))
        for stage in layout.stages
    ]


def states_of(layout: SequenceLayout, tokens: Int64[Tensor, "b n"]) -> Int64[Tensor, "b n"]:
    """Return UNKNOWN for tokens to be modelled, ABSENT for those that a slice does not have."""
    return torch.where(tokens == layout.sizes, ABSENT, UNKNOWN)


@dataclass(frozen=True)
class Likelihood:
    """Upper bounds of the negative log-likelihood of token sequences, in nats.

    Attributes:
        nats: Of each token, in the layout's order; 0 for absent tokens.
        spread: Standard deviation of a sequence's total over draws of the noise.
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
    draws: int = 1,
    seed: int = 0,
) -> Likelihood:
    """Return upper bounds of the negative log-likelihood of token sequences.

    What noisy codes tell of a token is half the error of the best estimate of its code, summed over channels
    and integrated over the ratio of signal to noise power up to theirs (Guo et al. 2005; Kong et al. 2023,
    eq. 4, https://arxiv.org/abs/2302.03792). What they leave open is the cross-entropy of the token, given
    them. For any other estimate both are larger. All sequences get the same noise, so their values are
    comparable.

    Args:
        prior: In evaluation mode.
        layout: Of the tokens.
        tokens: One sequence per slice.
        conditions: One per slice.
        draws: Draws of the noise to average over; each takes `RATIOS` + 1 passes of the network.
        seed: Of the noise.
    """
    device = next(prior.parameters()).device
    nats, spreads = [], []
    for start in range(0, len(tokens), LIKELIHOOD_BATCH):
        rows = torch.arange(start, min(start + LIKELIHOOD_BATCH, len(tokens)))
        batch, condition = tokens[rows].to(device), conditions[rows].to(device)
        generator = torch.Generator().manual_seed(seed)
        each = torch.stack([_bound(prior, layout, batch, condition, generator) for _ in range(draws)]).cpu()
        nats.append(each.mean(0))
        spreads.append(each.sum(2).std(0, unbiased=False))
    return Likelihood(torch.cat(nats), torch.cat(spreads))


def _bound(
    prior: Prior,
    layout: SequenceLayout,
    tokens: Int64[Tensor, "b n"],
    conditions: Conditions,
    generator: torch.Generator,
) -> Float[Tensor, "b n"]:
    """Return the bound from one draw of the noise at each ratio."""
    states, data = states_of(layout, tokens), prior.embed(layout, tokens)
    width = (HIGHEST - LOWEST) / RATIOS

    def estimate(log_ratio: float) -> Grids:
        """Return the logits of the codes, given noisy ones."""
        ratio = math.exp(log_ratio)
        times = torch.full((len(tokens),), ratio / (1 + ratio), device=tokens.device)
        samples = [noisy(x, torch.randn(x[:1].shape, generator=generator).to(x.device), times) for x in data]
        return [x.float() for x in prior(layout, samples, times, data, states, conditions)]

    total = torch.zeros(tokens.shape, device=tokens.device)
    for index in range(RATIOS):
        log_ratio = LOWEST + (index + 0.5) * width
        expected = prior.expected_codes(estimate(log_ratio))
        error = torch.cat(
            [(e - x).square().sum(1).flatten(1) for e, x in zip(expected, data, strict=True)], 1
        )
        # d(ratio²) / 2 = ratio² d(log ratio). What lies below the first bin is added to it.
        below = math.exp(2 * LOWEST) / 2 if index == 0 else 0.0
        total += error * (math.exp(2 * log_ratio) * width + below)
    total += cross_entropy(layout, estimate(HIGHEST), tokens)
    return total.masked_fill(states == ABSENT, 0)


def cross_entropy(
    layout: SequenceLayout, logits: Sequence[Float[Tensor, "b _ _ _"]], tokens: Int64[Tensor, "b n"]
) -> Float[Tensor, "b n"]:
    """Return the negative log probability of each token, in nats; 0 for absent tokens."""
    return torch.cat(
        [
            functional.cross_entropy(scores.float(), part, reduction="none", ignore_index=stage.size).flatten(
                1
            )
            for scores, part, stage in zip(logits, layout.split(tokens), layout.stages, strict=True)
        ],
        1,
    )
