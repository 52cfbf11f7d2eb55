"""Markdown that a command writes, and writes over only where it was the one to write it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from slicebook.atomic import write_text
from slicebook.errors import ConfigError

_HEAD = 300  # bytes of a file in which the mark stands


def clean(text: object) -> str:
    r"""Return text that cannot end a cell or a line, nor be taken for HTML.

    >>> clean("a | b <i>")
    'a \\| b &lt;i>'
    """
    return re.sub(r"\s+", " ", str(text)).replace("<", "&lt;").replace("|", "\\|")


def table(rows: Sequence[Sequence[object]]) -> str:
    """Return rows as a table, the first its head.

    >>> print(table([("level", "K"), (0, 1024)]))
    | level | K |
    |---|---|
    | 0 | 1024 |
    """
    head, *body = (f"| {' | '.join(map(clean, row))} |" for row in rows)
    return "\n".join((head, f"|{'---|' * len(rows[0])}", *body))


def write(path: Path, text: str, command: str) -> None:
    """Write a page under a mark of its command; whole or not at all.

    Raises:
        ConfigError: There is something that this command did not write.
    """
    mark = f"<!-- slicebook {command}:"
    if path.is_dir() or (path.exists() and mark.encode() not in _head(path)):
        raise ConfigError(
            f"{path}: was not written by `slicebook {command}` and is left alone; move it away, or give "
            "another file (--out)"
        )
    write_text(path, f"{mark} written anew each time. Take this line away to keep your changes. -->\n{text}")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)
