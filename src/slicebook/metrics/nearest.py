"""Nearest-neighbour search by image correlation, over mirroring and shifts, for the audit for copies.

`nearest_by_correlation` returns the nearest training slice of each slice, and the distance to the nearest
slice of any other patient. `plant` makes copies of training slices, as a memorising generator would, for the
positive controls of an audit.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

from slicebook.errors import DataError, ShapeError

SHIFT = 0.06  # largest shift that is searched, as a share of each side
CELLS = 32  # averaging cells along the shorter side of a slice
SMALLEST_SIDE = 17  # pixels; 6 % of a shorter side is less than a pixel
CANDIDATES = 8  # training slices, and patients, that the coarse search passes to the fine search
CHUNK = 128  # slices per batch: 20 MB of scores with 12,000 training slices
_COARSE = 4  # a cell of the coarse search is 4×4 cells of the fine search
_FLAT = 1e-6  # a spread below this share of the largest value is rounding
_EXACT = 1e-6  # smallest distance, relative to that of the next patient, that counts in a gap

CORRELATION = (
    "√(2 - 2r), where r is the largest correlation of the central window of the training slice with a window "
    f"of the slice or of its mirror image, over shifts up to {SHIFT:.0%} of each side; both averaged over "
    f"cells of 1/{CELLS} of the shorter side"
)

Move = tuple[bool, int, int]  # mirrored or not, pixels down, pixels right


@dataclass(frozen=True)
class Nearest:
    """The nearest training slice of each of n slices; slices of its own patient are left out.

    Attributes:
        index: Index in the training set; the first one on ties.
        distance: Distance to it, in [0, 2].
        beyond: Distance to the nearest training slice of any patient other than that of `index`.
        mirror: Whether the training slice must be mirrored (columns reversed) to match the slice.
        shift: Pixels down and right by which it must then be moved.
    """

    index: Int64[np.ndarray, " n"]
    distance: Float64[np.ndarray, " n"]
    beyond: Float64[np.ndarray, " n"]
    mirror: Bool[np.ndarray, " n"]
    shift: Int64[np.ndarray, "n 2"]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def gap(self) -> Float64[np.ndarray, " n"]:
        """log(`beyond` / `distance`): 0 or more, at most 13.8 (a ratio of a million)."""
        farther = np.maximum(self.beyond, self.distance)
        nearer = np.maximum(self.distance, _EXACT * farther)
        return np.asarray(np.log(np.divide(farther, nearer, out=np.ones_like(farther), where=farther > 0)))


@dataclass(frozen=True)
class _Grid:
    """A central window of square cells in a slice, and the range of its shifts."""

    cell: int  # side of a cell, pixels
    rows: int  # of cells
    columns: int
    top: int  # margin, pixels
    left: int
    down: int  # largest shift up or down, pixels
    right: int  # largest shift left or right, pixels

    @property
    def step(self) -> int:
        """Step of the coarse search, in pixels."""
        return max(1, self.cell // 2)

    def window(
        self, averages: Float32[np.ndarray, "n y x"], cell: int, down: int = 0, right: int = 0
    ) -> Float32[np.ndarray, "n r c"]:
        """Return the shifted window, given for each pixel the mean over the cell that starts there."""
        top, left = self.top + down, self.left + right
        bottom, end = top + self.rows * self.cell, left + self.columns * self.cell
        return np.asarray(averages[:, top : bottom - cell + 1 : cell, left : end - cell + 1 : cell])


def describe(images: Float32[np.ndarray, "n h w"]) -> Float32[np.ndarray, "n r c"]:
    """Return the central window of each slice, averaged over cells: the search's description of a slice.

    It can be stored in place of the slices (6 KB per slice of 256×128). Batches can be described one by one
    and concatenated. Only slices of the same shape and pixel size can be compared.

    Raises:
        DataError: A value is not finite.
        ShapeError: A side is shorter than 17 pixels.
    """
    grid = _grid(images.shape[1:])
    windows = [grid.window(_averages(batch, grid.cell), grid.cell) for batch in _batches(images)]
    return np.concatenate([np.empty((0, grid.rows, grid.columns), np.float32), *windows])


def nearest_by_correlation(
    images: Float32[np.ndarray, "n h w"],
    patients: Sequence[str] | None,
    training: Float32[np.ndarray, "m r c"],
    training_patients: Sequence[str],
) -> Nearest:
    """Find the nearest training slice of each slice, over mirroring and shifts.

    The central window of a training slice (88 % of each side) is correlated with every window of that size in
    the slice and in its mirror image (template matching; Lewis 1995, Fast normalized cross-correlation). With
    r the largest correlation, the distance is √(2 - 2r): the Euclidean distance of the two windows after each
    is normalised to mean 0 and length 1.

    A coarse search with cells of 4×4 and steps of half a cell selects the best 8 training slices and the best
    slice of each of the best 8 patients; a fine search evaluates these at every pixel shift.

    A constant window has correlation 0 with any other, so a blank slice is equally far from all slices.

    Args:
        images: Slices, in any unit.
        patients: Patient of each slice, whose own training slices are left out; None if slices have none.
        training: The output of `describe` for the training slices.
        training_patients: Patient of each training slice.

    Raises:
        DataError: A value is not finite, or fewer than 2 training patients remain for a slice.
        ShapeError: The slices differ in size from the training slices, or a side is shorter than 17 pixels.
    """
    grid = _grid(images.shape[1:])
    if training.shape[1:] != (grid.rows, grid.columns):
        raise ShapeError(
            f"slices of {_by(images.shape[1:])} make windows of {grid.rows}×{grid.columns} cells, the "
            f"training slices made {_by(training.shape[1:])}; compare slices of one size"
        )
    owners, own_patient = _owners(training_patients, patients, len(training), len(images))
    _check_finite(training, "training slice")
    coarse = _unit(_coarsen(training))
    downs, rights = (_steps(largest, grid.step) for largest in (grid.down, grid.right))
    moves = [(mirror, down, right) for mirror in (False, True) for down in downs for right in rights]
    nearest = _empty(len(images))
    for start, batch in zip(range(0, len(images), CHUNK), _batches(images), strict=True):
        orientations = (batch, batch[:, :, ::-1])
        scores, best_moves = _search_coarsely(grid, orientations, coarse, moves)
        averages = [_averages(oriented, grid.cell) for oriented in orientations]
        for row in range(len(batch)):
            at = start + row
            scores[row, owners == own_patient[at]] = -np.inf
            matches = [
                (j, *_search_finely(grid, averages, row, _fine(training[j]), moves[best_moves[row, j]]))
                for j in _candidates(scores[row], owners)
            ]
            index, correlation, mirror, down, right = max(matches, key=lambda match: match[1])
            next_patient = max(match[1] for match in matches if owners[match[0]] != owners[index])
            nearest.index[at], nearest.mirror[at], nearest.shift[at] = index, mirror, (down, right)
            nearest.distance[at], nearest.beyond[at] = _distance(correlation), _distance(next_patient)
    return nearest


def _search_coarsely(
    grid: _Grid,
    orientations: Sequence[Float32[np.ndarray, "n h w"]],
    coarse: Float32[np.ndarray, "m d"],
    moves: Sequence[Move],
) -> tuple[Float32[np.ndarray, "n m"], Int64[np.ndarray, "n m"]]:
    """Return the largest correlation of each slice with each training slice, and the index of its move.

    Args:
        grid: The window and its shifts.
        orientations: The slices, and their mirror images.
        coarse: The training slices' windows in coarse cells, of mean 0 and length 1.
        moves: The mirrorings and shifts to try.
    """
    cell = _COARSE * grid.cell
    averages = [_averages(oriented, cell) for oriented in orientations]
    scores = np.full((len(orientations[0]), len(coarse)), -np.inf, np.float32)
    best_moves = np.zeros(scores.shape, np.int64)
    for number, (mirror, down, right) in enumerate(moves):
        correlations = _unit(grid.window(averages[mirror], cell, down, right)) @ coarse.T
        better = correlations > scores
        np.copyto(scores, correlations, where=better)
        np.copyto(best_moves, number, where=better)
    return scores, best_moves


def _candidates(scores: Float32[np.ndarray, " m"], owners: Int64[np.ndarray, " m"]) -> list[int]:
    """Return the indices of the best training slices, and of the best slice of each of the best patients."""
    order = np.argsort(-scores, kind="stable")[: int(np.isfinite(scores).sum())]
    _, first = np.unique(owners[order], return_index=True)
    return sorted({*order[:CANDIDATES].tolist(), *order[np.sort(first)[:CANDIDATES]].tolist()})


def _search_finely(
    grid: _Grid,
    averages: Sequence[Float32[np.ndarray, "n y x"]],
    row: int,
    training: Float64[np.ndarray, " d"],
    move: Move,
) -> tuple[float, bool, int, int]:
    """Return the largest correlation within a step of a move: its value, mirroring, pixels down and right."""
    mirror, *centre = move
    ranges = [
        range(max(-largest, middle - grid.step), min(largest, middle + grid.step) + 1)
        for middle, largest in zip(centre, (grid.down, grid.right), strict=True)
    ]
    shifts = list(product(*ranges))
    oriented = averages[mirror][row : row + 1]
    windows = np.concatenate([grid.window(oriented, grid.cell, *shift) for shift in shifts])
    correlations = _unit(windows.astype(np.float64)) @ training
    best = int(correlations.argmax())
    down, right = shifts[best]
    # Moving the window right in the mirror image is moving it left in the slice.
    return float(correlations[best]), mirror, down, -right if mirror else right


def _grid(shape: tuple[int, ...]) -> _Grid:
    """Return the window and cells for slices of a shape.

    Raises:
        ShapeError: A side is too short for a shift.
    """
    if min(shape) < SMALLEST_SIDE:
        raise ShapeError(
            f"slices are {_by(shape)}, the search for copies needs sides of at least {SMALLEST_SIDE} pixels; "
            "prepare the data with a larger --size"
        )
    cell = max(1, min(shape) // CELLS)
    shifts = [int(SHIFT * side) for side in shape]
    # A whole number of coarse cells, so that both searches use the same window.
    counts = [
        (side - 2 * shift) // (_COARSE * cell) * _COARSE for side, shift in zip(shape, shifts, strict=True)
    ]
    margins = [(side - count * cell) // 2 for side, count in zip(shape, counts, strict=True)]
    return _Grid(cell, *counts, *margins, *shifts)


def _steps(largest: int, step: int) -> range:
    return range(-(largest // step) * step, largest + 1, step)


def _averages(images: Float32[np.ndarray, "n h w"], cell: int) -> Float32[np.ndarray, "n y x"]:
    """Return, for each pixel, the mean over the cell that starts there (summed-area table in float64)."""
    sums = np.zeros((len(images), images.shape[1] + 1, images.shape[2] + 1))
    np.cumsum(images, axis=1, dtype=np.float64, out=sums[:, 1:, 1:])
    np.cumsum(sums, axis=2, out=sums)
    down = sums[:, cell:] - sums[:, :-cell]
    return np.asarray((down[:, :, cell:] - down[:, :, :-cell]) / cell**2, np.float32)


def _coarsen(windows: Float32[np.ndarray, "n r c"]) -> Float32[np.ndarray, "n _r _c"]:
    n, rows, columns = windows.shape
    blocks = windows.reshape(n, rows // _COARSE, _COARSE, columns // _COARSE, _COARSE)
    return np.asarray(blocks.mean(axis=(2, 4)))


def _unit(windows: Float[np.ndarray, "n r c"]) -> Float[np.ndarray, "n d"]:
    """Return windows as row vectors of mean 0 and length 1; zeros for a constant window."""
    rows = windows.reshape(len(windows), -1)
    largest = np.abs(rows).max(axis=1, keepdims=True)
    rows = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    flat = length <= _FLAT * np.sqrt(rows.shape[1]) * largest
    return np.where(flat, 0, rows / np.where(flat, 1, length))


def _fine(window: Float32[np.ndarray, "r c"]) -> Float64[np.ndarray, " d"]:
    """Return a window of mean 0 and length 1; all of them in float64 would take twice the training set."""
    return np.asarray(_unit(window[None].astype(np.float64))[0])


def _distance(correlation: float) -> float:
    return float(np.sqrt(max(0.0, 2 - 2 * correlation)))


def _batches(images: Float32[np.ndarray, "n h w"]) -> Iterator[Float32[np.ndarray, "_n h w"]]:
    for start in range(0, len(images), CHUNK):
        batch = images[start : start + CHUNK]
        _check_finite(batch, "slice", start)
        yield batch


def _owners(
    training_patients: Sequence[str], patients: Sequence[str] | None, m: int, n: int
) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " n"]]:
    """Return the patient of each of m training slices and of each of n slices, as numbers; -1 for none.

    Raises:
        DataError: The numbers of patients and slices differ, or too few patients remain.
    """
    for names, count, kind in ((training_patients, m, "training slices"), (patients, n, "slices")):
        if names is not None and len(names) != count:
            raise DataError(f"{len(names)} patients for {count} {kind}; give the patient of each")
    numbers = {name: number for number, name in enumerate(dict.fromkeys(training_patients))}
    own_patient = [-1] * n if patients is None else [numbers.get(name, -1) for name in patients]
    left = len(numbers) - (max(own_patient, default=-1) >= 0)
    if left < 2:
        raise DataError(
            f"{left} training patients besides a slice's own, wanted at least 2: a copy is recognised by "
            "being much nearer to one patient than to the next; give slices of more patients"
        )
    owners = [numbers[name] for name in training_patients]
    return np.array(owners, np.int64), np.array(own_patient, np.int64)


def _empty(n: int) -> Nearest:
    return Nearest(
        np.zeros(n, np.int64), np.zeros(n), np.zeros(n), np.zeros(n, bool), np.zeros((n, 2), np.int64)
    )


def _check_finite(values: Float[np.ndarray, "n ..."], kind: str, first: int = 0) -> None:
    finite = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    if not finite.all():
        raise DataError(
            f"{kind} {first + int(np.argmin(finite))} has values that are not finite; exclude it and check "
            "the program that wrote it"
        )


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


Images = Float32[np.ndarray, "n h w"]
Reconstruct = Callable[[Images], Images]
"""Maps slices to their reconstructions by a tokenizer."""


@dataclass(frozen=True)
class Planted:
    """Planted copies of slices.

    Attributes:
        images: The copies.
        sources: Index of the slice that each was copied from.
        mirror: Whether the slice was mirrored first.
        shift: Pixels down and right by which it was then moved.
    """

    images: Float32[np.ndarray, "n h w"]
    sources: Int64[np.ndarray, " n"]
    mirror: Bool[np.ndarray, " n"]
    shift: Int64[np.ndarray, "n 2"]


def plant(
    sources: Float32[np.ndarray, "k h w"],
    count: int,
    reconstruct: Reconstruct,
    generator: np.random.Generator,
) -> Planted:
    """Make copies of slices, drawn without replacement: mirrored, shifted, and reconstructed by a tokenizer.

    Mirroring and shifting are drawn independently, each with probability 1/2. Shifts are uniform in whole
    pixels, up to 6 % of each side; the edge is repeated outside the slice.

    Args:
        sources: Slices to copy.
        count: Number of copies, at most the number of slices.
        reconstruct: The tokenizer's reconstruction.
        generator: Source of all random choices.

    Raises:
        DataError: There are fewer slices than copies, or no copies are requested.
        ShapeError: The tokenizer changes the size of slices.
    """
    if not 0 < count <= len(sources):
        raise DataError(f"{count} copies of {len(sources)} slices, wanted at least 1 and a slice for each")
    chosen = generator.choice(len(sources), count, replace=False)
    mirror = generator.random(count) < 0.5
    largest = np.array([int(SHIFT * side) for side in sources.shape[1:]])
    shift = generator.integers(-largest, largest + 1, size=(count, 2)) * (generator.random((count, 1)) < 0.5)
    moved = np.empty((count, *sources.shape[1:]), np.float32)
    for index, (down, right) in enumerate(shift.tolist()):
        moved[index] = move(sources[chosen[index]], bool(mirror[index]), (down, right))
    copies = reconstruct(moved)
    if copies.shape != moved.shape:
        raise ShapeError(
            f"the tokenizer returned {copies.shape} for copies of {moved.shape}; crop them to the input size"
        )
    return Planted(copies, chosen, mirror, shift)


def move(
    image: Float32[np.ndarray, "h w"], mirror: bool, shift: tuple[int, int]
) -> Float32[np.ndarray, "h w"]:
    """Return a slice, optionally mirrored, then moved down and right by whole pixels; edges are repeated."""
    oriented = image[:, ::-1] if mirror else image
    rows, columns = (
        np.clip(np.arange(side) - offset, 0, side - 1)
        for side, offset in zip(image.shape, shift, strict=True)
    )
    return np.asarray(oriented[rows][:, columns])
