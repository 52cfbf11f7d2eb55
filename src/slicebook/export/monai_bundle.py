"""Write a tokenizer as a MONAI bundle, which `monai.bundle` loads and runs.

MONAI reads the weights of a bundle from `models/model.pt` alone, a zip with a pickle. This is the one
exception from the rule that Slicebook writes no pickle. The file holds plain tensors by name, nothing else,
and is read with `torch.load(…, weights_only=True)`. `slicebook.load` never reads it.
"""

from __future__ import annotations

import importlib.util
import io
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from slicebook.api.model import Model
from slicebook.config import TokenizerConfig
from slicebook.errors import ConfigError
from slicebook.io.atomic import refuse_full, replacing_folder, write_bytes, write_text
from slicebook.models.tokenizer import Reconstruction, Tokenizer
from slicebook.text import to_json
from slicebook.version import __version__

WORKFLOW = "inference"
PERCENTILES = (0.5, 99.5)


class BundleTokenizer(nn.Module):
    """The network of the bundle: slices in [-1, 1] to their reconstructions.

    Args:
        settings: Of the tokenizer, as JSON values.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.tokenizer = Tokenizer(TokenizerConfig.model_validate(settings))

    def forward(self, images: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
        """Return reconstructed slices, clipped to [-1, 1]."""
        # MONAI hands over its own kind of tensor, whose metadata the tokenizer has no use for.
        slices = images.as_subclass(Tensor)
        reconstruction: Reconstruction = self.tokenizer(slices)
        return reconstruction.images.clamp(-1, 1)


@dataclass(frozen=True)
class BundleSummary:
    """What `export_monai` wrote."""

    out: Path
    levels: int
    weights_sha256: str


def export_monai(model: Model, out: str | Path) -> BundleSummary:
    """Write the tokenizer of a model as a MONAI bundle. Running it needs Slicebook and MONAI.

    Args:
        model: The model. Its prior is not exported.
        out: New folder: `LICENSE`, `configs`, `docs` and `models/model.pt`.

    Raises:
        ConfigError: MONAI is not installed.
        DataError: `out` is not empty, or cannot be written.
    """
    if importlib.util.find_spec("monai") is None:
        raise ConfigError("monai: not installed; run: pip install 'slicebook[export]'")
    refuse_full(out)
    network = BundleTokenizer(**_settings(model))
    network.tokenizer.load_state_dict(model.tokenizer.tokenizer.state_dict())
    weights = io.BytesIO()
    torch.save({name: tensor.cpu() for name, tensor in network.state_dict().items()}, weights)
    with replacing_folder(out) as partial:
        write_bytes(partial / "models" / "model.pt", weights.getvalue())
        write_text(partial / "configs" / "metadata.json", to_json(_metadata(model)) + "\n")
        write_text(partial / "configs" / f"{WORKFLOW}.json", to_json(_workflow(model)) + "\n")
        write_text(partial / "docs" / "README.md", _README)
        write_text(partial / "LICENSE", _LICENSE)
    return BundleSummary(Path(out), model.levels, model.tokenizer.info.weights_sha256)


def _settings(model: Model) -> dict[str, Any]:
    return model.tokenizer.info.recipe.tokenizer.model_dump(mode="json")


def _metadata(model: Model) -> dict[str, Any]:
    provenance = model.tokenizer.info.provenance
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": "MR",
        "num_channels": 1,
        "spatial_shape": ["*", "*"],
        "dtype": "float32",
        "value_range": [-1, 1],
        "is_patch_data": False,
        "channel_def": {"0": "image"},
    }
    return {
        "version": __version__,
        "changelog": {__version__: "exported by slicebook export"},
        "monai_version": version_of("monai"),
        "pytorch_version": torch.__version__,
        "numpy_version": version_of("numpy"),
        "python_version": platform.python_version(),
        "required_packages_version": {"slicebook": __version__, "nibabel": version_of("nibabel")},
        "task": "Reconstruction of 2D slices from discrete tokens",
        "description": f"Hierarchical VQ-VAE tokenizer, recipe {model.recipe.name}, {model.levels} levels. "
        f"Trained on {provenance.train_patients} patients, {provenance.train_slices} slices.",
        "authors": "not stated",
        "copyright": "not stated",
        "weights_sha256": model.tokenizer.info.weights_sha256,
        "intended_use": "Research. Not a medical device.",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": image}},
    }


def _preprocessing() -> list[dict[str, Any]]:
    """Return the transforms of a volume before the network."""
    low, high = PERCENTILES
    return [
        {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
        # Rows to the back, columns to the left: as the tokenizer's slices are displayed.
        {"_target_": "Orientationd", "keys": "image", "axcodes": "PLS"},
        {
            "_target_": "ScaleIntensityRangePercentilesd",
            "keys": "image",
            "lower": low,
            "upper": high,
            "b_min": -1,
            "b_max": 1,
            "clip": True,
        },
    ]


def _workflow(model: Model) -> dict[str, Any]:
    """Return the workflow: read volumes, reconstruct slice by slice, write in the volumes' geometry."""
    return {
        "imports": ["$import glob", "$import os", "$import torch"],
        "bundle_root": ".",
        "weights": "$os.path.join(@bundle_root, 'models', 'model.pt')",
        "image": "$sorted(glob.glob(os.path.join(@bundle_root, 'input', '*.nii.gz')))",
        "output_dir": "$os.path.join(@bundle_root, 'output')",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": {"_target_": f"{__name__}.{BundleTokenizer.__name__}", **_settings(model)},
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": _preprocessing()},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': path} for path in ([@image] if isinstance(@image, str) else @image)]",
            "transform": "@preprocessing",
        },
        "inferer": {"_target_": "SliceInferer", "roi_size": [-1, -1], "spatial_dim": 2, "sw_batch_size": 16},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": False,
                    "to_tensor": True,
                },
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "pred",
                },
            ],
        },
        "run": [
            {
                "_target_": f"{__name__}.{run_network.__name__}",
                "network": "@network",
                "weights": "@weights",
                "dataset": "@dataset",
                "inferer": "@inferer",
                "postprocessing": "@postprocessing",
                "device": "@device",
            }
        ],
    }


@torch.no_grad()
def run_network(
    network: nn.Module,
    weights: str,
    dataset: Sequence[dict[str, Any]],
    inferer: Callable[[Tensor, nn.Module], Tensor],
    postprocessing: Callable[[dict[str, Any]], Any],
    device: torch.device,
) -> int:
    """Reconstruct every volume of a MONAI data set; the step `run` of the bundle.

    Args:
        network: A `BundleTokenizer`.
        weights: Path of `model.pt`.
        dataset: Volumes, preprocessed.
        inferer: Takes a volume apart into slices, and puts it together.
        postprocessing: Writes a volume.
        device: Where the network computes.

    Returns:
        The number of volumes.
    """
    network.load_state_dict(torch.load(weights, map_location=device, weights_only=True))
    network.eval()
    for item in dataset:
        predicted = inferer(item["image"][None].to(device), network)[0]
        postprocessing({**item, "pred": predicted.cpu()})
    return len(dataset)


_README = """# Slicebook tokenizer as a MONAI bundle

    import monai.bundle

    files = {"config_file": "configs/inference.json", "meta_file": "configs/metadata.json"}
    monai.bundle.run(**files, run_id="run", bundle_root=".", image="scan.nii.gz", output_dir="output")

It needs the packages slicebook and monai.

The volume is mapped to [-1, 1] by its 0.5th and 99.5th percentile; the reconstruction is written in these
units, in the geometry of the volume. Slices are axial. `models/model.pt` holds plain tensors and is read with
`weights_only=True`.

Research software, not a medical device.
"""
_LICENSE = """The license of the weights in models/model.pt is not stated; ask whoever trained them.
The network is Slicebook, Apache License 2.0.
"""
