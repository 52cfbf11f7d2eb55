"""Slicebook: a hierarchical tokenizer of medical image slices.

    model = slicebook.load("starter:compact")
    model.reconstruct("scan.nii.gz").write("copy.nii.gz")

The public names below are loaded on first use, so that `import slicebook` costs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from slicebook.errors import CheckpointError, ConfigError, DataError, ShapeError, SlicebookError
from slicebook.version import __version__

if TYPE_CHECKING:
    from slicebook.api.evaluation import evaluate
    from slicebook.api.model import GeneratedSample, Model, load
    from slicebook.data.check import check
    from slicebook.data.dataset import PreparedData
    from slicebook.data.prepare import prepare
    from slicebook.io.tokens import TokenFile
    from slicebook.io.volume import Volume
    from slicebook.recipes import load_recipe
    from slicebook.training.generator import train_generator
    from slicebook.training.run import TrainingOptions
    from slicebook.training.tokenizer import train_tokenizer

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "GeneratedSample",
    "Model",
    "PreparedData",
    "ShapeError",
    "SlicebookError",
    "TokenFile",
    "TrainingOptions",
    "Volume",
    "__version__",
    "check",
    "evaluate",
    "load",
    "load_recipe",
    "prepare",
    "train_generator",
    "train_tokenizer",
]

_HOMES = {
    "api.evaluation": ("evaluate",),
    "api.model": ("GeneratedSample", "Model", "load"),
    "data.check": ("check",),
    "data.dataset": ("PreparedData",),
    "data.prepare": ("prepare",),
    "io.tokens": ("TokenFile",),
    "io.volume": ("Volume",),
    "recipes": ("load_recipe",),
    "training.generator": ("train_generator",),
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
