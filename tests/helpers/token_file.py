"""What tests of token file and others share."""

import nibabel as nib
import numpy as np
import torch

from slicebook.io.tensors import hash_tensors, read_tensors, write_tensors
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


def rewritten(path, **changes):
    """Write the file again with some of its tensors or settings changed; None leaves one out.

    The hashes are made to fit, so that only the change itself can be refused.
    """
    tensors, info = read_tensors(path)
    for name, value in changes.items():
        content = tensors if isinstance(value, torch.Tensor) or name in tensors else info
        content[name] = value
        if value is None:
            del content[name]
    info["tensors_sha256"] = hash_tensors(tensors)
    write_tensors(path, tensors, info)
