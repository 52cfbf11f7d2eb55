"""The nearest training slice to a slice, and the distance to the nearest slice of any other patient.

Slices are compared by the correlation of the images, whatever their mirroring and shift. `plant` makes such
copies of training slices as a generator that memorises would, for the positive control of an audit.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

from slicebook.errors import DataError, ShapeError

SHIFT = 0.06  # of each side: as far as a copy is sought
CELLS = 32  # along the shorter side of a slice
SMALLEST_SIDE = 17  # pixels: 6 % of less is no pixel
CANDIDATES = 8  # slices, and patients, of the first search that the second looks at
CHUNK = 128  # slices sought at a time: 20 MB of scores against 12,000 training slices
_SCREEN = 4  # a cell of the first search is so many of the second, in rows and in columns
_FLAT = 1e-6  # of the largest value: less spread than this is rounding
_EXACT = 1e-6  # of the next patient's distance: nearer than this is as near as a copy comes

CORRELATION = (
    "√(2 - 2r), r the correlation of the middle of the training slice with the window of the slice, or of "
    f"its mirror image, that is most like it, up to {SHIFT:.0%} of each side away; averaged over cells of a "
    f"{CELLS}nd of the shorter side"
)

Move = tuple[bool, int, int]  # mirrored or not, pixels down, pixels right


@dataclass(frozen=True)
class Nearest:
    """The nearest training slice to each of n slices, those of the slice's own patient left out.

    Attributes:
        index: Where it stands in the training set; of several as near, the first.
        distance: To it; 0 or more.
        beyond: Distance to the nearest training slice of any patient but that one's.
        mirror: Whether it has to be mirrored (columns swapped) to lie on the slice.
        shift: Pixels by which it has to be moved down and right, once mirrored.
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
        """Log of how many times farther the next patient is; from 0 to 13.8, a million times."""
        farther = np.maximum(self.beyond, self.distance)
        nearer = np.maximum(self.distance, _EXACT * farther)
        return np.asarray(np.log(np.divide(farther, nearer, out=np.ones_like(farther), where=farther > 0)))


@dataclass(frozen=True)
class _Grid:
    """A window of square cells in the middle of a slice, and how far it can be moved."""

    cell: int  # pixels
    rows: int  # cells
    columns: int
    top: int  # pixels before it
    left: int
    down: int  # pixels, either way
    right: int

    @property
    def step(self) -> int:
        """Pixels from one place of the first search to the next."""
        return max(1, self.cell // 2)

    def window(
        self, averages: Float32[np.ndarray, "n y x"], cell: int, down: int = 0, right: int = 0
    ) -> Float32[np.ndarray, "n r c"]:
        """Return the window after a move, from the averages over the cells that begin at each pixel."""
        top, left = self.top + down, self.left + right
        bottom, end = top + self.rows * self.cell, left + self.columns * self.cell
        return np.asarray(averages[:, top : bottom - cell + 1 : cell, left : end - cell + 1 : cell])


def describe(images: Float32[np.ndarray, "n h w"]) -> Float32[np.ndarray, "n r c"]:
    """Return the middle of each slice, averaged over cells: what the search needs of training slices.

    It can be kept in place of them (6 KB a slice of 256×128). Describe batches and join them: a slice does
    not depend on its batch. Only slices of one size and pixel size can be compared.

    Raises:
        DataError: A value is not finite.
        ShapeError: A side is shorter than 17 pixels.
    """
    grid = _grid(images.shape[1:])
    found = [grid.window(_averages(part, grid.cell), grid.cell) for part in _parts(images)]
    return np.concatenate([np.empty((0, grid.rows, grid.columns), np.float32), *found])


def nearest_by_correlation(
    images: Float32[np.ndarray, "n h w"],
    patients: Sequence[str] | None,
    training: Float32[np.ndarray, "m r c"],
    training_patients: Sequence[str],
) -> Nearest:
    """Find the training slice that each slice is most like, as it is or mirrored, and shifted.

    The middle of the training slice, 88 % of each side, is correlated with every window of that size in the
    slice and in its mirror image (template matching; Lewis 1995, Fast normalized cross-correlation). The
    distance is √(2 - 2r): that of the two windows, once their means are 0 and their lengths 1. A first
    search, with cells of 4×4 and steps of half a cell, finds 8 slices and the best slice of each of 8
    patients; a second goes through those pixel by pixel.

    A window of one value has correlation 0 with any other: a blank slice is as far from all, so no copy.

    Args:
        images: Slices, in any unit.
        patients: The patient of each slice, whose training slices are left out; None where they have none.
        training: What `describe` made of the training slices.
        training_patients: The patient of each.

    Raises:
        DataError: A value is not finite, or fewer than 2 patients are left to be the nearest and the next.
        ShapeError: The slices are not of the training slices' size, or a side is shorter than 17 pixels.
    """
    grid = _grid(images.shape[1:])
    if training.shape[1:] != (grid.rows, grid.columns):
        raise ShapeError(
            f"slices of {_by(images.shape[1:])} make windows of {grid.rows}×{grid.columns} cells, the "
            f"training slices made {_by(training.shape[1:])}; compare slices of one size"
        )
    owners, whose = _owners(training_patients, patients, len(training), len(images))
    _check_finite(training, "training slice")
    fine, coarse = _unit(training.astype(np.float64)), _unit(_coarsen(training))
    downs, rights = (_steps(most, grid.step) for most in (grid.down, grid.right))
    moves = [(mirror, down, right) for mirror in (False, True) for down in downs for right in rights]
    found = _empty(len(images))
    for start, part in zip(range(0, len(images), CHUNK), _parts(images), strict=True):
        turned = (part, part[:, :, ::-1])
        scores, best_moves = _screen(grid, turned, coarse, moves)
        averages = [_averages(one, grid.cell) for one in turned]
        for row in range(len(part)):
            at = start + row
            scores[row, owners == whose[at]] = -np.inf
            placed = [
                (j, *_place(grid, averages, row, fine[j], moves[best_moves[row, j]]))
                for j in _candidates(scores[row], owners)
            ]
            index, correlation, mirror, down, right = max(placed, key=lambda one: one[1])
            beyond = max(one[1] for one in placed if owners[one[0]] != owners[index])
            found.index[at], found.mirror[at], found.shift[at] = index, mirror, (down, right)
            found.distance[at], found.beyond[at] = _distance(correlation), _distance(beyond)
    return found


def _screen(
    grid: _Grid,
    turned: Sequence[Float32[np.ndarray, "n h w"]],
    coarse: Float32[np.ndarray, "m d"],
    moves: Sequence[Move],
) -> tuple[Float32[np.ndarray, "n m"], Int64[np.ndarray, "n m"]]:
    """Return the best correlation of each slice with each training slice, and which move it had."""
    cell = _SCREEN * grid.cell
    averages = [_averages(one, cell) for one in turned]
    scores = np.full((len(turned[0]), len(coarse)), -np.inf, np.float32)
    best = np.zeros(scores.shape, np.int64)
    for number, (mirror, down, right) in enumerate(moves):
        found = _unit(grid.window(averages[mirror], cell, down, right)) @ coarse.T
        better = found > scores
        np.copyto(scores, found, where=better)
        np.copyto(best, number, where=better)
    return scores, best


def _candidates(scores: Float32[np.ndarray, " m"], owners: Int64[np.ndarray, " m"]) -> list[int]:
    """Return the best training slices, and the best of each of the best patients, in order."""
    order = np.argsort(-scores, kind="stable")[: int(np.isfinite(scores).sum())]
    _, first = np.unique(owners[order], return_index=True)
    return sorted({*order[:CANDIDATES].tolist(), *order[np.sort(first)[:CANDIDATES]].tolist()})


def _place(
    grid: _Grid,
    averages: Sequence[Float32[np.ndarray, "n y x"]],
    row: int,
    training: Float64[np.ndarray, " d"],
    move: Move,
) -> tuple[float, bool, int, int]:
    """Return the best correlation near a move, and which it is: mirrored, pixels down, pixels right."""
    mirror, *about = move
    ranges = [
        range(max(-most, middle - grid.step), min(most, middle + grid.step) + 1)
        for middle, most in zip(about, (grid.down, grid.right), strict=True)
    ]
    shifts = list(product(*ranges))
    one = averages[mirror][row : row + 1]
    windows = np.concatenate([grid.window(one, grid.cell, *shift) for shift in shifts]).astype(np.float64)
    found = _unit(windows) @ training
    best = int(found.argmax())
    down, right = shifts[best]
    # A mirror image that moves right shows the slice moving left.
    return float(found[best]), mirror, down, -right if mirror else right


def _grid(shape: tuple[int, ...]) -> _Grid:
    """Return how slices of a size are parted.

    Raises:
        ShapeError: A side is too short to be shifted.
    """
    if min(shape) < SMALLEST_SIDE:
        raise ShapeError(
            f"slices are {_by(shape)}, a search for copies wants sides of at least {SMALLEST_SIDE} pixels; "
            "prepare the data with a larger --size"
        )
    cell = max(1, min(shape) // CELLS)
    most = [int(SHIFT * side) for side in shape]
    # Whole cells of the first search, so that both searches see one window.
    whole = [
        (side - 2 * margin) // (_SCREEN * cell) * _SCREEN for side, margin in zip(shape, most, strict=True)
    ]
    first = [(side - cells * cell) // 2 for side, cells in zip(shape, whole, strict=True)]
    return _Grid(cell, whole[0], whole[1], first[0], first[1], most[0], most[1])


def _steps(most: int, step: int) -> range:
    return range(-(most // step) * step, most + 1, step)


def _averages(images: Float32[np.ndarray, "n h w"], cell: int) -> Float32[np.ndarray, "n y x"]:
    """Return the mean over the cell that begins at each pixel, from running sums in float64."""
    sums = np.zeros((len(images), images.shape[1] + 1, images.shape[2] + 1))
    np.cumsum(images, axis=1, dtype=np.float64, out=sums[:, 1:, 1:])
    np.cumsum(sums, axis=2, out=sums)
    down = sums[:, cell:] - sums[:, :-cell]
    return np.asarray((down[:, :, cell:] - down[:, :, :-cell]) / cell**2, np.float32)


def _coarsen(windows: Float32[np.ndarray, "n r c"]) -> Float32[np.ndarray, "n _r _c"]:
    n, rows, columns = windows.shape
    parted = windows.reshape(n, rows // _SCREEN, _SCREEN, columns // _SCREEN, _SCREEN)
    return np.asarray(parted.mean(axis=(2, 4)))


def _unit(windows: Float[np.ndarray, "n r c"]) -> Float[np.ndarray, "n d"]:
    """Return windows as rows of mean 0 and length 1; a row of zeros where all is one value."""
    rows = windows.reshape(len(windows), -1)
    largest = np.abs(rows).max(axis=1, keepdims=True)
    rows = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    flat = length <= _FLAT * np.sqrt(rows.shape[1]) * largest
    return np.where(flat, 0, rows / np.where(flat, 1, length))


def _distance(correlation: float) -> float:
    return float(np.sqrt(max(0.0, 2 - 2 * correlation)))


def _parts(images: Float32[np.ndarray, "n h w"]) -> Iterator[Float32[np.ndarray, "_n h w"]]:
    for start in range(0, len(images), CHUNK):
        part = images[start : start + CHUNK]
        _check_finite(part, "slice", start)
        yield part


def _owners(
    training_patients: Sequence[str], patients: Sequence[str] | None, m: int, n: int
) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " n"]]:
    """Return patients as numbers, -1 for none, for the training slices and for those that are sought.

    Raises:
        DataError: The lists do not fit, or too few patients are left.
    """
    for names, wanted, what in ((training_patients, m, "training slices"), (patients, n, "slices")):
        if names is not None and len(names) != wanted:
            raise DataError(f"{len(names)} patients for {wanted} {what}; give the patient of each")
    numbers = {name: number for number, name in enumerate(dict.fromkeys(training_patients))}
    whose = [-1] * n if patients is None else [numbers.get(name, -1) for name in patients]
    left = len(numbers) - (max(whose, default=-1) >= 0)
    if left < 2:
        raise DataError(
            f"{left} training patients besides a slice's own, wanted at least 2: a copy is told by how much "
            "nearer one patient is than the next; give more"
        )
    return np.array([numbers[name] for name in training_patients], np.int64), np.array(whose, np.int64)


def _empty(n: int) -> Nearest:
    return Nearest(
        np.zeros(n, np.int64), np.zeros(n), np.zeros(n), np.zeros(n, bool), np.zeros((n, 2), np.int64)
    )


def _check_finite(values: Float[np.ndarray, "n ..."], what: str, first: int = 0) -> None:
    good = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    if not good.all():
        raise DataError(
            f"{what} {first + int(np.argmin(good))} has values that are not finite; leave it out, and find "
            "what wrote it"
        )


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


Images = Float32[np.ndarray, "n h w"]
Reconstruct = Callable[[Images], Images]
"""From slices to what a tokenizer leaves of them."""


@dataclass(frozen=True)
class Planted:
    """Copies of slices.

    Attributes:
        images: The copies.
        sources: Which slice each was made of.
        mirror, shift: What was done to it first: mirrored, then moved down and right (pixels).
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
    """Make copies of slices drawn without repetition: half mirrored, half moved, all through a tokenizer.

    The two halves are drawn apart, so that a quarter is as it was. A move is by whole pixels, up to 6 % of
    each side; from outside comes the edge, repeated.

    Raises:
        DataError: There are fewer slices than copies wanted.
        ShapeError: The tokenizer changes the size of slices.
    """
    if not 0 < count <= len(sources):
        raise DataError(f"{count} copies of {len(sources)} slices, wanted at least 1 and a slice for each")
    chosen = generator.choice(len(sources), count, replace=False)
    mirror = generator.random(count) < 0.5
    most = np.array([int(SHIFT * side) for side in sources.shape[1:]])
    shift = generator.integers(-most, most + 1, size=(count, 2)) * (generator.random((count, 1)) < 0.5)
    placed = np.empty((count, *sources.shape[1:]), np.float32)
    for at, (down, right) in enumerate(shift.tolist()):
        placed[at] = move(sources[chosen[at]], bool(mirror[at]), (down, right))
    copies = reconstruct(placed)
    if copies.shape != placed.shape:
        raise ShapeError(
            f"the tokenizer made {copies.shape} of copies of {placed.shape}; crop them back to their size"
        )
    return Planted(copies, chosen, mirror, shift)


def move(
    image: Float32[np.ndarray, "h w"], mirror: bool, shift: tuple[int, int]
) -> Float32[np.ndarray, "h w"]:
    """Return a slice mirrored or not, then moved down and right by whole pixels, its edge repeated."""
    turned = image[:, ::-1] if mirror else image
    rows, columns = (
        np.clip(np.arange(side) - by, 0, side - 1) for side, by in zip(image.shape, shift, strict=True)
    )
    return np.asarray(turned[rows][:, columns])
