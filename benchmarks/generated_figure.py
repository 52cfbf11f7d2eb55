"""Draw docs/generated.png: samples of starter:generate with masks, not selected, above phantom slices.

python benchmarks/generated_figure.py
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import slicebook
from slicebook.inference.volumes import Stack
from slicebook.io.volume import Volume
from slicebook.phantom.simulator import FIRST_CASE, patient_volume
from slicebook.visualization import contact_sheet

PICTURE = Path(__file__).parent.parent / "docs" / "generated.png"
COLUMNS, SLICES = 4, 60
PHANTOM_SEED = 1_000_000  # of patients that no starter was trained on


def draw(path: Path, seed: int) -> None:
    """Draw two rows of samples, each above a row of their masks, and a row of phantom slices."""
    model = slicebook.load("starter:generate", device="cpu")
    rows, columns = model.sizes[0]
    images, masked, phantoms = [], [], []
    for sample in model.generate(2 * COLUMNS, seed=seed):
        stack = Stack.of(sample.image)
        images.append(contact_sheet.gray(stack.slices[0], stack.aspect))
        assert sample.mask is not None
        masked.append(contact_sheet.tinted(stack.slices[0], sample.mask.slices()[0], stack.aspect))
    for column in range(COLUMNS):
        case = FIRST_CASE + column
        phantom = patient_volume(case, 0, seed=PHANTOM_SEED, slices=SLICES, shape=(columns, rows))
        stack = Stack.of(Volume(phantom.image, phantom.affine, phantom.image.shape))
        middle = (2 * column + 1) * SLICES // (2 * COLUMNS)
        phantoms.append(contact_sheet.gray(stack.slices[middle], stack.aspect))
    cells = [*images[:COLUMNS], *masked[:COLUMNS], *images[COLUMNS:], *masked[COLUMNS:], *phantoms]
    contact_sheet.write_sheet(cells, path, columns=COLUMNS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first sample")
    parser.add_argument("--picture", metavar="PNG", type=Path, default=PICTURE)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    draw(options.picture, options.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
