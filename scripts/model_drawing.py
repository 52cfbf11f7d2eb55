"""Prints docs/images/model.svg: the models of the recipe `generate` with the shapes of one slice.

python scripts/model_drawing.py > docs/images/model.svg
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from slicebook.models.tokenizer import Tokenizer
from slicebook.recipes import load_recipe

SIZE = (128, 256)  # rows and columns of the slice
WIDTH, HEIGHT = 980, 640
LEFT, STEP, BOX = 40, 235, 185  # of the columns: the first one, the distance between two, and a box's width
FEATURES, TOKENS, DECODED, NOISE, UNET = 86, 196, 346, 476, 566  # vertical places of the rows
INK, QUIET, PAPER = "#1d2733", "#5b6875", "#ffffff"
ENCODER, CODES, DECODER, PRIOR = "#dbe9f6", "#f7e3c8", "#d9efdf", "#eadcf3"


def box(x: float, y: float, width: float, height: float, fill: str, *lines: str) -> Iterator[str]:
    """Yield a box with lines of text in its middle; the first is bold."""
    yield f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" stroke="{QUIET}"/>'
    top = y + height / 2 - 8 * (len(lines) - 1) + 4
    for number, line in enumerate(lines):
        weight = ' font-weight="600"' if not number else ""
        place = f'x="{x + width / 2}" y="{top + 16 * number:g}" text-anchor="middle"'
        yield f"<text {place}{weight}>{escape(line)}</text>"


def arrow(*points: tuple[float, float], dashed: bool = False) -> str:
    """Return a line through points, with a head at its end."""
    path = " L".join(f"{x:g} {y:g}" for x, y in points)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<path d="M{path}" fill="none" stroke="{INK}" stroke-width="1.5"{dash} marker-end="url(#head)"/>'


def grid(x: float, y: float, rows: int, columns: int) -> Iterator[str]:
    """Yield a token grid, 160 wide, with its cells."""
    width, height = 160.0, 160.0 * rows / columns
    yield f'<rect x="{x}" y="{y}" width="{width}" height="{height:g}" fill="{CODES}" stroke="{QUIET}"/>'
    lines = [f"M{x + width * i / columns:g} {y}v{height:g}" for i in range(1, columns)]
    lines += [f"M{x} {y + height * i / rows:g}h{width}" for i in range(1, rows)]
    yield f'<path d="{"".join(lines)}" stroke="{QUIET}" stroke-width="0.5"/>'


def note(x: float, y: float, text: str, anchor: str = "middle") -> str:
    """Return a line of quiet text."""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{QUIET}">{escape(text)}</text>'


def tokenizer_part(tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the slice, the encoders, the token grids and the decoders."""
    config = tokenizer.config
    half = DECODED + 25
    yield from box(LEFT, FEATURES, BOX, 50, PAPER, "slice", f"1×{SIZE[0]}×{SIZE[1]}, in [-1, 1]")
    yield from box(LEFT, DECODED, BOX, 50, PAPER, "reconstruction", f"1×{SIZE[0]}×{SIZE[1]}")
    for level, (rows, columns) in enumerate(tokenizer.grids(SIZE)):
        x = LEFT + STEP * (level + 1)
        middle = x + BOX / 2
        rate, shape = config.scaling_rates[level], f"{config.width}×{rows}×{columns}"
        yield from box(x, FEATURES, BOX, 50, ENCODER, f"encoder of level {level}", f"÷{rate} → {shape}")
        yield arrow((x - STEP + BOX, FEATURES + 25), (x - 2, FEATURES + 25))
        yield from grid(x + 12.5, TOKENS, rows, columns)
        yield arrow((middle, FEATURES + 50), (middle, TOKENS - 2))
        yield note(middle + 8, TOKENS - 26, "quantizer", "start")
        yield note(middle, TOKENS + 98, f"{rows}×{columns} tokens")
        yield note(middle, TOKENS + 114, f"{config.codebook_sizes[level]} codes of {config.code_dim} numbers")
        yield from box(x, DECODED, BOX, 50, DECODER, f"decoder of level {level}", f"{shape} → ×{rate}")
        yield arrow((middle, TOKENS + 120), (middle, DECODED - 2))
        yield arrow((x - 2, half), (x - STEP + BOX, half))
        if level:
            edge = x - 14  # what is decoded from the coarser levels also enters the quantizer
            yield arrow((edge, half), (edge, TOKENS + 40), (x - STEP + 176, TOKENS + 40), dashed=True)


def prior_part(tokenizer: Tokenizer, masks: Tokenizer) -> Iterator[str]:
    """Yield the prior: noise in the shape of all grids, and the U-Net."""
    names = [("mask", masks.grids(SIZE)[0])]
    names += [(f"image {level}", shape) for level, shape in enumerate(tokenizer.grids(SIZE))]
    dims = [masks.config.code_dim, *[tokenizer.config.code_dim] * tokenizer.levels]
    for place, ((name, (rows, columns)), dim) in enumerate(zip(names, dims, strict=True)):
        x = LEFT + STEP * place
        yield from box(x, NOISE, BOX, 44, PRIOR, f"noise, {name}", f"{dim}×{rows}×{columns}")
        yield arrow((x + BOX / 2, NOISE + 44), (x + BOX / 2, UNET - 2))
    text = "its codes replace the noise in steps; the last step gives the tokens of all grids"
    yield from box(
        LEFT, UNET, 3 * STEP + BOX, 46, PRIOR, "U-Net over all grids, with position, class and time", text
    )


def svg() -> str:
    """Return what docs/images/model.svg must hold."""
    recipe = load_recipe("generate")
    tokenizer = Tokenizer(recipe.tokenizer)
    masks = Tokenizer(recipe.for_labels(range(6)).tokenizer)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'font-family="system-ui, sans-serif" font-size="13">',
        "<title>The tokenizer and the prior of the recipe generate, with shapes</title>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="{PAPER}"/><g fill="{INK}">',
        f'<text x="{LEFT}" y="40" font-size="16" font-weight="600">Tokenizer</text>',
        note(LEFT + 100, 40, "channels×rows×columns; dashed: what is decoded from coarser levels", "start"),
        *tokenizer_part(tokenizer),
        f'<text x="{LEFT}" y="{NOISE - 22}" font-size="16" font-weight="600">Prior</text>',
        note(
            LEFT + 100,
            NOISE - 22,
            "generates tokens, which the decoders turn into a new slice and its mask",
            "start",
        ),
        *prior_part(tokenizer, masks),
        "</g></svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(svg(), end="")
