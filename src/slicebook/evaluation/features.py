"""The kinds of features by which slices are compared, with a cache of computed features."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32, Float64

from slicebook.evaluation.kept import NOTHING_KEPT, KeptWork
from slicebook.metrics.features import deep, pixels, texture
from slicebook.metrics.image_quality import check_slices

PART = 64  # slices whose features are kept at a time

Describe: TypeAlias = Callable[[Float32[np.ndarray, "n h w"]], np.ndarray]


class Descriptor:
    """One kind of features, computed once per slice and cached.

    Attributes:
        name: Name of the features.
        convention: Their definition.
        one_unit: Whether all features share a unit, as those of `deep` do; see `distribution.standardise`.
        compute: Returns the features of slices in [0, 1], one row per slice.
        kept: Keeps computed features on disk.
    """

    def __init__(
        self, name: str, convention: str, one_unit: bool, compute: Describe, kept: KeptWork = NOTHING_KEPT
    ) -> None:
        self.name, self.convention, self.one_unit, self.compute = name, convention, one_unit, compute
        self.kept = kept
        self._cache: dict[bytes, Float64[np.ndarray, " f"]] = {}

    def __call__(self, images: Float32[np.ndarray, "n h w"]) -> Float64[np.ndarray, "n f"]:
        """Return the features of slices in [0, 1].

        Raises:
            DataError: A value is not finite or outside [0, 1]; the message has the index of the slice.
        """
        check_slices(images, self.name)  # before slices are selected, so that the index is that of `images`
        keys = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]
        new = {key: at for at, key in enumerate(keys) if key not in self._cache}
        if new:
            chosen = images[list(new.values())]
            digest = hashlib.blake2b(b"".join(new), digest_size=8).hexdigest()
            features = self.kept.arrays(
                f"{self.name} {digest}",
                f"{self.name} slice",
                len(chosen),
                PART,
                lambda first, end: {"features": self.compute(chosen[first:end])},
            )
            self._cache.update(zip(new, features["features"].numpy(), strict=True))
        return np.stack([self._cache[key] for key in keys])


def block_descriptor(name: str, side: int) -> Descriptor:
    """Return the means of blocks of so many pixels."""
    return Descriptor(
        name, pixels.CONVENTION.format(side=side), True, lambda images: pixels.block_means(images, side)
    )


def descriptors(kept: KeptWork = NOTHING_KEPT) -> tuple[Descriptor, ...]:
    """Return all kinds of features: texture, structure, and EfficientNet-Lite0 if its weights are installed.

    Texture sees surfaces, structure where organs lie; the two tell apart what a generator fails at.
    """
    kinds = [
        Descriptor("texture", texture.CONVENTION, False, texture.texture_features, kept),
        block_descriptor("structure", pixels.STRUCTURE),
    ]
    if deep.installed():
        kinds.append(Descriptor(deep.NAME, deep.CONVENTION, True, deep.deep_features, kept))
    return tuple(kinds)
