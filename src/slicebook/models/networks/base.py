"""What a tokenizer asks of a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor, nn

Context: TypeAlias = tuple[Tensor, ...]
"""What the levels seen so far say, in the network's own form; empty before the coarsest."""


class Network(nn.Module, ABC):
    """Features, latents and slices of a hierarchy of levels; level 0 is the finest."""

    @property
    @abstractmethod
    def pixel_decoder(self) -> nn.ModuleList:
        """What hears the finest level, so that no latents hang on it."""

    @abstractmethod
    def features(self, images: Float[Tensor, "b c h w"]) -> Sequence[Float[Tensor, "b _ _ _"]]:
        """Encode slices, whose sides are multiples of the total stride, to one map a level, finest first."""

    @abstractmethod
    def latents(
        self, level: int, features: Float[Tensor, "b _ gh gw"], context: Context
    ) -> Float[Tensor, "b d gh gw"]:
        """Say what a level would add to the coarser ones, to be quantised."""

    @abstractmethod
    def decode_level(self, level: int, context: Context, vectors: Float[Tensor, "b d gh gw"]) -> Context:
        """Fold a level's quantised vectors into what the coarser levels said."""

    @abstractmethod
    def image(self, context: Context) -> Float[Tensor, "b c h w"]:
        """Draw the slice once every level is absorbed."""
