"""The token sequence of a slice, which the prior models: mask tokens, then image tokens, each coarse to fine.

`SequenceLayout` tells where each grid lies in the sequence.
`JointTokenizer` encodes images and masks into sequences, and decodes them.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor

from slicebook.models.masks import check_labels, labels_from, one_hot
from slicebook.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenGrid:
    """One grid of tokens.

    Attributes:
        kind: Whether the grid belongs to the mask or to the image.
        level: Level of its tokenizer, 0 is the finest.
        rows, columns: Size of the grid.
        stride: Side of one token in pixels.
        size: Codebook size. The value `size` itself stands for a token that the slice does not have.
    """

    kind: Literal["mask", "image"]
    level: int
    rows: int
    columns: int
    stride: int
    size: int

    @property
    def name(self) -> str:
        """Such as `image_0`."""
        return f"{self.kind}_{self.level}"

    def __len__(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class SequenceLayout:
    """Where the tokens of slices of one size lie in their sequence.

    Attributes:
        stages: The grids.
        starts: Index of the first token of each grid, then the number of all tokens.
        sizes: Codebook size of each token.
    """

    stages: tuple[TokenGrid, ...]
    starts: tuple[int, ...]
    sizes: Int64[Tensor, " n"]

    def slice_of(self, stage: int) -> slice:
        """Return where the tokens of a grid are in the sequence."""
        return slice(self.starts[stage], self.starts[stage + 1])

    def split(self, values: Shaped[Tensor, "b n"]) -> list[Shaped[Tensor, "b _ _"]]:
        """Return what belongs to each token, grid by grid."""
        return [
            values[:, self.slice_of(index)].reshape(-1, stage.rows, stage.columns)
            for index, stage in enumerate(self.stages)
        ]

    def to(self, device: torch.device) -> SequenceLayout:
        """Return the layout with its table on a device; it is copied there once per layout."""
        return self if self.sizes.device == device else _copy_to(self.stages, device)


@lru_cache(maxsize=32)
def sequence_layout(stages: tuple[TokenGrid, ...]) -> SequenceLayout:
    """Make the layout of a sequence of grids."""
    counts = [len(stage) for stage in stages]
    sizes = torch.cat([torch.full((len(stage),), stage.size) for stage in stages])
    return SequenceLayout(stages, (0, *itertools.accumulate(counts)), sizes)


@lru_cache(maxsize=32)
def _copy_to(stages: tuple[TokenGrid, ...], device: torch.device) -> SequenceLayout:
    with torch.inference_mode(False):  # the cache is shared with trainings
        layout = sequence_layout(stages)
        return replace(layout, sizes=layout.sizes.to(device))


@dataclass(frozen=True)
class DecodedSlices:
    """Decoded images and masks.

    Attributes:
        images: In [-1, 1].
        masks: Label values; None without a mask tokenizer, or where tokens of a mask are unknown.
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
    def strides(self) -> list[int]:
        """Pixels along a side of one token of each grid, in the order of the sequence."""
        return [
            math.prod(tokenizer.config.scaling_rates[: level + 1])
            for _, tokenizer in self._parts()
            for level in reversed(range(tokenizer.levels))
        ]

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
            values = self.masks.config.label_values
            check_labels(masks.unique().tolist(), values)  # type: ignore[no-untyped-call]  # torch lacks it
            grids = self.masks.encode(one_hot(masks, values))[::-1] + grids
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
        for stage, grid in zip(layout.stages, layout.split(tokens), strict=True):
            grids[stage.kind].insert(0, grid)
        return grids

    def _parts(self) -> list[tuple[Literal["mask", "image"], Tokenizer]]:
        parts: list[tuple[Literal["mask", "image"], Tokenizer]] = [("image", self.images)]
        if self.masks is not None:
            parts.insert(0, ("mask", self.masks))
        return parts
