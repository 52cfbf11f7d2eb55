"""A generated set as a raw data set of nnU-Net v2 (github.com/MIC-DKFZ/nnUNet, dataset_format.md)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from slicebook.errors import ConfigError, DataError
from slicebook.export.generated_set import SYNTHETIC, GeneratedSet, SetFacts
from slicebook.io.atomic import write_text
from slicebook.io.nifti import read_labels, read_nifti, write_nifti
from slicebook.io.volume import Volume

_FOLDER = re.compile(r"Dataset(\d{3})_\w+")
FOLDS = 5  # nnU-Net's cross-validation; it cannot split fewer cases


def check_folder(out: Path, count: int | None = None) -> None:
    """Refuse a folder name that nnU-Net does not find, and sets that it cannot split.

    Raises:
        ConfigError: The name is not like `Dataset501_Synthetic`, or there are fewer than five cases.
    """
    if not _FOLDER.fullmatch(out.resolve().name):
        raise ConfigError(
            f"{out}: nnU-Net finds data sets by the name of their folder; wanted Dataset, three digits, _ "
            f"and a name, for example {out.resolve().parent / 'Dataset501_Synthetic'}"
        )
    if count is not None and count < FOLDS:
        raise ConfigError(f"{count} cases: nnU-Net's cross-validation needs {FOLDS} or more")


def next_command(out: Path) -> str:
    """Return the command that prepares the data set for training."""
    match = _FOLDER.fullmatch(out.resolve().name)
    number = int(match[1]) if match else 0
    raw = out.resolve().parent
    return f"nnUNet_raw={raw} nnUNetv2_plan_and_preprocess -d {number} --verify_dataset_integrity"


def write_nnunet(made: GeneratedSet, out: Path, facts: SetFacts, *, name: str) -> None:
    """Write `imagesTr`, `labelsTr` and `dataset.json`.

    Single slices become 2D files, because nnU-Net takes the axis with the widest spacing as that between
    slices. Labels are renumbered if they are not 0, 1, 2, …, which nnU-Net demands.

    Raises:
        DataError: The set has no masks.
    """
    if not made.with_masks or not made.label_values:
        raise DataError(
            f"{made.folder}: has no masks, which nnU-Net trains on; use a model that models masks"
        )
    new_values = {value: index for index, value in enumerate(sorted({0, *made.label_values}))}
    lookup = np.zeros(256, dtype=np.uint8)
    for value, index in new_values.items():
        lookup[value] = index
    for item in made.items:
        assert item.mask is not None
        image, mask = read_nifti(item.image), read_labels(item.mask)
        _write(out / "imagesTr" / f"{item.name}_0000.nii.gz", image.array, image)
        _write(out / "labelsTr" / f"{item.name}.nii.gz", lookup[mask.array.astype(np.uint8)], image)
    description = {
        "name": name,
        "description": SYNTHETIC,
        "channel_names": {"0": facts.contrast},
        "labels": {made.label_name(value): index for value, index in new_values.items()},
        "numTraining": len(made.items),
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
        "synthetic": True,
        "model_sha256": made.model_sha256,
    }
    write_text(out / "dataset.json", json.dumps(description, indent=2) + "\n")


def _write(path: Path, array: Shaped[np.ndarray, "x y z"], like: Volume) -> None:
    if array.shape[2] == 1:
        write_nifti(path, array[:, :, 0], affine=like.affine, description=SYNTHETIC)
    else:
        write_nifti(path, array, affine=like.affine, description=SYNTHETIC)
