"""Token dataset of a prior: the encoded slices of a split."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Int32, Int64, UInt8
from torch import Tensor

from slicebook.config import AugmentConfig
from slicebook.data.augment import augment as augment_images
from slicebook.data.augment import augment_labels, draw_augmentation
from slicebook.data.dataset import SliceSet
from slicebook.data.loader import BatchOrder
from slicebook.data.manifest import SliceRecord
from slicebook.distributed import Part
from slicebook.models.conditions import Conditions
from slicebook.models.sequence import JointTokenizer, SequenceLayout
from slicebook.progress import Progress

BATCH = 32
SHARDS = 256  # of a size, at most
COLLECTED = 4096  # slices whose tokens processes send each other at a time


Remember: TypeAlias = Callable[[str, Callable[[], Tensor]], Tensor]
"""Returns the tokens of a shard from where they are kept, by its name, or encodes and keeps them."""


@dataclass(frozen=True)
class TokenBatch:
    """A batch of token sequences, of one slice size.

    Attributes:
        layout: Of the sequences.
        tokens: One sequence per slice.
        conditions: One per slice.
        indices: Indices of the slices in their `SliceSet`.
        share: Which slices of a batch of several processes these are; None for a whole batch.
    """

    layout: SequenceLayout
    tokens: Int64[Tensor, "b n"]
    conditions: Conditions
    indices: Int64[Tensor, " b"]
    share: Part | None = None

    @property
    def part(self) -> Part:
        """Which slices of a batch these are."""
        return self.share or Part.whole(len(self))

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device) -> TokenBatch:
        """Move tokens and conditions to a device."""
        return replace(self, tokens=self.tokens.to(device), conditions=self.conditions.to(device))


@dataclass(frozen=True)
class TokenSet:
    """Tokens of all slices of one size.

    Attributes:
        size: Rows and columns of a slice.
        layout: Of the sequences.
        tokens: Of each view of each slice; view 0 is the slice itself.
        conditions: One per slice.
        indices: Indices of the slices in their `SliceSet`.
    """

    size: tuple[int, int]
    layout: SequenceLayout
    tokens: Int32[Tensor, "slices views n"]
    conditions: Conditions
    indices: Int64[Tensor, " slices"]

    def __len__(self) -> int:
        return len(self.tokens)


@torch.no_grad()
def encode_slices(
    joint_tokenizer: JointTokenizer,
    slices: SliceSet,
    *,
    views: int = 1,
    augment: AugmentConfig | None = None,
    seed: int = 42,
    device: torch.device | str = "cpu",
    classes: Sequence[str] = (),
    known: Sequence[Int32[Tensor, "_slices _views _n"]] | None = None,
    progress: Progress | None = None,
    rank: int = 0,
    world_size: int = 1,
    remember: Remember | None = None,
) -> list[TokenSet]:
    """Encode slices and augmented views of them, size by size.

    Slices are augmented, not tokens: a shift by less than a token changes the whole grid.

    Args:
        joint_tokenizer: Encodes images, and masks if it has a mask tokenizer.
        slices: Slices to encode.
        views: Number of views per slice, the slice itself included.
        augment: How the other views differ from the slice.
        seed: Of the views.
        device: Device of the tokenizers.
        classes: Names of the classes, in the order of their numbers.
        known: Cached tokens, one tensor per size.
        progress: Called with the number of slices done and of all slices, before each shard and at the end.
        rank: Of this process. Processes share the work, and each returns all tokens.
        world_size: Number of processes.
        remember: Keeps the tokens shard by shard.
    """
    sizes: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, record in enumerate(slices.records):
        sizes[record.rows, record.columns].append(index)
    token_sets: list[TokenSet] = []
    done = 0
    for number, (size, indices) in enumerate(sizes.items()):
        layout = joint_tokenizer.layout(size)
        shard_size = BATCH * math.ceil(len(indices) / (BATCH * SHARDS))
        rows: list[Tensor] = []
        for start in range(0, len(indices) if known is None else 0, shard_size):
            shard = indices[start : start + shard_size]

            def encode(shard: list[int] = shard, layout: SequenceLayout = layout) -> Tensor:
                parts = (shard[first : first + BATCH] for first in range(0, len(shard), BATCH))
                encoded = [
                    _encode_views(joint_tokenizer, slices, part, layout, views, augment, seed, device)
                    for part in parts
                ]
                return torch.cat(encoded)

            if progress:
                progress(done, len(slices))
            if start // shard_size % world_size != rank:
                rows.append(torch.zeros(len(shard), views, layout.starts[-1], dtype=torch.int32))
            else:
                name = f"{size[0]}x{size[1]}-{start:08}"
                rows.append(remember(name, encode) if remember else encode())
            done += len(shard)
        records = [slices.records[index] for index in indices]
        tokens = _collected(torch.cat(rows), device, world_size) if known is None else known[number]
        conditions = conditions_of(records, classes)
        token_sets.append(TokenSet(size, layout, tokens, conditions, torch.tensor(indices)))
    if progress:
        progress(len(slices), len(slices))
    return token_sets


def _encode_views(
    joint_tokenizer: JointTokenizer,
    slices: SliceSet,
    part: list[int],
    layout: SequenceLayout,
    views: int,
    augment: AugmentConfig | None,
    seed: int,
    device: torch.device | str,
) -> Int32[Tensor, "b views n"]:
    """Encode slices of one size, and augmented views of them."""
    images = torch.stack([slices[index] for index in part])
    masks, masked = _masks(joint_tokenizer, slices, part)
    view_tokens = []
    for view in range(views):
        shown, labels = images, masks
        if view and augment:
            drawn = np.random.default_rng([seed, part[0], view]).integers(2**63)
            draw = torch.Generator().manual_seed(int(drawn))
            change = draw_augmentation(augment, len(images), draw)
            shown = augment_images(images, change)
            labels = None if masks is None else augment_labels(masks, change)
        tokens = joint_tokenizer.encode(shown.to(device), None if labels is None else labels[:, 0].to(device))
        view_tokens.append(_set_masks_unknown(tokens.cpu(), layout, masked))
    return torch.stack(view_tokens, 1).to(torch.int32)


def _collected(
    tokens: Int32[Tensor, "slices views n"], device: torch.device | str, world_size: int
) -> Int32[Tensor, "slices views n"]:
    """Return the tokens of all processes; each has zeros where others have encoded."""
    if world_size == 1:
        return tokens
    parts = []
    for part in torch.split(tokens, COLLECTED):
        there = part.to(device)
        torch.distributed.all_reduce(there)
        parts.append(there.cpu())
    return torch.cat(parts)


def conditions_of(records: Sequence[SliceRecord], classes: Sequence[str]) -> Conditions:
    """Return the conditions of slices; a class is its index in `classes`."""
    return Conditions(
        torch.tensor([record.position for record in records], dtype=torch.float32),
        torch.tensor([classes.index(r.group) if r.group in classes else -1 for r in records]),
    )


def _masks(
    joint_tokenizer: JointTokenizer, slices: SliceSet, part: list[int]
) -> tuple[UInt8[Tensor, "b 1 h w"] | None, Bool[Tensor, " b"]]:
    """Return masks of slices, blank where there is none, and whether each slice has one."""
    masked = torch.tensor([slices.records[index].label_offset >= 0 for index in part])
    if joint_tokenizer.masks is None:
        return None, masked
    shape = (slices.records[part[0]].rows, slices.records[part[0]].columns)
    blank = torch.full(shape, joint_tokenizer.masks.config.label_values[0], dtype=torch.uint8)
    masks = [slices.labels(i) if there else blank for i, there in zip(part, masked.tolist(), strict=True)]
    return torch.stack(masks)[:, None], masked


def _set_masks_unknown(
    tokens: Int64[Tensor, "b n"], layout: SequenceLayout, masked: Bool[Tensor, " b"]
) -> Tensor:
    """Set the mask tokens of slices without a mask to unknown."""
    for index, stage in enumerate(layout.stages):
        if stage.kind == "mask":
            tokens[~masked, layout.slice_of(index)] = stage.size
    return tokens


class TokenBatches:
    """Iterate over batches of one size each, in an order that depends on `(seed, epoch)` alone.

    Args:
        sets: Token sets, one per slice size.
        batch_size: Maximum, of all ranks together; slices of one size are distributed evenly over batches.
        shuffle: Whether to draw a new order and a random view of each slice each epoch; otherwise view 0, in
            the order of the set.
        seed: Of the order and the views.
        rank, world_size: Of this process, which takes its `Part` of every batch.
    """

    def __init__(
        self,
        sets: Sequence[TokenSet],
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 42,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.sets, self.shuffle, self.seed, self.epoch = sets, shuffle, seed, 0
        self.ends = np.cumsum([len(token_set) for token_set in sets]).tolist()
        starts = [0, *self.ends[:-1]]
        groups = [list(range(start, end)) for start, end in zip(starts, self.ends, strict=True)]
        self.order = BatchOrder(groups, batch_size, shuffle, seed)
        self.rank, self.world_size = rank, world_size

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        """Set the epoch, which determines order and views; the next iteration leaves out the batches done."""
        self.epoch = self.order.epoch = epoch
        self.order.done = done

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[TokenBatch]:
        draw = np.random.default_rng([self.seed, self.epoch, 1])
        views = [draw.integers(0, token_set.tokens.shape[1], len(token_set)) for token_set in self.sets]
        for batch in self.order:
            part = Part.of(len(batch), self.rank, self.world_size)
            indices = part.pick(batch)
            which = bisect_right(self.ends, indices[0])
            token_set = self.sets[which]
            rows = torch.tensor(indices) - (self.ends[which] - len(token_set))
            view = torch.from_numpy(views[which])[rows] * int(self.shuffle)
            yield TokenBatch(
                token_set.layout,
                token_set.tokens[rows, view].long(),
                token_set.conditions[rows],
                token_set.indices[rows],
                part,
            )
