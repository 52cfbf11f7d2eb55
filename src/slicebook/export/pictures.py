"""A generated set as 16-bit grey PNG files, with its masks as 8-bit PNG files of label values.

images/sample-000007.png        masks/sample-000007.png
images/NAME-000_z003.png        masks/NAME-000_z003.png      slice 3 of a volume
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image, PngImagePlugin

from slicebook.export.generated_set import SYNTHETIC, GeneratedSet
from slicebook.io.atomic import write_bytes, write_csv
from slicebook.io.nifti import read_labels, read_nifti
from slicebook.io.volume import orientation_of, slice_spacing, to_slices

WHITE = 65535  # 16 bits


def write_pictures(made: GeneratedSet, out: Path) -> None:
    """Write each slice in radiological display order, and `pixel-sizes.csv` with the spacing of each file.

    A pixel of 0 is the lowest intensity of the volume and 65535 its highest; `pixel-sizes.csv` holds both.
    """
    rows = []
    for item in made.items:
        volume = read_nifti(item.image)
        orientation = orientation_of(volume)
        low, high = float(volume.array.min()), float(volume.array.max())
        share = (to_slices(volume.array, orientation) - low) / max(high - low, 1e-12)
        pixels: UInt16[np.ndarray, "n h w"] = np.rint(share * WHITE).astype(np.uint16)
        labels = to_slices(read_labels(item.mask).array, orientation) if item.mask else None
        between, row_mm, column_mm = slice_spacing(volume, orientation)
        for number, picture in enumerate(pixels):
            name = f"{item.name}.png" if len(pixels) == 1 else f"{item.name}_z{number:03}.png"
            _write(out / "images" / name, picture, row_mm, column_mm)
            if labels is not None:
                _write(out / "masks" / name, labels[number].astype(np.uint8), row_mm, column_mm)
            rows.append(
                {
                    "file": name,
                    "row_mm": f"{row_mm:.6g}",
                    "column_mm": f"{column_mm:.6g}",
                    "slice_mm": f"{between:.6g}",
                    "intensity_of_0": f"{low:.6g}",
                    "intensity_of_65535": f"{high:.6g}",
                }
            )
    write_csv(out / "pixel-sizes.csv", rows)


def _write(
    path: Path, pixels: UInt8[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"], row_mm: float, column_mm: float
) -> None:
    content, text = BytesIO(), PngImagePlugin.PngInfo()
    text.add_text("Comment", SYNTHETIC)
    dots = (25.4 / column_mm, 25.4 / row_mm)  # horizontal, vertical, per inch
    Image.fromarray(pixels).save(content, format="PNG", pnginfo=text, dpi=dots)
    write_bytes(path, content.getvalue())
