"""Figures: batches, pairs and levels of slices as PNG; charts as PNG, or as SVG for a page.

Slices are in display orientation with values in [-1, 1]. `aspect` is the height of a pixel over its width
(row_mm / column_mm). Figures are built on matplotlib's objects, with no global state and no display.
"""

import csv
import io
import itertools
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from torch import Tensor

from slicebook.errors import DataError
from slicebook.io.atomic import replacing

Slice = Float[np.ndarray, "_ _"] | Float[Tensor, "_ _"]  # shapes may differ from slice to slice
Points: TypeAlias = Sequence[tuple[float, float]]

_BACKGROUND, _GRID, _TEXT, _QUIET = "#17191d", "#2b2f36", "#d9dce1", "#8b919b"
_COLOURS = ("#7fb4e6", "#e6a96b", "#8fcf9b", "#d48fc4", "#c9c27a")  # safe for colour-blind readers
# In SVG each colour is a CSS variable of the page, so that a chart follows light, dark and print.
_VARIABLES = {_TEXT: "--ink", _QUIET: "--quiet", _GRID: "--line"} | {
    colour: f"--s{index}" for index, colour in enumerate(_COLOURS)
}
_CHANGE = LinearSegmentedColormap.from_list("change", ["#8cc8ff", "#2f6ea5", "#0b0c0e", "#b06a26", "#ffc98a"])
_SVG_STYLE: dict[Any, Any] = {"svg.fonttype": "none", "text.parse_math": False, "axes.labelcolor": _TEXT} | {
    "font.size": 9, "font.sans-serif": "DejaVu Sans", "legend.columnspacing": 1.2, "legend.handlelength": 1.4,
}  # fmt: skip
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_DPI, _CELL = 110, 2.2  # the latter: inches of the longer side of one slice
_MAX_BATCH = 16
_MAX_MARKED = 12  # points: a shorter line has a marker at each, so that a single point is visible


def batch(images: Float[Tensor, "b 1 h w"], path: Path, *, aspect: float = 1.0) -> None:
    """Draw up to 16 slices of a training batch, after augmentation."""
    shown = [image[0] for image in images[:_MAX_BATCH]]
    columns = math.ceil(math.sqrt(len(shown)))
    caption = f"{len(shown)} of {len(images)} slices of a training batch, after augmentation"
    figure, axes = _canvas(math.ceil(len(shown) / columns), columns, shown[0], aspect, caption)
    for cell, image in zip(itertools.chain(*axes), shown, strict=False):
        _show(cell, image, "", aspect)
    _save(figure, path)


def pairs(
    originals: Sequence[Slice],
    copies: Sequence[Slice],
    path: Path,
    *,
    names: Sequence[str],
    titles: Sequence[str],
    aspect: Sequence[float],
    caption: str,
) -> None:
    """Draw each original beside its copy and their absolute difference, one pair per row.

    The difference is drawn from 0 (dark) to a quarter of the intensity range (bright) in every row, so
    that rows can be compared. `names` stand over the originals, `titles` over the copies.
    There is one of each slice, name, title and aspect.
    """
    figure, axes = _canvas(len(originals), 3, originals[0], aspect[0], caption)
    rows = zip(axes, originals, copies, names, titles, aspect, strict=True)
    for (left, middle, right), original, copy, name, title, ratio in rows:
        _show(left, original, name, ratio)
        _show(middle, copy, title, ratio)
        difference = np.abs(_array(copy) - _array(original))
        _show(right, difference, "difference", ratio, colours="magma", span=(0.0, 0.5))
    _save(figure, path)


def levels(
    originals: Sequence[Slice],
    partials: Sequence[Sequence[Slice]],
    path: Path,
    *,
    aspect: float | Sequence[float] = 1.0,
    first: str = "original",
    caption: str = "",
) -> None:
    """Draw decodings from ever more levels, and under each what its level changes.

    `partials` has a list per number of levels, the coarsest level alone first, with a slice per original.
    `first` is the title of the first column. The change is blue (darker), black (none) or orange (brighter);
    that of the coarsest level is relative to its own mean.
    """
    count, ratios = len(partials), np.broadcast_to(aspect, len(originals)).tolist()
    names = [f"level {count - 1}", *(f"+ level {level}" for level in reversed(range(count - 1)))]
    figure, axes = _canvas(2 * len(originals), count + 1, originals[0], ratios[0], caption)
    rows = zip(axes[::2], axes[1::2], originals, ratios, zip(*partials, strict=True), strict=True)
    for above, below, original, ratio, decodings in rows:
        _show(above[0], original, first, ratio)
        before = np.full(_array(original).shape, _array(decodings[0]).mean())
        for column, (decoded, name) in enumerate(zip(decodings, names, strict=True), start=1):
            after = _array(decoded)
            _show(above[column], after, name, ratio)
            _show(below[column], after - before, "change", ratio, colours=_CHANGE, span=(-0.6, 0.6))
            before = after
    _save(figure, path)


_Panels: TypeAlias = tuple[tuple[str, tuple[str, ...]], ...]
_PANELS: _Panels = (
    ("Loss", ("train_loss", "validation_loss")),
    ("SSIM or Dice", ("train_ssim", "train_dice", "validation_ssim", "validation_dice")),
    ("Codes in use, %", ("usage_",)),
    ("Perplexity", ("perplexity_",)),
)
_PRIOR_PANELS: _Panels = (
    ("Loss", ("train_loss",)),
    ("Nats per token, training", ("train_nats_",)),
    ("Nats per token, validation", ("validation_nats_",)),
    ("Log score, validation", ("validation_log_score",)),
)
_DECODER_PANELS: _Panels = (
    ("Loss", ("train_loss", "validation_loss")),
    ("Explained share of the velocity's variance", ("validation_explained",)),
)


def curves(metrics_csv: Path, path: Path) -> None:
    """Draw the `metrics.csv` of a run over its training steps.

    The panels name the columns they read; an empty cell is a step where a number was not measured.

    Raises:
        DataError: The file has no row, or no column of steps.
    """
    with Path(metrics_csv).open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns, rows = list(reader.fieldnames or ()), list(reader)
    if "step" not in columns or not rows:
        raise DataError(f"{metrics_csv}: no rows with a column `step`; train at least one epoch first")
    panels = _DECODER_PANELS if "validation_explained" in columns else _PANELS
    panels = _PRIOR_PANELS if "validation_log_score" in columns else panels
    rows_of_panels = len(panels) // 2
    size = (10, 3.2 * rows_of_panels)
    figure = Figure(figsize=size, dpi=_DPI, facecolor=_BACKGROUND, layout="constrained")
    for axes, (title, prefixes) in zip(figure.subplots(rows_of_panels, 2).flat, panels, strict=True):
        axes.set_title(title, color=_TEXT, fontsize=11, loc="left")
        scale = 100.0 if title.endswith("%") else 1.0
        series = {
            name: [(float(row["step"]), scale * float(row[name])) for row in rows if row[name]]
            for name in columns
            if name.startswith(prefixes)
        }
        _plot(axes, series, [_label(name) for name in series])
        axes.legend(frameon=False, labelcolor=_TEXT, fontsize=8)
        if title.endswith("%"):
            axes.set_ylim(0, 105)
        elif title == "Perplexity":
            axes.set_ylim(bottom=0)
    figure.supxlabel("training step", color=_QUIET, fontsize=9)
    _save(figure, path)


def _label(column: str) -> str:
    """Return the legend of a column of metrics.csv: its level, its stage, or its split."""
    split, _, level = column.rpartition("_")
    stage = column.partition("_nats_")[2].replace("_", " ")
    return f"level {level}" if level.isdigit() else stage or split.partition("_")[0]


def line_chart(
    series: Mapping[str, Points],
    *,
    x: str,
    y: str,
    title: str,
    log_x: bool = False,
    band: tuple[str, Points, Points] | None = None,
) -> str:
    """Draw lines as an SVG element for a page that defines the CSS variables --ink, --quiet, --line, --s0….

    The same input gives the same text. Ids are unique to a title, so that a page can have many charts.

    Args:
        series: At least one point by the name in the legend.
        x: Label of the x-axis, with its unit.
        y: Label of the y-axis, with its unit.
        title: What the chart shows, for readers who cannot see it.
        log_x: Whether x is logarithmic; then every x is above 0.
        band: A range behind the lines: its name in the legend, its lower and its upper edge.
    """
    with matplotlib.rc_context({**_SVG_STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(4.4, 2.7), layout="constrained")
        axes = figure.subplots()
        _plot(axes, series, list(series))
        if band:
            positions, low = zip(*band[1], strict=True)
            high = [value for _, value in band[2]]
            axes.fill_between(positions, low, high, color=_COLOURS[1], alpha=0.25, linewidth=0, label=band[0])
        axes.set(xlabel=x, ylabel=y)
        if log_x:
            axes.set_xscale("log")
            left, right = axes.get_xlim()
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if right > 5 * left else MaxNLocator(5))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        elif all(float(position).is_integer() for points in series.values() for position, _ in points):
            axes.locator_params(axis="x", integer=True)
        if len(series) > 1 or band:
            axes.legend(
                loc="lower left", bbox_to_anchor=(-0.1, 1.0), ncols=3, labelcolor=_TEXT, frameon=False
            )
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata=_NO_METADATA)
    names = ", ".join([*series, band[0]] if band else series)
    return _for_page(text.getvalue(), title, f"Lines: {names}. x: {x}. y: {y}.")


def _for_page(svg: str, title: str, description: str) -> str:
    """Return matplotlib's SVG as an element of a page: named, in the colours of the page, of any width."""
    svg = svg[svg.index("<svg") :]
    # A style element would apply to the whole page, and several charts would have the same ids.
    svg = re.sub(r"(?s)\s*<defs>\s*<(style|clipPath).*?</defs>", "", svg)
    svg = re.sub(r' (clip-path="[^"]*"|id="[\w.]+_\d+"|(width|height)="[\d.]+pt")', "", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    head = f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
    return svg.replace("<svg", '<svg class="chart" role="img"', 1).replace(">", f">{head}", 1).strip()


def _plot(axes: Axes, series: Mapping[str, Points], labels: Sequence[str]) -> None:
    """Draw lines in the style of all charts."""
    axes.set_facecolor(_BACKGROUND)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", colors=_QUIET, labelsize=8, length=0)
    for points, label, colour in zip(series.values(), labels, itertools.cycle(_COLOURS), strict=False):
        marker = "o" if len(points) < _MAX_MARKED else ""
        positions, values = [position for position, _ in points], [value for _, value in points]
        axes.plot(positions, values, color=colour, linewidth=1.6, label=label, marker=marker, markersize=3)


def _canvas(
    rows: int, columns: int, first: Slice, aspect: float, caption: str
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure of cells in the shape of one slice, with room for titles and a caption."""
    height_over_width = aspect * first.shape[0] / first.shape[1]
    width = _CELL / max(1.0, height_over_width)
    height = width * height_over_width + 0.24
    total_width = columns * (width + 0.06) + 0.1
    letters = max(1, int(columns * width * 16))  # of 8 points, about a sixteenth of an inch each
    lines = textwrap.wrap(caption, letters, break_long_words=False)
    foot = 0.1 + 0.17 * len(lines)
    total_height = rows * height + foot + 0.05
    figure = Figure(figsize=(total_width, total_height), dpi=_DPI, facecolor=_BACKGROUND)
    where = (0.08 / total_width, 0.08 / total_height)
    figure.text(*where, "\n".join(lines), color=_QUIET, fontsize=8, va="bottom")
    figure.subplots_adjust(where[0], foot / total_height, 1 - where[0], 1 - 0.29 / total_height)
    figure.subplots_adjust(wspace=0.06 / width, hspace=0.24 / (height - 0.24))
    axes = figure.subplots(rows, columns, squeeze=False)
    for cell in axes.flat:
        cell.set_axis_off()
    return figure, axes.tolist()


def _show(
    axes: Axes,
    image: Slice,
    title: str,
    aspect: float,
    *,
    colours: str | Colormap = "gray",
    span: tuple[float, float] = (-1.0, 1.0),
) -> None:
    axes.imshow(
        _array(image), cmap=colours, vmin=span[0], vmax=span[1], aspect=aspect, interpolation="nearest"
    )
    axes.set_title(title, color=_TEXT, fontsize=8, pad=3, loc="left")


def _array(image: Slice) -> Float[np.ndarray, "h w"]:
    return image.detach().float().cpu().numpy() if isinstance(image, Tensor) else image


def _save(figure: Figure, path: Path) -> None:
    """Write the PNG whole or not at all."""
    with replacing(path) as partial:
        figure.savefig(partial, format="png", facecolor=figure.get_facecolor())
