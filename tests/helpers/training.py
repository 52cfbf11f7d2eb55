"""What tests of training and others share."""

from dataclasses import replace

import numpy as np
import torch

from slicebook.data.dataset import PreparedData
from slicebook.data.manifest import (
    SCHEMA_VERSION,
    DatasetInfo,
    SliceRecord,
    SplitCounts,
    write_info,
    write_manifest,
)
from slicebook.data.splits import SPLITS
from slicebook.recipes import load_recipe
from slicebook.training.run import TrainingOptions
from slicebook.training.tokenizer import train_tokenizer
from slicebook.version import __version__

OPTIONS = TrainingOptions(device="cpu", precision="32-true", progress=False)


def prepared_folder(folder, *, patients=(3, 1, 1), slices=4, shapes=((32, 32),), seed=0):
    """Write a prepared folder of smooth slices; the patients of a split take the shapes in turn."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    records: list[SliceRecord] = []
    images, offset = [], 0
    split_of = [split for split, count in zip(SPLITS, patients, strict=True) for _ in range(count)]
    for patient, split in enumerate(split_of):
        rows, columns = shapes[patient % len(shapes)]
        coarse = torch.randn(slices, 1, 5, 5, generator=generator)
        drawn = torch.nn.functional.interpolate(coarse, (rows, columns), mode="bicubic").clamp(-1, 1)
        images.append(drawn.numpy().astype("<f4").tobytes())
        for number in range(slices):
            name = f"patient-{patient + 1:04}"
            records.append(
                SliceRecord(
                    index=len(records),
                    patient=name,
                    volume=f"{name}/volume-01",
                    split=split,
                    slice=number,
                    position=number / (slices - 1),
                    rows=rows,
                    columns=columns,
                    offset=offset,
                    label_offset=-1,
                    row_mm=1.0,
                    column_mm=1.0,
                    low=0.0,
                    high=100.0,
                    blank=False,
                )
            )
            offset += rows * columns
    (folder / "images.f32").write_bytes(b"".join(images))
    write_manifest(folder, records)
    counts = {
        split: SplitCounts(patients=count, volumes=count, slices=count * slices, blank=0)
        for split, count in zip(SPLITS, patients, strict=True)
    }
    write_info(
        folder,
        DatasetInfo(
            schema_version=SCHEMA_VERSION,
            slicebook_version=__version__,
            layout="nifti",
            plane="axial",
            spacing=None,
            size=None,
            percentiles=(0.5, 99.5),
            seed=seed,
            fractions=None,
            split_hash=f"{seed:064}",
            counts=counts,
            label_values=(),
            quarantined=0,
            duplicates=0,
        ),
    )
    return folder


def tiny(*settings):
    """A recipe that trains 12 slices of 32×32 in well under a second: three steps an epoch."""
    return load_recipe(
        "compact",
        [
            *("tokenizer.scaling_rates=[4, 2]", "tokenizer.codebook_sizes=[8, 4]", "tokenizer.code_dim=4"),
            *("tokenizer.width=16", "tokenizer.residual_layers=1", "training.learning_rate=3e-3"),
            *("training.batch_size=4", "training.epochs=2", *settings),
        ],
    )


def train(data, recipe, out, **options):
    return train_tokenizer(data, recipe, out, replace(OPTIONS, **options))


def poison(data, split):
    """Put a NaN into every slice of a split."""
    images = np.memmap(data / "images.f32", "<f4", "r+")
    for record in PreparedData.open(data).records:
        if record.split == split:
            images[record.offset] = np.nan
    images.flush()
