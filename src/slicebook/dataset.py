"""Read a prepared folder: records, splits, batches of one shape, and augmentation on the device."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Sampler

from slicebook.config import AugmentConfig
from slicebook.errors import DataError
from slicebook.layouts import SPLITS, Split
from slicebook.manifest import DatasetInfo, SliceRecord, read_info, read_manifest


@dataclass(frozen=True)
class PreparedData:
    """A prepared folder, opened.

    Attributes:
        folder: Where it lies.
        info: The content of `dataset.json`.
        records: Every slice, in the order of the manifest.
    """

    folder: Path
    info: DatasetInfo
    records: tuple[SliceRecord, ...]

    @classmethod
    def open(cls, folder: str | Path) -> PreparedData:
        """Open a folder that `slicebook prepare` wrote, and check that its files belong together.

        Raises:
            DataError: It is no prepared folder, of another schema version, or incomplete.
        """
        folder = Path(folder)
        info = read_info(folder)
        records = read_manifest(folder)
        image_elements = sum(record.rows * record.columns for record in records)
        label_elements = sum(record.rows * record.columns for record in records if record.label_offset >= 0)
        _expect_size(folder / "images.f32", 4 * image_elements)
        if label_elements:
            _expect_size(folder / "labels.u8", label_elements)
        return cls(folder, info, records)

    @property
    def split_hash(self) -> str:
        """Hash of which volume belongs to which split; the same at every spacing and size."""
        return self.info.split_hash

    def split(self, name: Split, *, blank: bool = False, labelled: bool = False) -> SliceSet:
        """Return the slices of a split, without the blank ones unless asked for.

        Args:
            name: train, validation or test.
            blank: The blank slices too.
            labelled: Only slices with a mask.

        Raises:
            DataError: The name is no split, or no slice is left.
        """
        if name not in SPLITS:
            raise DataError(f"{name!r} is no split; wanted one of {', '.join(SPLITS)}")
        chosen = tuple(r for r in self.records if r.split == name and (blank or not r.blank))
        if not chosen:
            raise DataError(
                f"{self.folder}: its split {name!r} holds no slice; prepare it again with --fractions "
                "that give this split some patients"
            )
        if labelled:
            chosen = tuple(r for r in chosen if r.label_offset >= 0)
            if not chosen:
                raise DataError(
                    f"{self.folder}: no slice of its split {name!r} has a mask; prepare it again from a data "
                    "set with masks (--mask)"
                )
        return SliceSet(self.folder, chosen)


class SliceSet(Dataset[Float32[Tensor, "1 h w"]]):
    """Some slices of a prepared folder, memory-mapped: reading one decodes nothing.

    Attributes:
        records: What each slice is, in the order of the set.
    """

    def __init__(self, folder: Path, records: tuple[SliceRecord, ...]) -> None:
        self.folder = folder
        self.records = records
        self._files: dict[str, NDArray[Any]] = {}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Float32[Tensor, "1 h w"]:
        """Return a copy of one slice, float32 in [-1, 1]."""
        record = self.records[index]
        return torch.from_numpy(self._read("images.f32", "<f4", record, record.offset))[None]

    def labels(self, index: int) -> UInt8[Tensor, "h w"]:
        """Return a copy of one slice's mask.

        Raises:
            DataError: The slice has none.
        """
        record = self.records[index]
        if record.label_offset < 0:
            raise DataError(
                f"{self.folder}: {record.volume} has no mask; prepare it again from a data set with masks "
                "(--mask)"
            )
        return torch.from_numpy(self._read("labels.u8", "u1", record, record.label_offset))

    @property
    def patients(self) -> tuple[str, ...]:
        """Pseudonyms in this set, sorted, each once."""
        return tuple(sorted({record.patient for record in self.records}))

    def _read(self, name: str, dtype: str, record: SliceRecord, offset: int) -> NDArray[Any]:
        if name not in self._files:  # opened on first use, so that each worker maps the file itself
            self._files[name] = np.memmap(self.folder / name, dtype=dtype, mode="r")
        elements = self._files[name][offset : offset + record.rows * record.columns]
        return np.array(elements, dtype=np.dtype(dtype).newbyteorder("=")).reshape(
            record.rows, record.columns
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}  # a memory map would travel to a worker by value


@dataclass(frozen=True)
class Batch:
    """Slices of one shape.

    Attributes:
        images: In [-1, 1]; or their masks, uint8, where the batches are of labels.
        indices: Where they stand in the `SliceSet`.
    """

    images: Float32[Tensor, "b 1 h w"] | UInt8[Tensor, "b 1 h w"]
    indices: Int64[Tensor, " b"]

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> Batch:
        """Move the slices; the indices stay."""
        return Batch(self.images.to(device, non_blocking=True), self.indices)

    def pin_memory(self) -> Batch:
        """Return the same batch in page-locked memory; the loader calls it where a GPU is used."""
        return Batch(self.images.pin_memory(), self.indices.pin_memory())


class SliceBatches:
    """Iterate over batches of one shape each, in an order that depends on `(seed, epoch)` alone.

    Under several ranks each takes every `world_size`-th batch, all the same number: with `drop_last` the
    surplus is left out, without it the first batches come twice.

    Args:
        slices: What to read.
        batch_size: Slices a batch; the last of a shape may hold fewer unless `drop_last`.
        shuffle: Draw a new order each epoch; otherwise the order of the set, shape by shape.
        seed: Start of the order.
        workers: Processes that read; 0 reads in this one.
        rank, world_size: This process among those that train together.
        drop_last: Leave out batches that are not full.
        pin_memory: Page-locked batches, for a GPU.
        what: The images of the slices, or their labels.
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
        drop_last: bool = False,
        pin_memory: bool = False,
        what: Literal["images", "labels"] = "images",
    ) -> None:
        by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, record in enumerate(slices.records):
            by_shape[record.rows, record.columns].append(i)
        groups = list(by_shape.values())
        self._order = BatchOrder(groups, batch_size, shuffle, seed, rank, world_size, drop_last)
        self._loader: DataLoader[Batch] = DataLoader(
            _Reader(slices, what),
            sampler=cast("Sampler[Any]", self._order),
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            generator=torch.Generator().manual_seed(seed),  # else it would draw from torch's global one
        )
        if not len(self._order):
            raise DataError(
                f"{slices.folder}: no full batch of {batch_size} in {len(slices)} slices; "
                "use a smaller batch size"
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        self._order.epoch = epoch

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Batch]:
        with explain_dead_worker():
            yield from self._loader


@contextmanager
def explain_dead_worker() -> Iterator[None]:
    """Turn the loss of a loading process into a DataError that says what to do.

    PyTorch raises from a signal handler, wherever the main process happens to be: a training loop is wrapped
    in this as a whole.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            f"a process that loads data ended ({str(error).splitlines()[0]}), often for want of memory; "
            "use --workers 0, fewer workers or a smaller batch size"
        ) from error


class _Reader(Dataset[Batch]):
    """Read a whole batch at once, given the indices in it."""

    def __init__(self, slices: SliceSet, what: Literal["images", "labels"]) -> None:
        self.slices = slices
        self.what = what

    def __getitem__(self, indices: list[int]) -> Batch:
        if self.what == "labels":
            read = [self.slices.labels(i)[None] for i in indices]
        else:
            read = [self.slices[i] for i in indices]
        return Batch(torch.stack(read), torch.tensor(indices))


class BatchOrder(Sampler[list[int]]):
    """Indices batch by batch: shuffled within a group (a shape), then batches of all groups among each other.

    The order depends on `(seed, epoch)` alone; `epoch` is set from outside.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        batch_size: int,
        shuffle: bool,
        seed: int,
        rank: int,
        world_size: int,
        drop_last: bool,
    ) -> None:
        self.batch_size, self.shuffle, self.seed, self.drop_last = batch_size, shuffle, seed, drop_last
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.groups = [list(group) for group in groups]

    def __len__(self) -> int:
        rounding = math.floor if self.drop_last else math.ceil
        batches = sum(rounding(len(group) / self.batch_size) for group in self.groups)
        return rounding(batches / self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        batches = self._batches()
        for i in range(len(self)):
            yield batches[(i * self.world_size + self.rank) % len(batches)]

    def _batches(self) -> list[list[int]]:
        draw = np.random.default_rng([self.seed, self.epoch])
        batches: list[list[int]] = []
        for group in self.groups:
            order = draw.permutation(group).tolist() if self.shuffle else group
            starts = range(0, len(order), self.batch_size)
            parts = [order[start : start + self.batch_size] for start in starts]
            batches += [part for part in parts if len(part) == self.batch_size or not self.drop_last]
        if self.shuffle:
            batches = [batches[i] for i in draw.permutation(len(batches))]
        return batches


@dataclass(frozen=True)
class Augmentation:
    """What is done to each slice of a batch; on the CPU, whatever the device of the slices.

    Attributes:
        mirror: Swap left and right (columns).
        angle: Rotation in radians, about the centre, in pixels.
        scale: Magnification.
        shift: Down and right, as fractions of rows and columns.
        gamma: Exponent of the intensity in [0, 1].
        gain: Factor of it, after the exponent.
    """

    mirror: Bool[Tensor, " b"]
    angle: Float[Tensor, " b"]
    scale: Float[Tensor, " b"]
    shift: Float[Tensor, "b 2"]
    gamma: Float[Tensor, " b"]
    gain: Float[Tensor, " b"]


def draw_augmentation(config: AugmentConfig, batch_size: int, generator: torch.Generator) -> Augmentation:
    """Draw the parameters for a batch.

    Angle and shift are uniform in ±setting; scale, gamma and gain in 1 ± setting. Always draws as many
    values: turning one setting off leaves the others as they were.
    """
    draws = torch.rand((batch_size, 7), generator=generator)
    signed = 2 * draws[:, 1:] - 1

    return Augmentation(
        mirror=draws[:, 0] < config.mirror,
        angle=signed[:, 0] * math.radians(config.rotate_degrees),
        scale=1 + signed[:, 1] * config.scale,
        shift=signed[:, 2:4] * config.shift,
        gamma=1 + signed[:, 4] * config.gamma,
        gain=1 + signed[:, 5] * config.gain,
    )


def augment(images: Float[Tensor, "b 1 h w"], parameters: Augmentation) -> Float[Tensor, "b 1 h w"]:
    """Apply drawn parameters to slices in [-1, 1]; from outside the field comes its edge, repeated.

    Resampled by cubic convolution: bilinear sampling takes noise away, so that augmented slices would be
    easier than slices as they are. A part whose parameters are all neutral is left out, to stay exact.
    """
    device = images.device
    mirror = parameters.mirror.to(device, non_blocking=True)[:, None, None, None]
    images = torch.where(mirror, images.flip(-1), images)
    moved = parameters.angle.any() or parameters.shift.any() or (parameters.scale != 1).any()
    if moved:
        matrix = _sampling_matrix(parameters, *images.shape[-2:]).to(device, images.dtype, non_blocking=True)
        where = functional.affine_grid(matrix, list(images.shape), align_corners=False)
        images = functional.grid_sample(
            images, where, mode="bicubic", padding_mode="border", align_corners=False
        ).clamp(-1, 1)
    if (parameters.gamma != 1).any() or (parameters.gain != 1).any():
        gamma, gain = (
            value.to(device, images.dtype, non_blocking=True)[:, None, None, None]
            for value in (parameters.gamma, parameters.gain)
        )
        unit = ((images + 1) / 2).clamp(0, 1)
        images = (gain * unit**gamma).clamp(0, 1) * 2 - 1
    return images


def augment_labels(labels: UInt8[Tensor, "b 1 h w"], parameters: Augmentation) -> UInt8[Tensor, "b 1 h w"]:
    """Move masks as `augment` moves their slices, to the nearest pixel; the edge goes on outside."""
    labels = torch.where(parameters.mirror.to(labels.device)[:, None, None, None], labels.flip(-1), labels)
    matrix = _sampling_matrix(parameters, *labels.shape[-2:]).to(labels.device)
    where = functional.affine_grid(matrix, list(labels.shape), align_corners=False)
    moved = functional.grid_sample(
        labels.float(), where, mode="nearest", padding_mode="border", align_corners=False
    )
    return moved.to(torch.uint8)


def _sampling_matrix(parameters: Augmentation, rows: int, columns: int) -> Float[Tensor, "b 2 3"]:
    """Return where each output pixel comes from, in grid_sample's coordinates (x, y in [-1, 1])."""
    cosine = torch.cos(parameters.angle) / parameters.scale
    sine = torch.sin(parameters.angle) / parameters.scale
    down, right = parameters.shift.unbind(1)
    # x and y are in halves of the width and height: a rotation in pixels mixes them by the aspect.
    x = torch.stack([cosine, sine * rows / columns, -2 * right], dim=1)
    y = torch.stack([-sine * columns / rows, cosine, -2 * down], dim=1)
    return torch.stack([x, y], dim=1)


def _expect_size(path: Path, wanted: int) -> None:
    found = path.stat().st_size if path.is_file() else 0
    if found != wanted:
        raise DataError(f"{path}: {found} bytes, wanted {wanted} by the manifest; prepare the data again")
