"""The moving average of a network's weights, which is validated, saved and sampled from."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn


class EMAModel(nn.Module):
    """A network in training and the exponential moving average of its weights."""

    def __init__(self, learner: nn.Module) -> None:
        super().__init__()
        self.learner = learner
        self.average = copy.deepcopy(learner).requires_grad_(False)

    def forward(self, predict: Callable[[nn.Module], Tensor], averaged: bool) -> Tensor:
        """Apply a function to one of the two. Fabric would cast tensors among the arguments to bf16."""
        return predict(self.average if averaged else self.learner)


@torch.no_grad()
def update_ema(pair: EMAModel, decay: float, step: int) -> None:
    """Update the average."""
    # A lower decay at first, so that the initial weights have little influence.
    decay = min(decay, (1 + step) / (10 + step))
    kept: list[Tensor] = list(pair.average.parameters())
    new: list[Tensor] = list(pair.learner.parameters())
    torch._foreach_lerp_(kept, new, 1 - decay)
