"""What an evaluation has computed, kept on disk until the report is written.

features = kept.arrays("texture", "slice", len(images), 64, lambda first, end: describe(images[first:end]))
result = kept.record("comparison", Comparison, lambda: compare(features))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from slicebook.io.resumable import Journal
from slicebook.io.tensors import State, load_kept, save_state
from slicebook.progress import Counter, Progress

T = TypeVar("T")
Arrays: TypeAlias = Mapping[str, np.ndarray | Tensor]
"""Arrays with one row per item, by name."""


class KeptWork:
    """Finished pieces of work: records as JSON values, arrays in files. The same names give the same again.

    Args:
        journal: Of an unfinished evaluation; None keeps nothing.
        counter: Returns the progress line of work that takes long.
    """

    def __init__(self, journal: Journal | None = None, counter: Counter | None = None) -> None:
        self._journal, self._counter = journal, counter

    def counter(self, what: str) -> Progress | None:
        """Return the progress line of units of this name; None if nobody wants one."""
        return self._counter(what) if self._counter else None

    def forget(self) -> None:
        """Keep nothing of what is done."""
        if self._journal is not None:
            self._journal.clear()

    def record(self, name: str, kind: type[T], compute: Callable[[], T]) -> T:
        """Return a record, a dataclass or a JSON value.

        Args:
            name: Of this piece of work.
            kind: Type of the result.
            compute: Computes it, if it is not kept.
        """
        if self._journal is None:
            return compute()
        adapter: TypeAdapter[T] = TypeAdapter(kind)
        if name in self._journal:
            return adapter.validate_python(self._journal.units[name])
        result = compute()
        value = adapter.dump_python(result, mode="json")
        if _is_finite(value):  # whoever reports it refuses a value that is not
            self._journal.add(name, value)
        return result

    def arrays(
        self, name: str, item: str, count: int, size: int, compute: Callable[[int, int], Arrays]
    ) -> dict[str, Tensor]:
        """Return arrays over items, computed and kept so many items at a time.

        Args:
            name: Of this piece of work.
            item: Name of an item, for the progress.
            count: Number of items, at least 1.
            size: Of a part.
            compute: Called with the first item of a part and the one after its last.
        """
        progress, parts = self.counter(item), []
        for first in range(0, count, size):
            end, unit = min(first + size, count), f"{name} {first}"
            if progress and (self._journal is None or unit not in self._journal):
                progress(first, count)
            parts.append(self._part(unit, partial(compute, first, end)))
        if progress:
            progress(count, count)
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def _part(self, unit: str, compute: Callable[[], Arrays]) -> dict[str, Tensor]:
        if self._journal is None:
            return _tensors(compute())
        path = self._journal.path.parent / "arrays" / f"{unit.replace(' ', '-')}.safetensors"
        made_from = {"unit": unit, "request": self._journal.request}
        kept = load_kept(path, made_from) if unit in self._journal else None
        if kept is not None:
            return kept
        made = _tensors(compute())
        save_state(path, State(made, made_from))
        self._journal.add(unit)
        return made


def _tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {name: torch.as_tensor(array) for name, array in arrays.items()}


def _is_finite(value: Any) -> bool:
    """Return whether JSON can hold a value."""
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or bool(np.isfinite(value))


NOTHING_KEPT = KeptWork()
