"""Write a model as ONNX: of its tokenizer two models, slices to tokens and tokens to slices.

    encoder.onnx    images (batch, 1, rows, columns) in [-1, 1]  ──▶ tokens_0, tokens_1, … (finest first)
    decoder.onnx    tokens_0, tokens_1, …, size (rows, columns)  ──▶ images

Batch and sides are dynamic; both models pad and crop as the tokenizer does. The models are compared with the
tokenizer by onnxruntime before they are put into place. Those of a generator are in `graphs.generator`.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from slicebook.api.model import Model
from slicebook.errors import CheckpointError, ConfigError
from slicebook.export.graphs.generator import write_generator
from slicebook.export.graphs.tracing import OPSET, write_model
from slicebook.io.atomic import refuse_full, replacing_folder, write_text
from slicebook.io.tensors import hash_tensors
from slicebook.models.networks.base import Context
from slicebook.models.tokenizer import Tokenizer
from slicebook.version import __version__

ENCODER_NAME, DECODER_NAME, INFO_NAME = "encoder.onnx", "decoder.onnx", "model.json"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
MAX_DIFFERENCE = 1e-4  # of an image in [-1, 1]: rounding is well below
MAX_TOKEN_MISMATCH = 1e-3  # share of tokens: a latent halfway between two codes may be rounded to the other


@dataclass(frozen=True)
class OnnxSummary:
    """What `export_onnx` wrote, compared with the tokenizer on random slices."""

    out: Path
    opset: int
    levels: int
    token_mismatch: float
    """Share of tokens that differ."""
    image_difference: float
    """Largest difference of a pixel; images are in [-1, 1]."""


def export_onnx(model: Model, out: str | Path) -> OnnxSummary:
    """Write a model as ONNX, for onnxruntime and other engines.

    `out` receives `encoder.onnx`, `decoder.onnx` and `model.json`, which says how intensities are mapped,
    how slices are padded, and which weights these are. Of a generator, also `prior.onnx`, `masks.onnx` and
    `generation_decoder.onnx`, each of which is one step or part of sampling, and `sample.py`, which samples
    with NumPy and onnxruntime alone: slices of the most frequent size, without guidance or given tokens.

    Args:
        model: The model.
        out: New folder.

    Raises:
        CheckpointError: onnxruntime does not compute what the tokenizer computes.
        ConfigError: A package of the extra `export` is missing, or the tokenizer stretches slices to a size.
        DataError: `out` is not empty, or cannot be written.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"{', '.join(missing)}: not installed; run: pip install 'slicebook[export]'")
    tokenizer = model.tokenizer.tokenizer
    if tokenizer.config.resize:
        raise ConfigError(
            f"{model.path}: stretches every slice to {tokenizer.config.resize} pixels (tokenizer.resize), "
            "which is not exported; train a model without it"
        )
    prior = model.prior
    if prior and hash_tensors(prior.tokenizer.images.state_dict()) != hash_tensors(tokenizer.state_dict()):
        raise CheckpointError(
            f"{prior.path}: is of another tokenizer than {model.tokenizer.path}; export the file of the prior"
        )
    refuse_full(out)
    parts = [tokenizer, *([prior.prior, prior.tokenizer.images] if prior else [])]
    parts += [part for part in ([prior.tokenizer.masks, prior.decoder] if prior else []) if part is not None]
    device = next(tokenizer.parameters()).device
    for part in parts:
        part.cpu()
    try:
        with replacing_folder(out) as partial:
            _write_models(tokenizer, partial)
            mismatch, difference = _compare(tokenizer, partial)
            described = _describe(model)
            if prior:
                others, changes, described["generator"] = write_generator(prior, partial)
                mismatch, difference = max(mismatch, others), max(difference, changes)
            if mismatch > MAX_TOKEN_MISMATCH or difference > MAX_DIFFERENCE:
                raise CheckpointError(
                    f"{out}: onnxruntime finds {mismatch:.2%} other tokens and images that differ by "
                    f"{difference:.1g}, wanted the same; use other versions of onnxruntime and torch"
                )
            write_text(partial / INFO_NAME, json.dumps(described, indent=2) + "\n")
    finally:
        for part in parts:
            part.to(device)
    return OnnxSummary(Path(out), OPSET, tokenizer.levels, mismatch, difference)


class _Exported(nn.Module):
    """Network and codebooks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.network, self.stride, self.levels = tokenizer.network, tokenizer.stride, tokenizer.levels
        for level in range(tokenizer.levels):
            # Not the moving averages that they are the ratio of.
            self.register_buffer(f"codes_{level}", tokenizer.codebook(level).codes.detach().clone())

    def vectors(self, level: int, grid: Tensor) -> Tensor:
        return functional.embedding(grid, self.get_buffer(f"codes_{level}")).permute(0, 3, 1, 2)


class _Encoder(_Exported):
    """Slices to token grids, finest first: `Tokenizer.encode` without the blocks of `nearest_code`."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        for axis in (2, 3):
            side = images.shape[axis]
            padded = (side + self.stride - 1) // self.stride * self.stride
            # Repeats the edge, half on each side. ONNX has no padding that may be 0.
            rows = torch.clamp(torch.arange(padded) - (padded - side) // 2, 0, side - 1)
            images = images.index_select(axis, rows)
        features, context = self.network.features(images), ()  # type: Sequence[Tensor], Context
        grids: list[Tensor] = []
        for level in reversed(range(self.levels)):
            latents, codes = (
                self.network.latents(level, features[level], context),
                self.get_buffer(f"codes_{level}"),
            )
            half_norms = codes.square().sum(1) * 0.5
            grids.insert(0, (half_norms - latents.permute(0, 2, 3, 1) @ codes.t()).argmin(-1))
            if level:
                context = self.network.decode_level(level, context, self.vectors(level, grids[0]))
        return tuple(grids)


class _Decoder(_Exported):
    """Token grids, finest first, to slices of `size`: `Tokenizer.decode`."""

    def forward(self, tokens: Sequence[Tensor], size: Tensor) -> Tensor:
        context: Context = ()
        for level in reversed(range(self.levels)):
            context = self.network.decode_level(level, context, self.vectors(level, tokens[level]))
        images = self.network.image(context)
        for axis, wanted in ((2, size[0].item()), (3, size[1].item())):
            side = images.shape[axis]
            torch._check(wanted >= 1)  # type: ignore[no-untyped-call]  # torch lacks it
            torch._check(wanted <= side)  # type: ignore[no-untyped-call]  # torch lacks it
            images = images.index_select(axis, torch.arange(wanted) + (side - wanted) // 2)
        return images


def _write_models(tokenizer: Tokenizer, folder: Path) -> None:
    """Trace and write both models."""
    sides = (2 * tokenizer.stride + 1, 3 * tokenizer.stride + 1)  # a side of 1 token would be taken as fixed
    images = torch.zeros((2, 1, *sides))
    tokens, names = tokenizer.encode(images), [f"tokens_{level}" for level in range(tokenizer.levels)]
    any_size = torch.export.Dim.DYNAMIC
    models: list[tuple[str, nn.Module, tuple[Any, ...], Any, list[str], list[str]]] = [
        (
            ENCODER_NAME,
            _Encoder(tokenizer),
            (images,),
            ({0: any_size, 2: any_size, 3: any_size},),
            ["images"],
            names,
        ),
        (
            DECODER_NAME,
            _Decoder(tokenizer),
            (tokens, torch.tensor(sides)),
            (tuple({0: any_size, 1: any_size, 2: any_size} for _ in tokens), {}),
            [*names, "size"],
            ["images"],
        ),
    ]
    for name, module, inputs, shapes, input_names, output_names in models:
        write_model(folder / name, module, inputs, shapes, (input_names, output_names))


def _compare(tokenizer: Tokenizer, folder: Path) -> tuple[float, float]:
    """Return the share of tokens and the largest difference of pixels that onnxruntime computes otherwise."""
    import onnxruntime

    encoder, decoder = (
        onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
        for name in (ENCODER_NAME, DECODER_NAME)
    )
    size = (3 * tokenizer.stride - 1, tokenizer.stride)  # padded on one side only, and unlike the traced ones
    noise = torch.rand((1, 1, *size), generator=torch.Generator().manual_seed(0))
    images = functional.avg_pool2d(noise, 5, 1, 2, count_include_pad=False) * 2 - 1
    tokens = tokenizer.encode(images)
    found = encoder.run(None, {"images": images.numpy()})
    wrong = [
        float((torch.from_numpy(grid) != wanted).float().mean())
        for grid, wanted in zip(found, tokens, strict=True)
    ]
    inputs = {f"tokens_{level}": grid.numpy() for level, grid in enumerate(tokens)}
    (drawn,) = decoder.run(None, {**inputs, "size": np.array(size)})
    return max(wrong), float((torch.from_numpy(drawn) - tokenizer.decode(tokens, size)).abs().max())


def _describe(model: Model) -> dict[str, Any]:
    """Return what a program must know to use the models, as JSON values."""
    config, tokenizer = model.recipe.tokenizer, model.tokenizer
    return {
        "format": "slicebook onnx",
        "slicebook_version": __version__,
        "codebook_hash": tokenizer.codebook_hash,
        "opset": OPSET,
        "intensity": "map the 0.5th and 99.5th percentile of a volume to -1 and 1, and clip",
        "orientation": "slices as displayed in radiological convention; axial: rows A to P, columns R to L",
        "padding": "sides are padded to multiples of `stride` by repeating the edge, half on each side",
        "stride": tokenizer.tokenizer.stride,
        "scaling_rates": list(config.scaling_rates),
        "codebook_sizes": list(config.codebook_sizes),
        "provenance": tokenizer.info.provenance.model_dump(mode="json"),
    }
