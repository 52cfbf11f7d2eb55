"""The numbers of an evaluation as text: single numbers, and rows with a header first."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from slicebook.evaluation.downstream import DownstreamResult
from slicebook.evaluation.generation import GenerationResult, Measure
from slicebook.evaluation.memorization import MemorizationResult
from slicebook.evaluation.reconstruction import ReconstructionResult
from slicebook.evaluation.report import Evaluation

UNKNOWN = "–"

Rows = list[tuple[str, ...]]
Ends = tuple[float, float]
Json = Mapping[str, Any]


def number(value: float | None) -> str:
    """Return a value with three significant digits, or all digits before the point.

    >>> [number(0.12345), number(-2935.3), number(None)]
    ['0.123', '−2,935', '–']
    """
    if value is None:
        return UNKNOWN
    return (f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}").replace("-", "−")


def estimate(value: float | None, interval: Ends | None) -> str:
    """Return a value with its interval.

    >>> estimate(14.9, (7.07, 22.74))
    '14.9 [7.07, 22.7]'
    """
    return f"{number(value)} {ends(interval)}" if interval else number(value)


def ends(interval: Ends | None) -> str:
    """Return an interval alone."""
    return UNKNOWN if interval is None else f"[{number(interval[0])}, {number(interval[1])}]"


def share(value: float | None) -> str:
    """Return a fraction in percent."""
    return UNKNOWN if value is None else f"{value:.0%}"


def duration(seconds: float) -> str:
    """Return a duration in hours, minutes or seconds.

    >>> [duration(90), duration(192.6), duration(86400)]
    ['90 s', '3.2 min', '24.0 h']
    """
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def listed(names: Sequence[str]) -> str:
    """Return names joined for a sentence.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def level_rows(reconstruction: ReconstructionResult) -> Rows:
    """Return how the codes of each level are used."""
    rows: Rows = [("level (0 is finest)", "codes", "used", "perplexity")]
    rows += [
        (str(level.level), str(level.codebook_size), share(level.usage), f"{level.perplexity:.0f}")
        for level in reconstruction.levels
    ]
    return rows


def generation_rows(generation: GenerationResult) -> Rows:
    """Return every measure of samples beside the same measure between real patients."""
    rows: Rows = [("measure", "samples [95 %]", "real patients", "5 to 95 % of draws", "tokenizer alone")]
    rows += [
        (
            full_name(measure),
            estimate(measure.generated, measure.interval),
            number(measure.real),
            ends(measure.real_range),
            number(measure.tokenizer_only),
        )
        for measure in generation.measures()
    ]
    return rows


def full_name(measure: Measure) -> str:
    """Return the name of a measure after that of its features."""
    return f"{measure.features}: {measure.measure}" if measure.features else measure.measure


def anatomy_rows(generation: GenerationResult) -> Rows:
    """Return how many masks satisfy each rule; no rows without masks of a pelvis."""
    anatomy = generation.anatomy
    if not anatomy:
        return []
    rows: Rows = [("rule", "samples", "real patients", "definition")]
    rows += [
        (name.replace("_", " "), share(generated), share(real), anatomy.rules[name])
        for name, (generated, real) in anatomy.by_rule.items()
    ]
    return [*rows, ("all", share(anatomy.generated), share(anatomy.real), "every rule that applies")]


def dice_rows(downstream: DownstreamResult) -> Rows:
    """Return the Dice of the segmenters trained on samples and on the training set."""
    generated, training_set = downstream.generated, downstream.training_set
    rows: Rows = [("label", "trained on samples", "trained on the training set")]
    rows += [
        (label, generated.labels[label].in_words(), dice.in_words())
        for label, dice in training_set.labels.items()
    ]
    return [*rows, ("mean", number(generated.mean), number(training_set.mean))]


def gap_rows(audit: MemorizationResult) -> Rows:
    """Return the two tests for copies."""
    rows: Rows = [("test", "samples beyond", "copies from")]
    rows += [
        (
            f"over {test.distance_ratio:.2f} times nearer to one patient than to the next",
            f"{test.exceeding} of {audit.copies.samples}",
            str(test.needed),
        )
        for test in audit.copies.tests
    ]
    return rows


def control_rows(audit: MemorizationResult) -> Rows:
    """Return how many planted copies the tests detected."""
    rows: Rows = [
        ("fraction of samples planted", "copies", "detected", "matched to their slice", "test positive")
    ]
    rows += [
        (
            share(control.share),
            str(control.planted),
            share(control.detected),
            share(control.source_found),
            "yes" if control.passed else "no",
        )
        for control in audit.copies.controls
    ]
    return rows


def conventions(
    part: ReconstructionResult | GenerationResult | MemorizationResult | DownstreamResult,
) -> dict[str, str]:
    """Return the definition of each measure of a part, by its name."""
    if isinstance(part, ReconstructionResult):
        scores = {name: score.convention for name, score in part.scores.items()}
        return {"images": part.images, "bits_per_pixel": part.bits_per_pixel.convention} | scores
    if isinstance(part, GenerationResult):
        features = {name: features.convention for name, features in part.features.items()}
        return features | {measure.measure: measure.convention for measure in part.measures()}
    if isinstance(part, MemorizationResult):
        return {
            "distance": part.copies.distance,
            "gap": part.copies.tests[0].convention,
            "fraction nearer": part.copies.nearer.convention,
            "membership AUC": part.membership.convention,
            "bits per pixel under the prior": part.prior_bits_per_pixel.convention,
        }
    return {"Dice": part.convention}


def model_rows(report: Evaluation) -> Rows:
    """Return the architecture of the tokenizer and of the prior."""
    tokenizer, prior = report.provenance["model"], report.provenance["prior"]
    rows: Rows = [("property", "value"), *_tokenizer((tokenizer or prior)["recipe"])]
    if tokenizer:
        rows.append(("tokenizer parameters", f"{tokenizer['parameters']:,}"))
    if report.reconstruction:
        tokens = [level.tokens / report.slices for level in report.reconstruction.levels]
        per_level = " + ".join(map(number, tokens))
        rows.append(("tokens per slice", f"{number(sum(tokens))} ({per_level}), mean of slices"))
        rows.append(("bits per pixel", number(report.reconstruction.bits_per_pixel.mean_of_slices)))
    if prior:
        rows += _prior(prior)
        if report.sampling:
            rows.append(("prior parameters", f"{report.sampling.parameters:,}"))
        if report.memorization:
            rate = number(report.memorization.prior_bits_per_pixel.mean_of_slices)
            rows.append(("bits per pixel of held-out slices under the prior", rate))
    for name, model in (("tokenizer", tokenizer), ("prior", prior)):
        if model:
            rows.append((f"SHA-256 of the {name} weights", model["weights_sha256"]))
    return rows


def _tokenizer(recipe: Json) -> Iterator[tuple[str, str]]:
    settings, loss = recipe["tokenizer"], recipe["training"]["loss"]
    yield "tokenizer architecture", settings["architecture"]
    strides = itertools.accumulate(settings["scaling_rates"], int.__mul__)
    yield "grids, finest first", f"{listed([f'1/{stride}' for stride in strides])} of a slice"
    sizes = listed([f"{size:,}" for size in settings["codebook_sizes"]])
    yield "codebook sizes", f"{sizes}, dimension {settings['code_dim']}"
    if settings["resize"]:
        yield "slices are resized to", "{}×{}".format(*settings["resize"])
    yield "loss", loss["kind"]
    if loss["denoise_strength"]:
        yield (
            "denoising",
            f"detail below {loss['denoise_strength']:g} times the noise level is not reconstructed",
        )


def _prior(prior: Json) -> Iterator[tuple[str, str]]:
    settings = prior["recipe"]["prior"]
    widths = listed([str(width) for width in settings["widths"]])
    yield "prior", f"flow, {widths} channels from the finest grid on, {settings['blocks']} blocks per grid"
    sizes = [
        f"{kind['rows']}×{kind['columns']} of {kind['row_mm']:.3g}×{kind['column_mm']:.3g} mm"
        for kind in prior["slices"]
    ]
    yield "slice sizes of the prior", listed(sizes)
    yield "masks", "generated with each slice" if prior["masks"] else "none"
    yield "classes", str(len(prior["classes"]))
    yield (
        "decoder of samples",
        "a flow beside the tokenizer's" if prior["decoder_provenance"] else "the tokenizer's",
    )


def training_rows(provenance: Json) -> Rows:
    """Return how each model was trained."""
    trainings = []
    if tokenizer := provenance["model"]:
        trainings.append(("tokenizer", tokenizer["provenance"], tokenizer["recipe"]["training"]))
    if prior := provenance["prior"]:
        trainings.append(("prior", prior["provenance"], prior["recipe"]["prior"]["training"]))
        if decoder := prior["decoder_provenance"]:
            trainings.append(("decoder", decoder, prior["recipe"]["decoder"]["training"]))
    counts = ("patients", "slices", "epochs", "steps")
    rows: Rows = [("model", *counts, "time", "device", "batch size", "seed", "Slicebook", "commit")]
    for name, run, settings in trainings:
        numbers = (f"{run[key]:,}" for key in ("train_patients", "train_slices", "epoch", "step"))
        setup = (duration(run["seconds"]), run["device"], str(settings["batch_size"]), str(settings["seed"]))
        code = (run["versions"].get("slicebook", UNKNOWN), run["commit"] or UNKNOWN)
        rows.append((name, *numbers, *setup, *code))
    return rows


def data_rows(data: Json) -> Rows:
    """Return how the data were prepared."""
    size, (low, high), values = data["size"], data["percentiles"], data["label_values"]
    split = "given by the layout"
    if data["fractions"]:
        fractions = listed([share(fraction) for fraction in data["fractions"]])
        split = f"{fractions} of the patients, seed {data['seed']}"
    return [
        ("property", "value"),
        ("file layout", data["layout"]),
        ("plane", data["plane"] or "several, as acquired"),
        ("pixels", f"resampled to {data['spacing']:g} mm" if data["spacing"] else "native"),
        ("size", f"cropped or padded to {size[0]}×{size[1]}" if size else "native"),
        ("intensities", f"percentiles {low:g} and {high:g} of each volume mapped to -1 and 1, then clipped"),
        ("masks", f"label values {listed(list(map(str, values)))}" if values else "none"),
        ("train, validation and test split", split),
        ("unreadable files left out", str(data["quarantined"])),
        ("duplicate files left out", str(data["duplicates"])),
        ("split hash", data["split_hash"]),
    ]


def count_rows(data: Json) -> Rows:
    """Return the size of each split."""
    rows: Rows = [("split", "patients", "volumes", "slices", "blank slices")]
    for split, counts in data["counts"].items():
        rows.append((split, *(f"{counts[name]:,}" for name in ("patients", "volumes", "slices", "blank"))))
    return rows
