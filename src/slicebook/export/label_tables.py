"""Names and colours of labels, for ITK-SNAP and for 3D Slicer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from slicebook.io.atomic import write_text
from slicebook.visualization.contact_sheet import COLOURS

ITK_SNAP_NAME = "labels.txt"
SLICER_NAME = "labels.ctbl"


def colour_of(value: int) -> tuple[int, int, int]:
    """Return the colour of a label as red, green and blue, as in the contact sheets; 0 is black."""
    return (0, 0, 0) if value == 0 else COLOURS[(value - 1) % len(COLOURS)]


def write_label_tables(folder: Path, labels: Mapping[int, str]) -> None:
    """Write `labels.txt` (ITK-SNAP label descriptions) and `labels.ctbl` (3D Slicer colour table).

    Args:
        folder: Receives both files.
        labels: Names by value; 0 is the background.
    """
    write_text(folder / ITK_SNAP_NAME, itk_snap_table(labels))
    write_text(folder / SLICER_NAME, slicer_table(labels))


def itk_snap_table(labels: Mapping[int, str]) -> str:
    """Return a label description file: index, colour, opacity, visibility, mesh visibility, name."""
    rule = "#" * 48
    lines = [rule, "# ITK-SnAP Label Description File", "# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL", rule]
    for value, name in sorted({0: "background", **labels}.items()):
        red, green, blue = colour_of(value)
        shown = 0 if value == 0 else 1
        plain = name.replace('"', "'")
        lines.append(f'{value:5}  {red:4} {green:4} {blue:4}  {shown:7}  {shown}  {shown}    "{plain}"')
    return "\n".join(lines) + "\n"


def slicer_table(labels: Mapping[int, str]) -> str:
    """Return a colour table: value, name without spaces, red, green, blue, opacity."""
    rows = sorted({0: "background", **labels}.items())
    lines = ["# Color table file labels.ctbl", f"# {len(rows)} values"]
    for value, name in rows:
        red, green, blue = colour_of(value)
        plain = re.sub(r"[^\w.+-]+", "_", name)
        lines.append(f"{value} {plain} {red} {green} {blue} {0 if value == 0 else 255}")
    return "\n".join(lines) + "\n"
