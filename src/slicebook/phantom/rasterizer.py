"""Rasterize a phantom slice: smooth contours, exact pixel coverage, and textured tissue signal."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Float32, Float64
from scipy.ndimage import gaussian_filter

from slicebook.phantom.atlas import TISSUES, Number, Part

CONTROL_POINTS = 24  # per outline, evenly spaced along it
FADE_MM = 2.0  # a part fades out over this distance beyond its last level

Contour = Float64[np.ndarray, "m 2"]  # closed: the last point is the first
Window = tuple[slice, slice]
Wall = tuple[str, float]  # a tissue, and its thickness in mm


@dataclass(frozen=True)
class Build:
    """How the atlas is deformed for one examination: scales, a shift in mm, and a smooth warp.

    A row of `waves` holds a wave vector (radians per mm), a phase, and a displacement in x and y (mm).
    """

    skin_scale: Float64[np.ndarray, "2"]
    inner_scale: Float64[np.ndarray, "2"]
    height_scale: float
    shift: Float64[np.ndarray, "3"]
    waves: Float64[np.ndarray, "n 6"]


class Textures:
    """Two random textures per patient with unit variance, which change slowly with height."""

    GRAINS_MM = (1.2, 3.5)
    STEP_MM = 7.0  # fields are drawn at this spacing in height and interpolated

    def __init__(
        self, key: tuple[int, int], build: Build, shape: tuple[int, int], spacing: Float64[np.ndarray, "2"]
    ):
        self.key, self.shape, self.spacing = key, shape, spacing
        self.moved = np.rint(build.shift[:2] / spacing).astype(int)
        self.planes: dict[tuple[int, int], Float32[np.ndarray, "x y"]] = {}

    def at(self, z: float) -> tuple[Float32[np.ndarray, "x y"], Float32[np.ndarray, "x y"]]:
        """Return the fine and the coarse field at height z (mm)."""
        step, part = divmod(z / self.STEP_MM + 100, 1)
        low, high = np.float32(np.cos(part * np.pi / 2)), np.float32(np.sin(part * np.pi / 2))
        fine, coarse = (
            low * self._plane(grain, int(step)) + high * self._plane(grain, int(step) + 1) for grain in (0, 1)
        )
        return fine, coarse

    def _plane(self, grain: int, step: int) -> Float32[np.ndarray, "x y"]:
        if (grain, step) not in self.planes:
            noise = np.random.default_rng([*self.key, 3 + grain, step]).standard_normal(
                self.shape, np.float32
            )
            field = gaussian_filter(noise, self.GRAINS_MM[grain] / self.spacing, mode="wrap")
            self.planes[grain, step] = np.roll(field / field.std(), self.moved, (0, 1))
        return self.planes[grain, step]


class Canvas:
    """Signal and labels of one slice; later shapes overwrite earlier ones.

    Input lengths are in mm of the atlas. `z` is the height in the atlas.
    """

    def __init__(self, z_mm: float, build: Build, textures: Textures, echo: Mapping[str, float]):
        self.z = (z_mm - build.shift[2]) / build.height_scale
        self.build, self.echo, self.spacing = build, echo, textures.spacing
        self.fine, self.coarse = textures.at(self.z)
        # Thin walls where the field crosses zero.
        self.ridges = np.exp(-60 * (self.coarse + 0.3 * self.fine) ** 2)
        self.middle = (np.array(textures.shape) - 1) / 2
        self.signal = np.zeros(textures.shape, np.float32)
        self.labels = np.zeros(textures.shape, np.uint8)

    def ellipse(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        tissue: str,
        label: int | None = None,
        wall: Wall | None = None,
    ) -> None:
        """Fill an axis-aligned ellipse, with an optional wall inside its edge."""
        if min(rx, ry) > 0:
            self.blob(ellipse(x, y, rx, ry), tissue, label, wall)

    def blob(
        self,
        points: Float64[np.ndarray, "k 2"],
        tissue: str,
        label: int | None = None,
        wall: Wall | None = None,
    ) -> None:
        """Fill the smooth shape through control points, with an optional wall inside its edge."""
        contour = self._place(points, self.build.inner_scale)
        self._fill(contour, wall[0] if wall else tissue, label)
        if wall:
            self._fill(inset(contour, wall[1]), tissue)

    def parts(self, *parts: Part, scale: Float64[np.ndarray, "2"] | None = None) -> None:
        """Fill parts of the atlas as one object: all walls first, then the interiors."""
        inside = []
        for part in parts:
            section = outline(part, self.z)
            if section is None:
                continue
            points, opacity = section
            for side in (1, -1) if part.paired else (1,):
                contour = self._place(points * (side, 1), self.build.inner_scale if scale is None else scale)
                if part.grow:
                    contour = inset(contour, -part.grow)
                self._fill(contour, part.rim[0] if part.rim else part.tissue, part.label, opacity)
                if part.rim:
                    inside.append((inset(contour, part.rim[1]), part.tissue, opacity))
        for contour, tissue, opacity in inside:
            self._fill(contour, tissue, None, opacity)

    def _place(self, points: Float64[np.ndarray, "k 2"], scale: Float64[np.ndarray, "2"]) -> Contour:
        """Map control points to this patient, and return a contour with edges shorter than a pixel."""
        waves = self.build.waves
        phases = points @ waves[:, :2].T + (waves[:, 2] * self.z + waves[:, 3])
        moved = points * scale + np.sin(phases) @ waves[:, 4:] + self.build.shift[:2]
        steps = moved[1:] - moved[:-1]
        longest = np.sqrt((steps * steps).max(0) @ self.spacing**-2)  # in pixels
        dense: Contour = spline(len(points), len(points) * int(1.4 * longest + 1)) @ moved
        return dense

    def _fill(self, contour: Contour, tissue: str, label: int | None = None, opacity: float = 1.0) -> None:
        covered = coverage(contour / self.spacing + self.middle, self.signal.shape)
        if covered is None:
            return
        window, cover = covered
        if opacity < 1:
            cover *= np.float32(opacity)
        self.signal[window] += cover * (self._value(tissue, contour, window) - self.signal[window])
        if label is not None:
            self.labels[window][cover > 0.5] = label

    def _value(self, tissue: str, contour: Contour, window: Window) -> Float[np.ndarray, "x y"]:
        """Return the textured signal of a tissue over a window."""
        material = TISSUES[tissue]
        texture = 1 + material.fine * self.fine[window] + material.coarse * self.coarse[window]
        if material.septa:
            texture -= material.septa * self.ridges[window]
        value: Float[np.ndarray, "x y"] = self.echo[tissue] * np.maximum(texture, 0)
        if material.streaks:
            value += material.streaks * (self.echo["fat"] - value) * self._streaks(contour, window)
        return value

    def _streaks(self, contour: Contour, window: Window) -> Float[np.ndarray, "x y"]:
        """Return the fat fraction between muscle bundles: broken lines along the contour's long axis."""
        x, y = (contour - contour.mean(0)).T
        axis = 0.5 * np.arctan2(2 * (x @ y), x @ x - y @ y)
        waves = 2 * np.pi / 6.5 * self.spacing * (-np.sin(axis), np.cos(axis))  # bundles of 6.5 mm
        rows, columns = (np.arange(part.start, part.stop, dtype=np.float32) for part in window)
        across = (rows * np.float32(waves[0]))[:, None] + columns * np.float32(waves[1])
        fine, coarse = self.fine[window], self.coarse[window]
        lines = np.maximum(np.sin(across + 2.0 * coarse + 0.6 * fine), 0)
        broken: Float[np.ndarray, "x y"] = (
            lines * lines * lines * np.maximum(0.4 + 0.7 * fine + 0.4 * coarse, 0)
        )
        return broken


def inset(contour: Contour, mm: float) -> Contour:
    """Move a closed contour inwards along its normals (outwards if negative)."""
    around = np.concatenate([contour[-2:-1], contour, contour[1:2]])
    tangent = around[2:] - around[:-2]
    x, y = contour.T
    turn = np.sign(x[:-1] @ y[1:] - x[1:] @ y[:-1])  # twice the area: positive if anticlockwise
    lengths = np.sqrt(tangent[:, 0] ** 2 + tangent[:, 1] ** 2) + 1e-9
    moved: Contour = contour + (mm * turn / lengths)[:, None] * tangent[:, ::-1] * (-1, 1)
    return moved


def coverage(contour: Contour, shape: tuple[int, ...]) -> tuple[Window, Float32[np.ndarray, "x y"]] | None:
    """Return the window that a closed contour touches, and the fraction of each of its pixels inside it.

    This is the signed-area accumulation of font rasterizers: each edge adds its extent to its own pixel, and
    a cumulative sum along the second axis extends it. Pixel i spans i - 0.5 to i + 0.5.

    Args:
        contour: In pixels; its edges are shorter than one pixel.
        shape: Of the image; the contour may extend beyond it.
    """
    points = contour + 0.5
    low = np.maximum(np.floor(points.min(0)).astype(int), 0)
    high = np.minimum(np.floor(points.max(0)).astype(int) + 1, shape)
    rows, columns = (int(n) for n in high - low)
    if rows <= 0 or columns <= 0:
        return None
    a, b = (points - low).T
    row = np.floor(a).astype(int)
    first, last = row[:-1], row[1:]
    border = np.where(first == last, a[1:], np.maximum(first, last))  # where an edge leaves its first row
    middle = np.minimum(np.maximum((b[1:] + b[:-1]) / 2, 0), columns)
    column = middle.astype(int)
    share = middle - column
    at = np.concatenate([first, last])
    extent = np.concatenate([border - a[:-1], a[1:] - border])
    within = np.minimum(np.maximum(at, 0), rows - 1)
    extent *= within == at  # rows outside the image do not count
    index = within * (columns + 2) + np.concatenate([column, column])
    right = extent * np.concatenate([share, share])
    size = rows * (columns + 2)
    grid = np.bincount(index, extent - right, size) + np.bincount(index + 1, right, size)
    inside = np.abs(np.cumsum(grid.reshape(rows, columns + 2), axis=1)[:, :columns])
    window = slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1]))
    return window, np.minimum(inside, 1).astype(np.float32)


def outline(part: Part, z: float) -> tuple[Float64[np.ndarray, "24 2"], float] | None:
    """Return the control points (mm) and opacity of a part at height z, or None outside its levels."""
    heights, outlines = _levels(part)
    beyond = max(heights[0] - z, z - heights[-1], 0.0)
    if beyond >= FADE_MM:
        return None
    upper = int(np.clip(np.searchsorted(heights, z), min(1, len(heights) - 1), len(heights) - 1))
    lower = max(upper - 1, 0)
    gap = heights[upper] - heights[lower]
    weight = float(np.clip((z - heights[lower]) / gap, 0, 1)) if gap else 1.0
    return (1 - weight) * outlines[lower] + weight * outlines[upper], 1 - beyond / FADE_MM


@lru_cache(maxsize=256)
def _levels(part: Part) -> tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, "k 24 2"]]:
    heights = sorted(part.levels)
    return np.array(heights, float), np.stack([_control_points(part.levels[z], part.paired) for z in heights])


def _control_points(level: tuple[Number, ...] | str, paired: bool) -> Float64[np.ndarray, "24 2"]:
    if not isinstance(level, str):
        x, y, rx, ry, degrees = level
        cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        turned: Float64[np.ndarray, "24 2"] = ellipse(0.0, 0.0, float(rx), float(ry)) @ np.array(
            [[cos, sin], [-sin, cos]]
        )
        turned += x, y
        return turned
    points = np.array(level.split(), float).reshape(-1, 2)
    if not paired:
        points = np.concatenate([points, (points * (-1, 1))[-2:0:-1]])
    curve = spline(len(points), 480) @ points
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    even = np.linspace(0, length[-1], CONTROL_POINTS, endpoint=False)
    return np.stack([np.interp(even, length, axis) for axis in curve.T], 1)


def ellipse(x: float, y: float, rx: float, ry: float) -> Float64[np.ndarray, "24 2"]:
    """Return the control points (mm) of an axis-aligned ellipse."""
    turn = np.linspace(0, 2 * np.pi, CONTROL_POINTS, endpoint=False)
    return np.stack([x + rx * np.cos(turn), y + ry * np.sin(turn)], 1)


@lru_cache(maxsize=256)
def spline(points: int, count: int) -> Float64[np.ndarray, "m points"]:
    """Return the matrix from control points to a closed Catmull-Rom curve of `count` edges."""
    at = np.arange(count + 1) * points / count
    start = at.astype(int)
    t = at - start
    t2, t3 = t**2, t**3
    weights = 0.5 * np.stack([-t + 2 * t2 - t3, 2 - 5 * t2 + 3 * t3, t + 4 * t2 - 3 * t3, t3 - t2])
    matrix = np.zeros((count + 1, points))
    for offset, weight in enumerate(weights):
        np.add.at(matrix, (np.arange(count + 1), (start + offset - 1) % points), weight)
    return matrix
