"""The command that writes a model for another program."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from slicebook import text
from slicebook.cli.options import Json, Model, out_option, show

Format = Annotated[
    Literal["onnx", "hub", "monai"],
    typer.Option(
        help="onnx: encoder and decoder of the tokenizer for onnxruntime; of a generator also the steps of "
        "sampling and a program that samples. hub: folder with model card for "
        "huggingface_hub. monai: bundle of the tokenizer for monai.bundle."
    ),
]
License = Annotated[
    str | None,
    typer.Option(
        help="License of the weights, written to the card of a hub folder, such as cc-by-4.0. Default: "
        "unknown; apache-2.0 for a starter."
    ),
]


def export(
    model: Model,
    format: Format,  # noqa: A002 (the name of the option)
    out: Annotated[Path, out_option("DIR", "New folder.")],
    license: License = None,  # noqa: A002
    as_json: Json = False,
) -> None:
    """Write a model in a format of another program.

    Needs the extra `export`.
    """
    from slicebook.api.model import load
    from slicebook.errors import ConfigError

    if license is not None and format != "hub":
        raise ConfigError("--license: goes with --format hub alone")
    loaded = load(model, device="cpu")
    if format == "onnx":
        from slicebook.export.onnx import export_onnx

        summary: object = export_onnx(loaded, out)
    elif format == "hub":
        from slicebook.export.hub import export_hub

        summary = export_hub(loaded, out, weights_license=license)
    else:
        from slicebook.export.monai_bundle import export_monai

        summary = export_monai(loaded, out)
    show(summary, text.to_rows(summary), as_json)
