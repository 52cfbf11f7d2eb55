"""The pictures of docs/course.md: reconstructions side by side, levels, and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image
from torch import Tensor

from slicebook.io.atomic import replacing
from slicebook.models.tokenizer import Tokenizer
from slicebook.visualization import figures

SHOWN = 18  # which test slice: the middle of the second patient
CELL = 1.9  # inches
BACKGROUND, TEXT = "#111418", "#e8e8e8"

Pairs = Sequence[tuple[Tensor, Tensor]]
"""Each test slice and its reconstruction."""


def _canvas(rows: int, columns: int, first: Tensor) -> tuple[Figure, np.ndarray]:
    height = CELL * first.shape[0] / first.shape[1]
    size = (columns * CELL, rows * height + 0.25)
    gaps = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    figure = Figure(figsize=size, dpi=120, facecolor=BACKGROUND, layout=gaps)
    cells = figure.subplots(rows, columns, squeeze=False)
    for cell in cells.flat:
        cell.set_axis_off()
    return figure, cells


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as partial:
        figure.savefig(partial, format="png", facecolor=BACKGROUND)
    shrink(path)


def shrink(path: Path) -> None:
    """Rewrite a PNG with a palette of 256 colours, which takes a third of the space."""
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(256)
    with replacing(path) as partial:
        small.save(partial, format="PNG", optimize=True)


def draw_group(columns: Sequence[tuple[str, Pairs]], path: Path) -> None:
    """Draw one test slice, its reconstructions by several models, and below them the differences."""
    original = columns[0][1][SHOWN % len(columns[0][1])][0]
    figure, cells = _canvas(2, len(columns) + 1, original)
    cells[0][0].imshow(original.numpy(), cmap="gray", vmin=-1, vmax=1)
    cells[0][0].set_title("original", color=TEXT, fontsize=8)
    for (above, below), (title, drawn) in zip(cells.T[1:], columns, strict=True):
        given, copy = drawn[SHOWN % len(drawn)]
        above.imshow(copy.numpy(), cmap="gray", vmin=-1, vmax=1)
        above.set_title(title, color=TEXT, fontsize=8)
        below.imshow((copy - given).abs().numpy(), cmap="magma", vmin=0, vmax=0.5)
    _save(figure, path)


@torch.no_grad()
def draw_levels(model: Tokenizer, drawn: Pairs, folder: Path) -> None:
    """Draw one test slice decoded from ever more levels."""
    image = drawn[SHOWN % len(drawn)][0]
    grids = model.encode(image[None, None])
    size = (image.shape[0], image.shape[1])
    partial = [[model.decode(grids, size, levels=count)[0, 0]] for count in range(1, model.levels + 1)]
    path = folder / "course-decoded.png"
    figures.levels([image], partial, path)
    shrink(path)


@torch.no_grad()
def draw_tokens(model: Tokenizer, drawn: Pairs, folder: Path) -> None:
    """Draw the tokens of one test slice, level by level; codes that are alike have colours that are alike."""
    image = drawn[SHOWN % len(drawn)][0]
    grids = model.encode(image[None, None])
    figure, cells = _canvas(1, model.levels + 1, image)
    cells[0][0].imshow(image.numpy(), cmap="gray", vmin=-1, vmax=1)
    cells[0][0].set_title("original", color=TEXT, fontsize=8)
    for level, cell in zip(reversed(range(model.levels)), cells[0][1:], strict=True):
        codes = model.codebook(level).codes.detach()
        axes = torch.linalg.svd(codes - codes.mean(0), full_matrices=False)[2][:3]
        position = (
            codes - codes.mean(0)
        ) @ axes.T  # the first three principal components as red, green, blue
        colours = position.argsort(0).argsort(0) / max(1, len(codes) - 1)
        grid = grids[level][0]
        cell.imshow(colours[grid].numpy(), interpolation="nearest", aspect="equal")
        cell.set_title(f"level {level}: {grid.shape[0]}×{grid.shape[1]} tokens", color=TEXT, fontsize=8)
    _save(figure, folder / "course-tokens.png")
