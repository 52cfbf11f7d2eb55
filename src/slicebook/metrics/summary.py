"""From the numbers of slices to those of patients and of a whole split."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from slicebook.config import Record
from slicebook.metrics.reconstruction import CONVENTIONS, bootstrap_interval, patient_means

Scores = Mapping[str, float | None]

_RESAMPLES = 10_000
_CONFIDENCE = 0.95
AVERAGING = (
    "A patient's score is the mean of their slices. The interval is the expanded percentile bootstrap of "
    f"the mean of patients (Hesterberg 2015), {_CONFIDENCE:.0%}, from {_RESAMPLES:,} resamples of patients"
)


class Summary(Record):
    """One score over the whole split, both ways of averaging named.

    `interval` is that of `mean_of_patients`; null with fewer than two patients. `slices` counts those where
    the score is defined.
    """

    convention: str
    mean_of_patients: float | None
    interval: tuple[float, float] | None
    mean_of_slices: float | None
    patients: int
    slices: int

    def in_words(self) -> str:
        """Return the mean of patients and its interval, for a screen."""
        if self.mean_of_patients is None:
            return "–"
        mean = f"{self.mean_of_patients:.3f}"
        return mean if self.interval is None else f"{mean} [{self.interval[0]:.3f}, {self.interval[1]:.3f}]"


class Rate(Record):
    """Bits over the native pixels of a slice, before any padding."""

    convention: str
    mean_of_slices: float
    lowest: float
    highest: float


SHARES = 64


class LevelUse(Record):
    """How the evaluated slices use one codebook; level 0 is the finest.

    `perplexity` is exp(entropy). `shares` parts the codes, the most used first, into groups of equal size, 64
    at most: the share of the tokens that each took, over what it would be were all codes used alike.
    """

    level: int
    codebook_size: int
    tokens: int
    codes_in_use: int
    usage: float
    perplexity: float
    shares: tuple[float, ...]


class CodecReport(Record):
    """A codec on the same slices at the tokenizer's bits; `advantage` is the tokenizer's less its scores."""

    title: str
    settings: str
    library_version: str
    bits_per_pixel: Rate
    header_bits_subtracted: float
    slices_over_budget: int
    scores: dict[str, Summary]
    advantage: dict[str, Summary]


def summarise(found: Sequence[Scores], patients: Sequence[str], seed: int) -> dict[str, Summary]:
    """Summarise every score of `CONVENTIONS` over slices, given each slice's scores and patient."""
    return {
        name: summarise_one(convention, [one[name] for one in found], patients, seed)
        for name, convention in CONVENTIONS.items()
    }


def summarise_one(
    convention: str, values: Sequence[float | None], patients: Sequence[str], seed: int
) -> Summary:
    """Summarise one score over slices, None where it is undefined, given the patient of each."""
    means = list(patient_means(values, patients).values())
    defined = [value for value in values if value is not None]
    interval = bootstrap_interval(values, patients, seed=seed, resamples=_RESAMPLES, confidence=_CONFIDENCE)
    return Summary(
        convention=convention,
        mean_of_patients=float(np.mean(means)) if means else None,
        interval=(interval.low, interval.high) if interval else None,
        mean_of_slices=float(np.mean(defined)) if defined else None,
        patients=len(means),
        slices=len(defined),
    )


def summarise_rate(convention: str, values: Sequence[float]) -> Rate:
    """Summarise the bits per native pixel of slices."""
    return Rate(
        convention=convention, mean_of_slices=float(np.mean(values)), lowest=min(values), highest=max(values)
    )


def level_use(level: int, counts: Int64[Tensor, " k"]) -> LevelUse:
    """Say how a codebook is used, given how often each of its codes was."""
    shares = counts[counts > 0].double() / counts.sum()
    used = len(shares)
    ordered = counts.double().sort(descending=True).values / counts.sum()
    groups = torch.tensor_split(ordered, min(SHARES, len(counts)))
    return LevelUse(
        level=level,
        codebook_size=len(counts),
        tokens=int(counts.sum()),
        codes_in_use=used,
        usage=used / len(counts),
        perplexity=float(torch.exp(-(shares * shares.log()).sum())),
        shares=tuple(round(float(group.mean()) * len(counts), 4) for group in groups),
    )


def difference(ours: Scores, theirs: Scores) -> Scores:
    """Return ours less theirs, score by score; None where either is."""
    return {
        name: None if value is None or (other := theirs[name]) is None else value - other
        for name, value in ours.items()
    }
