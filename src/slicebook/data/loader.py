"""Batches of slices of one shape, for several worker processes and ranks."""

from __future__ import annotations

import math
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from slicebook.data.dataset import SliceSet
from slicebook.distributed import Part
from slicebook.errors import DataError
from slicebook.signals import ignore_signals

PREFETCHED = 2  # batches that PyTorch has each worker read ahead
SHARED_MEMORY = Path("/dev/shm")


LOADING_TIMEOUT = 300  # seconds to wait for a batch before the workers are considered dead


def _check_shared_memory(workers: int, batch_bytes: int) -> None:
    """Raise `DataError` if the batches of the workers do not fit into shared memory.

    Without this check, the workers would wait forever. A worker reads PREFETCHED batches ahead, and the
    training loop holds two more. All processes of a node share the memory.
    """
    if not SHARED_MEMORY.is_dir():  # not Linux: shared memory has no folder, and no such limit
        return
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    wanted = processes * (workers * PREFETCHED + 2) * batch_bytes
    free = shutil.disk_usage(SHARED_MEMORY).free
    if wanted > free:
        raise DataError(
            f"{SHARED_MEMORY}: {free / 2**20:.0f} MiB of shared memory are free, wanted "
            f"{wanted / 2**20:.0f} MiB for the batches that {workers} workers read ahead; use --workers 0, "
            "fewer workers or a smaller batch size, or enlarge it (Docker: --shm-size)"
        )


@dataclass(frozen=True)
class Batch:
    """Slices of one shape.

    Attributes:
        images: In [-1, 1]; or masks as uint8, for batches of labels.
        indices: Their indices in the `SliceSet`.
        share: Which slices of a batch of several processes these are; None for a whole batch.
    """

    images: Float32[Tensor, "b 1 h w"] | UInt8[Tensor, "b 1 h w"]
    indices: Int64[Tensor, " b"]
    share: Part | None = None

    @property
    def part(self) -> Part:
        """Which slices of a batch these are."""
        return self.share or Part.whole(len(self))

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> Batch:
        """Move the slices to a device; the indices stay."""
        return replace(self, images=self.images.to(device, non_blocking=True))

    def first(self, count: int) -> Batch:
        """Return the first slices as a batch of their own."""
        return Batch(self.images[:count], self.indices[:count])

    def pin_memory(self) -> Batch:
        """Return the same batch in page-locked memory; called by the loader if a GPU is used."""
        return replace(self, images=self.images.pin_memory(), indices=self.indices.pin_memory())


class SliceBatches:
    """Iterate over batches of one shape each, in an order that depends on `(seed, epoch)` alone.

    Every epoch contains every slice once. Each rank takes its `Part` of every batch: the batches of an epoch
    are the same for any number of ranks.

    Args:
        slices: The slices to read.
        batch_size: Maximum number of slices of all ranks together. The slices of one shape are distributed
            evenly over batches.
        shuffle: Whether to use a new random order in each epoch. Otherwise, slices are sorted by shape.
        seed: Seed of the random order.
        workers: Number of reading processes; 0 reads in this process.
        rank, world_size: Of this process.
        pin_memory: Use page-locked memory, for a GPU.
        what: Images or labels.

    Raises:
        DataError: The batches that workers read ahead do not fit into shared memory.
    """

    def __init__(
        self,
        slices: SliceSet,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 42,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
        what: Literal["images", "labels"] = "images",
    ) -> None:
        by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, record in enumerate(slices.records):
            by_shape[record.rows, record.columns].append(i)
        groups = list(by_shape.values())
        self._order = BatchOrder(groups, batch_size, shuffle, seed)
        self._undivided = partial(SliceBatches, slices, batch_size, shuffle=shuffle, seed=seed, what=what)
        if workers:
            largest = math.ceil(batch_size / world_size)
            _check_shared_memory(workers, largest * self._largest_slice(slices, what))
        self._loader: DataLoader[Batch] = DataLoader(
            _Reader(slices, what, rank, world_size),
            sampler=cast("Sampler[Any]", self._order),
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_leave_signals,
            timeout=LOADING_TIMEOUT if workers else 0,
            pin_memory=pin_memory,
            generator=torch.Generator().manual_seed(seed),  # else it would draw from torch's global one
        )

    def undivided(self) -> SliceBatches:
        """Return the same batches, whole on every rank, of epoch 0."""
        return self._undivided()

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        """Set the epoch, which determines the order; the next iteration leaves out the batches done."""
        self._order.epoch, self._order.done = epoch, done

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Batch]:
        with explain_dead_worker():
            yield from self._loader

    def _largest_slice(self, slices: SliceSet, what: Literal["images", "labels"]) -> int:
        """Return the size of the largest slice in bytes."""
        bytes_per_pixel = 1 if what == "labels" else 4
        return bytes_per_pixel * max((r.rows * r.columns for r in slices.records), default=0)


@contextmanager
def explain_dead_worker() -> Iterator[None]:
    """Turn the death or timeout of a loading process into a DataError with advice.

    PyTorch raises from a signal handler, anywhere in the main process, so the whole training loop runs inside
    this context.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader timed out" in str(error):
            raise DataError(
                f"the processes that load data sent nothing for {LOADING_TIMEOUT} seconds: {SHARED_MEMORY} "
                "may be full, or the disk too slow; use --workers 0"
            ) from error
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            f"a process that loads data ended ({str(error).splitlines()[0]}), often because memory is full; "
            "use --workers 0, fewer workers or a smaller batch size"
        ) from error


def _leave_signals(_: int) -> None:
    """Leave a signal that reaches all processes to the training, which saves and then ends this one."""
    ignore_signals()


class _Reader(Dataset[Batch]):
    """Read this rank's part of a batch at once, given the indices of the whole batch."""

    def __init__(
        self, slices: SliceSet, what: Literal["images", "labels"], rank: int, world_size: int
    ) -> None:
        self.slices, self.what, self.rank, self.world_size = slices, what, rank, world_size

    def __getitem__(self, batch: list[int]) -> Batch:
        part = Part.of(len(batch), self.rank, self.world_size)
        indices = part.pick(batch)
        if self.what == "labels":
            read = [self.slices.labels(i)[None] for i in indices]
        else:
            read = [self.slices[i] for i in indices]
        return Batch(torch.stack(read), torch.tensor(indices), part)


class BatchOrder(Sampler[list[int]]):
    """The indices of each batch: shuffled within a group (a shape), then the batches are shuffled.

    The order depends on `(seed, epoch)` alone. The caller sets `epoch`, and `done`, the number of batches to
    leave out at the start. Every index occurs in every epoch: each group is distributed evenly over as few
    batches as possible.
    """

    def __init__(self, groups: Sequence[Sequence[int]], batch_size: int, shuffle: bool, seed: int) -> None:
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.epoch = self.done = 0
        self.groups = [list(group) for group in groups if group]
        self._count = sum(math.ceil(len(group) / batch_size) for group in self.groups)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.batches()[self.done :]

    def batches(self) -> list[list[int]]:
        """Return the batches of the epoch."""
        draw = np.random.default_rng([self.seed, self.epoch])
        batches: list[list[int]] = []
        for group in self.groups:
            order = draw.permutation(group) if self.shuffle else np.array(group)
            parts = np.array_split(order, math.ceil(len(group) / self.batch_size))
            batches += [part.tolist() for part in parts]
        if self.shuffle:
            batches = [batches[i] for i in draw.permutation(len(batches))]
        return batches
