"""The objective of a prior: the codes of all tokens, estimated from noisy ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from lightning_fabric import Fabric
from torch import Tensor, nn

from slicebook.config import PriorTrainingConfig
from slicebook.distributed import (
    Part,
    current_part,
    slice_generators,
    step_generator,
    summed,
    validation_generators,
)
from slicebook.models.conditions import Conditions
from slicebook.models.flow import draw_times, gaussian, noisy, spread_times
from slicebook.models.prior import ABSENT, KNOWN, UNKNOWN, Prior, cross_entropy, states_of
from slicebook.models.sequence import SequenceLayout
from slicebook.training.ema import EMAModel, update_ema
from slicebook.training.resume import Progress
from slicebook.training.token_dataset import TokenBatch, TokenBatches

GIVEN_MASKS, GIVEN_SURROUNDINGS = 0.2, 0.2  # shares of the slices trained with known tokens
REGION_SIDES = (0.2, 0.7)  # of the regions to inpaint, as fractions of the slice


class PriorObjective:
    """The training step of a prior: noise at a random time, some tokens known, cross-entropy of the others.

    Args:
        prior: Untrained.
        config: Training settings.
        fabric: The device.
        save_model: Writes the model file, given its path, weights, progress and scores.
    """

    settings = "prior.training"
    monitor: str | None = "log_score"

    def __init__(
        self,
        prior: Prior,
        config: PriorTrainingConfig,
        fabric: Fabric,
        save_model: Callable[[Path, Prior, Progress, Mapping[str, float]], None],
    ) -> None:
        self.pair = EMAModel(prior)
        self.module: nn.Module = self.pair  # the trainer replaces it by its wrapped module
        self.config = config
        self.fabric = fabric
        self.save_model = save_model

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the trained parameters."""
        return [{"params": list(self.pair.learner.parameters()), "lr_scale": 1.0}]

    def setup(self, batches: TokenBatches) -> None:
        """Do nothing."""

    def training_step(self, batch: TokenBatch, step: int, fraction: float) -> dict[str, Tensor]:
        """Return the loss, and nats/token of each grid."""
        update_ema(self.pair, self.config.ema, step)
        draw = step_generator(self.config.seed, step)
        noise = slice_generators(self.config.seed, step, batch.part)
        device, part = batch.tokens.device, batch.part
        times = draw_times(part.total, draw)[part.rows].to(device)
        states = draw_states(batch.layout, batch.tokens, self.config.mask_dropout, draw, part)
        conditions = drop_conditions(batch.conditions, self.config.condition_dropout, draw, part)
        losses = self._losses(batch, times, states, conditions, noise, averaged=False)
        # Each grid counts alike: the finest has nearly all tokens and would dominate.
        by_stage = _by_stage(batch.layout, losses, states == UNKNOWN)
        return {
            "loss": torch.stack(list(by_stage.values())).mean(),
            **{name: nats.detach() for name, nats in by_stage.items()},
        }

    def validation_step(self, batch: TokenBatch) -> dict[str, Tensor]:
        """Return the mean log probability of the right codes (averaged weights), and nats by grid."""
        device = batch.tokens.device
        states = states_of(batch.layout.to(device), batch.tokens)
        noise = validation_generators(self.config.seed, batch.indices)
        times = spread_times(batch.indices).to(device)
        losses = self._losses(batch, times, states, batch.conditions, noise, averaged=True)
        by_stage = _by_stage(batch.layout, losses, states == UNKNOWN)
        return {"log_score": -torch.stack(list(by_stage.values())).mean(), **by_stage}

    def _losses(
        self,
        batch: TokenBatch,
        times: Float[Tensor, " b"],
        states: Int64[Tensor, "b n"],
        conditions: Conditions,
        generators: Sequence[torch.Generator],
        *,
        averaged: bool,
    ) -> Float[Tensor, "b n"]:
        """Return the cross-entropy of each token's code; 0 for absent tokens."""
        device = batch.tokens.device
        layout = batch.layout.to(device)

        def predict(prior: nn.Module) -> Tensor:
            assert isinstance(prior, Prior)
            clean = prior.embed(layout, batch.tokens)
            samples = [noisy(x, gaussian(x, generators), times) for x in clean]
            logits = prior(layout, samples, times, clean, states, conditions)
            return cross_entropy(layout, logits, batch.tokens)

        losses: Tensor = self.module(predict, averaged=averaged)
        return losses

    def usage(self) -> dict[str, float]:
        """Return nothing."""
        return {}

    def epoch_metrics(self) -> dict[str, float]:
        """Return nothing."""
        return {}

    def save(self, path: Path, progress: Progress, scores: Mapping[str, float]) -> None:
        """Write the averaged weights, with the tokenizers."""
        prior = self.pair.average
        assert isinstance(prior, Prior)
        self.save_model(path, prior, progress, scores)


def draw_states(
    layout: SequenceLayout,
    tokens: Int64[Tensor, "b n"],
    mask_dropout: float,
    generator: torch.Generator,
    part: Part | None = None,
) -> Int64[Tensor, "b n"]:
    """Draw which tokens are known: none, those of the mask, or those outside a region to inpaint.

    In a share of the slices (`mask_dropout`) the mask's tokens are absent, and in half of those in which a
    region is inpainted: inpainting knows no mask. Where the slices are a part of a batch, the draw is that of
    the whole batch.
    """
    part = part or Part.whole(len(tokens))
    kind, dropped = torch.rand(2, part.total, 1, generator=generator)[:, part.rows]
    regions = [grid.flatten(1) for grid in _draw_regions(layout, part, generator)]
    is_mask = torch.cat([torch.full((len(stage),), stage.kind == "mask") for stage in layout.stages])  # [n]
    given = torch.where(
        kind < GIVEN_MASKS, is_mask, (kind < GIVEN_MASKS + GIVEN_SURROUNDINGS) & ~torch.cat(regions, 1)
    )
    inpainted = (kind >= GIVEN_MASKS) & (kind < GIVEN_MASKS + GIVEN_SURROUNDINGS)
    absent = is_mask & (dropped < torch.where(inpainted, max(0.5, mask_dropout), mask_dropout))
    device = tokens.device
    missing = tokens == layout.to(device).sizes
    states = torch.where(given, KNOWN, UNKNOWN).masked_fill(absent, ABSENT).to(device, non_blocking=True)
    return states.masked_fill(missing, ABSENT)


def _draw_regions(layout: SequenceLayout, part: Part, generator: torch.Generator) -> list[Tensor]:
    """Return for each token whether it belongs to its slice's region, a random rectangle; by grid.

    A token of the finest grid belongs to it if it touches the region, others if their centre lies inside.
    """
    low, high = REGION_SIDES
    centre, side = torch.rand(2, part.total, 2, generator=generator)[:, part.rows]
    side = low + (high - low) * side
    finest = min(stage.stride for stage in layout.stages)
    # All grids have their middle in common, but may cover different areas.
    area = [max(stage.rows * stage.stride for stage in layout.stages)]
    area.append(max(stage.columns * stage.stride for stage in layout.stages))
    grids = []
    for stage in layout.stages:
        inside = torch.ones(len(side), stage.rows, stage.columns, dtype=torch.bool)
        for axis, cells in enumerate((stage.rows, stage.columns)):
            place = 0.5 + (torch.arange(cells) + 0.5 - cells / 2) * stage.stride / area[axis]
            touching = stage.stride / area[axis] / 2 if stage.stride == finest else 0
            reach = side[:, axis, None] / 2 + touching
            hit = (place - centre[:, axis, None]).abs() < reach
            inside &= hit[:, :, None] if axis == 0 else hit[:, None, :]
        grids.append(inside)
    return grids


def drop_conditions(
    conditions: Conditions, share: float, generator: torch.Generator, part: Part | None = None
) -> Conditions:
    """Set all conditions of a random fraction of the slices to unknown; a part as in its whole batch."""
    part = part or Part.whole(len(conditions.position))
    hidden = (torch.rand(part.total, generator=generator) < share)[part.rows].to(conditions.group.device)
    return Conditions(
        conditions.position.masked_fill(hidden, math.nan), conditions.group.masked_fill(hidden, -1)
    )


def _by_stage(layout: SequenceLayout, losses: Float[Tensor, "b n"], unknown: Tensor) -> dict[str, Tensor]:
    """Mean nats/token of each grid, over the tokens that are modelled.

    Of a part of a batch: such that the mean over all slices is that of the whole batch.
    """
    part = current_part(len(losses))
    parts = [layout.slice_of(index) for index in range(len(layout.stages))]
    counts = torch.stack([unknown[:, each].sum().float() for each in parts])
    per_slice = summed(counts, part).clamp(min=1) / part.total
    return {
        f"nats_{stage.name}": (losses[:, each] * unknown[:, each]).sum() / len(losses) / count
        for stage, each, count in zip(layout.stages, parts, per_slice, strict=True)
    }
