"""Convert results to text: records to JSON or rows, and rows to an aligned table."""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def to_json(record: object) -> str:
    """Return a record as indented JSON; paths become text.

    Raises:
        ValueError: It holds a number that JSON cannot represent, such as NaN.
    """
    return json.dumps(_plain(record), indent=2, ensure_ascii=False, allow_nan=False)


def to_rows(record: object) -> Iterator[tuple[str, str]]:
    """Yield name and value of each field of a record; nested fields as `outer.inner`.

    >>> list(to_rows({"run": {"epochs": 3, "seconds": 1.23456}, "path": None}))
    [('run.epochs', '3'), ('run.seconds', '1.235'), ('path', '–')]
    """
    for name, value in _plain(record).items():
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", text) for inner, text in to_rows(value))
        else:
            yield name, _cell(value)


def columns(records: Iterable[object], names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return some fields of records as rows, with a header row first."""
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


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_cell, value)) or "–"
    return "–" if value is None else str(value)


def _plain(value: Any) -> Any:
    """Convert records and their contents to JSON types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "model_dump"):  # a pydantic model, recognised without importing pydantic
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
