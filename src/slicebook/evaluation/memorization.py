"""Whether samples copy training slices, and whether likelihoods reveal the training patients.

The test itself is in `metrics.memorization`; this module selects the slices. Held-out slices are those of all
patients that were never trained on. If these are too few for a baseline, training slices are added, each
compared with other patients only. The descriptions of the training set are cached in the prepared folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64

from slicebook.data.dataset import PreparedData, SliceSet
from slicebook.data.manifest import SliceRecord
from slicebook.errors import DataError
from slicebook.evaluation.kept import NOTHING_KEPT, Arrays, KeptWork
from slicebook.evaluation.slices import (
    BATCH,
    MAX_REAL,
    SliceCollection,
    in_batches,
    of_size,
    reconstruct,
    unit,
)
from slicebook.io.atomic import write_csv
from slicebook.io.tensors import State, hash_tensors, load_kept, save_state
from slicebook.metrics.audit_baseline import MIN_PATIENTS
from slicebook.metrics.membership import Membership, membership
from slicebook.metrics.memorization import Audit, Pair, audit
from slicebook.metrics.nearest import CHUNK, CORRELATION, Nearest, describe, move, nearest_by_correlation
from slicebook.metrics.statistics import Rate, summarise_rate
from slicebook.models.checkpoint import LoadedPrior
from slicebook.models.prior import LIKELIHOOD_BATCH, likelihood
from slicebook.models.sampling import SamplingSettings
from slicebook.records import Record
from slicebook.training.token_dataset import encode_slices
from slicebook.version import __version__
from slicebook.visualization import figures

SOURCES = 0.05  # planted copies of the largest control, as a share of the samples
SHOWN = 6  # closest pairs in the figure
STAND_INS = 540  # largest number of training slices added to the baseline
MEMBERS = 120  # slices of each group whose likelihood is measured
PRIOR_BITS = (
    "Upper bound of the code length of a held-out slice's image and mask tokens under the prior (one draw "
    "of the noise), in bits per native pixel"
)


class MemorizationResult(Record):
    """The audit for copies and the membership test.

    Attributes:
        baseline: The real slices of the baseline, in words.
        training_slices, training_patients: Numbers searched.
        of_other_sizes: Training slices that were not searched because their size differs from the samples'.
        copies: The audit by the correlation of images, shifted and mirrored.
        membership: How well likelihoods tell training slices from held-out ones.
        prior_bits_per_pixel: Code length of the held-out slices under the prior.
    """

    baseline: str
    training_slices: int
    training_patients: int
    of_other_sizes: int
    copies: Audit
    membership: Membership
    prior_bits_per_pixel: Rate


def evaluate_memorization(
    loaded: LoadedPrior,
    data: PreparedData,
    generated: SliceCollection,
    *,
    seed: int,
    steps: int = SamplingSettings.decoder_steps,
    training: TrainingSet | None = None,
    out: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
    kept: KeptWork = NOTHING_KEPT,
) -> MemorizationResult:
    """Audit samples for copies of training slices; list and draw the closest pairs into `out`.

    Args:
        loaded: The prior that drew them.
        data: The data that it was trained on.
        generated: The samples, as `generation.draw_samples` makes them.
        seed: Seed of the controls and of the bootstrap.
        steps: Of the generation decoder, which decodes planted copies too.
        training: The training slices, described for the search; described here by default.
        out: Folder for closest.csv and closest.png; none by default.
        say: Called before each part.
        kept: Keeps the searches and the likelihoods.

    Raises:
        DataError: No patient never trained on has a slice of this size, or a single one has and there are
            too few training patients.
    """
    size = (generated.images.shape[-2], generated.images.shape[-1])
    training = training or describe_training(data, size, say=say, kept=kept)
    train = training.slices
    owners = [record.patient for record in train.records]
    held_out, patients, baseline = _held_out(data, size, train, seed)
    count = min(len(train), max(1, round(SOURCES * len(generated))) * 2)
    source_indices = np.sort(np.random.default_rng(seed).choice(len(train), count, replace=False))
    sources = _read(train, [train.records[index] for index in source_indices])
    samples = unit(generated.images)

    say(f"search: {len(held_out)} real slices, {len(generated)} samples, and planted copies")
    search = partial(_search, training=training.windows, training_patients=owners, kept=kept)
    copies = audit(
        samples,
        held_out,
        patients,
        sources,
        source_indices.tolist(),
        search,
        # Metrics use [0, 1], the tokenizer [-1, 1].
        lambda images: unit(reconstruct(loaded, torch.from_numpy(2 * images[:, None] - 1), steps=steps)),
        seed=seed,
    )
    say("likelihoods of training slices and of held-out ones")
    member, prior_bits = _likelihoods(loaded, data, size, seed, kept)
    if out is not None:
        _draw_closest(copies.closest, samples, train, out / "closest.png")
        write_csv(out / "closest.csv", [_row(pair, generated, train) for pair in copies.closest])
    return MemorizationResult(
        baseline=baseline,
        training_slices=len(train),
        training_patients=len(set(owners)),
        of_other_sizes=len(data.split("train")) - len(train),
        copies=copies,
        membership=member,
        prior_bits_per_pixel=prior_bits,
    )


def _search(
    images: Float32[np.ndarray, "n h w"],
    patients: Sequence[str] | None,
    training: Float32[np.ndarray, "m r c"],
    training_patients: Sequence[str],
    kept: KeptWork,
) -> Nearest:
    """Search as `nearest_by_correlation`, and keep what was found."""

    def part(first: int, end: int) -> Arrays:
        owners = None if patients is None else patients[first:end]
        return vars(nearest_by_correlation(images[first:end], owners, training, training_patients))

    digest = hashlib.blake2b(images.tobytes(), digest_size=8).hexdigest()
    found = kept.arrays(f"search {digest}", "slice searched", len(images), CHUNK, part)
    return Nearest(**{name: values.numpy() for name, values in found.items()})


def _held_out(
    data: PreparedData, size: tuple[int, int], train: SliceSet, seed: int
) -> tuple[Float32[np.ndarray, "n h w"], list[str], str]:
    """Return slices of held-out patients, the patient of each, and a description."""
    records = [
        record
        for record in data.records
        if record.split in ("validation", "test")
        and not record.blank
        and (record.rows, record.columns) == size
    ]
    if not records:
        raise DataError(
            f"{data.folder}: has no slice of {size[0]}×{size[1]}, the size of the samples, of a patient who "
            "was never trained on, so the audit has no baseline; hold out such patients, or prepare all data "
            "to one size (--size)"
        )
    total = len(records)
    if total > MAX_REAL:
        kept = np.sort(np.random.default_rng(seed).permutation(total)[:MAX_REAL])
        records = [records[index] for index in kept]
    patients, trained = ({record.patient for record in group} for group in (records, train.records))
    words = f"{len(records)} slices of {len(patients)} patients that were never trained on"
    if total > MAX_REAL:
        words += f", chosen at random of {total} slices"
    if len(patients) < MIN_PATIENTS and len(trained) > 2:  # so that 2 remain besides a slice's own
        chosen = np.sort(np.random.default_rng(seed).permutation(len(train))[:STAND_INS])
        words += (
            f", and, because these are fewer than {MIN_PATIENTS} patients, {len(chosen)} training slices, "
            "each compared with other patients only"
        )
        records += [train.records[index] for index in chosen]
    return _read(train, records), [record.patient for record in records], words


def _read(slices: SliceSet, records: Sequence[SliceRecord]) -> Float32[np.ndarray, "n h w"]:
    chosen = SliceSet(slices.folder, tuple(records))
    images = np.empty((len(chosen), records[0].rows, records[0].columns), np.float32)
    for start, batch in zip(range(0, len(chosen), BATCH), in_batches(chosen), strict=True):
        images[start : start + len(batch)] = batch
    return images


def _likelihoods(
    loaded: LoadedPrior, data: PreparedData, size: tuple[int, int], seed: int, kept: KeptWork = NOTHING_KEPT
) -> tuple[Membership, Rate]:
    """Compare the prior's likelihoods of training slices with those of held-out slices."""
    records = [r for r in data.records if not r.blank and (r.rows, r.columns) == size]
    # A slice without a mask has fewer tokens to code, so slices with and without masks are not compared.
    for candidates in (
        [r for r in records if r.label_offset >= 0],
        [r for r in records if r.label_offset < 0],
        records,
    ):
        pair = [[r for r in candidates if (r.split == "train") is member] for member in (True, False)]
        if all(pair):
            break
    groups: list[tuple[Float64[np.ndarray, " n"], list[str]]] = []
    for name, group in zip(("training", "held-out"), pair, strict=True):
        chosen = np.random.default_rng(seed).permutation(len(group))[:MEMBERS]
        slices = SliceSet(data.folder, tuple(group[index] for index in np.sort(chosen)))
        scores = _log_likelihood(loaded, slices, name, kept)
        groups.append((scores, [record.patient for record in slices.records]))
    (training, training_patients), (held_out, held_out_patients) = groups
    bits = (-held_out / np.log(2) / (size[0] * size[1])).tolist()
    return membership(training, training_patients, held_out, held_out_patients, seed=seed), summarise_rate(
        PRIOR_BITS, bits
    )


def _log_likelihood(
    loaded: LoadedPrior, slices: SliceSet, name: str, kept: KeptWork
) -> Float64[np.ndarray, " n"]:
    """Return the log-likelihood of each slice's tokens, including those of its mask, in nats."""
    device = next(loaded.prior.parameters()).device
    (tokens,) = encode_slices(loaded.tokenizer, slices, device=device, classes=loaded.info.classes)

    def part(first: int, end: int) -> Arrays:
        rows = torch.arange(first, end)
        conditions = tokens.conditions[rows]
        scores = likelihood(loaded.prior, tokens.layout, tokens.tokens[rows, 0].long(), conditions)
        return {"scores": -scores.nats.sum(1).double()}

    item = f"likelihood of a {name} slice"
    return np.asarray(kept.arrays(item, item, len(slices), LIKELIHOOD_BATCH, part)["scores"].numpy())


def _draw_closest(
    closest: Sequence[Pair], samples: Float32[np.ndarray, "n h w"], train: SliceSet, path: Path
) -> None:
    """Draw samples beside their nearest training slices, aligned with them, and the difference."""
    pairs = [
        (samples[pair.sample], move(unit(train[pair.training][None])[0], pair.mirror, pair.shift))
        for pair in closest[:SHOWN]
    ]
    records = [train.records[pair.training] for pair in closest[:SHOWN]]
    figures.pairs(
        [2 * sample - 1 for sample, _ in pairs],
        [2 * nearest - 1 for _, nearest in pairs],
        path,
        names=[f"sample {pair.sample}" for pair in closest[:SHOWN]],
        titles=[f"nearest · next patient {pair.distance_ratio:.2f}×" for pair in closest[:SHOWN]],
        aspect=[record.row_mm / record.column_mm for record in records],
        caption="The samples that are closest to one training patient relative to all others, and that "
        "training slice, aligned with them.",
    )


def _row(pair: Pair, samples: SliceCollection, train: SliceSet) -> dict[str, Any]:
    record = train.records[pair.training]
    return {
        "sample": pair.sample,
        "seed": samples.seeds[pair.sample],
        "patient": record.patient,
        "volume": record.volume,
        "slice": record.slice,
        "distance": pair.distance,
        "distance_ratio": pair.distance_ratio,
        "mirror": int(pair.mirror),
        "down": pair.shift[0],
        "right": pair.shift[1],
    }


FOLDER = "descriptions"  # cache in the prepared folder
DESCRIBED = 1024  # slices that are described and kept at a time


@dataclass(frozen=True)
class TrainingSet:
    """The training slices of one size, and their descriptions for the search.

    Attributes:
        slices: The slices.
        windows: Output of `nearest.describe` for them.
    """

    slices: SliceSet
    windows: Float32[np.ndarray, "n r c"]


def describe_training(
    data: PreparedData,
    size: tuple[int, int],
    *,
    say: Callable[[str], None] = lambda _: None,
    kept: KeptWork = NOTHING_KEPT,
) -> TrainingSet:
    """Describe the training slices of a size, or read their descriptions from the cache.

    Args:
        data: The prepared folder; its folder `descriptions` is the cache, if it can be written to.
        size: Rows and columns.
        say: Called before the work.
        kept: Keeps descriptions until all are in the cache.

    Raises:
        DataError: There is no training slice of this size.
    """
    slices = of_size(data, "train", size, masked=False)
    return TrainingSet(slices, _describe_cached(data, slices, say, kept))


def _describe_cached(
    data: PreparedData,
    slices: SliceSet,
    say: Callable[[str], None],
    kept: KeptWork,
) -> Float32[np.ndarray, "n r c"]:
    """Return the descriptions of slices from the cache, or compute and cache them."""
    rows, columns = slices.records[0].rows, slices.records[0].columns
    path = data.folder / FOLDER / f"windows-{rows}x{columns}.safetensors"
    made_from: dict[str, Any] = {
        "slicebook_version": __version__,
        "convention": CORRELATION,
        "data": data.info.model_dump(mode="json"),
        "slices": hash_tensors({"offsets": torch.tensor([record.offset for record in slices.records])}),
    }
    cached = load_kept(path, made_from)
    if cached is not None:
        return cached["values"].numpy()
    say(f"windows of {len(slices)} training slices")

    def part(first: int, end: int) -> Arrays:
        chosen = SliceSet(slices.folder, slices.records[first:end])
        return {"values": np.concatenate([describe(batch) for batch in in_batches(chosen)])}

    values = kept.arrays("windows", "training slice", len(slices), DESCRIBED, part)["values"]
    try:
        save_state(path, State({"values": values}, made_from))
    except (DataError, OSError) as error:  # the folder may be read-only
        say(f"not cached: {error}")
    return values.numpy()
