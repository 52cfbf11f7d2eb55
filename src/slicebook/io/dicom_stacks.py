"""Group the slices of DICOM files into stacks, one per volume, from the headers alone.

Slices of one stack share patient, series, shape, orientation and pixel spacing. Slices at the same position
are separated by the first trait (see `dicom_tags`) that distinguishes them, for all vendors alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from jaxtyping import Float64, Integer

from slicebook.io.dicom_file import DicomHeader, Frame
from slicebook.io.dicom_tags import ALL_TRAITS, FOLDER, Trait

UNEVEN = 0.05  # of the slice spacing: far above rounding of positions, far below a missing slice
SAME_PLACE = 1e-3  # mm
_PROOF = 3  # slices needed to test even spacing; two are always even

_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class Slice:
    """One frame of one file."""

    header: DicomHeader
    number: int
    private: Mapping[str, Hashable]  # traits from private tags, if they were read

    @property
    def frame(self) -> Frame:
        """Its place and scale."""
        return self.header.frames[self.number]

    def trait(self, name: str) -> Hashable:
        """Return a trait by its name; None if the header lacks it."""
        return self.frame.traits.get(name, self.private.get(name))


@dataclass(frozen=True, eq=False)
class Stack:
    """The slices of one volume, and readable text that distinguishes it within its series."""

    slices: tuple[Slice, ...]
    parts: tuple[str, ...] = ()


def stacks_of(
    headers: Sequence[DicomHeader], private_traits: Callable[[DicomHeader], Mapping[str, Hashable]]
) -> list[Stack]:
    """Return the stacks of files; each slice is in exactly one.

    Args:
        headers: Of the files.
        private_traits: Reads the private tags of a file; called only if slices share a position and no other
            trait separates them.
    """
    slices = [Slice(header, n, {}) for header in headers for n in range(len(header.frames))]
    groups = _by_geometry(
        slices, lambda item: (item.header.patient_id, item.header.series_uid, item.header.shape)
    )
    several = [group for group in groups if len(group) > 1]
    singles = [group[0] for group in groups if len(group) == 1]
    stacks = [stack for group in several for stack in _split_by_trait(Stack(tuple(group)), private_traits)]
    return stacks + _join_series(singles)


def gaps_of(slices: Sequence[Slice]) -> Float64[np.ndarray, " n"]:
    """Return the distances between neighbours along the normal, in mm."""
    return np.diff(np.sort(_distances(slices)))


# --- Grouping


def _by_geometry(slices: Sequence[Slice], key: Callable[[Slice], Hashable]) -> list[list[Slice]]:
    """Group by a key, and by orientation and pixel spacing within tolerances for rounding."""
    groups: dict[Hashable, list[list[Slice]]] = defaultdict(list)
    for item in slices:
        fitting = groups[key(item)]
        group = next((group for group in fitting if _same_grid(item.frame, group[0].frame)), None)
        if group is None:
            fitting.append([item])
        else:
            group.append(item)
    return [group for fitting in groups.values() for group in fitting]


def _same_grid(frame: Frame, other: Frame) -> bool:
    turned = max(
        abs(a - b) for a, b in zip(frame.orientation.tolist(), other.orientation.tolist(), strict=True)
    )
    scaled = max(abs(a - b) / b for a, b in zip(frame.spacing.tolist(), other.spacing.tolist(), strict=True))
    return bool(turned <= 1e-3 and scaled <= 1e-3)


def _join_series(singles: Sequence[Slice]) -> list[Stack]:
    """Join slices with a series UID each, if those of one folder form even stacks."""

    def origin(item: Slice) -> Hashable:
        head = item.header
        described = (head.series_number, head.description, head.modality)
        return (head.path.parent, head.patient_id, head.study_uid, *described, head.shape)

    stacks = []
    for group in _by_geometry(singles, origin):
        parted = _split_by_trait(Stack(tuple(group)), lambda _: {})
        if all(len(stack.slices) >= _PROOF and _is_even(stack.slices) for stack in parted):
            stacks += parted
        else:
            stacks += [Stack((item,)) for item in group]
    return stacks


# --- Separation by traits


def _split_by_trait(
    stack: Stack, private_traits: Callable[[DicomHeader], Mapping[str, Hashable]] | None
) -> list[Stack]:
    """Separate slices at the same position: by folder, then by the first trait that works."""
    slices = stack.slices
    places = _position_ranks(slices)
    if len(slices) < 2 or places.max() + 1 == len(slices):
        return [stack] if _is_even(slices) else _split_uneven(stack)
    if _folders_repeat(slices, places):
        return _split(stack, FOLDER, lambda item: item.header.path.parent, private_traits)
    for trait in ALL_TRAITS.values():
        values = [item.trait(trait.name) for item in slices]
        if _separates(values, places):
            return _split(stack, trait, _reader(trait), private_traits)
    if private_traits is None or any(item.private for item in slices):
        return [stack]
    read = {item.header.path: item.header for item in slices}
    hidden = {path: private_traits(header) for path, header in read.items()}
    with_private = tuple(replace(item, private=hidden[item.header.path]) for item in slices)
    return _split_by_trait(replace(stack, slices=with_private), None)


def _split_uneven(stack: Stack) -> list[Stack]:
    """Split an uneven stack if a trait yields only even ones, such as stations or a new thickness."""
    for trait in ALL_TRAITS.values():
        classes = _by_value(stack.slices, _reader(trait))
        if len(classes) > 1 and all(len(part) >= _PROOF and _is_even(part) for part in classes.values()):
            return _split(stack, trait, _reader(trait), None)
    return [stack]


def _split(
    stack: Stack,
    trait: Trait,
    value: Callable[[Slice], Hashable],
    private_traits: Callable[[DicomHeader], Mapping[str, Hashable]] | None,
) -> list[Stack]:
    classes = _by_value(stack.slices, value)
    stacks = []
    for rank, (key, part) in enumerate(classes.items(), start=1):
        described = trait.describe(key, rank)
        stacks += _split_by_trait(Stack(tuple(part), (*stack.parts, described)), private_traits)
    return stacks


def _reader(trait: Trait) -> Callable[[Slice], Hashable]:
    return lambda item: item.trait(trait.name)


def _by_value(slices: Sequence[Slice], value: Callable[[Slice], _T]) -> dict[_T, list[Slice]]:
    """Return slices by value, the values sorted."""
    classes: dict[_T, list[Slice]] = defaultdict(list)
    for item in slices:
        classes[value(item)].append(item)
    return {key: classes[key] for key in sorted(classes, key=_order)}


def _order(value: object) -> tuple[bool, float, str]:
    is_number = isinstance(value, float)
    return value is None, value if isinstance(value, float) else 0.0, "" if is_number else str(value)


def _separates(values: Sequence[Hashable], places: Integer[np.ndarray, " n"]) -> bool:
    """Return whether a trait separates slices at the same position without splitting volumes.

    A slice counter, or a time that differs between slices, would split volumes: most values must occur at
    several positions.
    """
    seen: dict[Hashable, set[int]] = defaultdict(set)
    for value, place in zip(values, places.tolist(), strict=True):
        seen[value].add(place)
    count = int(places.max()) + 1
    if len(seen) < 2 or sum(len(at) for at in seen.values()) == count:
        return False
    enough = 1 if count == 1 else max(2, count / 4)
    return sum(len(at) >= enough for at in seen.values()) > len(seen) / 2


def _folders_repeat(slices: Sequence[Slice], places: Integer[np.ndarray, " n"]) -> bool:
    """Return whether two folders hold slices at the same position with equal traits."""
    first: dict[Hashable, object] = {}
    for item, place in zip(slices, places.tolist(), strict=True):
        key = (place, tuple(sorted(item.frame.traits.items(), key=str)))
        if first.setdefault(key, item.header.path.parent) != item.header.path.parent:
            return True
    return False


# --- Positions


def _distances(slices: Sequence[Slice]) -> Float64[np.ndarray, " n"]:
    positions = np.array([item.frame.position for item in slices])
    return np.asarray(positions @ slices[0].frame.normal)


def _position_ranks(slices: Sequence[Slice]) -> Integer[np.ndarray, " n"]:
    """Return the rank of each slice's position; slices at the same position share it."""
    distances = _distances(slices)
    order = np.argsort(distances, kind="stable")
    ranks = np.empty(len(slices), dtype=np.int64)
    ranks[order] = np.concatenate([[0], np.cumsum(np.diff(distances[order]) > SAME_PLACE)])
    return ranks


def _is_even(slices: Sequence[Slice]) -> bool:
    gaps = gaps_of(slices)
    return len(gaps) == 0 or bool(gaps.min() > SAME_PLACE and np.ptp(gaps) <= UNEVEN * gaps.min())
