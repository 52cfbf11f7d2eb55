"""Slicebook: a hierarchical tokenizer of medical image slices.

The public names below are loaded on first use, so that `import slicebook` costs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from slicebook.errors import CheckpointError, ConfigError, DataError, ShapeError, SlicebookError

if TYPE_CHECKING:
    from slicebook.anomalies import anomaly
    from slicebook.checking import check
    from slicebook.checkpoint import LoadedPrior, LoadedTokenizer, load_prior, load_tokenizer
    from slicebook.config import Recipe, load_recipe, recipe_names
    from slicebook.dataset import PreparedData
    from slicebook.generating import generate
    from slicebook.inference import decode, encode, reconstruct
    from slicebook.inpainting import inpaint
    from slicebook.preparation import prepare
    from slicebook.prior_training import train_prior
    from slicebook.tokenizer import Tokenizer
    from slicebook.training import train_tokenizer
    from slicebook.volumes import Volume, read_nifti, write_nifti

__version__ = "0.1.0"

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
    "train_prior",
    "train_tokenizer",
    "write_nifti",
]

_HOMES = {
    "anomalies": ("anomaly",),
    "checking": ("check",),
    "checkpoint": ("LoadedPrior", "LoadedTokenizer", "load_prior", "load_tokenizer"),
    "config": ("Recipe", "load_recipe", "recipe_names"),
    "dataset": ("PreparedData",),
    "generating": ("generate",),
    "inpainting": ("inpaint",),
    "inference": ("decode", "encode", "reconstruct"),
    "preparation": ("prepare",),
    "prior_training": ("train_prior",),
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
