"""What `slicebook diagnose` finds: eight numbers, what each should be, and what it means."""

from __future__ import annotations

from dataclasses import dataclass

from slicebook.baselines import FreeBaselines

Row = tuple[str, str, str, str]
"""What, the number, what it should be, and what it means."""

MANY_FLIPS, TOO_MANY_FLIPS = 0.2, 0.4
TOO_BRITTLE = 1.5  # dB
DECORATIVE = 0.2  # nats a token
WANTED_GAIN = 0.5  # nats a token
OVERFITTED = 0.3  # nats a token
FALLING = 0.05  # nats a token and decade: less is flat
COPIED = 0.1  # share of samples nearer than a hundredth of held-out slices: ten times what chance gives
STRANGE = 0.5  # share of samples farther than nearly all held-out slices


@dataclass(frozen=True)
class NoiseFlips:
    """Tokens that change when as much noise as a slice holds is added to it: how much noise is coded.

    Attributes:
        noise: Median noise level of the slices, on [-1, 1].
        shares: Of the tokens, by level, finest first.
    """

    noise: float
    shares: tuple[float, ...]

    def rows(self) -> list[Row]:
        """Return a line a level; the finest is judged."""
        finest = self.shares[0]
        verdict = "the tokens hold still"
        if finest > TOO_MANY_FLIPS:
            verdict = "noise is coded: fewer codes, or training.loss.smooth"
        elif finest > MANY_FLIPS:
            verdict = "some noise is coded"
        wanted = f"< {MANY_FLIPS:.0%} (finest)"
        return [
            (
                f"1 tokens that noise flips, level {level}",
                f"{share:.1%}",
                *((wanted, verdict), ("", ""))[level > 0],
            )
            for level, share in enumerate(self.shares)
        ]


@dataclass(frozen=True)
class Brittleness:
    """What a decoding loses when a tenth of its tokens give way to near codes, as a prior's errors do.

    Attributes:
        psnr: Of the decoding against the slice, range 2, dB; the mean over slices.
        lost: Of it with swapped tokens, dB; the mean over slices.
    """

    psnr: float
    lost: float

    def rows(self) -> list[Row]:
        """Return one line."""
        brittle = self.lost > TOO_BRITTLE
        verdict = "brittle: train the decoder on swapped tokens" if brittle else "forgives near codes"
        found = f"{self.lost:.2f} dB of {self.psnr:.1f}"
        return [("2 lost to 10 % near codes", found, f"< {TOO_BRITTLE:g} dB", verdict)]


@dataclass(frozen=True)
class Hierarchy:
    """What the finest tokens cost given coarser ones; the slices' masks count as unknown.

    Attributes:
        own: Nats a token given the slice's own coarser tokens.
        strangers: Given those of another patient's slice.
    """

    own: float
    strangers: float

    def rows(self) -> list[Row]:
        """Return one line."""
        gain = self.strangers - self.own
        verdict = "coarse levels say something" if gain >= DECORATIVE else "a decorative hierarchy"
        found = f"{gain:.2f} nats a token ({self.strangers:.2f} - {self.own:.2f})"
        return [("3 finest level: own coarse tokens tell", found, f"> {DECORATIVE:g}", verdict)]


@dataclass(frozen=True)
class StageCost:
    """What the tokens of one stage cost.

    Attributes:
        stage: Its name, such as `image_0`.
        free: Without a network.
        prior: Nats a token under the prior, if there is one.
    """

    stage: str
    free: FreeBaselines
    prior: float | None

    def rows(self) -> list[Row]:
        """Return one line."""
        free = (
            f"{self.free.plain:.2f} plain, {self.free.place:.2f} place, {self.free.neighbours:.2f} neighbours"
        )
        if self.prior is None:
            return [(f"4 {self.stage}: nats a token", free, "", "a prior has to beat them by 0.5")]
        gain = self.free.best - self.prior
        verdict = "the prior knows more than counts"
        if gain < 0:
            verdict = "counting does better: train longer, or mend the prior"
        elif gain < WANTED_GAIN:
            verdict = "little more than counts"
        found = f"{gain:+.2f} below the best: prior {self.prior:.2f}; {free}"
        return [(f"4 {self.stage}: nats a token", found, f"> {WANTED_GAIN:g} below", verdict)]


@dataclass(frozen=True)
class Resampled:
    """Real tokens with one stage drawn anew by the prior, decoded.

    Attributes:
        stage: Its name.
        distance: Kernel distance on texture features from the decodings of the real tokens.
        floor: 95th percentile of the same between decodings of real tokens of different patients; None
            with a single patient.
    """

    stage: str
    distance: float
    floor: float | None

    def rows(self) -> list[Row]:
        """Return one line."""
        wanted, verdict = "", "one patient: nothing to compare with"
        if self.floor is not None:
            wanted = f"< {self.floor:.3g}"
            verdict = "breaks the slices" if self.breaks else "as near as patients are"
        return [(f"5 {self.stage} drawn anew: distance", f"{self.distance:.3g}", wanted, verdict)]

    @property
    def breaks(self) -> bool:
        """Whether slices look less alike than those of two groups of patients."""
        return self.floor is not None and self.distance > self.floor


@dataclass(frozen=True)
class Overfit:
    """A fresh prior of the same size on a few slices, each always in one order, without dropout.

    Attributes:
        slices: How many.
        steps: Of gradient, on batches of at most 8.
        seconds: That they took.
        nats: A token, in the last pass over the slices.
        out_of_time: It stopped because the time was over.
    """

    slices: int
    steps: int
    seconds: float
    nats: float
    out_of_time: bool

    def rows(self) -> list[Row]:
        """Return one line."""
        found = f"{self.nats:.2f} nats a token after {self.steps} steps, {self.seconds:.0f} s"
        verdict = "it learns by heart" if not self.out_of_time else "time ran out: ask for --overfit-seconds"
        return [(f"6 fresh prior on {self.slices} slices", found, f"< {OVERFITTED:g}", verdict)]


@dataclass(frozen=True)
class Learning:
    """How the prior's validation likelihood goes with the training tokens seen.

    Attributes:
        nats: A token, at the last validation.
        tokens: Seen until then, on one process.
        slope: Nats a token for ten times the tokens, over the second half of the validations; None where
            there are not two of them.
    """

    nats: float
    tokens: float
    slope: float | None

    def rows(self) -> list[Row]:
        """Return one line."""
        verdict = "too few validations to tell"
        found = f"{self.nats:.3f} nats after {self.tokens:.2g} tokens"
        if self.slope is not None:
            found = f"{self.slope:+.3f} nats a decade; {found}"
            verdict = "still falling: train longer"
            if self.slope > 0:
                verdict = "rising: it recites the training patients"
            elif self.slope > -FALLING:
                verdict = "flat: at the end of what it can learn"
        return [("7 validation, second half", found, "falling", verdict)]


@dataclass(frozen=True)
class Copies:
    """The nearest training slice of generated ones, by correlation of decoded slices at 32×32 pixels.

    Attributes:
        samples: Generated slices.
        generated: Median likeness of a sample to its nearest training slice.
        held_out: The same of validation slices.
        nearer: Share of the samples that are nearer than the nearest 1 % of validation slices.
        farther: Share of the samples that are farther than the farthest 1 % of them.
        patients: To how many patients the nearest training slices belong.
    """

    samples: int
    generated: float
    held_out: float
    nearer: float
    farther: float
    patients: int

    def rows(self) -> list[Row]:
        """Return one line."""
        verdict = "as near as held-out patients are"
        if self.nearer > COPIED:
            verdict = "copies training slices"
        elif self.farther > STRANGE:
            verdict = "like no training slice"
        found = (
            f"{self.generated:.3f} (held-out {self.held_out:.3f}); {self.nearer:.0%} nearer, "
            f"{self.farther:.0%} farther than 99 %; {self.samples} samples near {self.patients} patients"
        )
        return [("8 nearest training slice", found, "as held-out", verdict)]
