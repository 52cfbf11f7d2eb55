"""Starters: models that come with Slicebook, trained on synthetic images only.

`starter:NAME` stands for the folder of such a model wherever a model is wanted. `benchmarks/starters.py`
trains them again.
"""

from __future__ import annotations

import json
from pathlib import Path

from slicebook.errors import CheckpointError
from slicebook.records import Record

PREFIX = "starter:"
CARD_NAME, FACTS_NAME = "card.md", "facts.json"


class GenerationFacts(Record):
    """How near the samples of a starter come to phantoms that it was not trained on.

    Kernel distances; a limit is the 95th percentile of the distances between groups of phantom patients.
    """

    compared_with: str
    structure_distance: float
    structure_limit: float
    texture_distance: float
    texture_limit: float
    anatomy: float
    """Share of the masks that satisfy the anatomy rules."""


class StarterFacts(Record):
    """What a starter was trained on, and how well it reconstructs scans of real patients."""

    weights_sha256: str
    trained_on: str
    slices: int
    minutes: float
    """Of one CPU core."""
    scored_on: str
    ssim_whole: float
    ssim_foreground: float
    psnr_whole: float
    bits_per_pixel: float
    generation: GenerationFacts | None = None
    """None for a starter that does not generate."""


def starter_names() -> tuple[str, ...]:
    """Return the names of all starters, without the prefix."""
    return tuple(sorted(path.parent.name for path in _folder().glob(f"*/{FACTS_NAME}")))


def locate(model: str | Path) -> Path:
    """Return the path of a model: the folder of a starter for `starter:NAME`, else the path itself.

    Raises:
        CheckpointError: There is no starter of this name.
    """
    name = str(model)
    if not name.startswith(PREFIX):
        return Path(model)
    known = starter_names()
    if name[len(PREFIX) :] not in known:
        listed = ", ".join(PREFIX + other for other in known) or "none in this installation"
        raise CheckpointError(f"{name}: is not a starter; the starters are {listed}")
    return _folder() / name[len(PREFIX) :]


def read_facts(name: str) -> StarterFacts:
    """Return what is known of a starter, named without the prefix."""
    return StarterFacts.model_validate(
        json.loads((_folder() / name / FACTS_NAME).read_text(encoding="utf-8"))
    )


def is_starter(weights_sha256: str) -> bool:
    """Return whether these are the weights of a starter, which no patient's scan was used for."""
    return any(read_facts(name).weights_sha256 == weights_sha256 for name in starter_names())


def read_card(name: str) -> str:
    """Return the card of a starter, in Markdown."""
    return (_folder() / name / CARD_NAME).read_text(encoding="utf-8")


def _folder() -> Path:
    return Path(__file__).resolve().parent
