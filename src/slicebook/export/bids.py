"""A generated set as a BIDS derivative (https://bids-specification.readthedocs.io)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from slicebook.export.generated_set import SYNTHETIC, GeneratedSet, SetFacts
from slicebook.export.label_tables import colour_of
from slicebook.io.atomic import write_text
from slicebook.version import __version__

_DESC = "desc-synthetic"


def write_bids(made: GeneratedSet, out: Path, facts: SetFacts) -> None:
    """Write one subject per image: `sub-0001/anat/sub-0001_desc-synthetic_T2w.nii.gz` and its `dseg`.

    `participants.tsv` maps subjects to the names and seeds of `manifest.csv`.
    """
    rows = []
    for number, item in enumerate(made.items, start=1):
        subject = f"sub-{number:04}"
        folder = out / subject / "anat"
        folder.mkdir(parents=True)
        stem = f"{subject}_{_DESC}"
        shutil.copyfile(item.image, folder / f"{stem}_{facts.contrast}.nii.gz")
        if item.mask is not None:
            shutil.copyfile(item.mask, folder / f"{stem}_dseg.nii.gz")
        rows.append(f"{subject}\t{item.name}\t{item.seed}")
    write_text(out / "participants.tsv", "\n".join(["participant_id\tsample\tseed", *rows]) + "\n")
    _write_json(
        out / "participants.json",
        {
            "participant_id": {"Description": "Number of the image"},
            "sample": {
                "Description": "Name of the image in manifest.csv. It is synthetic: no participant exists"
            },
            "seed": {"Description": "Random seed of the image"},
        },
    )
    _write_json(
        out / "dataset_description.json",
        {
            "Name": "Synthetic images drawn by Slicebook",
            "BIDSVersion": "1.10.0",
            "DatasetType": "derivative",
            "GeneratedBy": [
                {"Name": "Slicebook", "Version": __version__, "Description": f"model {made.model_sha256}"}
            ],
        },
    )
    sidecar: dict[str, object] = {"Description": SYNTHETIC, "SpatialReference": "orig"}
    # Required of derived images; a model draws what it was trained on, and takes nothing away.
    _write_json(out / f"{_DESC}_{facts.contrast}.json", sidecar | {"SkullStripped": False})
    if made.with_masks:
        _write_json(out / f"{_DESC}_dseg.json", sidecar | {"Manual": False})
        _write_label_table(out / f"{_DESC}_dseg.tsv", made)
    ignored = sorted(path.name for path in made.folder.iterdir() if path.is_file())
    write_text(
        out / ".bidsignore", "\n".join([*ignored, "labels.txt", "labels.ctbl", "croissant.json"]) + "\n"
    )


def _write_label_table(path: Path, made: GeneratedSet) -> None:
    lines = ["index\tname\tcolor"]
    for value, name in made.labels.items():
        red, green, blue = colour_of(value)
        lines.append(f"{value}\t{name}\t#{red:02x}{green:02x}{blue:02x}")
    write_text(path, "\n".join(lines) + "\n")


def _write_json(path: Path, content: dict[str, object]) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")
