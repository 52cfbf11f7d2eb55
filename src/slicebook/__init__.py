"""Slicebook: a hierarchical tokenizer of medical image slices.

The public names below are loaded on first use, so that `import slicebook` costs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from slicebook.errors import CheckpointError, ConfigError, DataError, ShapeError, SlicebookError

if TYPE_CHECKING:
    from slicebook.checking import check
    from slicebook.checkpoint import LoadedTokenizer, load_tokenizer
    from slicebook.config import Recipe, load_recipe, recipe_names
    from slicebook.dataset import PreparedData
    from slicebook.inference import decode, encode, reconstruct
    from slicebook.preparation import prepare
    from slicebook.tokenizer import Tokenizer
    from slicebook.training import train_tokenizer
    from slicebook.volumes import Volume, read_nifti, write_nifti

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "LoadedTokenizer",
    "PreparedData",
    "Recipe",
    "ShapeError",
    "SlicebookError",
    "Tokenizer",
    "Volume",
    "__version__",
    "check",
    "decode",
    "encode",
    "load_recipe",
    "load_tokenizer",
    "prepare",
    "read_nifti",
    "recipe_names",
    "reconstruct",
    "train_tokenizer",
    "write_nifti",
]

_HOMES = {
    "checking": ("check",),
    "checkpoint": ("LoadedTokenizer", "load_tokenizer"),
    "config": ("Recipe", "load_recipe", "recipe_names"),
    "dataset": ("PreparedData",),
    "inference": ("decode", "encode", "reconstruct"),
    "preparation": ("prepare",),
    "tokenizer": ("Tokenizer",),
    "training": ("train_tokenizer",),
    "volumes": ("Volume", "read_nifti", "write_nifti"),
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module the first time it is asked for (PEP 562)."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"slicebook.{module}"), name)
    raise AttributeError(f"module 'slicebook' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
