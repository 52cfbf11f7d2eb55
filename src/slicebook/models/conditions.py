"""What a slice is generated under: its position in the volume, and its class. Each may be unknown."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

OCTAVES = 6  # of the Fourier features of a position


@dataclass(frozen=True)
class Conditions:
    """Conditions of each slice; NaN and -1 mean unknown.

    Attributes:
        position: Position in the volume, 0 for the first slice and 1 for the last.
        group: Index of the class.
    """

    position: Float[Tensor, " b"]
    group: Int64[Tensor, " b"]

    def __getitem__(self, rows: Int64[Tensor, " _"]) -> Conditions:
        return Conditions(self.position[rows], self.group[rows])

    def to(self, device: torch.device) -> Conditions:
        """Move to a device."""
        return Conditions(self.position.to(device), self.group.to(device))

    @classmethod
    def unknown(cls, count: int) -> Conditions:
        """Return unknown conditions for `count` slices."""
        return cls(torch.full((count,), math.nan), torch.full((count,), -1))


class ConditionEmbedding(nn.Module):
    """Embedding of conditions.

    Args:
        groups: Number of classes.
        width: Channels of the embedding.
    """

    def __init__(self, groups: int, width: int) -> None:
        super().__init__()
        self.position = nn.Sequential(nn.Linear(2 * OCTAVES, width), nn.SiLU(), nn.Linear(width, width))
        self.unknown_position = nn.Parameter(torch.zeros(width))
        self.group = nn.Embedding(groups + 1, width)
        nn.init.zeros_(self.group.weight)

    def forward(self, conditions: Conditions) -> Float[Tensor, "b width"]:
        """Return one vector per slice."""
        missing = conditions.position.isnan()
        position = self.position(_waves(conditions.position.nan_to_num()))
        position = torch.where(missing[:, None], self.unknown_position.to(position), position)
        embedding: Tensor = position + self.group(conditions.group + 1)
        return embedding


def _waves(values: Float[Tensor, " b"]) -> Float[Tensor, "b waves"]:
    """Fourier features of numbers in [0, 1]: sines and cosines of half a turn and its octaves."""
    angles = values[:, None] * math.pi * 2.0 ** torch.arange(OCTAVES, device=values.device)
    return torch.cat([angles.sin(), angles.cos()], -1)
