"""The graphs of a generator: one step of its prior, the labels of its masks, one step of its decoder.

    prior.onnx                samples, times, position, group ──▶ codes of each grid, tokens of each grid
    masks.onnx                tokens of the mask              ──▶ labels
    generation_decoder.onnx   samples, base, tokens_0, times  ──▶ residual, slices

Slices have one size, the most frequent of the training; the number of slices is dynamic. `sample.py` is the
loop over them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slicebook.errors import CheckpointError
from slicebook.export.graphs.tracing import compare, write_model
from slicebook.io.atomic import write_text
from slicebook.models.checkpoint import LoadedPrior
from slicebook.models.conditions import Conditions
from slicebook.models.flow_decoder import FlowDecoder
from slicebook.models.masks import labels_from
from slicebook.models.prior import UNKNOWN, Prior
from slicebook.models.sequence import SequenceLayout
from slicebook.models.tokenizer import Tokenizer

SAMPLE_NAME = "sample.py"
COUNT = 2  # slices that are traced; 1 would be taken as fixed


class _PriorStep(nn.Module):
    """Expected codes and most probable tokens of all grids, given noisy codes; no token is known."""

    def __init__(self, prior: Prior, layout: SequenceLayout) -> None:
        super().__init__()
        self.prior, self.layout = prior, layout

    def forward(
        self, samples: Sequence[Tensor], times: Tensor, position: Tensor, group: Tensor
    ) -> tuple[Tensor, ...]:
        states = torch.full((times.shape[0], len(self.layout.sizes)), UNKNOWN)
        conditions = Conditions(position, group)
        logits = self.prior(self.layout, list(samples), times, list(samples), states, conditions)
        return (*self.prior.expected_codes(logits), *(scores.argmax(1) for scores in logits))


class _Masks(nn.Module):
    """Token grids of a mask, coarsest first, to its labels."""

    def __init__(self, tokenizer: Tokenizer, size: tuple[int, int]) -> None:
        super().__init__()
        self.tokenizer, self.size = tokenizer, size

    def forward(self, tokens: Sequence[Tensor]) -> Tensor:
        logits = self.tokenizer.decode_unchecked(tuple(tokens)[::-1], self.size)
        return labels_from(logits, self.tokenizer.config.label_values)


class _DecoderStep(nn.Module):
    """Estimate of the residual, given a noisy one, and the slices that it makes."""

    def __init__(self, decoder: FlowDecoder, tokenizer: Tokenizer, size: tuple[int, int]) -> None:
        super().__init__()
        self.decoder, self.tokenizer, self.size = decoder, tokenizer, size

    def forward(self, samples: Tensor, base: Tensor, finest: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        base = self.tokenizer.pad(base)
        velocity = self.decoder(samples, base, finest, times)
        residual = samples + (1 - times)[:, None, None, None] * velocity
        slices = self.tokenizer.unpad(base + self.decoder.spread * residual, self.size).clamp(-1, 1)
        return residual, slices


@dataclass(frozen=True)
class _Graph:
    """A module to trace, with the inputs of its call and the same by name."""

    name: str
    module: nn.Module
    call: tuple[Any, ...]
    inputs: dict[str, Tensor]
    outputs: list[str]


@torch.no_grad()
def write_generator(loaded: LoadedPrior, folder: Path) -> tuple[float, float, dict[str, Any]]:
    """Write the graphs of a generator and `sample.py`; the image tokens are decoded by `decoder.onnx`.

    Returns:
        The share of tokens and the largest difference of numbers that onnxruntime computes otherwise, and
        what a program must know.

    Raises:
        CheckpointError: A graph cannot be traced.
    """
    many, found = {0: torch.export.Dim.DYNAMIC}, []
    for graph in _graphs(loaded):
        shapes = tuple([many] * len(item) if isinstance(item, list) else many for item in graph.call)
        path = folder / f"{graph.name}.onnx"
        try:
            write_model(path, graph.module, graph.call, shapes, ([*graph.inputs], graph.outputs))
        except torch.onnx.OnnxExporterError as error:
            first = str(error).strip().splitlines()[0]
            raise CheckpointError(f"{loaded.path}: {graph.name}: torch cannot export it ({first})") from error
        wanted = graph.module(*graph.call)
        found.append(compare(path, wanted if isinstance(wanted, tuple) else (wanted,), graph.inputs))
    loop = Path(__file__).with_name(SAMPLE_NAME)  # not imported: it needs the extra `export`
    write_text(folder / SAMPLE_NAME, loop.read_text(encoding="utf-8"))
    return max(wrong for wrong, _ in found), max(difference for _, difference in found), _describe(loaded)


def _describe(loaded: LoadedPrior) -> dict[str, Any]:
    kind, masks = loaded.info.slices[0], loaded.tokenizer.masks
    size = (kind.rows, kind.columns)
    padded = loaded.tokenizer.images.pad(torch.zeros((1, 1, *size))).shape[2:]
    return {
        "size": list(size),
        "pixel_mm": [kind.row_mm, kind.column_mm],
        "padded": list(padded) if loaded.decoder is not None else [],
        "fresh_noise": loaded.prior.fresh_noise,
        "grids": [
            {
                "name": stage.name,
                "channels": loaded.prior.codes(index).shape[1],
                "rows": stage.rows,
                "columns": stage.columns,
            }
            for index, stage in enumerate(loaded.tokenizer.layout(size).stages)
        ],
        "label_values": list(masks.config.label_values) if masks is not None else [],
        "classes": list(loaded.info.classes),
        "weights_sha256": loaded.info.weights_sha256,
    }


def _graphs(loaded: LoadedPrior) -> Iterator[_Graph]:
    """Yield the graphs, with random inputs."""
    kind, images, masks = loaded.info.slices[0], loaded.tokenizer.images, loaded.tokenizer.masks
    size = (kind.rows, kind.columns)
    layout, draw = loaded.tokenizer.layout(size), torch.Generator().manual_seed(0)
    noise = {
        stage.name: torch.randn(
            (COUNT, loaded.prior.codes(index).shape[1], stage.rows, stage.columns), generator=draw
        )
        for index, stage in enumerate(layout.stages)
    }
    conditions = {
        "times": torch.full((COUNT,), 0.25),
        "position": torch.tensor([0.5, torch.nan]),
        "group": torch.full((COUNT,), -1),
    }
    step, grids = _PriorStep(loaded.prior, layout), [*noise.values()]
    outputs = [f"{what}_{name}" for what in ("codes", "tokens") for name in noise]
    yield _Graph("prior", step, (grids, *conditions.values()), noise | conditions, outputs)
    tokens = dict(zip(noise, step(grids, *conditions.values())[len(grids) :], strict=True))
    if masks is not None:
        own = {name: grid for name, grid in tokens.items() if name.startswith("mask_")}
        yield _Graph("masks", _Masks(masks, size), ([*own.values()],), own, ["labels"])
    if loaded.decoder is not None:
        base = torch.rand((COUNT, 1, *size), generator=draw) * 2 - 1
        inputs = {
            "samples": torch.randn(images.pad(base).shape, generator=draw),
            "base": base,
            "tokens_0": tokens["image_0"],
            "times": conditions["times"],
        }
        module = _DecoderStep(loaded.decoder, images, size)
        yield _Graph("generation_decoder", module, (*inputs.values(),), inputs, ["residual", "slices"])
