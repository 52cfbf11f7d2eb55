"""Draw token grids from a prior. One generator a sample: sample 17 is the same alone or among others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from slicebook.errors import ConfigError
from slicebook.models.prior import Prior
from slicebook.models.sequence import Layout, draw_orders, stage_windows
from slicebook.models.transformer import Cache, Conditions, PriorTransformer

# A matrix product of another height may round otherwise, and one token that falls otherwise changes all after
# it. So the network always sees this many rows, whatever the batch; the last group is filled up.
GROUP = 16


@dataclass(frozen=True)
class SamplingSettings:
    """How boldly tokens are drawn.

    Attributes:
        temperature: Of the coarser stages; below 1 prefers likely codes.
        fine_temperature: Of the finest stage.
        top_p: Draw among the likeliest codes that together hold this share (Holtzman et al. 2020).
        guidance: Push away from what is likely without the conditions (Ho & Salimans 2022, eq. 6); 0 is off.
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
        if not -1 < self.guidance < 100:
            raise ConfigError(f"guidance {self.guidance:g}: wanted a number from 0 (off), such as 1")


@torch.no_grad()
def sample(
    prior: Prior,
    layout: Layout,
    seeds: Sequence[int],
    conditions: Conditions,
    settings: SamplingSettings | None = None,
    *,
    given: Int64[Tensor, "b n"] | None = None,
    keep: Bool[Tensor, "b n"] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Int64[Tensor, "b n"]:
    """Draw the tokens of one slice a seed, stage by stage.

    Args:
        prior: In evaluation mode.
        layout: Of the slices.
        seeds: One a sample: all that is random in a sample hangs on its own.
        conditions: One a sample.
        settings: How boldly.
        given: Tokens to start from.
        keep: Which of the given tokens to keep; the others are drawn to fit them.
        progress: Called with samples done and all samples.

    Returns:
        Tokens in the layout's order, one row a seed.
    """
    settings = settings or SamplingSettings()
    device = next(prior.parameters()).device
    found = []
    for start in range(0, len(seeds), GROUP):
        chosen = [min(start + row, len(seeds) - 1) for row in range(GROUP)]
        rows = torch.tensor(chosen)
        group = _Group(
            prior,
            layout,
            [seeds[row] for row in chosen],
            conditions[rows].to(device),
            settings,
            None if given is None else given.cpu()[rows],
            None if keep is None else keep.cpu()[rows],
        )
        tokens = group.draw()
        done = min(start + GROUP, len(seeds))
        found.append(tokens[: done - start])
        if progress:
            progress(done, len(seeds))
    return torch.cat(found) if found else torch.empty(0, layout.starts[-1], dtype=torch.int64)


class _Group:
    """Samples that are drawn together."""

    def __init__(
        self,
        prior: Prior,
        layout: Layout,
        seeds: Sequence[int],
        conditions: Conditions,
        settings: SamplingSettings,
        given: Int64[Tensor, "b n"] | None,
        keep: Bool[Tensor, "b n"] | None,
    ) -> None:
        device = next(prior.parameters()).device
        self.prior, self.layout, self.settings = prior, layout.to(device), settings
        orders, draws = [], []
        for row, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(seed)
            orders.append(draw_orders(layout, 1, generator, None if keep is None else keep[row : row + 1]))
            draws.append(torch.rand(1, layout.starts[-1], generator=generator))
        self.orders = torch.cat(orders).to(device)
        self.draws = torch.cat(draws).to(device)
        sizes = torch.cat([torch.full((len(stage),), stage.size) for stage in layout.stages])
        self.tokens = sizes.repeat(len(seeds), 1).to(device)  # each reads 'unknown'
        self.given = None if given is None else given.to(device)
        self.keep = None if keep is None else keep.to(device)
        # With guidance each sample runs twice, the second time with nothing known of it.
        self.copies = 2 if settings.guidance else 1
        self.conditions = conditions
        if self.copies == 2:
            nothing = Conditions.unknown(len(seeds)).to(device)
            self.conditions = Conditions(  # [2 * b]: with the conditions, then without
                torch.cat([conditions.position, nothing.position]),
                torch.cat([conditions.group, nothing.group]),
            )
        self.places, self.centres = self.layout.places, self.layout.centres

    def draw(self) -> Int64[Tensor, "b n"]:
        for transformer in self.prior.transformers:
            self._draw_trunk(transformer)
        return self.tokens.cpu()

    def _draw_trunk(self, transformer: PriorTransformer) -> None:
        layout, orders = self.layout, self.orders
        begin, end = layout.starts[transformer.first], layout.starts[transformer.own[-1] + 1]
        known = transformer.known(self.conditions)[:, None]
        count = len(orders) * self.copies
        caches = [Cache(count, transformer.width, end, like=known) for _ in transformer.blocks]
        if begin:
            told = torch.cat(  # [copies * b, begin, width]: content of all earlier stages
                [
                    self._content(transformer, stage, orders[:, layout.part(stage)])
                    for stage in range(transformer.first)
                ],
                1,
            )
            centres = self._twice(self.centres[orders[:, :begin]])
            transformer.attend(told + known, centres, centres, caches)
        held = transformer.stage.weight[-1].expand(count, 1, -1)
        before: Tensor | None = None
        for stage in transformer.own:
            part = layout.part(stage)
            for step in range(part.start, part.stop):
                place = orders[:, step : step + 1]
                asked = self._twice(self.centres[place])
                windows = stage_windows(layout, stage, self.tokens, None, place - part.start)
                question = transformer.question(
                    stage, [self._twice(w) for w in windows], self._twice(self.places[place])
                )
                told_where = asked if before is None else self._twice(self.centres[before])
                x = transformer.attend(held + question + known, asked, told_where, caches)
                self._choose(transformer.logits(stage, x)[:, 0], place, stage)
                held, before = self._content(transformer, stage, place), place

    def _content(self, transformer: PriorTransformer, stage: int, places: Tensor) -> Tensor:
        return transformer.content(
            stage, self._twice(self.tokens.gather(1, places)), self._twice(self.places[places])
        )

    def _twice(self, values: Tensor) -> Tensor:
        return values.repeat(self.copies, *[1] * (values.ndim - 1)) if self.copies == 2 else values

    def _choose(self, logits: Float[Tensor, "copies k"], place: Int64[Tensor, "b 1"], stage: int) -> None:
        """Draw one token a sample and put it in its place."""
        if self.copies == 2:
            informed, blind = logits.log_softmax(-1).chunk(2)
            logits = informed + self.settings.guidance * (informed - blind)
        last = stage == len(self.layout.stages) - 1
        heat = self.settings.fine_temperature if last else self.settings.temperature
        chosen = _pick(logits / heat, self.draws.gather(1, place), self.settings.top_p)
        if self.keep is not None and self.given is not None:
            chosen = torch.where(self.keep.gather(1, place), self.given.gather(1, place), chosen)
        self.tokens.scatter_(1, place, chosen)


def _pick(logits: Float[Tensor, "b k"], draws: Float[Tensor, "b 1"], top_p: float) -> Int64[Tensor, "b 1"]:
    """Return the code at which the cumulated probability, likeliest first, passes each draw."""
    probability, codes = logits.float().softmax(-1).sort(dim=-1, descending=True, stable=True)
    total = probability.cumsum(-1)
    # Of the likeliest codes that reach top_p, the one that crosses it still belongs.
    held = torch.where(total - probability < top_p, probability, 0.0).cumsum(-1)
    index = torch.searchsorted(held, draws * held[:, -1:], right=True)
    return codes.gather(1, index.clamp(max=codes.shape[1] - 1))
