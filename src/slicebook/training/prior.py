"""The objective of a prior: the likelihood of token sequences in random orders."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from lightning_fabric import Fabric
from torch import Tensor, nn

from slicebook.config import PriorTrainingConfig
from slicebook.models.prior import Prior
from slicebook.models.sequence import SequenceLayout, draw_orders
from slicebook.models.transformer import Conditions
from slicebook.training.resume import Progress
from slicebook.training.token_dataset import TokenBatch
from slicebook.training.trainer import step_generator, update_ema


class EMAModel(nn.Module):
    """A prior and the exponential moving average of its weights, which is validated and saved."""

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.learner = prior
        self.average = copy.deepcopy(prior).requires_grad_(False)

    def forward(self, predict: Callable[[nn.Module], Tensor], averaged: bool) -> Tensor:
        """Apply a function to one of the two. Fabric would cast tensors among the arguments to bf16."""
        return predict(self.average if averaged else self.learner)


class PriorObjective:
    """The training step of a prior: random order, token noise, next-token prediction.

    Args:
        prior: Untrained.
        config: Training settings.
        fabric: The device.
        save_model: Writes the model file, given its path, weights, progress and scores.
    """

    monitor: str | None = "likelihood"

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
        update_ema(self.pair.average, self.pair.learner, self.config.ema, step)
        draw = step_generator(self.config.seed, step, self.fabric.global_rank)
        device = batch.tokens.device
        orders = draw_orders(batch.layout, len(batch), draw).to(device)
        tokens = drop_masks(batch.layout, batch.tokens, self.config.mask_dropout, draw)
        input_tokens = corrupt_tokens(batch.layout, tokens, self.config.token_corruption, draw)
        conditions = drop_conditions(batch.conditions, self.config.condition_dropout, draw)

        def predict(prior: nn.Module) -> Tensor:
            losses: Tensor = prior(batch.layout, tokens, orders, conditions, input_tokens)
            return losses

        losses = self.module(predict, averaged=False)
        # Each transformer has its own mean: the finest grid has nearly all tokens and would dominate.
        first = batch.layout.starts[-2]
        coarse = losses[:, :first].mean() if first else losses.new_zeros(())
        return {"loss": coarse + losses[:, first:].mean(), **_by_stage(batch.layout, losses.detach())}

    def validation_step(self, batch: TokenBatch) -> dict[str, Tensor]:
        """Return log-likelihood of the averaged weights (nats/token), bits per pixel, nats by grid."""
        draw = torch.Generator().manual_seed(self.config.seed + int(batch.indices[0]))
        orders = draw_orders(batch.layout, len(batch), draw).to(batch.tokens.device)

        def predict(prior: nn.Module) -> Tensor:
            losses: Tensor = prior(batch.layout, batch.tokens, orders, batch.conditions)
            return losses

        losses = self.module(predict, averaged=True)
        images = losses[:, _images_from(batch.layout) :]
        finest = batch.layout.stages[-1]
        pixels = len(finest) * finest.stride**2
        return {
            "likelihood": -losses.mean(),
            "bits_per_pixel": images.sum(1).mean() / math.log(2) / pixels,
            **_by_stage(batch.layout, losses),
        }

    def usage(self) -> dict[str, float]:
        """Return nothing."""
        return {}

    def epoch_metrics(self) -> dict[str, float]:
        """Return nothing."""
        return {}

    def save(self, path: Path, progress: Progress, scores: Mapping[str, float]) -> None:
        """Write the averaged weights, with the tokenizers."""
        self.save_model(path, self.pair.average, progress, scores)


def corrupt_tokens(
    layout: SequenceLayout, tokens: Int64[Tensor, "b n"], share: float, generator: torch.Generator
) -> Int64[Tensor, "b n"]:
    """Replace a random fraction of the tokens by random codes, which reduces exposure bias.

    The fraction of each slice is uniform between 0 and twice `share`.
    """
    part = 2 * share * torch.rand(len(tokens), 1, generator=generator)
    wrong = torch.rand(tokens.shape, generator=generator) < part
    sizes = torch.cat([torch.full((len(stage),), stage.size) for stage in layout.stages])
    others = (torch.rand(tokens.shape, generator=generator) * sizes).long()
    # Unknown tokens stay unknown.
    wrong = wrong.to(tokens.device) & (tokens < sizes.to(tokens.device))
    return torch.where(wrong, others.to(tokens.device), tokens)


def drop_conditions(conditions: Conditions, share: float, generator: torch.Generator) -> Conditions:
    """Set all conditions of a random fraction of the slices to unknown."""
    hidden = (torch.rand(len(conditions.position), generator=generator) < share).to(conditions.group.device)
    return Conditions(
        conditions.position.masked_fill(hidden, math.nan), conditions.group.masked_fill(hidden, -1)
    )


def drop_masks(
    layout: SequenceLayout, tokens: Int64[Tensor, "b n"], share: float, generator: torch.Generator
) -> Int64[Tensor, "b n"]:
    """Set all mask tokens of a random fraction of the slices to unknown."""
    hidden = (torch.rand(len(tokens), 1, generator=generator) < share).to(tokens.device)
    tokens = tokens.clone()
    for index, stage in enumerate(layout.stages):
        if stage.kind == "mask":
            tokens[:, layout.slice_of(index)].masked_fill_(hidden, stage.size)
    return tokens


def _by_stage(layout: SequenceLayout, losses: Float[Tensor, "b n"]) -> dict[str, Tensor]:
    """Mean nats/token of each grid, without unknown tokens, whose loss is exactly 0."""
    nats = {}
    for index, stage in enumerate(layout.stages):
        part = losses[:, layout.slice_of(index)]
        nats[f"nats_{stage.name}"] = part.sum() / (part != 0).sum().clamp(min=1)
    return nats


def _images_from(layout: SequenceLayout) -> int:
    """Index of the first image token, after those of the mask."""
    return next(
        start for stage, start in zip(layout.stages, layout.starts, strict=False) if stage.kind == "image"
    )
