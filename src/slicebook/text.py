"""Results as text: any record as JSON or as rows, and rows as an aligned table."""

import csv
import dataclasses
import io
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def to_json(record: object) -> str:
    """Return a record as indented JSON; paths become text.

    Raises:
        ValueError: It holds a number that JSON has no word for, such as NaN.
    """
    return json.dumps(_plain(record), indent=2, ensure_ascii=False, allow_nan=False)


def to_rows(record: object) -> Iterator[tuple[str, str]]:
    """Yield the name and value of each of a record's fields; those of inner records as `outer.inner`.

    >>> list(to_rows({"run": {"epochs": 3, "seconds": 1.23456}, "path": None}))
    [('run.epochs', '3'), ('run.seconds', '1.235'), ('path', '–')]
    """
    for name, value in _plain(record).items():
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", text) for inner, text in to_rows(value))
        else:
            yield name, _cell(value)


def columns(records: Iterable[object], names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return some fields of like records as rows, their names first."""
    return [tuple(names), *(tuple(_cell(getattr(record, name)) for name in names) for record in records)]


def table(rows: Iterable[Sequence[object]]) -> str:
    """Return rows as columns of aligned text.

    >>> print(table([("level", "K"), (0, 1024)]))
    level  K
    0      1024
    """
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in itertools.zip_longest(*texts, fillvalue="")]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in texts)
    return "\n".join(lines)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of like fields as CSV, the names first; whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_text(path, text.getvalue())


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_cell, value)) or "–"
    return "–" if value is None else str(value)


def _plain(value: Any) -> Any:
    """Turn records, and what is in them, into what JSON holds."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "model_dump"):  # pydantic's, told without importing it
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
