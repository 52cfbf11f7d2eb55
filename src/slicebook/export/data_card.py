"""The card of a generated set: README.md, and croissant.json for programs (mlcommons.org/croissant)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from slicebook.export.generated_set import GeneratedSet
from slicebook.io.atomic import write_text
from slicebook.version import __version__

CROISSANT_NAME = "croissant.json"
CARD_NAME = "README.md"
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_TYPES = {
    "name": "sc:Text",
    "mask": "sc:Text",
    "seed": "sc:Integer",
    "position": "sc:Float",
    "group": "sc:Text",
}


def write_card(made: GeneratedSet, out: Path, format_name: str) -> None:
    """Write `README.md` and `croissant.json` beside a set, whose files are complete."""
    write_text(out / CROISSANT_NAME, json.dumps(_croissant(made, out), indent=2) + "\n")
    write_text(out / CARD_NAME, _card(made, out, format_name))


def _description(made: GeneratedSet) -> str:
    masks = " with label masks" if made.with_masks else ""
    return (
        f"{len(made.items)} synthetic medical images{masks}, drawn by the generative model "
        f"{made.model_sha256[:12]} with Slicebook {__version__}. They show no patient."
    )


def _card(made: GeneratedSet, out: Path, format_name: str) -> str:
    audit = (
        "The model was audited for memorization before the images were drawn: see `AUDIT.md`."
        if (out / "AUDIT.md").is_file()
        else "Not audited: an image may be a near copy of a training patient. Do not share it as anonymous."
    )
    labels = [f"| {value} | {name} |" for value, name in made.labels.items()] if made.with_masks else []
    table = ["", "| label | name |", "|---|---|", *labels] if labels else []
    lines = [
        "# Synthetic images",
        "",
        _description(made),
        "",
        f"- Format: {format_name}",
        f"- Model: SHA-256 `{made.model_sha256}`",
        "- Files: `manifest.csv` (one row per image, with its seed), `generation.json` (all settings),",
        "  `sheet.png` (overview), `croissant.json` (machine-readable description)",
        f"- {audit}",
        "- Not for diagnosis. Images and masks have the errors of the model.",
        *table,
        "",
        "Add before sharing: who trained the model, on which data, the license, and a contact.",
    ]
    return "\n".join(lines) + "\n"


def _croissant(made: GeneratedSet, out: Path) -> dict[str, Any]:
    """Return the description in Croissant 1.0."""
    manifest = out / "manifest.csv"
    columns = manifest.read_text(encoding="utf-8").splitlines()[0].split(",")
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"images/{column}",
            "name": column,
            "dataType": _TYPES.get(column, "sc:Text"),
            "source": {"fileObject": {"@id": "manifest.csv"}, "extract": {"column": column}},
        }
        for column in columns
    ]
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": "synthetic-images",
        "description": _description(made),
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "version": "1.0.0",
        "datePublished": f"{made.date:%Y-%m-%d}",
        "keywords": ["synthetic", "medical imaging"],
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": "manifest.csv",
                "name": "manifest.csv",
                "contentUrl": "manifest.csv",
                "encodingFormat": "text/csv",
                "sha256": digest,
            }
        ],
        "recordSet": [{"@type": "cr:RecordSet", "@id": "images", "name": "images", "field": fields}],
    }
