"""Whether a prior's samples are copies of training slices, and its likelihoods give patients away.

The verdict is `metrics.memorization`'s; here are the slices it judges. Held-out slices are those of all
patients that were never trained on. Where these are too few to be a baseline, training slices stand beside
them, each without its own patient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Float64

from slicebook import pictures
from slicebook.checkpoint import LoadedPrior
from slicebook.config import Record
from slicebook.dataset import PreparedData, SliceSet
from slicebook.generating import decode_pages, noise_levels, put_noise_back
from slicebook.judging.likeness import Side, of_size, unit
from slicebook.likelihood import likelihood
from slicebook.metrics.membership import Membership, membership
from slicebook.metrics.memorization import FEWEST_PATIENTS, Audit, Pair, audit
from slicebook.metrics.neighbours import describe, nearest_by_correlation
from slicebook.token_set import encode_slices

BATCH = 64  # slices read at a time
SOURCES = 0.05  # of the samples: as many training slices are copied for the control
DRAWN = 6  # closest pairs
MEMBERS = 240  # slices of each group whose likelihood is asked


class Auditing(Record):
    """What was found of copies.

    Attributes:
        baseline: Whose slices the samples are judged beside, in words.
        training_slices, training_patients: How many were searched.
        copies: The verdict and what it rests on.
        membership: How well likelihoods tell training slices from held-out ones.
    """

    baseline: str
    training_slices: int
    training_patients: int
    copies: Audit
    membership: Membership


def audit_samples(
    loaded: LoadedPrior,
    data: PreparedData,
    ours: Side,
    *,
    seed: int,
    out: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Auditing:
    """Audit samples for copies of training slices; draw the closest pairs into `out`/closest.png.

    Args:
        loaded: The prior that drew them.
        data: What it was trained on.
        ours: The samples, as `likeness.draw_side` makes them.
        seed: Of the controls and of the bootstrap.
        out: Folder for the picture; none by default.
        say: Called before each part.

    Raises:
        DataError: There is a single patient never trained on and too few training patients.
    """
    size = (ours.images.shape[-2], ours.images.shape[-1])
    train = of_size(data, "train", size)
    owners = [record.patient for record in train.records]
    say(f"descriptions of {len(train)} training slices")
    windows = np.concatenate([describe(images) for images in _read(train)])
    held_out, whose, baseline = _held_out(data, size, train)
    generator = np.random.default_rng(seed)
    count = min(len(train), max(1, round(SOURCES * len(ours))) * 2)
    places = np.sort(generator.choice(len(train), count, replace=False))
    sources = np.concatenate(list(_read(SliceSet(train.folder, tuple(train.records[at] for at in places)))))
    say(f"nearest training slices of {len(held_out)} real slices, {len(ours)} samples, and planted copies")
    found = audit(
        unit(ours.images),
        held_out,
        whose,
        sources,
        places.tolist(),
        partial(nearest_by_correlation, training=windows, training_patients=owners),
        partial(_again, loaded),
        seed=seed,
    )
    if out is not None:
        _draw_closest(found.closest, unit(ours.images), train, out / "closest.png")
    say("likelihoods of training slices and of held-out ones")
    return Auditing(
        baseline=baseline,
        training_slices=len(train),
        training_patients=len(set(owners)),
        copies=found,
        membership=_membership(loaded, data, size, seed),
    )


def _held_out(
    data: PreparedData, size: tuple[int, int], train: SliceSet
) -> tuple[Float32[np.ndarray, "n h w"], list[str], str]:
    """Return slices of patients that were never trained on, whose they are, and that in words."""
    records = [
        record
        for record in data.records
        if record.split in ("validation", "test")
        and not record.blank
        and (record.rows, record.columns) == size
    ]
    patients = len({record.patient for record in records})
    words = f"{len(records)} slices of {patients} patients that were never trained on"
    if patients < FEWEST_PATIENTS:
        words += (
            f", and, these being fewer than {FEWEST_PATIENTS}, {len(train)} training slices, each without "
            "its own patient"
        )
        records += train.records
    images = np.concatenate(list(_read(SliceSet(train.folder, tuple(records)))))
    return images, [record.patient for record in records], words


def _read(slices: SliceSet) -> Iterator[Float32[np.ndarray, "n h w"]]:
    for start in range(0, len(slices), BATCH):
        rows = range(start, min(start + BATCH, len(slices)))
        yield unit(torch.stack([slices[row] for row in rows]))


def _again(loaded: LoadedPrior, images: Float32[np.ndarray, "n h w"]) -> Float32[np.ndarray, "n h w"]:
    """Return slices as the prior's book draws them from their own tokens, noise put back."""
    device = next(loaded.prior.parameters()).device
    size = (images.shape[1], images.shape[2])
    parts = torch.split(torch.from_numpy(2 * images[:, None] - 1), BATCH)
    tokens = torch.cat([loaded.book.encode(part.to(device)).cpu() for part in parts])
    drawn = decode_pages(loaded, tokens, size).images
    seeds = list(range(len(drawn)))
    return unit(put_noise_back(loaded, drawn, noise_levels(loaded, drawn, seeds), seeds))


def _membership(loaded: LoadedPrior, data: PreparedData, size: tuple[int, int], seed: int) -> Membership:
    """Ask the prior how likely training slices are, and those that it never saw."""
    groups: list[tuple[Float64[np.ndarray, " n"], list[str]]] = []
    for trained_on in (True, False):
        records = [
            record
            for record in data.records
            if (record.split == "train") is trained_on
            and not record.blank
            and (record.rows, record.columns) == size
        ]
        chosen = np.random.default_rng(seed).permutation(len(records))[:MEMBERS]
        slices = SliceSet(data.folder, tuple(records[at] for at in np.sort(chosen)))
        groups.append((_log_likelihood(loaded, slices), [record.patient for record in slices.records]))
    (inside, whose), (outside, others) = groups
    return membership(inside, whose, outside, others, seed=seed)


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
        (samples[pair.sample], _moved(unit(train[pair.training][None])[0], pair)) for pair in closest[:6]
    ]
    records = [train.records[pair.training] for pair in closest[:6]]
    pictures.pairs(
        [2 * sample - 1 for sample, _ in pairs],
        [2 * nearest - 1 for _, nearest in pairs],
        path,
        names=[f"sample {pair.sample}" for pair in closest[:6]],
        titles=[f"nearest · next patient {pair.times_farther:.2f}×" for pair in closest[:6]],
        aspect=[record.row_mm / record.column_mm for record in records],
        caption="Samples most like one training patient and no other, beside that training slice, "
        "moved onto them.",
    )


def _moved(image: Float32[np.ndarray, "h w"], pair: Pair) -> Float32[np.ndarray, "h w"]:
    """Return a training slice where its sample lies, the edge repeated."""
    turned = image[:, ::-1] if pair.mirror else image
    rows, columns = (
        np.clip(np.arange(side) - by, 0, side - 1) for side, by in zip(image.shape, pair.shift, strict=True)
    )
    return np.asarray(turned[rows][:, columns])
