"""Charts as text: SVG that takes its colours from the page around it, light, dark or printed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from slicebook.errors import ShapeError

WIDTH, HEIGHT = 440, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 44  # room around the plot: numbers, names
TICKS = 5  # about, on each axis
SERIES = 6  # colours that the page knows: classes s0 to s5

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """One axis: what it shows, and between which values.

    Attributes:
        name: With the unit.
        low, high: Of the values that are shown.
        log: Whether steps are ratios.
    """

    name: str
    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """Return where a value lies, 0 at the low end and 1 at the high."""
        low, high, value = (
            (map(math.log10, (self.low, self.high, value)))
            if self.log
            else (
                self.low,
                self.high,
                value,
            )
        )
        return (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """Return round values to name, from low to high."""
        ratio = self.high / self.low if self.log else 0
        if ratio >= 5:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if ratio <= 1e3 else (1,)
            values = [step * 10.0**exponent for exponent in exponents for step in steps]
        else:  # also of ratios, of which too few would lie between the ends
            step = _round_step((self.high - self.low) / TICKS)
            first = math.ceil(self.low / step - 1e-9)
            values = [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]
        slack = 1e-9 * (self.high - self.low)
        return [value for value in values if self.low - slack <= value <= self.high + slack]


def lines(
    series: Mapping[str, Points],
    *,
    x: str,
    y: str,
    what: str,
    log_x: bool = False,
    marks: bool = False,
    band: tuple[str, Points, Points] | None = None,
) -> str:
    """Draw series of points, joined in the order of x.

    Args:
        series: Points by the name that stands in the legend; those of x 0 or less are left out if `log_x`.
        x: What the axis across shows, with its unit.
        y: The same of the axis up.
        what: The chart in a sentence, for those who cannot see it.
        log_x: Whether x is logarithmic.
        marks: Whether each point has a dot.
        band: A range behind the lines: its name in the legend, its lower and its upper edge.

    Raises:
        ShapeError: There is no point to draw.
    """
    kept = {
        name: sorted(point for point in points if point[0] > 0 or not log_x)
        for name, points in series.items()
    }
    range_name, *edges = band or ("", [], [])
    everything = [point for points in (*kept.values(), *edges) for point in points]
    if not everything or not all(math.isfinite(value) for point in everything for value in point):
        raise ShapeError(f"{what}: got {len(everything)} points, wanted some, all of them numbers")
    across = Axis(x, *_span([point[0] for point in everything], tight=True), log=log_x)
    up = Axis(y, *_span([point[1] for point in everything]))
    body = []
    if band:
        low, high = ([_place(across, up, point) for point in sorted(edge)] for edge in edges)
        around = " ".join(f"{left:.1f},{down:.1f}" for left, down in (*low, *reversed(high)))
        body.append(f'<polygon class="band" points="{around}"/>')
    for index, points in enumerate(kept.values()):
        places = [_place(across, up, point) for point in points]
        path = " ".join(f"{left:.1f},{down:.1f}" for left, down in places)
        body.append(f'<polyline class="line s{index % SERIES}" points="{path}"/>')
        if marks:
            body += [
                f'<circle class="dot s{index % SERIES}" cx="{left:.1f}" cy="{down:.1f}" r="3.5"/>'
                for left, down in places
            ]
    return _chart(across, up, body, list(kept), what, band=range_name)


def bars(groups: Mapping[str, Sequence[float]], *, x: str, y: str, what: str) -> str:
    """Draw rows of bars over each other's place, from 0 up, each group as steps of one colour.

    Args:
        groups: Heights from the first place to the last, by the name that stands in the legend.
        x: What the axis across shows; it goes from 0 to 1, the share of places.
        y: What the axis up shows.
        what: The chart in a sentence, for those who cannot see it.

    Raises:
        ShapeError: There is no height to draw.
    """
    heights = [height for group in groups.values() for height in group]
    if not heights or not all(math.isfinite(height) for height in heights):
        raise ShapeError(f"{what}: got {len(heights)} heights, wanted some, all of them numbers")
    across, up = Axis(x, 0.0, 1.0), Axis(y, 0.0, max(heights) * 1.05 or 1.0)
    body = []
    for index, group in enumerate(groups.values()):
        points = [
            (place / len(group), height) for start, height in enumerate(group) for place in (start, start + 1)
        ]
        outline = [(0.0, 0.0), *points, (1.0, 0.0)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (_place(across, up, point) for point in outline))
        body.append(f'<polygon class="area s{index % SERIES}" points="{path}"/>')
    return _chart(across, up, body, list(groups), what)


def _chart(
    across: Axis, up: Axis, body: Sequence[str], names: Sequence[str], what: str, *, band: str = ""
) -> str:
    parts = [
        f'<svg class="chart" role="img" viewBox="0 0 {WIDTH} {HEIGHT}" xmlns="http://www.w3.org/2000/svg">',
        f"<title>{escape(what)}</title>",
    ]
    for value in up.ticks():
        _, down = _place(across, up, (across.low, value))
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down:.1f}" y2="{down:.1f}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 6}" y="{down + 4:.1f}">{_number(value)}</text>')
    for value in across.ticks():
        left, _ = _place(across, up, (value, up.low))
        parts.append(
            f'<text class="tick middle" x="{left:.1f}" y="{HEIGHT - BOTTOM + 16}">{_number(value)}</text>'
        )
    parts += body
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="name middle" x="{middle:.0f}" y="{HEIGHT - 8}">{escape(across.name)}</text>')
    height = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'transform="translate(13 {height:.0f}) rotate(-90)"'
    parts.append(f'<text class="name middle" {turned}>{escape(up.name)}</text>')
    parts.append("</svg>")
    if len(names) > 1 or band:
        items = "".join(
            f'<li><i class="key s{index % SERIES}"></i>{escape(name)}</li>'
            for index, name in enumerate(names)
        )
        items += f'<li><i class="key band"></i>{escape(band)}</li>' * bool(band)
        parts.append(f'<ul class="legend">{items}</ul>')
    return "".join(parts)


def _place(across: Axis, up: Axis, point: tuple[float, float]) -> tuple[float, float]:
    left = LEFT + across.share(point[0]) * (WIDTH - LEFT - RIGHT)
    return left, HEIGHT - BOTTOM - up.share(point[1]) * (HEIGHT - TOP - BOTTOM)


def _span(values: Sequence[float], *, tight: bool = False) -> tuple[float, float]:
    """Return the ends of an axis; with a little air unless it is to be tight, and never of length 0."""
    low, high = min(values), max(values)
    if low == high:
        wide = abs(low) / 2 or 1.0
        return (low / 2, high * 2) if tight and low > 0 else (low - wide, high + wide)
    air = 0.0 if tight else 0.06 * (high - low)
    return low - air, high + air


def _round_step(step: float) -> float:
    """Return the next of 1, 2, 2.5, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * (1 - 1e-9))


def _number(value: float) -> str:
    text = f"{value:.3g}"
    if "e" in text:
        text = f"{value:.0e}" if abs(value) < 1e-3 else f"{value:,.0f}"
    return "0" if float(text.replace(",", "")) == 0 else text.replace("-", "−")
