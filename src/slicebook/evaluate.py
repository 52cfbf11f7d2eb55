"""Judge a model on patients it never saw: is it faithful, does it generate, does it copy, is it of use?

One JSON holds every number with its convention, and what it takes to get it again.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slicebook import sheets
from slicebook.checkpoint import (
    LoadedPrior,
    LoadedTokenizer,
    commit,
    has_prior,
    load_prior,
    load_tokenizer,
    versions,
)
from slicebook.config import Record
from slicebook.dataset import PreparedData
from slicebook.errors import CheckpointError, ConfigError
from slicebook.judging.auditing import Auditing, audit_samples
from slicebook.judging.fidelity import Fidelity, measure_fidelity
from slicebook.judging.likeness import Likeness, Side, draw_side, measure_likeness, read_side
from slicebook.judging.usefulness import Usefulness, measure_usefulness
from slicebook.layouts import Split
from slicebook.metrics.summary import CodecReport
from slicebook.sampling import SamplingSettings
from slicebook.text import replace_text

SCHEMA_VERSION = 2
REPORT_NAME = "report.json"
SHOWN = 32  # samples in the contact sheet, and as many real slices beside them
STEPS = 300  # of each segmenter's training
MOST_SAMPLES, FEWEST_SAMPLES = 540, 100

PARTS = ("fidelity", "generation", "audit", "usefulness")


class Evaluation(Record):
    """All that `slicebook evaluate` found; the content of `report.json`. Parts not asked for are None."""

    schema_version: int
    split: Split
    patients: int
    slices: int
    blank_slices_left_out: int
    warnings: tuple[str, ...]
    fidelity: Fidelity | None
    generation: Likeness | None
    audit: Auditing | None
    usefulness: Usefulness | None
    seconds: dict[str, float]
    """Of each part."""
    provenance: dict[str, Any]

    def table(self) -> tuple[tuple[str, ...], ...]:
        """Return the main numbers as rows of text, for a screen."""
        rows = list(self.fidelity.table()) if self.fidelity else []
        width = len(rows[0]) if rows else 2
        found: list[tuple[str, str]] = []
        if self.generation:
            for name, features in self.generation.features.items():
                for measure in ("kernel_distance", "coverage", "recall"):
                    beside = getattr(features.samples, measure)
                    if beside is not None:
                        said = f"{beside.generated:.3g} beside {beside.real:.3g} of real patients"
                        found.append((f"{name} {measure}", said))
            if self.generation.anatomy:
                anatomy = self.generation.anatomy
                found.append(("anatomy_rules", f"{anatomy.generated:.1%} beside {anatomy.real:.1%}"))
        if self.audit:
            found.append(("copies", self.audit.copies.verdict))
            found.append(("membership_auc", f"{self.audit.membership.auc:.3f}"))
        if self.usefulness and self.usefulness.generated.mean is not None:
            theirs = self.usefulness.training_set.mean
            said = f"{self.usefulness.generated.mean:.3f}" + (f" of {theirs:.3f}" if theirs else "")
            found.append(("segmenter_dice", said))
        return tuple(rows + [row + ("",) * (width - 2) for row in found])


def evaluate(
    model: str | Path,
    data: PreparedData,
    out: str | Path,
    *,
    parts: Sequence[str] | None = None,
    split: Split = "test",
    codecs: bool = False,
    samples: int | None = None,
    settings: SamplingSettings | None = None,
    steps: int = STEPS,
    device: str | torch.device = "cpu",
    seed: int = 42,
    say: Callable[[str], None] = lambda _: None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Judge a model on one split and write what was found into a folder, report.json last.

    Args:
        model: The folder of a run or demo; a tokenizer alone is judged by its fidelity alone.
        data: What it was trained on, prepared.
        out: The folder to write into; made where it is missing.
        parts: What to judge, some of `PARTS`; all that the model allows by default.
        split: Whose patients judge. Test patients are meant to be used once.
        codecs: Code the same slices with JPEG 2000 and JPEG XL at the same bits (extra `codecs`).
        samples: To draw; by default as many as there are slices to judge them by, from 100 to 540.
        settings: How boldly tokens are drawn.
        steps: Of each segmenter's training.
        device: Where models run; scores are computed on the CPU.
        seed: Of all that is random.
        say: Called with a line before each piece of work.
        progress: Called with samples done and all samples.

    Raises:
        CheckpointError: There is no trained tokenizer; or a part is asked for that wants a prior, and there
            is none.
        DataError: The split holds no slice, or too few patients for what is asked.
        ConfigError: A part has another name, something is asked for that is not installed, or the data are
            others than the prior's.
    """
    unknown = [part for part in parts or () if part not in PARTS]
    if unknown:
        raise ConfigError(f"{unknown[0]}: is nothing to judge; wanted some of {', '.join(PARTS)}")
    out = Path(out)
    tokenizer, prior = _load(Path(model), parts, device)
    asked = tuple(parts or (PARTS if prior else PARTS[:1]))
    slices = data.split(split)
    clock = _Clock()
    fidelity = likeness = auditing = usefulness = None
    if "fidelity" in asked:
        say(f"fidelity: {len(slices)} slices of {len(slices.patients)} patients")
        with clock("fidelity"):
            fidelity = measure_fidelity(
                tokenizer.tokenizer, slices, out, codecs=codecs, device=device, seed=seed
            )
    if prior and asked != PARTS[:1]:
        kind = prior.info.slices[0]
        size = (kind.rows, kind.columns)
        real = read_side(data, split, size)
        count = samples or min(max(len(real), FEWEST_SAMPLES), MOST_SAMPLES)
        say(f"{count} samples of {kind.rows}×{kind.columns}")
        with clock("sampling"):
            ours, drawing = draw_side(prior, data, count, settings=settings, seed=seed, progress=progress)
            _draw_sheet(ours, real, kind.row_mm / kind.column_mm, seed, out)
        if "generation" in asked:
            with clock("generation"):
                likeness = measure_likeness(prior, data, split, ours, real, drawing, seed=seed, say=say)
        if "audit" in asked:
            with clock("audit"):
                auditing = audit_samples(prior, data, ours, seed=seed, out=out, say=say)
        if "usefulness" in asked and ours.masks is not None and real.masks is not None:
            with clock("usefulness"):
                usefulness = measure_usefulness(
                    ours, read_side(data, "train", size), real, data.info.label_values,
                    steps=steps, seed=seed, say=say,
                )  # fmt: skip
    found = Evaluation(
        schema_version=SCHEMA_VERSION,
        split=split,
        patients=len(slices.patients),
        slices=len(slices),
        blank_slices_left_out=sum(record.blank for record in data.records if record.split == split),
        warnings=(
            *_warnings(tokenizer, data, split, slices.patients),
            *_codec_warnings((fidelity.codecs if fidelity else None) or {}),
        ),
        fidelity=fidelity,
        generation=likeness,
        audit=auditing,
        usefulness=usefulness,
        seconds=clock.seconds,
        provenance=_provenance(tokenizer, prior, data, torch.device(device), seed),
    )
    out.mkdir(parents=True, exist_ok=True)
    replace_text(out / REPORT_NAME, found.model_dump_json(indent=2) + "\n")
    return found


class _Clock:
    """Seconds of each part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 1)


def _load(
    model: Path, parts: Sequence[str] | None, device: str | torch.device
) -> tuple[LoadedTokenizer, LoadedPrior | None]:
    """Read the faithful tokenizer, and its prior where there is one and it is asked for."""
    tokenizer = load_tokenizer(model, device)
    if parts is not None and set(parts) <= {"fidelity"}:
        return tokenizer, None
    try:
        return tokenizer, load_prior(model, device)
    except CheckpointError:
        if parts is None and not has_prior(model):
            return tokenizer, None
        raise


def _draw_sheet(ours: Side, real: Side, aspect: float, seed: int, out: Path) -> None:
    """Write samples, none of them picked, and as many real slices; with their masks, if they have any."""
    chosen = np.random.default_rng(seed).permutation(len(real))[:SHOWN].tolist()
    for name, side, rows in (("samples", ours, range(min(SHOWN, len(ours)))), ("real", real, chosen)):
        cells = [sheets.gray(side.images[row, 0].numpy(), aspect) for row in rows]
        sheets.write_sheet(cells, out / f"{name}.png", columns=8)
        if ours.masks is None or side.masks is None:
            continue
        tinted = [sheets.tinted(side.images[row, 0].numpy(), side.masks[row].numpy(), aspect) for row in rows]
        sheets.write_sheet(tinted, out / f"{name}-masks.png", columns=8)


def _warnings(
    loaded: LoadedTokenizer, data: PreparedData, split: Split, patients: Sequence[str]
) -> tuple[str, ...]:
    """Return what a reader must know before believing a number."""
    said = []
    if loaded.info.provenance.split_hash != data.split_hash:
        said.append(
            "This data set was not split together with the training data, and pseudonyms cannot be compared: "
            "make sure that no patient here was trained on."
        )
    elif split == "train":
        said.append(
            "TRAINED ON THESE PATIENTS: the scores say how well they were learnt, not how well a new patient "
            "is reconstructed. Never report them as fidelity; use --split test."
        )
    elif split == "validation":
        said.append("Validation patients chose this checkpoint, so their scores are a little too good.")
    if len(patients) < 2:
        said.append(
            "One patient: no interval, because a single patient says nothing of the spread between them."
        )
    return tuple(said)


def _codec_warnings(reports: Mapping[str, CodecReport]) -> tuple[str, ...]:
    return tuple(
        f"{one.title} has no stream as small as the tokenizer's bits for {one.slices_over_budget} slices: "
        f"its scores stand at {one.bits_per_pixel.mean_of_slices:.3f} bits per pixel."
        for one in reports.values()
        if one.slices_over_budget
    )


def _provenance(
    tokenizer: LoadedTokenizer,
    prior: LoadedPrior | None,
    data: PreparedData,
    device: torch.device,
    seed: int,
) -> dict[str, Any]:
    """Return what it takes to judge again. Names no folder: paths may tell of people."""
    model = {"file": tokenizer.path.name, "codebook_hash": tokenizer.codebook_hash}
    return {
        "model": model | tokenizer.info.model_dump(mode="json"),
        "prior": None if prior is None else prior.info.model_dump(mode="json", exclude={"grain"}),
        "data": data.info.model_dump(mode="json"),
        "commit": commit(),
        "versions": versions(),
        "hardware": {
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        },
        "seed": seed,
    }
