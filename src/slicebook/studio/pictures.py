"""Slices as pictures inside a page: PNG data, so that no picture is ever a file that must be removed."""

from __future__ import annotations

import base64
import io
from html import escape

import matplotlib
import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from matplotlib.image import imsave
from torch import Tensor

from slicebook.visualization.contact_sheet import gray, tinted

MAX_DIFFERENCE = 0.5  # of [-1, 1], drawn brightest; as in the figures of a report
MAX_CHANGE = 0.6


def data_uri(pixels: UInt8[np.ndarray, "rows columns 3"]) -> str:
    """Return pixels as the address of a PNG that contains itself."""
    file = io.BytesIO()
    imsave(file, pixels, format="png")
    return png_uri(file.getvalue())


def png_uri(content: bytes) -> str:
    """Return the address of a PNG that contains itself."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def img(
    pixels: UInt8[np.ndarray, "rows columns 3"], text: str, aspect: float, *, pixelated: bool = False
) -> str:
    """Return an image element.

    Args:
        pixels: Its pixels.
        text: What it shows, for readers who cannot see it.
        aspect: Height of a pixel over its width.
        pixelated: Whether each pixel is shown with sharp edges.
    """
    rows, columns = pixels.shape[:2]
    style = f"aspect-ratio: {columns} / {rows * aspect:.4g}"
    kind = ' class="sb-sharp"' if pixelated else ""
    return f'<img{kind} src="{data_uri(pixels)}" alt="{escape(text)}" style="{style}">'


def slice_pixels(image: Float32[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Return a slice in [-1, 1] as gray pixels."""
    return gray(image)


def labelled_pixels(
    image: Float32[np.ndarray, "h w"], mask: UInt8[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Return a slice with its labels in colour."""
    return tinted(image, mask)


def difference_pixels(difference: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Return absolute differences of slices in [-1, 1], from black (none) to bright."""
    return _mapped("magma", np.abs(difference) / MAX_DIFFERENCE)


def change_pixels(change: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Return a change of slices in [-1, 1]: blue where darker, red where brighter, pale where none."""
    return _mapped("RdBu_r", change / (2 * MAX_CHANGE) + 0.5)


def _mapped(name: str, values: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    colours = matplotlib.colormaps[name](values.clip(0, 1), bytes=True)
    pixels: UInt8[np.ndarray, "h w 3"] = np.ascontiguousarray(colours[..., :3])
    return pixels


def code_colours(codes: Float[Tensor, "k d"]) -> UInt8[np.ndarray, "k 3"]:
    """Return a colour for each code of a codebook, alike for codes that are alike.

    Red, green and blue are the first three principal components of the codes.
    """
    centred = (codes - codes.mean(0)).double().cpu()
    parts = min(3, *centred.shape)
    vectors = torch.linalg.svd(centred, full_matrices=False)[2][:parts]
    largest = vectors.abs().argmax(1)  # the sign of a component is arbitrary
    vectors = vectors * vectors[torch.arange(parts), largest].sign()[:, None]
    scores = (centred @ vectors.T).numpy()
    low, high = np.percentile(scores, (2, 98), axis=0)
    unit = ((scores - low) / np.maximum(high - low, 1e-9)).clip(0, 1)
    colours = np.full((len(codes), 3), 0.5)
    colours[:, :parts] = unit
    return (30 + 215 * colours).round().astype(np.uint8)


def token_pixels(
    grid: Int64[Tensor, "rows columns"], colours: UInt8[np.ndarray, "k 3"]
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Return a token grid with one pixel per token, in the colours of `code_colours`."""
    pixels: UInt8[np.ndarray, "rows columns 3"] = colours[grid.cpu().numpy()]
    return pixels
