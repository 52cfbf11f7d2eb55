"""A small generated set, made without a model."""

import json

import numpy as np

from slicebook.io.nifti import write_nifti

AFFINE = np.diag([1.2, 0.8, 1.0, 1.0])
AFFINE[:2, 3] = -7.2, -3.9
NAMES = {1: "body", 2: "prostate"}


def write_set(folder, count=5, shape=(12, 10, 1), values=(0, 1, 2), affine=AFFINE):
    """Write what `generate` writes: images, masks, the manifest and the record."""
    draw = np.random.default_rng(0)
    rows = ["name,seed,position,group"]
    for seed in range(count):
        name = f"sample-{seed:06}"
        image = draw.random(shape).astype(np.float32) * 500
        write_nifti(folder / "images" / f"{name}.nii.gz", image, affine=affine)
        if values:
            mask = np.zeros(shape, np.uint8)
            mask[2:7, 3:8] = values[1]
            mask[4, 4:6] = values[2]  # no symmetry in any axis
            mask[9, 1] = values[2]
            mask[:, :, 1:2] = 0  # of a volume, a slice without labels
            write_nifti(folder / "images" / f"{name}_mask.nii.gz", mask, affine=affine)
        rows.append(f"{name},{seed},0.5,")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    record = {
        "model_sha256": "ab" * 32,
        "request": {"seed": 0},
        "slices": {"low": 0, "high": 500},
        "label_values": list(values),
    }
    (folder / "generation.json").write_text(json.dumps(record))
    return folder
