"""What a training needs to go on where it stopped, in the middle of an epoch too, and the files that keep it.

A run folder has the last state and the one before it. Both are complete files: a process that is killed, also
while it saves, leaves at least one of them.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slicebook.errors import CheckpointError
from slicebook.io.tensors import STATE_NAME, State, kind_of, load_state, save_state

PREVIOUS_NAME = "previous-state.safetensors"


@dataclass
class Progress:
    """Progress of a training, saved in its state."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    best_score: float = -math.inf
    best_epoch: int = 0
    finished: bool = False
    history: list[dict[str, float]] = field(default_factory=list)
    """One row of `metrics.csv` per validation."""


@dataclass
class EpochProgress:
    """The place in the current epoch, and the sums of its training scores.

    Attributes:
        steps: Steps taken, by each process; as many batches of the epoch's order are done.
        images: Slices trained on, by all processes.
        seconds: Time taken.
        learning_rate: Of the last step.
        sums: Sum of each score over the steps.
    """

    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    learning_rate: float = 0.0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, scores: Mapping[str, Tensor], images: int) -> None:
        """Count a step; records no gradient and does not wait for the device."""
        self.steps += 1
        self.images += images
        for name, value in scores.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros((), device=value.device)
            self.sums[name] += value.detach()

    def means(self) -> dict[str, float]:
        """Return the mean of each score."""
        return {name: float(value) / self.steps for name, value in self.sums.items()}

    def counters(self) -> dict[str, float]:
        """Return all but the sums, as JSON values."""
        return {name: value for name, value in vars(self).items() if name != "sums"}


def state_tensors(module: nn.Module, optimizer: Any, epoch: EpochProgress) -> dict[str, Tensor]:
    """Return weights, buffers, moments of the optimiser and sums of the epoch.

    Random generators have no part in it: each step seeds its own (`trainer.step_generator`).
    """
    weights = module.state_dict()
    tensors = {f"model.{name}": tensor for name, tensor in weights.items()}
    for name, buffer in module.named_buffers():
        if name not in weights:  # such as the codes hit since the last validation
            tensors[f"buffer.{name}"] = buffer
    for index, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    return tensors | {f"sums.{name}": value for name, value in epoch.sums.items()}


def restore(state: State, module: nn.Module, optimizer: torch.optim.Optimizer) -> EpochProgress:
    """Restore weights, buffers and moments; return the place in the epoch.

    Raises:
        CheckpointError: The state is of another model.
    """
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in state.tensors.items():
        part, _, name = key.partition(".")
        parts[part][name] = tensor
    moments: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in parts["optimizer"].items():
        index, _, name = key.partition(".")
        moments[int(index)][name] = tensor
    buffers = dict(module.named_buffers())
    try:
        module.load_state_dict(parts["model"])
        for name, tensor in parts["buffer"].items():
            buffers[name].copy_(tensor)
        optimizer.load_state_dict(
            {"state": dict(moments), "param_groups": optimizer.state_dict()["param_groups"]}
        )
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"the state does not fit the model ({error}); train to another --out"
        ) from error
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if value.shape == parameter.shape:  # in the memory order of the weights, as they were before
                values[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)
    device = next(module.parameters()).device
    sums = {name: tensor.to(device) for name, tensor in parts["sums"].items()}
    return EpochProgress(**state.progress.get("epoch", {}), sums=sums)


def write_state(run: Path, state: State) -> None:
    """Keep a state as the last one of a run folder; the last until now becomes the previous one.

    Raises:
        DataError: It cannot be written; both older states are unchanged.
    """
    last = run / STATE_NAME
    # A last state that was cut off does not replace the good one before it.
    save_state(last, state, previous=run / PREVIOUS_NAME if kind_of(last) == "state" else None)


def read_state(run: Path) -> State | None:
    """Return the last state of a run folder; if it is damaged the previous one, with a warning.

    Returns:
        None if no state was kept.

    Raises:
        CheckpointError: The last state is damaged, and there is no previous one, or it is damaged too.
    """
    last, previous = run / STATE_NAME, run / PREVIOUS_NAME
    if not last.exists():  # a process was killed after it renamed the last one
        return load_state(previous) if previous.exists() else None
    try:
        return load_state(last)
    except CheckpointError as error:
        try:
            state = load_state(previous)
        except CheckpointError:
            raise error from None
        step = state.progress.get("progress", {}).get("step", 0)
        warnings.warn(
            f"{last}: is damaged; the state before it is used: {previous.name}, step {step}", stacklevel=2
        )
        return state
