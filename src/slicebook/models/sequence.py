"""The token sequence of a slice, which the prior models: mask tokens, then image tokens, each coarse to fine.

`SequenceLayout` holds the grids in the order of prediction, their positions and neighbours.
`JointTokenizer` encodes images and masks into sequences, and decodes them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from slicebook.models.masks import check_labels, labels_from, one_hot
from slicebook.models.tokenizer import Tokenizer

NEIGHBOUR_RADIUS = 2  # tokens to each side whose values are given to a prediction in the same grid
PARENT_RADIUS = 1  # the same in coarser grids, around the parent


@dataclass(frozen=True)
class TokenGrid:
    """One grid of tokens.

    Attributes:
        kind: Whether the grid belongs to the mask or to the image.
        level: Level of its tokenizer, 0 is the finest.
        rows, columns: Size of the grid.
        stride: Side of one token in pixels.
        size: Codebook size. The value `size` itself stands for an unknown token.
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
    """Index tables for the token sequence of slices of one size.

    Attributes:
        stages: The grids, in the order of prediction.
        starts: Index of the first token of each grid, then the number of all tokens.
        centres: Centre of each token, row and column in pixels.
        positions: The same as fractions of the slice.
        around: For each grid, per token the indices of its neighbours in the same grid; len(grid) if outside.
        above: For each grid and each coarser one, the same for the window around the parent.
    """

    stages: tuple[TokenGrid, ...]
    starts: tuple[int, ...]
    centres: Float[Tensor, "n 2"]
    positions: Float[Tensor, "n 2"]
    around: tuple[Int64[Tensor, "_ _"], ...]
    above: tuple[tuple[Int64[Tensor, "_ _"], ...], ...]

    def slice_of(self, stage: int) -> slice:
        """Return where the tokens of a grid are in the sequence."""
        return slice(self.starts[stage], self.starts[stage + 1])

    def to(self, device: torch.device) -> SequenceLayout:
        """Return the layout with its tables on a device; they are copied there once per layout."""
        return self if self.centres.device == device else _copy_to(self.stages, device)


@lru_cache(maxsize=32)
def sequence_layout(stages: tuple[TokenGrid, ...]) -> SequenceLayout:
    """Make the tables of a sequence of grids."""
    starts, centres, positions = [0], [], []
    for stage in stages:
        starts.append(starts[-1] + len(stage))
        row, column = (axis.flatten() for axis in _axes(stage))
        centres.append((torch.stack([row, column], 1) + 0.5) * stage.stride)
        positions.append((torch.stack([row, column], 1) + 0.5) / torch.tensor([stage.rows, stage.columns]))
    around = tuple(_window(stage, stage, NEIGHBOUR_RADIUS) for stage in stages)
    above = tuple(
        tuple(_window(stage, coarser, PARENT_RADIUS) for coarser in stages[:index])
        for index, stage in enumerate(stages)
    )
    return SequenceLayout(stages, tuple(starts), torch.cat(centres), torch.cat(positions), around, above)


@lru_cache(maxsize=32)
def _copy_to(stages: tuple[TokenGrid, ...], device: torch.device) -> SequenceLayout:
    with torch.inference_mode(False):  # the cache is shared with trainings
        layout = sequence_layout(stages)
        return replace(
            layout,
            centres=layout.centres.to(device),
            positions=layout.positions.to(device),
            around=tuple(table.to(device) for table in layout.around),
            above=tuple(tuple(table.to(device) for table in tables) for tables in layout.above),
        )


def _axes(stage: TokenGrid) -> tuple[Tensor, ...]:
    return torch.meshgrid(torch.arange(stage.rows), torch.arange(stage.columns), indexing="ij")


def _window(stage: TokenGrid, of: TokenGrid, radius: int) -> Int64[Tensor, "_ _"]:
    """For each token of a grid, the indices in another grid of the window around its parent."""
    row, column = ((axis.flatten() * stage.stride + stage.stride // 2) // of.stride for axis in _axes(stage))
    steps = torch.arange(-radius, radius + 1)
    down, right = (axis.flatten() for axis in torch.meshgrid(steps, steps, indexing="ij"))
    if stage is of:  # a token is not its own neighbour
        others = (down != 0) | (right != 0)
        down, right = down[others], right[others]
    rows, columns = row[:, None] + down, column[:, None] + right
    inside = (rows >= 0) & (rows < of.rows) & (columns >= 0) & (columns < of.columns)
    return torch.where(inside, rows * of.columns + columns, len(of))


def draw_orders(
    layout: SequenceLayout, count: int, generator: torch.Generator, known: Bool[Tensor, "b n"] | None = None
) -> Int64[Tensor, "b n"]:
    """Draw an order of prediction per slice: grid by grid, random within a grid, known tokens first."""
    keys = torch.rand(count, layout.starts[-1], generator=generator)
    if known is not None:
        keys = keys - known.to(keys)
    for index in range(len(layout.stages)):
        keys[:, layout.slice_of(index)] += 3 * index
    return keys.argsort(1)


def stage_windows(
    layout: SequenceLayout,
    stage: int,
    input_tokens: Int64[Tensor, "b n"],
    ranks: Int64[Tensor, "b n"] | None,
    order: Int64[Tensor, "b m"],
) -> list[Int64[Tensor, "b m _"]]:
    """Return the neighbours and parents of tokens of a grid; tokens not known yet are `unknown`.

    Args:
        layout: Layout of the tokens, on their device.
        stage: Index of the grid.
        input_tokens: All tokens, flattened and joined. Without ranks, future tokens must be unknown
            already.
        ranks: The step at which each token is predicted.
        order: Indices in the grid, in the order of prediction.
    """
    own = layout.slice_of(stage)
    table = layout.around[stage][order]
    grid = functional.pad(input_tokens[:, own], (0, 1), value=layout.stages[stage].size)
    windows = [_pick(grid, table)]
    if ranks is not None:
        when = functional.pad(ranks[:, own], (0, 1), value=layout.starts[-1])
        later = _pick(when, table) >= when.gather(1, order)[..., None]
        windows[0] = windows[0].masked_fill(later, layout.stages[stage].size)
    for coarser in range(stage):
        table = layout.above[stage][coarser][order]
        grid = functional.pad(
            input_tokens[:, layout.slice_of(coarser)], (0, 1), value=layout.stages[coarser].size
        )
        windows.append(_pick(grid, table))
    return windows


def _pick(values: Int64[Tensor, "b n"], table: Int64[Tensor, "b m w"]) -> Int64[Tensor, "b m w"]:
    return values.gather(1, table.flatten(1)).view(table.shape)


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
        for index, stage in enumerate(layout.stages):
            grid = tokens[:, layout.slice_of(index)].reshape(-1, stage.rows, stage.columns)
            grids[stage.kind].insert(0, grid)
        return grids

    def _parts(self) -> list[tuple[Literal["mask", "image"], Tokenizer]]:
        parts: list[tuple[Literal["mask", "image"], Tokenizer]] = [("image", self.images)]
        if self.masks is not None:
            parts.insert(0, ("mask", self.masks))
        return parts
