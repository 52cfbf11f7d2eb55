"""Slices of one size, real or generated, as the parts of an evaluation use them."""

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
from slicebook.evaluation.kept import NOTHING_KEPT, Arrays, KeptWork
from slicebook.inference.synthesis import render
from slicebook.metrics.anatomy import Spacing
from slicebook.models.checkpoint import LoadedPrior
from slicebook.models.sampling import SamplingSettings

BATCH = 64  # slices read at a time
MAX_REAL = 2048  # held-out slices that samples are compared with: measures of pairs grow with the square


@dataclass(frozen=True)
class SliceCollection:
    """Slices of one size, real or generated.

    Attributes:
        images: In [-1, 1].
        masks: Label values; None without masks.
        patients: Patient of each slice; empty strings for samples.
        spacings: Height and width of the pixels of each slice, in mm.
        seeds: Seed of each sample; empty for real slices.
    """

    images: Float[Tensor, "n 1 h w"]
    masks: UInt8[Tensor, "n h w"] | None
    patients: tuple[str, ...]
    spacings: tuple[Spacing, ...]
    seeds: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def label_maps(self) -> list[UInt8[np.ndarray, "h w"]]:
        """Return the masks as arrays; an empty list without masks."""
        return [] if self.masks is None else [mask.numpy() for mask in self.masks]


def check_trained_on(loaded: LoadedPrior, data: PreparedData) -> None:
    """Check that a prepared folder is the one that a prior was trained on.

    Raises:
        ConfigError: The patients, the split, or the sizes or intensities of the slices differ.
    """
    if data.split_hash != loaded.info.provenance.split_hash:
        raise ConfigError(
            f"{data.folder}: has other patients, or another split, than {loaded.path} was trained on; give "
            "the prepared folder of its training, or evaluate reconstruction only (--parts reconstruction)"
        )
    if slice_kinds(data.split("train").records) != loaded.info.slices:
        raise ConfigError(
            f"{data.folder}: its training slices have other sizes, spacings, intensities or numbers than "
            f"those that {loaded.path} was trained on, so copies could not be detected; give the prepared "
            "folder of its training"
        )


def unit(images: Float[Tensor, "n 1 h w"]) -> Float32[np.ndarray, "n h w"]:
    """Return slices in [-1, 1] as arrays in [0, 1], clipped."""
    return np.asarray(((images[:, 0].clamp(-1, 1) + 1) / 2).numpy(), dtype=np.float32)


def read_slices(
    data: PreparedData, split: Split, size: tuple[int, int], *, limit: int | None = None, seed: int = 42
) -> SliceCollection:
    """Return the slices of a split that have the given size; if some have masks, only those.

    Args:
        data: The prepared folder.
        split: Name of the split.
        size: Rows and columns.
        limit: Largest number of slices, chosen at random; all by default.
        seed: Seed of that choice.

    Raises:
        DataError: The split has no slice of this size.
    """
    slices = of_size(data, split, size)
    if limit is not None and limit < len(slices):
        chosen = np.sort(np.random.default_rng(seed).choice(len(slices), limit, replace=False))
        slices = SliceSet(slices.folder, tuple(slices.records[index] for index in chosen))
    images = torch.stack([slices[index] for index in range(len(slices))])
    labelled = all(record.label_offset >= 0 for record in slices.records)
    labels = torch.stack([slices.labels(i) for i in range(len(slices))]) if labelled else None
    spacings = tuple((record.row_mm, record.column_mm) for record in slices.records)
    return SliceCollection(images, labels, tuple(record.patient for record in slices.records), spacings)


def of_size(data: PreparedData, split: Split, size: tuple[int, int], *, masked: bool = True) -> SliceSet:
    """Return the slices of a split that have the given size and are not blank.

    Args:
        data: The prepared folder.
        split: Name of the split.
        size: Rows and columns.
        masked: Whether to keep only slices with a mask, if there are any.

    Raises:
        DataError: The split has no slice of this size.
    """
    chosen = tuple(
        record
        for record in data.records
        if record.split == split and not record.blank and (record.rows, record.columns) == size
    )
    if masked:
        chosen = tuple(record for record in chosen if record.label_offset >= 0) or chosen
    if not chosen:
        raise DataError(
            f"{data.folder}: its split {split!r} has no slice of {size[0]}×{size[1]}, the size of the "
            "samples; evaluate another split, or prepare all data to one size (--size)"
        )
    return SliceSet(data.folder, chosen)


def in_batches(slices: SliceSet) -> Iterator[Float32[np.ndarray, "n h w"]]:
    """Yield slices of one size as arrays in [0, 1], 64 at a time."""
    for start in range(0, len(slices), BATCH):
        indices = range(start, min(start + BATCH, len(slices)))
        yield unit(torch.stack([slices[index] for index in indices]))


def reconstruct(
    loaded: LoadedPrior,
    images: Float[Tensor, "n 1 h w"],
    *,
    steps: int = SamplingSettings.decoder_steps,
    kept: KeptWork = NOTHING_KEPT,
) -> Float[Tensor, "n 1 h w"]:
    """Return slices in [-1, 1], decoded from their own tokens as samples are.

    Args:
        loaded: The prior, with its tokenizer.
        images: Slices in [-1, 1].
        steps: Of the generation decoder.
        kept: Keeps the slices of one call under the name `reconstructions`.
    """
    device = next(loaded.prior.parameters()).device
    size = (images.shape[-2], images.shape[-1])

    @torch.no_grad()
    def part(first: int, end: int) -> Arrays:
        tokens = loaded.tokenizer.encode(images[first:end].to(device)).cpu()
        return {"images": render(loaded, tokens, size, range(first, end), steps).images}

    return kept.arrays("reconstructions", "reconstruction", len(images), BATCH, part)["images"]
