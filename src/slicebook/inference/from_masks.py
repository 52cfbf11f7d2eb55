"""Generate slices for given label masks: the mask decides where organs lie, the seed what they look like.

Volumes are written one by one into `OUT.partial`; the same command resumes after the last one written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Shaped, UInt8

from slicebook.data.transforms import IntensityMap
from slicebook.devices import choose_device
from slicebook.errors import ConfigError, DataError
from slicebook.inference.generate import DESCRIPTION
from slicebook.inference.inpaint import positions, slice_seed
from slicebook.inference.sample_folder import RECORD_NAME
from slicebook.inference.synthesis import check_class, check_seeds, choose_sampling_precision, render
from slicebook.io.atomic import refuse_full, write_csv, write_text
from slicebook.io.discovery import find_files, nifti_stem
from slicebook.io.nifti import read_labels, read_nifti
from slicebook.io.resumable import PartialFolder, hash_files, resuming_folder
from slicebook.io.volume import (
    Orientation,
    Plane,
    Volume,
    from_slices,
    orientation_of,
    slice_spacing,
    to_slices,
)
from slicebook.models.checkpoint import LoadedPrior, load_prior
from slicebook.models.conditions import Conditions
from slicebook.models.masks import check_labels
from slicebook.models.sampling import SamplingSettings, sample
from slicebook.progress import Progress
from slicebook.version import __version__
from slicebook.visualization import contact_sheet

SHEET = 32  # pairs in the contact sheet, at most
BATCH = 64  # slices drawn at a time


@dataclass(frozen=True)
class FromMasksSummary:
    """What `generate_for_masks` wrote."""

    out: Path
    masks: int
    volumes: int
    slices: int


@dataclass(frozen=True)
class MaskRequest:
    """What is drawn for each mask.

    Attributes:
        count: Volumes per mask; volume i has seed + i.
        seed: Seed of the first.
        position: Position in the volume of every slice, 0 to 1; by default that of the slice in its mask.
        group: Class; unknown by default.
        plane: Slice orientation of a mask volume; the acquired one by default.
        settings: Steps of sampling, and guidance.
    """

    count: int = 1
    seed: int = 0
    position: float | None = None
    group: str | None = None
    plane: Plane | None = None
    settings: SamplingSettings = field(default_factory=SamplingSettings)


@dataclass(frozen=True)
class _Row:
    """One row of the manifest."""

    name: str
    mask: str
    seed: int
    slices: int


def generate_for_masks(
    model: str | Path,
    masks: str | Path,
    out: str | Path,
    request: MaskRequest | None = None,
    *,
    device: str = "auto",
    precision: str = "32-true",
    progress: Progress | None = None,
) -> FromMasksSummary:
    """Generate slices whose labels are those of given masks, in the masks' geometry.

    `out` receives `images/NAME-000.nii.gz` and `images/NAME-000_mask.nii.gz` for the first seed of the mask
    NAME, a contact sheet, `manifest.csv` and `generation.json`. Slices of a volume are drawn independently of
    each other.

    Args:
        model: A prior's file, or the folder of a run or demo that holds one. It must model masks.
        masks: NIfTI file, or a folder of such files, all of which are masks.
        out: New folder.
        request: Number, seeds and conditions.
        device: auto, cpu, cuda or mps.
        precision: Precision of sampling; `auto` measures on a CPU which is faster.
        progress: Called with the number of volumes written and of all volumes.

    Raises:
        CheckpointError: There is no trained prior.
        ConfigError: The prior does not model masks, or a setting is out of range.
        DataError: A mask has labels that the prior does not know; there is no mask; or `out` is not empty.
    """
    request = request or MaskRequest()
    check_mask_request(request)
    loaded, files = load_prior(model, choose_device(device)), _mask_files(Path(masks))
    if loaded.tokenizer.masks is None:
        raise ConfigError(f"{loaded.path}: was trained without masks; use a model that models masks")
    check_class(loaded, request.group)
    precision = choose_sampling_precision(loaded, precision)
    refuse_full(out)
    record = _record(loaded, files, request, precision)
    with resuming_folder(out, record, what="slices") as work:
        rows = _write_volumes(loaded, files, request, precision, work, progress)
        write_csv(work.content / "manifest.csv", [asdict(row) for row in rows])
        record |= {"synthetic": True, "provenance": loaded.info.provenance.model_dump(mode="json")}
        write_text(work.content / RECORD_NAME, json.dumps(record, indent=2) + "\n")
    return FromMasksSummary(Path(out), len(files), len(rows), sum(row.slices for row in rows))


def check_mask_request(request: MaskRequest) -> None:
    """Refuse arguments that no prior could take."""
    if request.count < 1:
        raise ConfigError(f"{request.count} volumes per mask: wanted 1 or more")
    if request.position is not None and not 0 <= request.position <= 1:
        raise ConfigError(f"position {request.position:g}: wanted a position in the volume, from 0 to 1")
    check_seeds(request.seed, request.count)


def _write_volumes(
    loaded: LoadedPrior,
    files: Mapping[str, Path],
    request: MaskRequest,
    precision: str,
    work: PartialFolder,
    progress: Progress | None,
) -> list[_Row]:
    """Write the volumes that are not written yet, and a contact sheet; return the rows of the manifest."""
    rows: list[_Row] = []
    panels: list[UInt8[np.ndarray, "rows w 3"]] = []
    for name, path in files.items():
        mask = GivenMask.of(read_labels(path), loaded, request.plane, str(path))
        for number in range(request.count):
            row = _Row(f"{name}-{number:03}", name, request.seed + number, len(mask.slices))
            file = work.content / "images" / f"{row.name}.nii.gz"
            if progress and not rows:
                progress(len(work.journal.units), len(files) * request.count)
            if row.name not in work.journal:
                image, labels = draw_for_mask(loaded, mask, row.seed, request, precision)
                labels.write(file.with_name(f"{row.name}_mask.nii.gz"))
                image.write(file)
                work.journal.add(row.name)
                if progress:
                    progress(len(work.journal.units), len(files) * request.count)
            if len(panels) < SHEET:
                panels.append(_panel(mask, file))
            rows.append(row)
    contact_sheet.write_sheet(panels, work.content / "sheet.png")
    return rows


@dataclass(frozen=True)
class GivenMask:
    """A mask as slices of labels, with its geometry."""

    volume: Volume
    orientation: Orientation
    slices: UInt8[np.ndarray, "n h w"]

    @classmethod
    def of(cls, volume: Volume, loaded: LoadedPrior, plane: Plane | None, where: str) -> GivenMask:
        """Slice a mask.

        Args:
            volume: Labels.
            loaded: The prior.
            plane: Slice orientation; the acquired one by default.
            where: What the message of an error names.

        Raises:
            ConfigError: The prior does not model masks.
            DataError: It has labels that the prior does not know.
        """
        if loaded.tokenizer.masks is None:
            raise ConfigError(f"{loaded.path}: was trained without masks; use a model that models masks")
        values = loaded.tokenizer.masks.config.label_values
        try:
            check_labels(np.unique(volume.array).astype(int).tolist(), values)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        orientation = orientation_of(volume, plane)
        slices = np.ascontiguousarray(to_slices(volume.array.astype(np.uint8), orientation))
        return cls(volume, orientation, slices)

    @property
    def aspect(self) -> float:
        """Distance between rows over that between columns."""
        _, row_mm, column_mm = slice_spacing(self.volume, self.orientation)
        return row_mm / column_mm

    def volume_of(self, slices: Shaped[np.ndarray, "n h w"]) -> Volume:
        """Return slices as a volume in the geometry of the mask."""
        array = np.ascontiguousarray(from_slices(slices, self.orientation))
        return replace(self.volume, array=array, description=DESCRIPTION)


def _mask_files(masks: Path) -> dict[str, Path]:
    """Return mask files by the names of their outputs."""
    if masks.is_file():
        return {nifti_stem(masks): masks}
    if not masks.is_dir():
        raise DataError(f"{masks}: does not exist; give a NIfTI mask or a folder of masks")
    files = {
        "-".join([*path.relative_to(masks).parts[:-1], nifti_stem(path)]): path
        for path in sorted(find_files(masks).nifti)
    }
    if not files:
        raise DataError(f"{masks}: holds no NIfTI file; give a folder of label masks")
    return files


def draw_for_mask(
    loaded: LoadedPrior, mask: GivenMask, seed: int, request: MaskRequest, precision: str
) -> tuple[Volume, Volume]:
    """Return a volume with one slice for each slice of a mask, and the mask.

    Args:
        loaded: The prior.
        mask: The mask.
        seed: Seed of the volume.
        request: Conditions and settings.
        precision: Precision of sampling.
    """
    images = [_draw_part(loaded, mask, rows, seed, request, precision) for rows in _parts(len(mask.slices))]
    kind = loaded.info.slices[0]
    values = IntensityMap(kind.low, kind.high).inverse(np.concatenate(images))
    return mask.volume_of(values), mask.volume_of(mask.slices)


def _draw_part(
    loaded: LoadedPrior, mask: GivenMask, rows: list[int], seed: int, request: MaskRequest, precision: str
) -> Float32[np.ndarray, "n h w"]:
    device = next(loaded.prior.parameters()).device
    labels = torch.from_numpy(mask.slices[rows])
    size = (labels.shape[-2], labels.shape[-1])
    layout = loaded.tokenizer.layout(size)
    blank = torch.zeros((len(rows), 1, *size), device=device)
    tokens = loaded.tokenizer.encode(blank, labels.to(device)).cpu()
    known = torch.cat(
        [torch.full((len(rows), len(stage)), stage.kind == "mask") for stage in layout.stages], 1
    )
    conditions = positions(rows, len(mask.slices))
    if request.position is not None:
        conditions = Conditions(torch.full((len(rows),), request.position), conditions.group)
    if request.group is not None:
        index = loaded.info.classes.index(request.group)
        conditions = Conditions(conditions.position, torch.full((len(rows),), index))
    seeds = [slice_seed(seed, row) for row in rows]
    drawn = sample(
        loaded.prior,
        layout,
        seeds,
        conditions,
        request.settings,
        known_tokens=tokens,
        known_mask=known,
        precision=precision,
    )
    return render(loaded, drawn, size, seeds, request.settings.decoder_steps).images[:, 0].numpy()


def _parts(count: int) -> Iterator[list[int]]:
    for start in range(0, count, BATCH):
        yield list(range(start, min(start + BATCH, count)))


def _panel(mask: GivenMask, file: Path) -> UInt8[np.ndarray, "rows w 3"]:
    """Return the slice with the most labelled pixels, plain and tinted by its mask, side by side."""
    index = int((mask.slices > 0).sum((1, 2)).argmax())
    image = to_slices(read_nifti(file).array, mask.orientation)[index]
    shown = IntensityMap.fit(image).forward(image).astype(np.float32)
    pair = [
        contact_sheet.gray(shown, mask.aspect),
        contact_sheet.tinted(shown, mask.slices[index], mask.aspect),
    ]
    return np.concatenate(pair, 1)


def _record(
    loaded: LoadedPrior, files: Mapping[str, Path], request: MaskRequest, precision: str
) -> dict[str, Any]:
    """Return all that the slices depend on, as JSON values."""
    return {
        "slicebook_version": __version__,
        "model_sha256": loaded.info.weights_sha256,
        "masks": {name: hash_files([path]) for name, path in files.items()},
        **asdict(request),
        "device": next(loaded.prior.parameters()).device.type,
        "precision": precision,
    }
