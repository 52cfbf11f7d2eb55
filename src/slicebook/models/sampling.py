"""Sample token grids from a prior. Each sample has its own generator, so it does not depend on its batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from slicebook.errors import ConfigError
from slicebook.models.prior import Prior
from slicebook.models.sequence import SequenceLayout, draw_orders, stage_windows
from slicebook.models.transformer import Conditions, KVCache, PriorTransformer

# A matrix product with another number of rows may round differently, and one different token changes all
# later ones. So the network always sees this many rows; the last batch is filled up.
SAMPLING_BATCH = 16
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class SamplingSettings:
    """Sampling temperature, top-p and guidance.

    Attributes:
        temperature: Temperature of all grids but the finest; below 1 prefers likely codes.
        fine_temperature: Temperature of the finest grid.
        top_p: Nucleus sampling: sample from the most likely codes with this total probability (Holtzman et
            al. 2020, https://arxiv.org/abs/1904.09751).
        guidance: Classifier-free guidance weight (Ho & Salimans 2022, eq. 6, https://arxiv.org/abs/2207.12598);
            0 is off.
    """

    temperature: float = 0.9
    fine_temperature: float = 0.8
    top_p: float = 0.95
    guidance: float = 0.0

    def __post_init__(self) -> None:
        for name in ("temperature", "fine_temperature"):
            if not 0 < getattr(self, name) < 100:
                raise ConfigError(f"{name} {getattr(self, name):g}: wanted a number above 0, such as 1")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p {self.top_p:g}: wanted a share above 0 and at most 1")
        if not 0 <= self.guidance < 100:
            raise ConfigError(f"guidance {self.guidance:g}: wanted a number from 0 (off), such as 1")


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
    """Sample the tokens of one slice per seed, grid by grid.

    Args:
        prior: In evaluation mode.
        layout: Of the slices.
        seeds: One per sample; a sample depends on its own seed alone.
        conditions: One per sample.
        settings: Temperature, top-p and guidance.
        known_tokens: Known tokens, for inpainting.
        known_mask: True where `known_tokens` are kept; the others are sampled conditioned on those of the
            same or a coarser grid.
        precision: One of `devices.PRECISIONS` of the prior's device. Samples of another precision differ.
        progress: Called with the number of finished samples and of all samples.

    Returns:
        Tokens in the order of the layout, one row per seed.
    """
    settings = settings or SamplingSettings()
    device = next(prior.parameters()).device
    samples = []
    for start in range(0, len(seeds), SAMPLING_BATCH):
        chosen = [min(start + row, len(seeds) - 1) for row in range(SAMPLING_BATCH)]
        rows = torch.tensor(chosen)
        batch = _SampleBatch(
            prior,
            layout,
            [seeds[row] for row in chosen],
            conditions[rows].to(device),
            settings,
            None if known_tokens is None else known_tokens.cpu()[rows],
            None if known_mask is None else known_mask.cpu()[rows],
        )
        with torch.autocast(device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST):
            tokens = batch.sample()
        done = min(start + SAMPLING_BATCH, len(seeds))
        samples.append(tokens[: done - start])
        if progress:
            progress(done, len(seeds))
    return torch.cat(samples) if samples else torch.empty(0, layout.starts[-1], dtype=torch.int64)


class _SampleBatch:
    """State of the samples of a batch."""

    def __init__(
        self,
        prior: Prior,
        layout: SequenceLayout,
        seeds: Sequence[int],
        conditions: Conditions,
        settings: SamplingSettings,
        known_tokens: Int64[Tensor, "b n"] | None,
        known_mask: Bool[Tensor, "b n"] | None,
    ) -> None:
        device = next(prior.parameters()).device
        self.prior, self.layout, self.settings = prior, layout.to(device), settings
        orders, uniforms = [], []
        for row, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(seed)
            orders.append(
                draw_orders(layout, 1, generator, None if known_mask is None else known_mask[row : row + 1])
            )
            uniforms.append(torch.rand(1, layout.starts[-1], generator=generator))
        self.orders = torch.cat(orders).to(device)
        self.uniforms = torch.cat(uniforms).to(device)
        sizes = torch.cat([torch.full((len(stage),), stage.size) for stage in layout.stages])
        self.tokens = sizes.repeat(len(seeds), 1).to(device)  # all unknown
        self.known_tokens = None if known_tokens is None else known_tokens.to(device)
        self.known_mask = None if known_mask is None else known_mask.to(device)
        # With guidance each sample runs twice, the second time without conditions.
        self.copies = 2 if settings.guidance else 1
        self.conditions = conditions
        if self.copies == 2:
            unknown = Conditions.unknown(len(seeds)).to(device)
            self.conditions = Conditions(  # [2 * b]: with the conditions, then without
                torch.cat([conditions.position, unknown.position]),
                torch.cat([conditions.group, unknown.group]),
            )
        self.positions, self.centres = self.layout.positions, self.layout.centres

    def sample(self) -> Int64[Tensor, "b n"]:
        for transformer in self.prior.transformers:
            self._sample_grids(transformer)
        return self.tokens.cpu()

    def _sample_grids(self, transformer: PriorTransformer) -> None:
        layout, orders = self.layout, self.orders
        begin, end = layout.starts[transformer.first], layout.starts[transformer.stages[-1] + 1]
        condition = transformer.condition_embedding(self.conditions)[:, None]
        count = len(orders) * self.copies
        caches = [KVCache(count, transformer.width, end, like=condition) for _ in transformer.blocks]
        if begin:
            context = torch.cat(  # [copies * b, begin, width]: tokens of all earlier grids
                [
                    self._embed(transformer, stage, orders[:, layout.slice_of(stage)])
                    for stage in range(transformer.first)
                ],
                1,
            )
            centres = self._repeat_for_guidance(self.centres[orders[:, :begin]])
            transformer.forward_blocks(context + condition, centres, centres, caches)
        previous = transformer.stage.weight[-1].expand(count, 1, -1)
        before: Tensor | None = None
        for stage in transformer.stages:
            part = layout.slice_of(stage)
            for step in range(part.start, part.stop):
                index = orders[:, step : step + 1]
                query_centres = self._repeat_for_guidance(self.centres[index])
                windows = stage_windows(layout, stage, self.tokens, None, index - part.start)
                query = transformer.query_embedding(
                    stage,
                    [self._repeat_for_guidance(w) for w in windows],
                    self._repeat_for_guidance(self.positions[index]),
                )
                key_centres = (
                    query_centres if before is None else self._repeat_for_guidance(self.centres[before])
                )
                x = transformer.forward_blocks(
                    previous + query + condition, query_centres, key_centres, caches
                )
                self._sample_token(transformer.logits(stage, x)[:, 0], index, stage)
                previous, before = self._embed(transformer, stage, index), index

    def _embed(self, transformer: PriorTransformer, stage: int, indices: Tensor) -> Tensor:
        return transformer.token_embedding(
            stage,
            self._repeat_for_guidance(self.tokens.gather(1, indices)),
            self._repeat_for_guidance(self.positions[indices]),
        )

    def _repeat_for_guidance(self, values: Tensor) -> Tensor:
        return values.repeat(self.copies, *[1] * (values.ndim - 1)) if self.copies == 2 else values

    def _sample_token(
        self, logits: Float[Tensor, "copies_b k"], index: Int64[Tensor, "b 1"], stage: int
    ) -> None:
        """Sample one token per sample and store it."""
        if self.copies == 2:
            conditional, unconditional = logits.log_softmax(-1).chunk(2)
            logits = conditional + self.settings.guidance * (conditional - unconditional)
        last = stage == len(self.layout.stages) - 1
        temperature = self.settings.fine_temperature if last else self.settings.temperature
        chosen = _sample_top_p(logits / temperature, self.uniforms.gather(1, index), self.settings.top_p)
        if self.known_mask is not None and self.known_tokens is not None:
            chosen = torch.where(self.known_mask.gather(1, index), self.known_tokens.gather(1, index), chosen)
        self.tokens.scatter_(1, index, chosen)


def _sample_top_p(
    logits: Float[Tensor, "b k"], uniforms: Float[Tensor, "b 1"], top_p: float
) -> Int64[Tensor, "b 1"]:
    """Sample by the inverse of the cumulative distribution, most likely codes first, cut at `top_p`."""
    probability, codes = logits.float().softmax(-1).sort(dim=-1, descending=True, stable=True)
    total = probability.cumsum(-1)
    # Of the likeliest codes that reach top_p, the one that crosses it still belongs.
    previous = torch.where(total - probability < top_p, probability, 0.0).cumsum(-1)
    index = torch.searchsorted(previous, uniforms * previous[:, -1:], right=True)
    return codes.gather(1, index.clamp(max=codes.shape[1] - 1))
