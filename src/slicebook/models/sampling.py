"""Sample token grids from a prior. Each sample has its own noise, so it does not depend on its batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from slicebook.errors import ConfigError
from slicebook.memory import explained
from slicebook.models.conditions import Conditions
from slicebook.models.flow import Grids, solve_with_fresh_noise
from slicebook.models.prior import ABSENT, KNOWN, UNKNOWN, Prior
from slicebook.models.sequence import SequenceLayout

# A matrix product with another number of rows may round differently, and one rounding may change a token.
# So the network always sees this many rows; the last batch is filled up.
SAMPLING_BATCH = 16
FIXED = (
    f"{SAMPLING_BATCH} slices are computed together, always, because a sample must not depend on the others; "
    "use --device cpu, another machine, or smaller slices"
)
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class SamplingSettings:
    """Steps of the flow, and guidance.

    Attributes:
        steps: Evaluations of the prior from noise to codes.
        decoder_steps: Evaluations of the generation decoder, from noise to what the tokenizer leaves out.
        guidance: Classifier-free guidance weight (Ho & Salimans 2022, eq. 6, https://arxiv.org/abs/2207.12598);
            0 is off.
    """

    steps: int = 16
    decoder_steps: int = 8
    guidance: float = 0.0

    def __post_init__(self) -> None:
        for name in ("steps", "decoder_steps"):
            if not 1 <= getattr(self, name) <= 1000:
                raise ConfigError(f"{name} {getattr(self, name)}: wanted 1 to 1000, such as 16")
        if not 0 <= self.guidance < 100:
            raise ConfigError(f"guidance {self.guidance:g}: wanted a number from 0 (off), such as 1")


@explained("sampling", lambda: FIXED)
@torch.no_grad()
def sample(
    prior: Prior,
    layout: SequenceLayout,
    seeds: Sequence[int],
    conditions: Conditions,
    settings: SamplingSettings | None = None,
    *,
    known_tokens: Int64[Tensor, "b n"] | None = None,
    known_mask: Bool[Tensor, "b n"] | None = None,
    precision: str = "32-true",
    progress: Callable[[int, int], None] | None = None,
) -> Int64[Tensor, "b n"]:
    """Sample the tokens of one slice per seed.

    Args:
        prior: In evaluation mode.
        layout: Of the slices.
        seeds: One per sample; a sample depends on its own seed alone.
        conditions: One per sample.
        settings: Steps and guidance.
        known_tokens: Known tokens, for inpainting and for given masks. The codebook size of a grid stands
            for a token that the slice does not have.
        known_mask: True where `known_tokens` are kept; the others are sampled given those.
        precision: One of `devices.PRECISIONS` of the prior's device. Samples of another precision differ.
        progress: Called with the number of finished samples and of all samples.

    Returns:
        Tokens in the order of the layout, one row per seed.
    """
    settings = settings or SamplingSettings()
    device = next(prior.parameters()).device
    layout = layout.to(device)
    samples = []
    for start in range(0, len(seeds), SAMPLING_BATCH):
        chosen = [min(start + row, len(seeds) - 1) for row in range(SAMPLING_BATCH)]
        rows = torch.tensor(chosen)
        tokens = layout.sizes.repeat(SAMPLING_BATCH, 1)
        states = torch.full_like(tokens, UNKNOWN)
        if known_tokens is not None and known_mask is not None:
            kept = known_mask[rows].to(device)
            tokens = torch.where(kept, known_tokens[rows].to(device), tokens)
            states = torch.where(kept, torch.where(tokens == layout.sizes, ABSENT, KNOWN), UNKNOWN)
        noise = _Noise(prior, layout, [seeds[row] for row in chosen], device)
        with torch.autocast(device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST):
            drawn = _sample_batch(prior, layout, noise, tokens, states, conditions[rows].to(device), settings)
        done = min(start + SAMPLING_BATCH, len(seeds))
        samples.append(torch.where(states == UNKNOWN, drawn, tokens)[: done - start].cpu())
        if progress:
            progress(done, len(seeds))
    return torch.cat(samples) if samples else torch.empty(0, layout.starts[-1], dtype=torch.int64)


class _Noise:
    """Noise of a batch; that of each sample comes from its own generator."""

    def __init__(
        self, prior: Prior, layout: SequenceLayout, seeds: Sequence[int], device: torch.device
    ) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._device = device
        self._shapes = [
            (prior.codes(index).shape[1], stage.rows, stage.columns)
            for index, stage in enumerate(layout.stages)
        ]

    def draw(self) -> Grids:
        """Return standard normal noise of each grid."""
        rows = [
            [torch.randn(shape, generator=generator) for shape in self._shapes]
            for generator in self._generators
        ]
        return [torch.stack(grid).to(self._device) for grid in zip(*rows, strict=True)]


def _sample_batch(
    prior: Prior,
    layout: SequenceLayout,
    noise: _Noise,
    tokens: Int64[Tensor, "b n"],
    states: Int64[Tensor, "b n"],
    conditions: Conditions,
    settings: SamplingSettings,
) -> Int64[Tensor, "b n"]:
    """Follow the flow, and return the most probable codes of its last step."""
    clean, count = prior.embed(layout, tokens), len(tokens)
    unconditional = Conditions.unknown(count).to(states.device)
    logits: list[Float[Tensor, "b k _ _"]] = []

    def estimate(samples: Grids, time: float) -> Grids:
        nonlocal logits
        times = torch.full((count,), time, device=states.device)
        logits = [x.float() for x in prior(layout, samples, times, clean, states, conditions)]
        if settings.guidance:
            others = prior(layout, samples, times, clean, states, unconditional)
            logits = [
                x.log_softmax(1) + settings.guidance * (x.log_softmax(1) - y.float().log_softmax(1))
                for x, y in zip(logits, others, strict=True)
            ]
        return prior.expected_codes(logits)

    solve_with_fresh_noise(estimate, noise.draw, settings.steps, prior.fresh_noise)
    return torch.cat([x.argmax(1).flatten(1) for x in logits], 1)
