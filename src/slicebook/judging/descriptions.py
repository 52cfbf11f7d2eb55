"""How slices are described to be compared: each slice once, and those of the training set kept on disk.

What is kept lies in the prepared folder, beside the slices it was made of, for it tells of the same patients.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float32, Float64

from slicebook import __version__
from slicebook.dataset import PreparedData, SliceSet
from slicebook.errors import DataError
from slicebook.judging.sides import BATCH, in_batches, of_size
from slicebook.metrics import deep, texture
from slicebook.metrics.neighbours import CORRELATION, describe
from slicebook.metrics.slices import check_slices
from slicebook.tensor_file import State, hash_tensors, load_kept, save_state

FOLDER = "descriptions"
TOLD_EVERY = 1024  # slices

Describe: TypeAlias = Callable[[Float32[np.ndarray, "n h w"]], np.ndarray]


class Descriptor:
    """One kind of features, which remembers the slices that it has described.

    Attributes:
        name: Of the features.
        convention: What they are.
        one_unit: Whether they share one, as those of `deep` do; see `distances.standardise`.
    """

    def __init__(self, name: str, convention: str, one_unit: bool, compute: Describe) -> None:
        self.name, self.convention, self.one_unit, self.compute = name, convention, one_unit, compute
        self._known: dict[bytes, Float64[np.ndarray, " f"]] = {}

    def __call__(self, images: Float32[np.ndarray, "n h w"]) -> Float64[np.ndarray, "n f"]:
        """Describe slices in [0, 1].

        Raises:
            DataError: A value is not finite or outside [0, 1]; the message says of which slice.
        """
        check_slices(images, self.name)  # here, where a slice still has its number
        keys = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]
        new = {key: at for at, key in enumerate(keys) if key not in self._known}
        if new:
            found = self.compute(images[list(new.values())])
            self._known.update(zip(new, found, strict=True))
        return np.stack([self._known[key] for key in keys])


def descriptors() -> tuple[Descriptor, ...]:
    """Return the kinds of features there are: texture, and EfficientNet-Lite0's where it is installed."""
    kinds = [Descriptor("texture", texture.CONVENTION, False, texture.texture_features)]
    if deep.installed():
        kinds.append(Descriptor(deep.NAME, deep.CONVENTION, True, deep.deep_features))
    return tuple(kinds)


@dataclass(frozen=True)
class TrainingSet:
    """The training slices of one size, described for a search.

    Attributes:
        slices: What was described.
        windows: The middle of each, as `neighbours.describe` has it.
    """

    slices: SliceSet
    windows: Float32[np.ndarray, "n r c"]


def describe_training(
    data: PreparedData,
    size: tuple[int, int],
    *,
    say: Callable[[str], None] = lambda _: None,
) -> TrainingSet:
    """Describe the training slices of a size, or read what was kept from another evaluation.

    Args:
        data: The prepared folder; the descriptions are kept in its `descriptions`, if it can be written to.
        size: Rows and columns.
        say: Told how far it is.

    Raises:
        DataError: There is no training slice of this size.
    """
    slices = of_size(data, "train", size, masked=False)
    return TrainingSet(slices, _kept(data, slices, say))


def _kept(
    data: PreparedData,
    slices: SliceSet,
    say: Callable[[str], None],
) -> Float32[np.ndarray, "n r c"]:
    """Return descriptions in single precision: the same whether kept or made anew."""
    rows, columns = slices.records[0].rows, slices.records[0].columns
    path = data.folder / FOLDER / f"windows-{rows}x{columns}.safetensors"
    made_from: dict[str, Any] = {
        "slicebook_version": __version__,
        "convention": CORRELATION,
        "data": data.info.model_dump(mode="json"),
        "slices": hash_tensors({"offsets": torch.tensor([record.offset for record in slices.records])}),
    }
    known = load_kept(path, made_from)
    if known is not None:
        return known["values"].numpy()
    parts: list[np.ndarray] = []
    for batch in in_batches(slices):
        if len(parts) * BATCH % TOLD_EVERY == 0:
            say(f"windows of {len(slices)} training slices: {len(parts) * BATCH} done")
        parts.append(describe(batch))
    values = np.concatenate(parts)
    try:
        save_state(path, State({"values": torch.from_numpy(values)}, made_from))
    except (DataError, OSError) as error:  # the folder may be another's
        say(f"not kept for the next time: {error}")
    return values
