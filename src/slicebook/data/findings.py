"""Group findings about many files, such that a report fits on a screen."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePath

from slicebook.io.discovery import first_names

_VARIES = re.compile(r"\S*[/\\]\S*|[\d.,]+")  # what differs between messages of one kind: paths and numbers
_LONGEST_LIST = 12


def grouped(lines: Sequence[str]) -> list[str]:
    """Return one line per kind of finding: number of files, first message, first names.

    Findings are of one kind if they differ in paths and numbers alone. A finding that is alone in its kind is
    returned as it is.

    Args:
        lines: Messages that begin with the file, `path: what was found; what to do`.

    >>> grouped(["a/1.nii: is cut off", "a/2.nii: is cut off", "b.nii: is empty"])
    ['2 files: is cut off (1.nii, 2.nii)', 'b.nii: is empty']
    """
    kinds: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for line in lines:
        where, _, what = line.partition(": ")
        kinds[_VARIES.sub("#", what)].append((where, what))
    shown = []
    for findings in kinds.values():
        where, what = findings[0]
        if len(findings) == 1:
            shown.append(f"{where}: {what}" if what else where)
        else:
            names = first_names(_short_names([where for where, _ in findings]))
            shown.append(f"{len(findings)} files: {what} ({names})")
    return shown


def limited(rows: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return rows of a list, with a count in place of those after the twelfth."""
    every = list(rows)
    if len(every) <= _LONGEST_LIST:
        return every
    return [
        *every[:_LONGEST_LIST],
        (every[0][0], f"… and {len(every) - _LONGEST_LIST} more; --json lists all"),
    ]


def _short_names(paths: Sequence[str]) -> list[str]:
    """Return file names, with as many folders before them as make them differ."""
    for depth in range(1, 5):
        names = ["/".join(PurePath(path).parts[-depth:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            return names
    return list(paths)
