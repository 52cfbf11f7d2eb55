"""Read a prepared folder: records, splits, and slices.

Slices are read by offset, not from a memory map: with a map, a process ends by SIGBUS if a file gets shorter
or a network file system fails, and every page that was read counts as memory of the process.
"""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from slicebook.data.manifest import DatasetInfo, SliceRecord, read_info, read_manifest
from slicebook.data.splits import SPLITS, Split
from slicebook.errors import DataError


@dataclass(frozen=True)
class PreparedData:
    """A prepared folder, opened.

    Attributes:
        folder: Its path.
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
            DataError: The folder is not a prepared folder, is incomplete, or has another schema version.
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
        """Hash of the assignment of volumes to splits; independent of spacing and size."""
        return self.info.split_hash

    def split(self, name: Split, *, blank: bool = False, labelled: bool = False) -> SliceSet:
        """Return the slices of a split, by default without blank ones.

        Args:
            name: train, validation or test.
            blank: Include blank slices.
            labelled: Whether to return only slices with a mask.

        Raises:
            DataError: There is no such split, or no slice is left.
        """
        if name not in SPLITS:
            raise DataError(f"{name!r} is not a split; wanted one of {', '.join(SPLITS)}")
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
    """A subset of the slices of a prepared folder.

    Each file is open once per process. Reading needs no position in the file, so threads can share it.

    Attributes:
        records: The record of each slice, in the order of the set.
    """

    def __init__(self, folder: Path, records: tuple[SliceRecord, ...]) -> None:
        self.folder = folder
        self.records = records
        self._files: dict[str, BinaryIO] = {}

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
        """Pseudonyms of the patients, sorted and unique."""
        return tuple(sorted({record.patient for record in self.records}))

    def _read(self, name: str, dtype: str, record: SliceRecord, offset: int) -> NDArray[Any]:
        path = self.folder / name
        elements = np.empty((record.rows, record.columns), dtype)
        try:
            if name not in self._files:  # opened on first use, in each worker
                self._files[name] = path.open("rb", buffering=0)
                weakref.finalize(self, self._files[name].close)
            size = os.preadv(self._files[name].fileno(), [elements.data], offset * elements.itemsize)
        except OSError as error:  # a network file system has failed, or the file was replaced there
            raise DataError(
                f"{path}: cannot be read ({error.strerror or error}); check the disk or the network, and "
                "repeat the command"
            ) from error
        if size != elements.nbytes:
            raise DataError(
                f"{path}: ends within {record.volume}, slice {record.slice}: {size} bytes read, wanted "
                f"{elements.nbytes}; it was changed while it was read: prepare the data again"
            )
        return elements.astype(elements.dtype.newbyteorder("="), copy=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}  # open files cannot be pickled


def _expect_size(path: Path, wanted: int) -> None:
    size = path.stat().st_size if path.is_file() else 0
    if size != wanted:
        raise DataError(f"{path}: {size} bytes, wanted {wanted} by the manifest; prepare the data again")
