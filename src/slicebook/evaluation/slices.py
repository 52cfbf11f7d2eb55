"""Slices of one size, real or drawn, as the parts of an evaluation compare them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from slicebook.data.dataset import PreparedData, SliceSet
from slicebook.data.manifest import slice_kinds
from slicebook.data.splits import Split
from slicebook.errors import ConfigError, DataError
from slicebook.metrics.anatomy import Spacing
from slicebook.models.checkpoint import LoadedPrior

BATCH = 64  # slices read at a time


@dataclass(frozen=True)
class SliceCollection:
    """Slices of one size, to be compared with others.

    Attributes:
        images: In [-1, 1].
        masks: Label values, where the data have masks.
        patients: Whose each is; empty for samples.
        spacings: Height and width of each one's pixels, in mm.
        seeds: What each sample was drawn from; empty for real slices.
    """

    images: Float[Tensor, "n 1 h w"]
    masks: UInt8[Tensor, "n h w"] | None
    patients: tuple[str, ...]
    spacings: tuple[Spacing, ...]
    seeds: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def label_maps(self) -> list[UInt8[np.ndarray, "h w"]]:
        """Return the masks as arrays; none where there are none."""
        return [] if self.masks is None else [one.numpy() for one in self.masks]


def check_trained_on(loaded: LoadedPrior, data: PreparedData) -> None:
    """Refuse data that a prior was not trained on, as they were prepared then.

    Raises:
        ConfigError: Other patients or another split; or other slices of the same, such as resampled ones.
    """
    if data.split_hash != loaded.info.provenance.split_hash:
        raise ConfigError(
            f"{data.folder}: holds other patients, or another split, than {loaded.path} was trained on; give "
            "the prepared folder of its training, or judge reconstruction alone (--parts reconstruction)"
        )
    if slice_kinds(data.split("train").records) != loaded.info.slices:
        raise ConfigError(
            f"{data.folder}: its training slices have other sizes, spacings, intensities or numbers than "
            f"those that {loaded.path} was trained on, so copies could not be told; give the prepared folder "
            "of its training"
        )


def unit(images: Float[Tensor, "n 1 h w"]) -> Float32[np.ndarray, "n h w"]:
    """Return slices in [-1, 1] as arrays in [0, 1], clipped."""
    return np.asarray(((images[:, 0].clamp(-1, 1) + 1) / 2).numpy(), dtype=np.float32)


def read_slices(
    data: PreparedData, split: Split, size: tuple[int, int], *, most: int | None = None, seed: int = 42
) -> SliceCollection:
    """Return a split's slices of a size; where the data have masks, those with one.

    Args:
        data: The prepared folder.
        split: Which slices.
        size: Rows and columns.
        most: Where there are more, so many of them at random; all by default.
        seed: Of that draw.

    Raises:
        DataError: There is none.
    """
    slices = of_size(data, split, size)
    if most is not None and most < len(slices):
        chosen = np.sort(np.random.default_rng(seed).choice(len(slices), most, replace=False))
        slices = SliceSet(slices.folder, tuple(slices.records[row] for row in chosen))
    images = torch.stack([slices[index] for index in range(len(slices))])
    labelled = all(record.label_offset >= 0 for record in slices.records)
    labels = torch.stack([slices.labels(i) for i in range(len(slices))]) if labelled else None
    spacings = tuple((record.row_mm, record.column_mm) for record in slices.records)
    return SliceCollection(images, labels, tuple(record.patient for record in slices.records), spacings)


def of_size(data: PreparedData, split: Split, size: tuple[int, int], *, masked: bool = True) -> SliceSet:
    """Return a split's slices of a size.

    Args:
        data: The prepared folder.
        split: Which slices.
        size: Rows and columns.
        masked: Where some have masks, those alone.

    Raises:
        DataError: There is none.
    """
    chosen = tuple(
        one
        for one in data.records
        if one.split == split and not one.blank and (one.rows, one.columns) == size
    )
    if masked:
        chosen = tuple(one for one in chosen if one.label_offset >= 0) or chosen
    if not chosen:
        raise DataError(
            f"{data.folder}: its split {split!r} holds no slice of {size[0]}×{size[1]}, the size that is "
            "drawn; evaluate another split, or prepare all data to one size (--size)"
        )
    return SliceSet(data.folder, chosen)


def in_batches(slices: SliceSet) -> Iterator[Float32[np.ndarray, "n h w"]]:
    """Yield slices of one size as arrays in [0, 1], 64 at a time."""
    for start in range(0, len(slices), BATCH):
        rows = range(start, min(start + BATCH, len(slices)))
        yield unit(torch.stack([slices[row] for row in rows]))
