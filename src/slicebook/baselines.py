"""What tokens cost without any network: three tables of counts that a prior has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from slicebook.errors import DataError


@dataclass(frozen=True)
class FreeBaselines:
    """Nats a token of held-out grids, from counts of training grids.

    Attributes:
        plain: Knowing how frequent each code is.
        place: Knowing that for each place of the grid.
        neighbours: Knowing it for each pair of left and upper neighbour.
    """

    plain: float
    place: float
    neighbours: float

    @property
    def best(self) -> float:
        """The least of the three."""
        return min(self.plain, self.place, self.neighbours)


def free_baselines(
    learned: Int64[np.ndarray, "n rows columns"], judged: Int64[np.ndarray, "m rows columns"], size: int
) -> FreeBaselines:
    """Count the training grids of one stage, and return what held-out grids of it cost.

    Every table is smoothed by Witten & Bell 1991 (https://doi.org/10.1109/18.87000, method C): the more
    different codes followed a context, the more of its probability goes to the table behind it. Behind
    neighbours stands the mean of those for the left and the upper one alone, behind all stands the plain
    table, and behind that equal chances. So no token is impossible.

    Args:
        learned: Tokens in `[0, size)`.
        judged: The same of other patients.
        size: Codes to choose from.

    Raises:
        DataError: There is no grid on one side.
    """
    if not len(learned) or not len(judged):
        raise DataError(f"{len(learned)} training and {len(judged)} held-out grids; wanted some of each")
    tokens, asked = learned.ravel(), judged.ravel()

    def given(
        before: Int64[np.ndarray, " n"], now: Int64[np.ndarray, " m"], behind: Float64[np.ndarray, " m"]
    ) -> Float64[np.ndarray, " m"]:
        return _smoothed(before * size + tokens, now, now * size + asked, size, behind)

    plain = given(np.zeros_like(tokens), np.zeros_like(asked), np.full(len(asked), 1 / size))
    place = given(_places(learned), _places(judged), plain)
    (left, up), (left_now, up_now) = (_neighbours(grids, size) for grids in (learned, judged))
    one = (given(left, left_now, plain) + given(up, up_now, plain)) / 2
    both = given(left * (size + 1) + up, left_now * (size + 1) + up_now, one)
    return FreeBaselines(*(float(-np.log(found).mean()) for found in (plain, place, both)))


def _smoothed(
    seen: Int64[np.ndarray, " n"],
    contexts: Int64[np.ndarray, " m"],
    asked: Int64[np.ndarray, " m"],
    size: int,
    behind: Float64[np.ndarray, " m"],
) -> Float64[np.ndarray, " m"]:
    """Return (count of context and code + kinds · behind) / (count of context + kinds).

    `seen` and `asked` are context · size + code.
    """
    pairs, counts = np.unique(seen, return_counts=True)
    owners, kinds = np.unique(pairs // size, return_counts=True)
    totals = np.add.reduceat(counts, np.concatenate([[0], kinds.cumsum()[:-1]]))
    hits = _look_up(pairs, counts, asked)
    total, different = (_look_up(owners, values, contexts) for values in (totals, kinds))
    # A context that never was leaves the table behind it.
    found = (hits + different * behind) / np.maximum(total + different, 1)
    return np.where(total > 0, found, behind)


def _look_up(
    keys: Int64[np.ndarray, " k"], values: Int64[np.ndarray, " k"], wanted: Int64[np.ndarray, " m"]
) -> Int64[np.ndarray, " m"]:
    """Return the value of each wanted key, 0 where there is none; keys are sorted."""
    index = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[index] == wanted, values[index], 0)


def _places(grids: Int64[np.ndarray, "n rows columns"]) -> Int64[np.ndarray, " all"]:
    count, rows, columns = grids.shape
    return np.tile(np.arange(rows * columns), count)


def _neighbours(
    grids: Int64[np.ndarray, "n rows columns"], outside: int
) -> tuple[Int64[np.ndarray, " all"], Int64[np.ndarray, " all"]]:
    """Return the tokens to the left and above; beyond the edge, a code of its own."""
    left = np.pad(grids, ((0, 0), (0, 0), (1, 0)), constant_values=outside)[:, :, :-1]
    up = np.pad(grids, ((0, 0), (1, 0), (0, 0)), constant_values=outside)[:, :-1]
    return left.ravel(), up.ravel()
