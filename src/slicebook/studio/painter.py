"""The brush: its HTML, and the mask that it sends back."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from html import escape

import numpy as np
from jaxtyping import Float32, UInt8

from slicebook.errors import DataError
from slicebook.studio import pictures


def painter(
    name: str,
    image: Float32[np.ndarray, "h w"],
    aspect: float,
    *,
    labels: Sequence[int] = (),
    mask: UInt8[np.ndarray, "h w"] | None = None,
) -> str:
    """Return a slice with a brush as HTML, which the script of the page brings to life.

    Args:
        name: By which the script finds its mask again.
        image: Slice in [-1, 1] below the brush.
        aspect: Distance between rows over that between columns.
        labels: Labels to choose from; a region of one kind where there are none.
        mask: What is painted at first.
    """
    rows, columns = image.shape
    shown = pictures.img(pictures.slice_pixels(image), "Slice to paint on", aspect)
    choices = "".join(f'<option value="{value}">Label {value}</option>' for value in labels)
    select = f"<label>Label <select>{choices}</select></label>" if labels else ""
    start = "" if mask is None else base64.b64encode(np.ascontiguousarray(mask).tobytes()).decode()
    return (
        f'<div class="sb-painter" data-name="{escape(name)}" data-rows="{rows}" data-columns="{columns}" '
        f'data-aspect="{aspect:.4g}" data-mask="{start}" style="--ratio: {columns / (rows * aspect):.4f}">'
        '<div class="sb-canvas" tabindex="0" role="application" aria-roledescription="brush" '
        'aria-label="Brush. Arrow keys move it, Space paints.">'
        f"{shown}<canvas></canvas></div>"
        f'<div class="sb-tools">{select}'
        '<button type="button" data-tool="brush" aria-pressed="true">Brush</button>'
        '<button type="button" data-tool="erase" aria-pressed="false">Erase</button>'
        '<label>Size <input type="range" name="size" min="1" max="64" value="8"></label>'
        '<button type="button" data-tool="undo">Undo</button>'
        '<button type="button" data-tool="clear">Clear</button>'
        '<output role="status">Nothing painted</output></div>'
        '<p class="sb-hint">Paint with the mouse, a pen or a finger; or select the image with Tab, move the '
        "brush with the arrow keys and paint with Space.</p></div>"
    )


def script(name: str, others: int) -> str:
    """Return what the page runs before it sends inputs: the first becomes the mask of a painter.

    Args:
        name: Of the painter.
        others: Number of the inputs after it.
    """
    names = [f"v{index}" for index in range(others)]
    return f"(_, {', '.join(names)}) => [window.slicebookMask('{name}'), {', '.join(names)}]"


def mask_of(sent: str | None, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """Return the mask that a page sent.

    Raises:
        DataError: Nothing is painted, or the mask is not of this size.
    """
    try:
        content = base64.b64decode(sent or "", validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError("the mask is damaged; reload the page") from error
    if not content.strip(b"\0"):
        raise DataError("Nothing is painted yet: mark a region with the brush first.")
    if len(content) != size[0] * size[1]:
        raise DataError("the mask belongs to another slice; paint it again")
    return np.frombuffer(content, dtype=np.uint8).reshape(size)
