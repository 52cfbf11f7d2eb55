"""Write a generated set in the format of another program: a folder that is complete or not there."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from slicebook.errors import ConfigError, DataError
from slicebook.export.data_card import write_card
from slicebook.export.generated_set import GeneratedSet, SetFacts
from slicebook.export.label_tables import write_label_tables
from slicebook.inference.sample_folder import AlreadyCompleteError
from slicebook.io.atomic import replacing_folder

SetFormat = Literal["nifti", "nnunet", "bids", "dicom", "png"]


@dataclass(frozen=True)
class ExportSummary:
    """A generated set in the format of another program.

    Attributes:
        out: Its folder.
        format: Name of the format.
        images: Number of images.
        with_masks: Whether each has a mask.
        next_command: What to run on it; empty if nothing in particular.
    """

    out: Path
    format: str
    images: int
    with_masks: bool
    next_command: str = ""


def generate_as(
    format_name: str, out: Path, draw: Callable[[Path], object], facts: SetFacts
) -> ExportSummary:
    """Generate a set and write it in a format.

    The samples are drawn into `OUT.samples`, which is removed at the end. After an interruption, the same
    call continues.

    Args:
        format_name: One of `SetFormat`, except nifti.
        out: New folder.
        draw: Writes a generated set to a folder.
        facts: What the format wants to know.
    """
    target = out.resolve()
    samples = target.with_name(f"{target.name}.samples")
    with contextlib.suppress(AlreadyCompleteError):  # interrupted while the format was written
        draw(samples)
    summary = export_set(samples, out, format_name, facts)
    shutil.rmtree(samples)
    return summary


def check_format(format_name: str, out: Path, *, with_masks: bool, count: int | None = None) -> None:
    """Refuse what cannot be written, before anything is generated.

    Args:
        format_name: One of `SetFormat`.
        out: Folder of the set.
        with_masks: Whether the model generates masks.
        count: Number of images, if known.

    Raises:
        ConfigError: The format is not known, needs masks or an extra, or the name of the folder is wrong.
        DataError: `out` is not empty.
    """
    if format_name not in get_args(SetFormat):
        raise ConfigError(f"--format {format_name!r}: wanted one of {', '.join(get_args(SetFormat))}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: is not empty; choose another folder")
    if format_name == "nnunet":
        from slicebook.export import nnunet

        nnunet.check_folder(out, count)
        if not with_masks:
            raise ConfigError("--format nnunet: needs masks, and this model generates none")
    if format_name == "dicom" and with_masks:
        from slicebook.export.segmentation import require_highdicom

        require_highdicom()


def export_set(
    folder: str | Path, out: str | Path, format_name: str, facts: SetFacts | None = None
) -> ExportSummary:
    """Write a set that `slicebook generate` wrote in another format.

    Every format receives `manifest.csv`, `generation.json`, the contact sheets, a data card, and, with masks,
    label tables for ITK-SNAP and 3D Slicer.

    Args:
        folder: The generated set, which is left as it is.
        out: New folder.
        format_name: One of `SetFormat`; `nifti` copies the set.
        facts: Contrast and body part of the images.

    Raises:
        ConfigError: The format does not fit; see `check_format`.
        DataError: `folder` is not a generated set, or `out` is not empty.
    """
    out, facts = Path(out), facts or SetFacts()
    made = GeneratedSet.read(Path(folder), facts.label_names)
    check_format(format_name, out, with_masks=made.with_masks)
    with replacing_folder(out) as partial:
        made.copy_lists(partial)
        _write(made, partial, out, format_name, facts)
        describe_set(made, partial, format_name)
    following = ""
    if format_name == "nnunet":
        from slicebook.export.nnunet import next_command

        following = next_command(out)
    return ExportSummary(out, format_name, len(made.items), made.with_masks, following)


def describe_set(made: GeneratedSet, out: Path, format_name: str) -> None:
    """Write the data card and, with masks, the label tables."""
    if made.with_masks:
        write_label_tables(out, made.labels)
    write_card(made, out, format_name)


def _write(made: GeneratedSet, partial: Path, out: Path, format_name: str, facts: SetFacts) -> None:
    if format_name == "nnunet":
        from slicebook.export.nnunet import write_nnunet

        write_nnunet(made, partial, facts, name=out.resolve().name)
    elif format_name == "bids":
        from slicebook.export.bids import write_bids

        write_bids(made, partial, facts)
    elif format_name == "dicom":
        from slicebook.export.dicom import write_dicom

        write_dicom(made, partial, facts)
    elif format_name == "png":
        from slicebook.export.pictures import write_pictures

        write_pictures(made, partial)
    else:
        for name in ("images", "pictures"):
            if (made.folder / name).is_dir():
                shutil.copytree(made.folder / name, partial / name)
