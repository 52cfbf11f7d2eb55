"""The objective of a prior: the codes of all tokens, estimated from noisy ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from lightning_fabric import Fabric
from torch import Tensor, nn

from slicebook.config import PriorTrainingConfig
from slicebook.models.conditions import Conditions
from slicebook.models.flow import draw_times, noisy
from slicebook.models.prior import ABSENT, KNOWN, UNKNOWN, Prior, cross_entropy, states_of
from slicebook.models.sequence import SequenceLayout
from slicebook.training.ema import EMAModel, update_ema
from slicebook.training.resume import Progress
from slicebook.training.token_dataset import TokenBatch
from slicebook.training.trainer import step_generator

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

    def setup(self, batches: Iterable[TokenBatch]) -> None:
        """Do nothing."""

    def training_step(self, batch: TokenBatch, step: int, fraction: float) -> dict[str, Tensor]:
        """Return the loss, and nats/token of each grid."""
        update_ema(self.pair, self.config.ema, step)
        draw = step_generator(self.config.seed, step, self.fabric.global_rank)
        device = batch.tokens.device
        times = draw_times(len(batch), draw).to(device)
        states = draw_states(batch.layout, batch.tokens, self.config.mask_dropout, draw)
        conditions = drop_conditions(batch.conditions, self.config.condition_dropout, draw)
        losses = self._losses(batch, times, states, conditions, draw, averaged=False)
        unknown = states == UNKNOWN
        # Each grid counts alike: the finest has nearly all tokens and would dominate.
        by_stage = _by_stage(batch.layout, losses, unknown)
        return {
            "loss": torch.stack(list(by_stage.values())).mean(),
            **{name: nats.detach() for name, nats in by_stage.items()},
        }

    def validation_step(self, batch: TokenBatch) -> dict[str, Tensor]:
        """Return the mean log probability of the right codes (averaged weights), and nats by grid."""
        draw = torch.Generator().manual_seed(self.config.seed + int(batch.indices[0]))
        count, device = len(batch), batch.tokens.device
        times = ((torch.arange(count) + 0.5) / count)[torch.randperm(count, generator=draw)].to(device)
        states = states_of(batch.layout.to(device), batch.tokens)
        losses = self._losses(batch, times, states, batch.conditions, draw, averaged=True)
        by_stage = _by_stage(batch.layout, losses, states == UNKNOWN)
        return {"log_score": -torch.stack(list(by_stage.values())).mean(), **by_stage}

    def _losses(
        self,
        batch: TokenBatch,
        times: Float[Tensor, " b"],
        states: Int64[Tensor, "b n"],
        conditions: Conditions,
        draw: torch.Generator,
        *,
        averaged: bool,
    ) -> Float[Tensor, "b n"]:
        """Return the cross-entropy of each token's code; 0 for absent tokens."""
        device = batch.tokens.device
        layout = batch.layout.to(device)

        def predict(prior: nn.Module) -> Tensor:
            assert isinstance(prior, Prior)
            clean = prior.embed(layout, batch.tokens)
            samples = [
                noisy(x, torch.randn(x.shape, generator=draw).to(device, non_blocking=True), times)
                for x in clean
            ]
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
    layout: SequenceLayout, tokens: Int64[Tensor, "b n"], mask_dropout: float, generator: torch.Generator
) -> Int64[Tensor, "b n"]:
    """Draw which tokens are known: none, those of the mask, or those outside a region to inpaint.

    In a share of the slices (`mask_dropout`) the mask's tokens are absent, and in half of those in which a
    region is inpainted: inpainting knows no mask.
    """
    kind, dropped = torch.rand(2, len(tokens), 1, generator=generator)
    regions = [grid.flatten(1) for grid in _draw_regions(layout, len(tokens), generator)]
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


def _draw_regions(layout: SequenceLayout, count: int, generator: torch.Generator) -> list[Tensor]:
    """Return for each token whether it belongs to its slice's region, a random rectangle; by grid.

    A token of the finest grid belongs to it if it touches the region, others if their centre lies inside.
    """
    low, high = REGION_SIDES
    centre, side = torch.rand(2, count, 2, generator=generator)
    side = low + (high - low) * side
    finest = min(stage.stride for stage in layout.stages)
    # All grids have their middle in common, but may cover different areas.
    area = [max(stage.rows * stage.stride for stage in layout.stages)]
    area.append(max(stage.columns * stage.stride for stage in layout.stages))
    grids = []
    for stage in layout.stages:
        inside = torch.ones(count, stage.rows, stage.columns, dtype=torch.bool)
        for axis, cells in enumerate((stage.rows, stage.columns)):
            place = 0.5 + (torch.arange(cells) + 0.5 - cells / 2) * stage.stride / area[axis]
            touching = stage.stride / area[axis] / 2 if stage.stride == finest else 0
            reach = side[:, axis, None] / 2 + touching
            hit = (place - centre[:, axis, None]).abs() < reach
            inside &= hit[:, :, None] if axis == 0 else hit[:, None, :]
        grids.append(inside)
    return grids


def drop_conditions(conditions: Conditions, share: float, generator: torch.Generator) -> Conditions:
    """Set all conditions of a random fraction of the slices to unknown."""
    hidden = (torch.rand(len(conditions.position), generator=generator) < share).to(conditions.group.device)
    return Conditions(
        conditions.position.masked_fill(hidden, math.nan), conditions.group.masked_fill(hidden, -1)
    )


def _by_stage(layout: SequenceLayout, losses: Float[Tensor, "b n"], unknown: Tensor) -> dict[str, Tensor]:
    """Mean nats/token of each grid, over the tokens that are modelled."""
    nats = {}
    for index, stage in enumerate(layout.stages):
        part, counted = losses[:, layout.slice_of(index)], unknown[:, layout.slice_of(index)]
        nats[f"nats_{stage.name}"] = (part * counted).sum() / counted.sum().clamp(min=1)
    return nats
