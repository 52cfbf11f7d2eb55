"""What tests of token file and others share."""

import nibabel as nib
import numpy as np
import pytest

from slicebook.io.tokens import TokenFile


def tokens_of(**changes):
    """Tokens of two slices of 8×12 pixels, at two levels."""
    draw = np.random.default_rng(0)
    fields = {
        "tokens": (
            draw.integers(0, 9, (2, 4, 6)).astype(np.uint16),
            draw.integers(0, 9, (2, 2, 3)).astype(np.uint16),
        ),
        "size": (8, 12),
        "codebook_hash": "c0de",
        "low": -1.5,
        "high": 99.25,
        "axes": (2, 1, 0),
        "flips": (False, True, True),
        "affine": np.diag([0.5, 0.5, 3.0, 1.0]) + 1e-17,
        "shape_on_disk": (12, 8, 2),
        "geometry": nib.Nifti1Header(endianness="<").binaryblock,
    }
    return TokenFile(**(fields | changes))


@pytest.fixture
def path(tmp_path):
    tokens_of().write(tmp_path / "a.npz")
    return tmp_path / "a.npz"


def rewritten(path, **changes):
    """Write the file anew with some of its arrays changed; None leaves one out."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
