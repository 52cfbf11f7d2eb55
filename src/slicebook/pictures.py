"""Pictures to look at before believing a number: batches, pairs, what each level adds, curves.

Every slice comes as the dataset and the tokenizer hand it out: display orientation, values in [-1, 1].
`aspect` is a pixel's height over its width (row_mm / col_mm), so that a pelvis keeps its shape. Figures are
built on matplotlib's objects, with no global state and no display.
"""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.layout_engine import ConstrainedLayoutEngine
from scipy.ndimage import zoom
from torch import Tensor

from slicebook.atomic import replacing
from slicebook.errors import DataError, ShapeError

Slice = Float[np.ndarray, "_ _"] | Float[Tensor, "_ _"]  # shapes may differ from slice to slice

_BACKGROUND = "#17191d"
_TEXT = "#d9dce1"
_QUIET = "#8b919b"
_COLOURS = ("#7fb4e6", "#e6a96b", "#8fcf9b", "#d48fc4", "#c9c27a")  # apart also for the colour-blind
_CHANGE = LinearSegmentedColormap.from_list("change", ["#8cc8ff", "#2f6ea5", "#0b0c0e", "#b06a26", "#ffc98a"])
_DPI = 110
_CELL = 2.2  # inches of the longer side of one image


def batch(images: Float[Tensor, "b 1 h w"], path: Path, *, aspect: float = 1.0, caption: str = "") -> None:
    """Draw up to 16 slices of a batch as the model sees them, after augmentation."""
    shown = [image[0] for image in images[:16]]
    caption = caption or f"{len(shown)} of {len(images)} slices of a training batch, after augmentation"
    grid(shown, path, aspect=aspect, caption=caption)


def grid(
    images: Sequence[Slice],
    path: Path,
    *,
    titles: Sequence[str] = (),
    columns: int | None = None,
    aspect: float | Sequence[float] = 1.0,
    caption: str = "",
) -> None:
    """Draw slices row by row, each with its title.

    Args:
        images: Slices in [-1, 1]; they may differ in shape.
        path: Where the PNG goes.
        titles: One a slice, or none.
        columns: Images in a row; without it, about as many as rows.
        aspect: A pixel's height over its width, for all slices or one each.
        caption: What the reader sees, in a sentence under the pictures.

    Raises:
        ShapeError: There is nothing to draw, or titles or aspects do not match the slices.
    """
    if not images:
        raise ShapeError(f"{path}: got no slice to draw, wanted at least one")
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = [list(range(start, min(start + columns, len(images)))) for start in range(0, len(images), columns)]
    ratios = _for_each(aspect, len(images))
    names = _labels(titles, "", len(images), path)
    figure, axes = _canvas(
        len(rows), columns, _height_over_width(images[0], ratios[0]), caption, bool(titles)
    )
    for row, members in enumerate(rows):
        for column, index in enumerate(members):
            _show(axes[row][column], images[index], names[index], ratios[index])
    _save(figure, path)


def pairs(
    originals: Sequence[Slice],
    reconstructions: Sequence[Slice],
    path: Path,
    *,
    names: Sequence[str] = (),
    titles: Sequence[str] = (),
    aspect: float | Sequence[float] = 1.0,
    caption: str = "",
) -> None:
    """Draw each original beside its reconstruction and their absolute difference, a pair a row.

    The difference is drawn from 0 (dark) to a quarter of the intensity range (bright) in every row, so
    that rows can be compared. `names` stand over the originals, `titles` over the reconstructions.

    Raises:
        ShapeError: There is nothing to draw, or the numbers of slices, names, titles and aspects differ.
    """
    if not originals or len(originals) != len(reconstructions):
        raise ShapeError(
            f"{path}: got {len(originals)} originals and {len(reconstructions)} reconstructions, "
            "wanted as many of each, and at least one"
        )
    ratios = _for_each(aspect, len(originals))
    names = _labels(names, "original", len(originals), path)
    titles = _labels(titles, "reconstruction", len(originals), path)
    figure, axes = _canvas(len(originals), 3, _height_over_width(originals[0], ratios[0]), caption, True)
    for row, (original, copy) in enumerate(zip(originals, reconstructions, strict=True)):
        difference = np.abs(_array(copy) - _array(original))
        _show(axes[row][0], original, names[row], ratios[row])
        _show(axes[row][1], copy, titles[row], ratios[row])
        _show(axes[row][2], difference, "difference", ratios[row], colours="magma", span=(0.0, 0.5))
    _save(figure, path)


def pair(original: Slice, reconstruction: Slice, path: Path, *, aspect: float = 1.0) -> None:
    """Write original | reconstruction as pixels, without text: one PNG a slice, quickly.

    `aspect` is the height of a pixel over its width; rows are resampled so that the patient keeps his shape.
    """
    left, right = _array(original), _array(reconstruction)
    gap = np.full((left.shape[0], 2), -1.0, dtype=np.float32)
    joined = np.concatenate([left, gap, right], axis=1)
    rows = max(1, round(joined.shape[0] * aspect))
    if rows != joined.shape[0]:
        joined = zoom(joined, (rows / joined.shape[0], 1), order=1, grid_mode=True, mode="nearest")
    path.parent.mkdir(parents=True, exist_ok=True)
    imsave(path, joined, cmap="gray", vmin=-1, vmax=1)


def levels(
    originals: Sequence[Slice],
    partials: Sequence[Sequence[Slice]],
    path: Path,
    *,
    names: Sequence[str] = (),
    aspect: float | Sequence[float] = 1.0,
    first: str = "original",
    caption: str = "",
) -> None:
    """Draw what each level adds: decodings from ever more levels, and under each its change.

    Change is drawn from blue (darker) over black (none) to orange (brighter); the coarsest level's is against
    its own mean.

    Args:
        originals: Slices in [-1, 1].
        partials: One list a number of levels, the coarsest alone first; in it one slice an original.
        path: Where the PNG goes.
        names: One a decoding, such as "level 2 alone"; counted from the coarsest where not given.
        aspect: A pixel's height over its width, for all slices or one each.
        first: Title of the first column.
        caption: What the reader sees.

    Raises:
        ShapeError: There is nothing to draw, or a decoding lacks a slice or a name.
    """
    if not originals or not partials or any(len(decoded) != len(originals) for decoded in partials):
        raise ShapeError(
            f"{path}: got {[len(decoded) for decoded in partials]} decoded slices for {len(originals)} "
            "originals, wanted as many in each"
        )
    count = len(partials)
    counted = [f"level {count - 1}", *(f"+ level {level}" for level in reversed(range(count - 1)))]
    names = _labels(names or counted, "", count, path)
    ratios = _for_each(aspect, len(originals))
    figure, axes = _canvas(
        2 * len(originals), count + 1, _height_over_width(originals[0], ratios[0]), caption, titled=True
    )
    for row, (original, ratio) in enumerate(zip(originals, ratios, strict=True)):
        above, below = axes[2 * row], axes[2 * row + 1]
        _show(above[0], original, first, ratio)
        before = np.full(_array(original).shape, _array(partials[0][row]).mean())
        for column, (decoded, name) in enumerate(zip(partials, names, strict=True), start=1):
            after = _array(decoded[row])
            _show(above[column], after, name, ratio)
            _show(below[column], after - before, "what it adds", ratio, colours=_CHANGE, span=(-0.6, 0.6))
            before = after
    _save(figure, path)


_Panels: TypeAlias = tuple[tuple[str, tuple[str, ...], float], ...]
_PANELS: _Panels = (
    ("Loss", ("train_loss", "validation_loss"), 1.0),
    ("SSIM or Dice", ("train_ssim", "train_dice", "validation_ssim", "validation_dice"), 1.0),
    ("Codes in use, %", ("usage_",), 100.0),
    ("Perplexity", ("perplexity_",), 1.0),
)
_PRIOR_PANELS: _Panels = (
    ("Loss", ("train_loss",), 1.0),
    ("Bits a pixel, validation", ("validation_bits_per_pixel",), 1.0),
    ("Nats a token, training", ("train_nats_",), 1.0),
    ("Nats a token, validation", ("validation_nats_",), 1.0),
)

_DECODER_PANELS: _Panels = (
    ("Fidelity (a loss)", ("train_fidelity", "validation_fidelity"), 1.0),
    ("SSIM", ("train_ssim", "validation_ssim"), 1.0),
    ("Sharpness, 1 is real", ("train_sharpness", "validation_sharpness"), 1.0),
    ("Discriminator's loss, 2 is undecided", ("train_discriminator",), 1.0),
)


def curves(metrics_csv: Path, path: Path) -> None:
    """Draw a run's `metrics.csv` over the steps: a tokenizer's scores and codes, a prior's nats.

    Reads the columns `step`, `{train,validation}_{loss,ssim,dice}`, `usage_<level>` and `perplexity_<level>`,
    `{train,validation}_nats_<stage>` and `validation_bits_per_pixel`, or, of a decoder,
    `{train,validation}_{fidelity,ssim,sharpness}` and `train_discriminator`; an empty cell is a step where
    that number was not measured.

    Raises:
        DataError: The file has no row, or no column of steps.
    """
    with Path(metrics_csv).open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns, rows = list(reader.fieldnames or ()), list(reader)
    if "step" not in columns or not rows:
        raise DataError(f"{metrics_csv}: no rows with a column `step`; train at least one epoch first")
    panels = _PANELS
    if "validation_likelihood" in columns:
        panels = _PRIOR_PANELS
    elif "train_discriminator" in columns:
        panels = _DECODER_PANELS
    room = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(10, 6.4), dpi=_DPI, facecolor=_BACKGROUND, layout=room)
    for axes, (title, prefixes, scale) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        drawn = [name for name in columns if name.startswith(prefixes)]
        _plot(axes, title, {name: _series(rows, name, scale) for name in drawn})
        if title.endswith("%"):
            axes.set_ylim(0, 105)
        elif title == "Perplexity":
            axes.set_ylim(bottom=0)
    figure.supxlabel("training step", color=_QUIET, fontsize=9)
    _save(figure, path)


def _series(rows: list[dict[str, str]], column: str, scale: float) -> tuple[list[float], list[float]]:
    measured = [row for row in rows if row.get(column)]
    return [float(row["step"]) for row in measured], [scale * float(row[column]) for row in measured]


def _plot(axes: Axes, title: str, series: dict[str, tuple[list[float], list[float]]]) -> None:
    axes.set_facecolor(_BACKGROUND)
    axes.set_title(title, color=_TEXT, fontsize=11, loc="left")
    axes.grid(axis="y", color="#2b2f36", linewidth=0.8)
    axes.spines[:].set_visible(False)
    axes.tick_params(colors=_QUIET, labelsize=8, length=0)
    for (name, (steps, values)), colour in zip(series.items(), _COLOURS * len(series), strict=False):
        prefix, _, level = name.rpartition("_")
        label = f"level {level}" if level.isdigit() else prefix
        if name.endswith("bits_per_pixel"):
            label = "validation"
        elif "_nats_" in name:
            label = name.partition("_nats_")[2].replace("_", " ")
        marker = "o" if len(steps) < 12 else ""  # a single epoch is a dot, not an invisible line
        axes.plot(steps, values, color=colour, linewidth=1.6, label=label, marker=marker, markersize=3)
    if series:
        axes.legend(frameon=False, labelcolor=_TEXT, fontsize=8)


def _canvas(
    rows: int, columns: int, height_over_width: float, caption: str, titled: bool
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure of rows × columns cells of one shape, with room for titles and a caption."""
    width = _CELL / max(1.0, height_over_width)
    height = width * height_over_width + (0.24 if titled else 0.06)
    total_width = columns * (width + 0.06) + 0.1
    lines = _wrap(caption, columns * width)
    foot = 0.1 + 0.17 * len(lines)
    total_height = rows * height + foot + 0.05
    figure = Figure(figsize=(total_width, total_height), dpi=_DPI, facecolor=_BACKGROUND)
    if lines:
        where = (0.08 / total_width, 0.08 / total_height)
        figure.text(*where, "\n".join(lines), color=_QUIET, fontsize=8, va="bottom")
    axes = []
    for row in range(rows):
        bottom = total_height - 0.05 - (row + 1) * height
        places = [(0.08 + column * (width + 0.06), bottom) for column in range(columns)]
        sides = (width / total_width, width * height_over_width / total_height)
        axes.append([figure.add_axes((x / total_width, y / total_height, *sides)) for x, y in places])
        for place in axes[-1]:
            place.set_axis_off()
    return figure, axes


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
    if title:
        axes.set_title(title, color=_TEXT, fontsize=8, pad=3, loc="left")


def _wrap(caption: str, inches: float) -> list[str]:
    """Break the caption into lines of at most `inches`, at 8 points."""
    lines: list[str] = []
    for word in caption.split():
        if lines and len(lines[-1]) + 1 + len(word) <= inches * 16:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _array(image: Slice) -> Float[np.ndarray, "h w"]:
    return image.detach().float().cpu().numpy() if isinstance(image, Tensor) else image


def _height_over_width(image: Slice, aspect: float) -> float:
    rows, columns = image.shape
    return float(aspect * rows / columns)


def _labels(given: Sequence[str], default: str, count: int, path: Path) -> Sequence[str]:
    if given and len(given) != count:
        raise ShapeError(f"{path}: got {len(given)} titles for {count} pictures, wanted one each")
    return given or [default] * count


def _for_each(aspect: float | Sequence[float], count: int) -> list[float]:
    ratios = (
        [float(aspect)] * count if isinstance(aspect, int | float) else [float(ratio) for ratio in aspect]
    )
    if len(ratios) != count:
        raise ShapeError(f"got {len(ratios)} aspects for {count} slices, wanted one or as many")
    return ratios


def _save(figure: Figure, path: Path) -> None:
    """Write the PNG whole or not at all."""
    with replacing(path) as partial:
        figure.savefig(partial, format="png", facecolor=figure.get_facecolor())
