"""Features by which slices are compared. Each slice is described once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32, Float64

from slicebook.metrics.features import deep, texture
from slicebook.metrics.image_quality import check_slices

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
