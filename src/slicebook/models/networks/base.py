"""The interface between a tokenizer and its network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor, nn

Context: TypeAlias = tuple[Tensor, ...]
"""Features of the levels decoded so far, in the network's own format; empty before the coarsest."""


class Network(nn.Module, ABC):
    """Features, latents and slices of a hierarchy of levels; level 0 is the finest."""

    @abstractmethod
    def features(self, images: Float[Tensor, "b c h w"]) -> Sequence[Float[Tensor, "b _ _ _"]]:
        """Encode slices to one feature map per level, finest first; sides are multiples of the stride."""

    @abstractmethod
    def latents(
        self, level: int, features: Float[Tensor, "b _ gh gw"], context: Context
    ) -> Float[Tensor, "b d gh gw"]:
        """Return the latents of a level, given the coarser ones, to be quantised."""

    @abstractmethod
    def decode_level(self, level: int, context: Context, vectors: Float[Tensor, "b d gh gw"]) -> Context:
        """Add a level's quantised vectors to the context of the coarser levels."""

    @abstractmethod
    def image(self, context: Context) -> Float[Tensor, "b c h w"]:
        """Return the slice, once all levels are in the context."""
