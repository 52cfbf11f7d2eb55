"""The folder that `slicebook generate` writes, as records for the writers of other formats."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from slicebook.errors import ConfigError, DataError
from slicebook.io.nifti import read_labels

SYNTHETIC = "SYNTHETIC, drawn by Slicebook: no patient"


@dataclass(frozen=True)
class SetFacts:
    """Facts about the images a model was trained on, said by the user.

    Attributes:
        contrast: Suffix of BIDS and channel name of nnU-Net, such as T1w, T2w or FLAIR.
        body_part: DICOM's Body Part Examined, such as PROSTATE or BRAIN (PS3.16, annex L).
        label_names: Names of label values; those of the model, if it has any.
    """

    contrast: str = "T2w"
    body_part: str = "PROSTATE"
    label_names: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9]+", self.contrast):
            raise ConfigError(f"--contrast {self.contrast!r}: wanted letters and digits, such as T2w")
        if not re.fullmatch(r"[A-Z0-9_ ]{1,16}", self.body_part):
            raise ConfigError(
                f"--body-part {self.body_part!r}: wanted 1 to 16 capitals of DICOM's list, such as PROSTATE"
            )


@dataclass(frozen=True)
class SetItem:
    """One generated volume, most often a single slice.

    Attributes:
        name: Stem of its file names; unique within the set.
        image: NIfTI file.
        mask: NIfTI file of its labels, if the model generates masks.
        seed: With the same model and settings, it gives the same volume.
    """

    name: str
    image: Path
    mask: Path | None
    seed: int


@dataclass(frozen=True)
class GeneratedSet:
    """A complete generated set.

    Attributes:
        folder: Its folder.
        items: One per row of `manifest.csv`.
        record: The content of `generation.json`.
        label_values: Values in the masks, 0 first; empty without masks.
        label_names: Names of label values; a value may have none.
    """

    folder: Path
    items: tuple[SetItem, ...]
    record: Mapping[str, Any]
    label_values: tuple[int, ...]
    label_names: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, label_names: Mapping[int, str] | None = None) -> GeneratedSet:
        """Read the lists of a generated set. Its masks are read if no list holds the label values.

        Args:
            folder: The set.
            label_names: Names of label values.

        Raises:
            DataError: The folder is not a generated set, or a file is missing.
        """
        try:
            record = json.loads((folder / "generation.json").read_text(encoding="utf-8"))
            with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
                rows = [(row["name"], int(row["seed"])) for row in csv.DictReader(file)]
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{folder}: has no readable generation.json and manifest.csv; wanted a folder written by "
                "slicebook generate"
            ) from error
        items = tuple(_item(folder, name, seed) for name, seed in rows)
        values = {int(value) for value in record.get("label_values") or ()}
        if "label_values" not in record:
            values = {int(v) for item in items if item.mask for v in np.unique(read_labels(item.mask).array)}
        return cls(folder, items, record, tuple(sorted({0, *values})) if values else (), label_names or {})

    @property
    def model_sha256(self) -> str:
        """The hash of the model's weights."""
        return str(self.record["model_sha256"])

    @property
    def date(self) -> datetime:
        """When the set was complete, in UTC and whole seconds."""
        seconds = int((self.folder / "generation.json").stat().st_mtime)
        return datetime.fromtimestamp(seconds, tz=timezone.utc)

    @property
    def with_masks(self) -> bool:
        """Whether every image has a mask."""
        return all(item.mask is not None for item in self.items)

    def label_name(self, value: int) -> str:
        """Return the name of a label; `background` for 0 and, for example, `label 3` if it has none."""
        return self.label_names.get(value) or ("background" if value == 0 else f"label {value}")

    @property
    def labels(self) -> dict[int, str]:
        """The names of all label values."""
        return {value: self.label_name(value) for value in self.label_values}

    def copy_lists(self, out: Path) -> None:
        """Copy the manifest, the records, the audit and the contact sheets."""
        for path in sorted(self.folder.iterdir()):
            if path.is_file():
                shutil.copyfile(path, out / path.name)


def _item(folder: Path, name: str, seed: int) -> SetItem:
    image, mask = folder / "images" / f"{name}.nii.gz", folder / "images" / f"{name}_mask.nii.gz"
    if not image.is_file():
        raise DataError(f"{image}: is missing from the set; generate the set again")
    return SetItem(name, image, mask if mask.is_file() else None, seed)
