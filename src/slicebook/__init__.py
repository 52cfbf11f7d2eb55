"""Slicebook: a hierarchical tokenizer of medical image slices.

The public names below are loaded on first use, so that `import slicebook` costs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from slicebook.errors import CheckpointError, ConfigError, DataError, ShapeError, SlicebookError
from slicebook.version import __version__

if TYPE_CHECKING:
    from slicebook.config import Recipe
    from slicebook.data.check import check
    from slicebook.data.dataset import PreparedData
    from slicebook.data.prepare import prepare
    from slicebook.inference.anomaly import anomaly
    from slicebook.inference.generate import generate
    from slicebook.inference.inpaint import inpaint
    from slicebook.inference.reconstruct import decode, encode, reconstruct
    from slicebook.io.nifti import read_nifti, write_nifti
    from slicebook.io.volume import Volume
    from slicebook.models.checkpoint import LoadedPrior, LoadedTokenizer, load_prior, load_tokenizer
    from slicebook.models.tokenizer import Tokenizer
    from slicebook.recipes import load_recipe, recipe_names
    from slicebook.training.generator import (
        train_decoder,
        train_generator,
        train_masks,
        train_prior,
    )
    from slicebook.training.run import TrainingOptions
    from slicebook.training.tokenizer import train_tokenizer

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "LoadedPrior",
    "LoadedTokenizer",
    "PreparedData",
    "Recipe",
    "ShapeError",
    "SlicebookError",
    "Tokenizer",
    "TrainingOptions",
    "Volume",
    "__version__",
    "anomaly",
    "check",
    "decode",
    "encode",
    "generate",
    "inpaint",
    "load_prior",
    "load_recipe",
    "load_tokenizer",
    "prepare",
    "read_nifti",
    "recipe_names",
    "reconstruct",
    "train_decoder",
    "train_generator",
    "train_masks",
    "train_prior",
    "train_tokenizer",
    "write_nifti",
]

_HOMES = {
    "config": ("Recipe",),
    "data.check": ("check",),
    "data.dataset": ("PreparedData",),
    "data.prepare": ("prepare",),
    "inference.anomaly": ("anomaly",),
    "inference.generate": ("generate",),
    "inference.inpaint": ("inpaint",),
    "inference.reconstruct": (
        "decode",
        "encode",
        "reconstruct",
    ),
    "io.nifti": (
        "read_nifti",
        "write_nifti",
    ),
    "io.volume": ("Volume",),
    "models.checkpoint": (
        "LoadedPrior",
        "LoadedTokenizer",
        "load_prior",
        "load_tokenizer",
    ),
    "models.tokenizer": ("Tokenizer",),
    "recipes": (
        "load_recipe",
        "recipe_names",
    ),
    "training.generator": (
        "train_decoder",
        "train_generator",
        "train_masks",
        "train_prior",
    ),
    "training.run": ("TrainingOptions",),
    "training.tokenizer": ("train_tokenizer",),
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module the first time it is asked for (PEP 562)."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"slicebook.{module}"), name)
    raise AttributeError(f"module 'slicebook' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
