"""Trace a module of torch as an ONNX model, and compare the two."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slicebook.io.atomic import write_bytes

OPSET = 18  # the first with group normalisation


def write_model(
    path: Path, module: nn.Module, inputs: tuple[Any, ...], shapes: Any, names: tuple[list[str], list[str]]
) -> None:
    """Trace a module and write it.

    Args:
        path: The file.
        module: In evaluation mode it is traced.
        inputs: Of its call; a side of 1 would be taken as fixed.
        shapes: Which of their sides are dynamic, as `torch.export` takes them.
        names: Of the inputs and of the outputs.
    """
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            inputs,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=shapes,
            input_names=names[0],
            output_names=names[1],
            verbose=False,
        )
    assert program is not None
    write_bytes(path, program.model_proto.SerializeToString())


def compare(path: Path, wanted: Sequence[Tensor], inputs: dict[str, Tensor]) -> tuple[float, float]:
    """Return the share of integers that onnxruntime computes otherwise, and the largest difference."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    mismatch, difference = 0.0, 0.0
    for array, tensor in zip(found, wanted, strict=True):
        if tensor.is_floating_point():
            difference = max(difference, float((torch.from_numpy(array) - tensor).abs().max()))
        else:
            mismatch = max(mismatch, float((torch.from_numpy(array) != tensor).float().mean()))
    return mismatch, difference


@contextmanager
def _quiet() -> Iterator[None]:
    """Pass over what the exporter warns of: torchvision, which is not needed, and its own deprecations."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
