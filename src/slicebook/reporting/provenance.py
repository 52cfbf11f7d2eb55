"""What a model is, how it was trained and on which data, as rows of text; a header first.

Drawn from the `provenance` of a report, as plain JSON values.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from slicebook.evaluation import Evaluation
from slicebook.reporting.tables import Rows
from slicebook.reporting.wording import UNKNOWN, duration, listed, number, share

Json = Mapping[str, Any]


def model_rows(found: Evaluation) -> Rows:
    """Return what the tokenizer and the prior are."""
    tokenizer, prior = found.provenance["model"], found.provenance["prior"]
    rows: Rows = [("what", "this model"), *_tokenizer((tokenizer or prior)["recipe"])]
    if tokenizer:
        rows.append(("parameters of the tokenizer", f"{tokenizer['parameters']:,}"))
    if found.fidelity:
        each = [level.tokens / found.slices for level in found.fidelity.levels]
        rows.append(
            ("tokens a slice", f"{number(sum(each))} ({' + '.join(map(number, each))}), mean of slices")
        )
        rows.append(("bits per pixel", number(found.fidelity.bits_per_pixel.mean_of_slices)))
    if prior:
        rows += _prior(prior)
        if found.drawing:
            rows.append(("parameters of the prior", f"{found.drawing.parameters:,}"))
        if found.audit:
            rows.append(
                (
                    "bits per pixel of held-out slices, coded by the prior",
                    number(found.audit.coded.mean_of_slices),
                )
            )
    for name, model in (("tokenizer", tokenizer), ("prior", prior)):
        if model:
            rows.append((f"SHA-256 of the {name}'s weights", model["weights_sha256"]))
    return rows


def _tokenizer(recipe: Json) -> Iterator[tuple[str, str]]:
    settings, loss = recipe["tokenizer"], recipe["training"]["loss"]
    yield "architecture of the tokenizer", settings["architecture"]
    strides = itertools.accumulate(settings["scaling_rates"], int.__mul__)
    yield "grids, the finest first", f"{listed([f'1/{stride}' for stride in strides])} of a slice"
    codes = listed([f"{size:,}" for size in settings["codebook_sizes"]])
    yield "codes of each", f"{codes}, of {settings['code_dim']} numbers"
    if settings["resize"]:
        yield "slices are stretched", "first, to {}×{}".format(*settings["resize"])
    yield "loss", loss["kind"]
    if loss["smooth"]:
        yield "rebuilds slices without", f"detail weaker than {loss['smooth']:g} times their noise"


def _prior(prior: Json) -> Iterator[tuple[str, str]]:
    trunks = prior["recipe"]["prior"]
    coarse, fine = (f"{trunks[name]['layers']} × {trunks[name]['width']}" for name in ("coarse", "fine"))
    yield "layers × channels of the prior", f"{coarse} for the coarser grids, {fine} for the finest"
    kinds = prior["slices"]
    sizes = [
        f"{one['rows']}×{one['columns']} of {one['row_mm']:.3g}×{one['column_mm']:.3g} mm" for one in kinds
    ]
    yield "draws slices of", listed(sizes)
    yield "masks", "drawn with each slice" if prior["masks"] else "none"
    yield "classes to ask for", str(len(prior["classes"]))
    own = prior["decoder_provenance"]
    yield "drawn by", "a decoder of its own, which invents what tokens leave open" if own else "the tokenizer"


def training_rows(made: Json) -> Rows:
    """Return how each model was trained."""
    trainings = []
    if made["model"]:
        trainings.append(("tokenizer", made["model"]["provenance"], made["model"]["recipe"]["training"]))
    if prior := made["prior"]:
        trainings.append(("prior", prior["provenance"], prior["recipe"]["prior"]["training"]))
        if own := prior["decoder_provenance"]:
            trainings.append(("decoder", own, prior["recipe"]["decoder"]["training"]))
    rows: Rows = [
        (
            "model",
            "patients",
            "slices",
            "epochs",
            "steps",
            "time",
            "on",
            "batch",
            "seed",
            "Slicebook",
            "commit",
        )
    ]
    for name, one, how in trainings:
        counts = (f"{one[key]:,}" for key in ("train_patients", "train_slices", "epoch", "step"))
        spent = (duration(one["seconds"]), one["device"], str(how["batch_size"]), str(how["seed"]))
        code = (one["versions"].get("slicebook", UNKNOWN), one["commit"] or UNKNOWN)
        rows.append((name, *counts, *spent, *code))
    return rows


def data_rows(data: Json) -> Rows:
    """Return how the data were prepared."""
    size, (low, high), values = data["size"], data["percentiles"], data["label_values"]
    split = "the layout's own"
    if data["fractions"]:
        split = f"{listed([share(one) for one in data['fractions']])} of the patients, seed {data['seed']}"
    return [
        ("what", "this data set"),
        ("layout of the files", data["layout"]),
        ("plane", data["plane"] or "several, as acquired"),
        ("pixels", f"resampled to {data['spacing']:g} mm" if data["spacing"] else "native"),
        ("size", f"cropped or padded to {size[0]}×{size[1]}" if size else "native"),
        (
            "intensities",
            f"percentiles {low:g} and {high:g} of a volume became -1 and 1, the rest was clipped",
        ),
        ("masks", f"label values {listed(list(map(str, values)))}" if values else "none"),
        ("split into train, validation and test", split),
        ("files left out as unreadable", str(data["quarantined"])),
        ("files left out as duplicates", str(data["duplicates"])),
        ("split hash", data["split_hash"]),
    ]


def count_rows(data: Json) -> Rows:
    """Return how much each split holds."""
    rows: Rows = [("split", "patients", "volumes", "slices", "of them blank")]
    for split, counts in data["counts"].items():
        rows.append((split, *(f"{counts[name]:,}" for name in ("patients", "volumes", "slices", "blank"))))
    return rows
