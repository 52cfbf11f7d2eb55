"""Why evaluations may not be compared: what must be the same in all, and is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from slicebook.evaluation import Evaluation
from slicebook.reporting.wording import listed

SHORT = 12  # characters of a hash


def _preparation(found: Evaluation) -> str:
    data = found.provenance["data"]
    parts = [
        data["plane"] or "several planes",
        f"{data['spacing']:g} mm" if data["spacing"] else "native pixels",
        "×".join(map(str, data["size"])) if data["size"] else "native size",
        f"percentiles {' and '.join(map(str, data['percentiles']))}",
    ]
    return ", ".join(parts)


def _drawing(found: Evaluation) -> str | None:
    drawing = found.drawing
    if not drawing:
        return None
    settings = ", ".join(f"{name} {value:g}" for name, value in drawing.settings.items())
    noise = "noise put back" if drawing.grain else "no noise put back"
    return f"{drawing.rows}×{drawing.columns}, {settings}, {noise}"


# What must be the same in all reports that have it, and what it spoils where it is not.
SAME: tuple[tuple[str, Callable[[Evaluation], Any], str], ...] = (
    (
        "split hash",
        lambda found: found.provenance["data"]["split_hash"][:SHORT],
        "Other patients, or the same divided otherwise; judge all on one prepared folder",
    ),
    ("preparation", _preparation, "The slices themselves differ; judge all on one prepared folder"),
    (
        "split",
        lambda found: found.split,
        "Validation patients chose the model, and training patients taught it; judge all on one split",
    ),
    (
        "number of samples",
        lambda found: found.drawing and found.drawing.samples,
        "Distances and copies hang on their number; judge all with the same (-n)",
    ),
    (
        "sampling",
        _drawing,
        "Bolder samples, or samples of another size, are other samples; judge all with the same settings",
    ),
    (
        "the set of features",
        lambda found: listed(list(found.generation.features)) if found.generation else None,
        "Whether a model generates hangs on all of them; judge all with the same extras installed",
    ),
    (
        "the training of the segmenter",
        lambda found: found.usefulness and f"{found.usefulness.steps} steps",
        "One that is taught longer learns more from the same pairs; judge all with as many",
    ),
    (
        "seed",
        lambda found: found.provenance["seed"],
        "Chance differs too; judge all with one (--seed)",
    ),
)


def differences(titles: Sequence[str], found: Sequence[Evaluation]) -> Iterator[str]:
    """Yield what differs that should not, in which reports, and what to do."""
    for what, value_of, why in SAME:
        values = [value_of(one) for one in found]
        if told := _told_apart(titles, values):
            yield f"{what} is {told}. {why}."


def redefined(titles: Sequence[str], measured: Sequence[dict[str, str]]) -> Iterator[str]:
    """Yield measures that are not the same thing in all reports, given what each says of them."""
    for name in dict.fromkeys(name for one in measured for name in one):
        texts = [one.get(name) for one in measured]
        known = list(dict.fromkeys(text for text in texts if text))
        numbers = [f"by definition {known.index(text) + 1}" if text else None for text in texts]
        if told := _told_apart(titles, numbers):
            yield f"{name} is taken {told}. Judge all on slices of one size, with one version of Slicebook."


def _told_apart(titles: Sequence[str], values: Sequence[Any]) -> str:
    """Say which reports have which value; nothing where all that have one have the same."""
    whose: dict[Any, list[str]] = {}
    for title, value in zip(titles, values, strict=True):
        if value is not None:
            whose.setdefault(value, []).append(title)
    if len(whose) < 2:
        return ""
    return ", and ".join(f"{value} in {listed(names)}" for value, names in whose.items())
