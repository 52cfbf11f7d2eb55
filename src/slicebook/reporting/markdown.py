"""Markdown files of commands, which overwrite only files that the same command wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from slicebook.errors import ConfigError
from slicebook.io.atomic import write_text

_HEAD = 300  # bytes at the start of a file that contain the mark


def clean(text: object) -> str:
    r"""Return text escaped for a table cell or a line: no line breaks, no HTML.

    >>> clean("a | b <i>")
    'a \\| b &lt;i>'
    """
    return re.sub(r"\s+", " ", str(text)).replace("<", "&lt;").replace("|", "\\|")


def table(rows: Sequence[Sequence[object]]) -> str:
    """Return rows as a table, the header first.

    >>> print(table([("level", "K"), (0, 1024)]))
    | level | K |
    |---|---|
    | 0 | 1024 |
    """
    head, *body = (f"| {' | '.join(map(clean, row))} |" for row in rows)
    return "\n".join((head, f"|{'---|' * len(rows[0])}", *body))


def write(path: Path, text: str, command: str) -> None:
    """Write a file atomically, with a mark of its command in the first line.

    Raises:
        ConfigError: The path is a folder, or a file that this command did not write.
    """
    mark = f"<!-- slicebook {command}:"
    if path.is_dir() or (path.exists() and mark.encode() not in _head(path)):
        raise ConfigError(
            f"{path}: was not written by `slicebook {command}` and is left alone; move it away, or give "
            "another file (--out)"
        )
    write_text(
        path, f"{mark} overwritten by this command. Remove this line to keep your changes. -->\n{text}"
    )


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)
