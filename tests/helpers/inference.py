"""What tests of inference and others share."""

from typing import Any

import nibabel as nib
import numpy as np
import torch

from slicebook.config import Recipe, TokenizerConfig
from slicebook.environment import Provenance
from slicebook.models.checkpoint import save_tokenizer
from slicebook.models.tokenizer import Tokenizer


def model_file(path, seed=0):
    """A model that was started on noise and never trained: enough to send volumes through."""
    settings: dict[str, Any] = {
        "scaling_rates": (4, 2),
        "codebook_sizes": (64, 16),
        "code_dim": 4,
        "width": 16,
    }
    recipe = Recipe(tokenizer=TokenizerConfig(**settings, residual_layers=1))
    torch.manual_seed(seed)
    tokenizer = Tokenizer(recipe.tokenizer)
    tokenizer.init_from_kmeans(torch.rand(8, 1, 32, 32) * 2 - 1, torch.Generator().manual_seed(seed))
    origin = Provenance(
        versions={},
        commit=None,
        device="cpu",
        split_hash="",
        train_patients=1,
        train_slices=8,
        spacing=None,
        epoch=1,
        step=1,
        seconds=1.0,
        validation={},
    )
    save_tokenizer(path, tokenizer, recipe, origin)
    return path


def oblique():
    """An affine that no axis of the scanner is parallel to, with numbers that float32 has to round."""
    turn = np.array([[0.9, -0.3, 0.1], [0.3, 0.9, -0.2], [-0.05, 0.2, 0.97]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * [0.7, 0.7, 3.3], [-81.1, 40.7, 12.3]
    return affine


def volume_file(path, shape=(40, 24, 3), affine=None, seed=0, low=50.0):
    draw = np.random.default_rng(seed)
    array = (low + draw.gamma(2, 100, shape)).astype(np.float32)
    image = nib.Nifti1Image(array, oblique() if affine is None else affine)
    image.header["descrip"] = b"scan of Secret Name"
    image.set_sform(image.affine, code=2)
    nib.save(image, path)
    return path
