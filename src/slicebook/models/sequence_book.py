"""The image tokenizer and, if there are masks, the mask tokenizer, as one token sequence.

The prior models this sequence: mask tokens first, then image tokens, each coarse to fine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from slicebook.models.masks import labels_from, one_hot
from slicebook.models.sequence import SequenceLayout, TokenGrid, sequence_layout
from slicebook.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class DecodedSlices:
    """Decoded images and masks.

    Attributes:
        images: In [-1, 1].
        masks: Label values; None where the book has none, or where tokens of a mask are unknown.
    """

    images: Float[Tensor, "b 1 h w"]
    masks: UInt8[Tensor, "b h w"] | None


@dataclass(frozen=True)
class JointTokenizer:
    """An image tokenizer and a mask tokenizer, in evaluation mode, on one device.

    Attributes:
        images: Tokenizer of the images.
        masks: Tokenizer of the label masks, if any.
    """

    images: Tokenizer
    masks: Tokenizer | None = None

    @property
    def codebooks(self) -> list[Float[Tensor, "_ _"]]:
        """The codebook of each grid, in the order of the sequence."""
        return [
            tokenizer.codebook(level).codes.detach()
            for _, tokenizer in self._parts()
            for level in reversed(range(tokenizer.levels))
        ]

    def layout(self, size: tuple[int, int]) -> SequenceLayout:
        """Return the layout of the token sequence of a slice of `size` pixels."""
        stages: list[TokenGrid] = []
        for kind, tokenizer in self._parts():
            config, grids = tokenizer.config, tokenizer.grids(size)
            for level in reversed(range(tokenizer.levels)):
                stride = math.prod(config.scaling_rates[: level + 1])
                stages.append(TokenGrid(kind, level, *grids[level], stride, config.codebook_sizes[level]))
        return sequence_layout(tuple(stages))

    def encode(
        self, images: Float[Tensor, "b 1 h w"], masks: UInt8[Tensor, "b h w"] | None = None
    ) -> Int64[Tensor, "b n"]:
        """Return token sequences; without masks, the mask tokens are unknown."""
        grids = self.images.encode(images)[::-1]
        if self.masks is not None and masks is not None:
            grids = self.masks.encode(one_hot(masks, self.masks.config.label_values))[::-1] + grids
        elif self.masks is not None:
            layout = self.layout((images.shape[-2], images.shape[-1]))
            unknown = [
                torch.full((len(images), len(stage)), stage.size, device=images.device)
                for stage in layout.stages
                if stage.kind == "mask"
            ]
            grids = (*unknown, *grids)
        return torch.cat([grid.flatten(1) for grid in grids], 1)

    def decode(
        self, tokens: Int64[Tensor, "b n"], size: tuple[int, int], *, levels: int | None = None
    ) -> DecodedSlices:
        """Decode images and masks of `size` pixels; images from the `levels` coarsest levels only."""
        grids = self.grids(tokens, size)
        images = self.images.decode(grids["image"], size, levels=levels).clamp(-1, 1)
        masks = None
        if self.masks is not None:
            sizes = self.masks.config.codebook_sizes
            if all((grid < count).all() for grid, count in zip(grids["mask"], sizes, strict=True)):
                logits = self.masks.decode(grids["mask"], size)
                masks = labels_from(logits, self.masks.config.label_values)
        return DecodedSlices(images, masks)

    def grids(
        self, tokens: Int64[Tensor, "b n"], size: tuple[int, int]
    ) -> dict[Literal["mask", "image"], list[Int64[Tensor, "b _ _"]]]:
        """Return the token grids of sequences, as the tokenizers take them: finest first."""
        layout = self.layout(size)
        grids: dict[Literal["mask", "image"], list[Tensor]] = {"mask": [], "image": []}
        for index, stage in enumerate(layout.stages):
            grid = tokens[:, layout.slice_of(index)].reshape(-1, stage.rows, stage.columns)
            grids[stage.kind].insert(0, grid)
        return grids

    def _parts(self) -> list[tuple[Literal["mask", "image"], Tokenizer]]:
        parts: list[tuple[Literal["mask", "image"], Tokenizer]] = [("image", self.images)]
        if self.masks is not None:
            parts.insert(0, ("mask", self.masks))
        return parts
