"""Whether a prior's samples are copies of training slices, and its likelihoods give patients away.

The verdict is `metrics.memorization`'s; here are the slices it judges. Held-out slices are those of all
patients that were never trained on. Where these are too few to be a baseline, training slices stand beside
them, each without its own patient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64

from slicebook import pictures
from slicebook.atomic import write_csv
from slicebook.checkpoint import LoadedPrior
from slicebook.config import Record
from slicebook.dataset import PreparedData, SliceSet
from slicebook.errors import DataError
from slicebook.generating import decode_pages, noise_levels, put_noise_back
from slicebook.judging.descriptions import Descriptor, TrainingSet, describe_training, descriptors
from slicebook.judging.sides import BATCH, Side, in_batches, unit
from slicebook.likelihood import likelihood
from slicebook.manifest import SliceRecord
from slicebook.metrics.distances import standardise
from slicebook.metrics.membership import Membership, membership
from slicebook.metrics.memorization import FEWEST_PATIENTS, Audit, Pair, audit
from slicebook.metrics.neighbours import (
    CORRELATION,
    EUCLIDEAN,
    Nearest,
    nearest_by_correlation,
    nearest_by_features,
)
from slicebook.metrics.planting import move
from slicebook.metrics.summary import Rate, summarise_rate
from slicebook.token_set import encode_slices

SOURCES = 0.05  # of the samples: as many training slices are copied for the control
DRAWN = 6  # closest pairs
STAND_INS = 540  # training slices, at most, where held-out patients are few
MEMBERS = 120  # slices of each group whose likelihood is asked
CODED = (
    "Bits of a held-out slice's tokens, and of its mask's, were they coded by the prior's likelihood (the "
    "mean over 4 orders), over the native pixels"
)


class Auditing(Record):
    """What was found of copies.

    Attributes:
        baseline: Whose slices the samples are judged beside, in words.
        training_slices, training_patients: How many were searched.
        of_other_sizes: Training slices that were not, for samples of this size cannot be compared with them.
        copies: The verdict and what it rests on: the correlation of images, shifted and mirrored.
        in_features: The same search among features, by their name; reported beside, not decided by, for its
            false alarms were not measured.
        membership: How well likelihoods tell training slices from held-out ones.
        coded: What the held-out slices among them cost.
    """

    baseline: str
    training_slices: int
    training_patients: int
    of_other_sizes: int
    copies: Audit
    in_features: dict[str, Audit]
    membership: Membership
    coded: Rate


def audit_samples(
    loaded: LoadedPrior,
    data: PreparedData,
    ours: Side,
    *,
    seed: int,
    grain: bool = True,
    kinds: Sequence[Descriptor] | None = None,
    training: TrainingSet | None = None,
    out: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Auditing:
    """Audit samples for copies of training slices; list and draw the closest pairs into `out`.

    Args:
        loaded: The prior that drew them.
        data: What it was trained on.
        ours: The samples, as `likeness.draw_side` makes them.
        seed: Of the controls and of the bootstrap.
        grain: Whether noise was put back into the samples; so it is into planted copies.
        kinds: Of features to search in too; all there are by default.
        training: The training slices, described by these kinds; described here by default.
        out: Folder for closest.csv and closest.png; none by default.
        say: Called before each part.

    Raises:
        DataError: No patient never trained on has a slice of this size, or a single one has and there are
            too few training patients.
    """
    size = (ours.images.shape[-2], ours.images.shape[-1])
    kinds = descriptors() if kinds is None else kinds
    training = training or describe_training(data, size, kinds, say=say)
    train = training.slices
    owners = [record.patient for record in train.records]
    held_out, whose, baseline = _held_out(data, size, train, seed)
    count = min(len(train), max(1, round(SOURCES * len(ours))) * 2)
    places = np.sort(np.random.default_rng(seed).choice(len(train), count, replace=False))
    sources = _read(train, [train.records[at] for at in places])
    samples = unit(ours.images)

    def search(name: str, how: Callable[..., Nearest], distance: str) -> Audit:
        say(
            f"nearest training slices by {name} of {len(held_out)} real slices, {len(ours)} samples, and "
            "planted copies"
        )
        again = partial(_again, loaded, grain=grain)
        return audit(
            samples, held_out, whose, sources, places.tolist(), how, again, seed=seed, distance=distance
        )

    by_image = partial(nearest_by_correlation, training=training.windows, training_patients=owners)
    found = search("correlation", by_image, CORRELATION)
    in_features = {
        kind.name: search(
            kind.name,
            _FeatureSearch(kind, training.features[kind.name], owners),
            f"{EUCLIDEAN}: {kind.convention}",
        )
        for kind in kinds
    }
    say("likelihoods of training slices and of held-out ones")
    member, coded = _likelihoods(loaded, data, size, seed)
    if out is not None:
        _draw_closest(found.closest, samples, train, out / "closest.png")
        write_csv(out / "closest.csv", [_row(pair, ours, train) for pair in found.closest])
    return Auditing(
        baseline=baseline,
        training_slices=len(train),
        training_patients=len(set(owners)),
        of_other_sizes=len(data.split("train")) - len(train),
        copies=found,
        in_features=in_features,
        membership=member,
        coded=coded,
    )


class _FeatureSearch:
    """A search among features, standardised by the training set's."""

    def __init__(self, kind: Descriptor, training: Float64[np.ndarray, "m f"], owners: Sequence[str]) -> None:
        self.kind, self.raw, self.owners = kind, training, owners
        self.training = standardise(training, training, one_unit=kind.one_unit)

    def __call__(self, images: Float32[np.ndarray, "n h w"], patients: Sequence[str] | None) -> Nearest:
        features = standardise(self.kind(images), self.raw, one_unit=self.kind.one_unit)
        return nearest_by_features(features, patients, self.training, self.owners)


def _held_out(
    data: PreparedData, size: tuple[int, int], train: SliceSet, seed: int
) -> tuple[Float32[np.ndarray, "n h w"], list[str], str]:
    """Return slices of patients that were never trained on, whose they are, and that in words."""
    records = [
        record
        for record in data.records
        if record.split in ("validation", "test")
        and not record.blank
        and (record.rows, record.columns) == size
    ]
    if not records:
        raise DataError(
            f"{data.folder}: holds no slice of {size[0]}×{size[1]}, the size that is drawn, of a patient who "
            "was never trained on, so there is nothing to judge nearness by; hold out such patients, or "
            "prepare all data to one size (--size)"
        )
    patients, trained = ({record.patient for record in some} for some in (records, train.records))
    words = f"{len(records)} slices of {len(patients)} patients that were never trained on"
    if len(patients) < FEWEST_PATIENTS and len(trained) > 2:  # without its own, two are left to compare
        chosen = np.sort(np.random.default_rng(seed).permutation(len(train))[:STAND_INS])
        words += (
            f", and, these being fewer than {FEWEST_PATIENTS}, {len(chosen)} training slices, each without "
            "its own patient"
        )
        records += [train.records[at] for at in chosen]
    return _read(train, records), [record.patient for record in records], words


def _read(among: SliceSet, records: Sequence[SliceRecord]) -> Float32[np.ndarray, "n h w"]:
    return np.concatenate(list(in_batches(SliceSet(among.folder, tuple(records)))))


def _again(
    loaded: LoadedPrior, images: Float32[np.ndarray, "n h w"], *, grain: bool
) -> Float32[np.ndarray, "n h w"]:
    """Return slices as the prior's book draws them from their own tokens."""
    device = next(loaded.prior.parameters()).device
    size = (images.shape[1], images.shape[2])
    parts = torch.split(torch.from_numpy(2 * images[:, None] - 1), BATCH)
    tokens = torch.cat([loaded.book.encode(part.to(device)).cpu() for part in parts])
    drawn = decode_pages(loaded, tokens, size).images
    seeds = list(range(len(drawn)))
    levels = noise_levels(loaded, drawn, seeds) if grain else [0.0] * len(drawn)
    return unit(put_noise_back(loaded, drawn, levels, seeds))


def _likelihoods(
    loaded: LoadedPrior, data: PreparedData, size: tuple[int, int], seed: int
) -> tuple[Membership, Rate]:
    """Ask the prior how likely training slices are, and those that it never saw."""
    records = [r for r in data.records if not r.blank and (r.rows, r.columns) == size]
    # Mask tokens that are not known cost nothing: slices with and without masks are not to be mixed.
    for alike in (
        [r for r in records if r.label_offset >= 0],
        [r for r in records if r.label_offset < 0],
        records,
    ):
        sides = [[r for r in alike if (r.split == "train") is trained_on] for trained_on in (True, False)]
        if all(sides):
            break
    groups: list[tuple[Float64[np.ndarray, " n"], list[str]]] = []
    for side in sides:
        chosen = np.random.default_rng(seed).permutation(len(side))[:MEMBERS]
        slices = SliceSet(data.folder, tuple(side[at] for at in np.sort(chosen)))
        groups.append((_log_likelihood(loaded, slices), [record.patient for record in slices.records]))
    (inside, whose), (outside, others) = groups
    bits = (-outside / np.log(2) / (size[0] * size[1])).tolist()
    return membership(inside, whose, outside, others, seed=seed), summarise_rate(CODED, bits)


def _log_likelihood(loaded: LoadedPrior, slices: SliceSet) -> Float64[np.ndarray, " n"]:
    """Return that of each slice's own tokens, its mask's among them, in nats."""
    device = next(loaded.prior.parameters()).device
    (tokens,) = encode_slices(loaded.book, slices, device=device, classes=loaded.info.classes)
    found = likelihood(loaded.prior, tokens.layout, tokens.tokens[:, 0].long(), tokens.conditions)
    return np.asarray(-found.nats.sum(1).double().numpy())


def _draw_closest(
    closest: Sequence[Pair], samples: Float32[np.ndarray, "n h w"], train: SliceSet, path: Path
) -> None:
    """Draw samples beside their nearest training slices, moved onto them, and the difference."""
    pairs = [
        (samples[pair.sample], move(unit(train[pair.training][None])[0], pair.mirror, pair.shift))
        for pair in closest[:DRAWN]
    ]
    records = [train.records[pair.training] for pair in closest[:DRAWN]]
    pictures.pairs(
        [2 * sample - 1 for sample, _ in pairs],
        [2 * nearest - 1 for _, nearest in pairs],
        path,
        names=[f"sample {pair.sample}" for pair in closest[:DRAWN]],
        titles=[f"nearest · next patient {pair.times_farther:.2f}×" for pair in closest[:DRAWN]],
        aspect=[record.row_mm / record.column_mm for record in records],
        caption="Samples most like one training patient and no other, beside that training slice, "
        "moved onto them.",
    )


def _row(pair: Pair, ours: Side, train: SliceSet) -> dict[str, Any]:
    record = train.records[pair.training]
    return {
        "sample": pair.sample,
        "seed": ours.seeds[pair.sample],
        "patient": record.patient,
        "volume": record.volume,
        "slice": record.slice,
        "distance": pair.distance,
        "times_farther": pair.times_farther,
        "mirror": int(pair.mirror),
        "down": pair.shift[0],
        "right": pair.shift[1],
    }
