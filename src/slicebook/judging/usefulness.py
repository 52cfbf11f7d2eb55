"""What generated pairs teach: a segmenter trained on them alone, tested on real patients.

Beside it stands the same segmenter trained on the training set, at as many steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8

from slicebook.config import Record
from slicebook.errors import DataError
from slicebook.judging import segmenter
from slicebook.judging.sides import Side
from slicebook.metrics import masks
from slicebook.metrics.summary import Summary


class Taught(Record):
    """What one set of pairs taught."""

    pairs: int
    labels: dict[str, Summary]
    """Dice of each label value but the background's, pooled by patient."""
    mean: float | None
    """Of the labels' means of patients; None where no test slice has a label."""


class Usefulness(Record):
    """Segmenters trained on generated pairs and on the training set, tested on held-out patients."""

    convention: str
    steps: int
    batch_size: int
    seed: int
    generated: Taught
    training_set: Taught
    ratio: float | None
    """Generated over training set; None where the latter taught nothing."""


def measure_usefulness(
    ours: Side,
    train: Side,
    held_out: Side,
    values: Sequence[int],
    *,
    steps: int,
    seed: int,
    say: Callable[[str], None] = lambda _: None,
) -> Usefulness:
    """Train a small U-Net on generated pairs, another on the training set, and test both.

    Args:
        ours: Samples with masks.
        train: The training set, with masks.
        held_out: Slices of patients that were never trained on, with masks.
        values: Label values, the background first.
        steps: Of each training; 8 pairs a step.
        seed: Of both trainings, and of the bootstrap.
        say: Called before each training.

    Raises:
        DataError: A side has no masks.
    """
    found = {}
    for name, side in (("generated pairs", ours), ("pairs of the training set", train)):
        say(f"segmenter on {len(side)} {name}")
        if side.masks is None or held_out.masks is None:
            raise DataError(
                "there are no masks to teach a segmenter with; train the prior with masks, on data that have "
                "them (prepare --mask)"
            )
        network = segmenter.train(side.images, side.masks, values, steps=steps, seed=seed)
        drawn = [one.numpy() for one in segmenter.segment(network, held_out.images, values)]
        found[name] = _taught(len(side), drawn, held_out, values, seed)
    ours_taught, theirs = found.values()
    ratio = ours_taught.mean / theirs.mean if ours_taught.mean is not None and theirs.mean else None
    return Usefulness(
        convention="Dice of each label over all slices of a held-out patient, mean of patients; "
        f"{segmenter.NAME}, trained from scratch on the pairs, half of them mirrored; the mean is that of "
        "the labels",
        steps=steps,
        batch_size=segmenter.BATCH,
        seed=seed,
        generated=ours_taught,
        training_set=theirs,
        ratio=ratio,
    )


def _taught(
    pairs: int, drawn: list[UInt8[np.ndarray, "h w"]], real: Side, values: Sequence[int], seed: int
) -> Taught:
    scores = masks.dice(drawn, real.label_maps(), real.patients, list(values)[1:], seed=seed)
    means = [one.mean_of_patients for one in scores.values() if one.mean_of_patients is not None]
    return Taught(
        pairs=pairs,
        labels={str(value): one for value, one in scores.items()},
        mean=float(np.mean(means)) if means else None,
    )
