"""Judge a model on patients it never saw: is it faithful, does it generate, does it copy, is it of use?

One JSON holds every number with its convention, and what it takes to get it again.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slicebook.data.dataset import PreparedData
from slicebook.data.splits import Split
from slicebook.environment import commit, versions
from slicebook.errors import ConfigError, DataError, ShapeError
from slicebook.evaluation import downstream as segmenter
from slicebook.evaluation.downstream import evaluate_downstream
from slicebook.evaluation.features import descriptors
from slicebook.evaluation.generation import Measure, draw_samples, evaluate_generation
from slicebook.evaluation.memorization import describe_training, evaluate_memorization
from slicebook.evaluation.reconstruction import ReconstructionResult, evaluate_reconstruction
from slicebook.evaluation.report import PARTS, Evaluation, read_history, write_report, written_whole
from slicebook.evaluation.slices import SliceCollection, check_trained_on, read_slices
from slicebook.io.atomic import write_csv
from slicebook.io.tensors import hash_tensors
from slicebook.metrics import codecs as codec_metrics
from slicebook.models.checkpoint import (
    LoadedPrior,
    LoadedTokenizer,
    has_prior,
    is_prior,
    load_prior,
    load_tokenizer,
)
from slicebook.models.sampling import SamplingSettings
from slicebook.records import Record
from slicebook.text import to_json
from slicebook.visualization import contact_sheet

SHOWN = 32  # samples in the contact sheet, and as many real slices beside them
STEPS = 300  # of each segmenter's training
MOST_SAMPLES, FEWEST_SAMPLES = 540, 100


def evaluate(
    model: str | Path,
    data: PreparedData,
    out: str | Path,
    *,
    parts: Sequence[str] | None = None,
    split: Split = "test",
    codecs: bool | None = None,
    samples: int | None = None,
    settings: SamplingSettings | None = None,
    noise: bool = True,
    steps: int = STEPS,
    device: str | torch.device = "cpu",
    seed: int = 42,
    say: Callable[[str], None] = lambda _: None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Judge a model on one split and write what was found into a folder, report.json last.

    A part that the data are too few for is left out, with the reason, and the others are judged. What an
    earlier evaluation wrote there stays until this one is whole, and then goes.

    Args:
        model: The folder of a run or demo, or a model's file. A tokenizer alone is judged by its fidelity
            alone; a prior's own file, which draws and does not rebuild, by all else.
        data: What it was trained on, prepared.
        out: The folder to write into; made where it is missing.
        parts: What to judge, some of `PARTS`; all that the model allows by default.
        split: Whose patients judge. Test patients are meant to be used once.
        codecs: Code the same slices with JPEG 2000 and JPEG XL (extra `codecs`); by default where that is
            installed.
        samples: To draw; by default as many as there are slices to judge them by, from 100 to 540.
        settings: How boldly tokens are drawn.
        noise: Whether to put noise back, as `generate` does.
        steps: Of each segmenter's training.
        device: Where models run; scores are computed on the CPU.
        seed: Of all that is random.
        say: Called with a line before each piece of work.
        progress: Called with samples done and all samples.

    Raises:
        CheckpointError: There is no trained model, or none for a part that is asked for.
        DataError: The split holds no slice, or too few for any part.
        ConfigError: A part has another name, something is asked for that is not installed, or the data are
            others than the prior's.
    """
    unknown = [part for part in parts or () if part not in PARTS]
    if unknown:
        raise ConfigError(f"{unknown[0]}: is nothing to judge; wanted some of {', '.join(PARTS)}")
    out, device = Path(out), torch.device(device)
    tokenizer, prior = _load(Path(model), parts, device)
    asked, missing = _asked(tokenizer, prior, parts)
    if prior:
        check_trained_on(prior, data)
    slices = data.split(split)
    with written_whole(out) as partial:
        how = _How(split, partial, samples, settings, noise, steps, device, seed, say, progress)
        work = _Work(say, {str(data.folder): "DATA", str(model): "MODEL"})
        if tokenizer and "fidelity" in asked:
            coded = codec_metrics.installed() if codecs is None else codecs
            say(f"fidelity: {len(slices)} slices of {len(slices.patients)} patients")
            with work("fidelity"):
                work.keep(
                    "fidelity",
                    evaluate_reconstruction(
                        tokenizer.tokenizer, slices, partial, codecs=coded, device=device, seed=seed
                    ),
                )
        if prior and asked != PARTS[:1]:
            _judge_samples(work, prior, data, asked, how)
        if not work.found.keys() - {"drawing"}:
            reasons = "; ".join(dict.fromkeys(work.left_out.values()))
            raise DataError(f"{data.folder}: nothing could be judged: {reasons}")
        fidelity: ReconstructionResult | None = work.found.get("fidelity")
        found = Evaluation(
            split=split,
            patients=len(slices.patients),
            slices=len(slices),
            blank_slices_left_out=sum(record.blank for record in data.records if record.split == split),
            warnings=(
                *_warnings(tokenizer, data, split, slices.patients),
                *_mismatch(tokenizer, prior),
                *_codec_warnings(fidelity),
            ),
            left_out=missing | work.left_out,
            training=read_history(
                tokenizer.path.parent if tokenizer else None, prior.path.parent if prior else None
            ),
            seconds=work.seconds,
            provenance=_provenance(tokenizer, prior, data, device, seed),
            **work.found,
        )
        if found.generation:
            write_csv(partial / "measures.csv", [_row(one) for one in found.generation.measures()])
        write_report(partial, found)
    return found


@dataclass(frozen=True)
class _How:
    """How samples are drawn and judged: arguments of `evaluate`."""

    split: Split
    out: Path
    samples: int | None
    settings: SamplingSettings | None
    noise: bool
    steps: int
    device: torch.device
    seed: int
    say: Callable[[str], None]
    progress: Callable[[int, int], None] | None


def _row(one: Measure) -> dict[str, Any]:
    nobody = (None, None)
    return {
        "features": one.features,
        "measure": one.measure,
        "generated": one.generated,
        **dict(zip(("low", "high"), one.interval or nobody, strict=True)),
        "real": one.real,
        **dict(zip(("real_low", "real_high"), one.real_range or nobody, strict=True)),
        "tokenizer_alone": one.tokenizer_alone,
    }


class _Work:
    """What was found of each part, the seconds that each took, and why some could not be judged."""

    def __init__(self, say: Callable[[str], None], words: Mapping[str, str]) -> None:
        self.found: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self.left_out: dict[str, str] = {}
        self._say, self._words = say, words

    @contextmanager
    def __call__(self, name: str, parts: Sequence[str] | None = None) -> Iterator[None]:
        """Time a piece of work. Data too few for it cost the parts that need it, by default itself."""
        parts = (name,) if parts is None else parts
        began = time.perf_counter()
        try:
            yield
        except (DataError, ShapeError) as error:
            reason = str(error)
            self._say(f"left out: {', '.join(parts) or name}: {reason}")
            for path, word in self._words.items():  # a report names no folder: paths may tell of people
                reason = re.sub(rf"(?<![\w/.-]){re.escape(path)}(?=[:/])", word, reason)
            self.left_out |= dict.fromkeys(parts, reason)
        self.seconds[name] = round(time.perf_counter() - began, 1)

    def keep(self, name: str, record: Record) -> None:
        """Keep what was found.

        Raises:
            DataError: A number in it is not finite: a report has no such number.
        """
        try:
            to_json(record)
        except ValueError as error:
            raise DataError(f"{name}: a number that was measured is not finite ({error})") from error
        self.found[name] = record


def _judge_samples(
    work: _Work, prior: LoadedPrior, data: PreparedData, asked: Sequence[str], how: _How
) -> None:
    """Draw samples, and judge them as asked."""
    kind, seed, say = prior.info.slices[0], how.seed, how.say
    size, kinds = (kind.rows, kind.columns), descriptors()
    beside = [part for part in ("generation", "usefulness") if part in asked]
    real: SliceCollection | None = None
    with work("real slices", beside):
        real = read_slices(data, how.split, size)
    count = how.samples or min(max(len(real or ()), FEWEST_SAMPLES), MOST_SAMPLES)
    say(f"{count} samples of {kind.rows}×{kind.columns}")
    with work("sampling", [part for part in asked if part != "fidelity"]):
        ours, drawing = draw_samples(
            prior, data, count, settings=how.settings, noise=how.noise, seed=seed, progress=how.progress
        )
        work.found["drawing"] = drawing
    if "drawing" not in work.found:
        return
    _draw_sheets(ours, real, kind.row_mm / kind.column_mm, seed, how.out)
    if "generation" in asked and real:
        with work("generation"):
            found = evaluate_generation(
                prior, data, how.split, ours, real, noise=how.noise, seed=seed, kinds=kinds, say=say
            )
            work.keep("generation", found)
    if "audit" in asked:
        with work("audit"):
            began = time.perf_counter()
            training = describe_training(data, size, say=say)
            work.seconds["audit, describing the training set"] = round(time.perf_counter() - began, 1)
            audited = evaluate_memorization(
                prior, data, ours, seed=seed, noise=how.noise, training=training, out=how.out, say=say
            )
            work.keep("audit", audited)
    if "usefulness" in asked and real:
        with work("usefulness"):
            train = read_slices(data, "train", size, most=how.steps * segmenter.BATCH, seed=seed)
            taught = evaluate_downstream(
                ours, train, real, data.info.label_values, steps=how.steps, seed=seed, say=say
            )
            work.keep("usefulness", taught)


def _load(
    model: Path, parts: Sequence[str] | None, device: torch.device
) -> tuple[LoadedTokenizer | None, LoadedPrior | None]:
    """Read the faithful tokenizer and its prior, as far as they are there and asked for."""
    if is_prior(model) and "fidelity" not in (parts or ()):
        return None, load_prior(model, device)
    tokenizer = load_tokenizer(model, device)
    wanted = set(parts or ()) - {"fidelity"} if parts else has_prior(model)
    return tokenizer, load_prior(model, device) if wanted else None


def _asked(
    tokenizer: LoadedTokenizer | None, prior: LoadedPrior | None, parts: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return what is to be judged, and what is not for want of a library.

    Raises:
        ConfigError: That part was asked for by name.
    """
    possible = PARTS[0 if tokenizer else 1 : None if prior else 1]
    asked = tuple(part for part in possible if part in (parts or possible))
    if "usefulness" not in asked or segmenter.is_installed():
        return asked, {}
    if parts:
        segmenter.Segmenter(1)  # says what is missing
    reason = "MONAI is not installed; run: pip install 'slicebook[usefulness]'"
    return asked[:-1], {"usefulness": reason}


def _draw_sheets(
    ours: SliceCollection, real: SliceCollection | None, aspect: float, seed: int, out: Path
) -> None:
    """Write samples, none of them picked, and as many real slices; with their masks, if they have any."""
    shown = [("samples", ours, list(range(min(SHOWN, len(ours)))))]
    if real:
        shown.append(("real", real, np.random.default_rng(seed).permutation(len(real))[:SHOWN].tolist()))
    for name, side, rows in shown:
        cells = [contact_sheet.gray(side.images[row, 0].numpy(), aspect) for row in rows]
        contact_sheet.write_sheet(cells, out / f"{name}.png", columns=8)
        if side.masks is not None:
            over = [
                contact_sheet.tinted(side.images[row, 0].numpy(), side.masks[row].numpy(), aspect)
                for row in rows
            ]
            contact_sheet.write_sheet(over, out / f"{name}-masks.png", columns=8)


def _warnings(
    loaded: LoadedTokenizer | None, data: PreparedData, split: Split, patients: Sequence[str]
) -> tuple[str, ...]:
    """Return what a reader must know before believing a number."""
    said = []
    if loaded and loaded.info.provenance.split_hash != data.split_hash:
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


def _mismatch(tokenizer: LoadedTokenizer | None, prior: LoadedPrior | None) -> tuple[str, ...]:
    """Return a warning where the samples are of another tokenizer than the reconstructions."""
    if tokenizer is None or prior is None:
        return ()
    ours, theirs = tokenizer.tokenizer.token_state(), prior.tokenizer.images.token_state()
    if hash_tensors(ours) == hash_tensors(theirs):
        return ()
    return (
        "The prior was trained over another tokenizer than the one beside it, so what is said of "
        "reconstructions is not of the tokenizer that drew the samples; train the prior anew.",
    )


def _codec_warnings(fidelity: ReconstructionResult | None) -> tuple[str, ...]:
    return tuple(
        f"{one.title} has no stream as small as the tokenizer's bits for {one.slices_over_budget} slices: "
        f"its scores stand at {one.bits_per_pixel.mean_of_slices:.3f} bits per pixel."
        for one in ((fidelity and fidelity.codecs) or {}).values()
        if one.slices_over_budget
    )


def _provenance(
    tokenizer: LoadedTokenizer | None,
    prior: LoadedPrior | None,
    data: PreparedData,
    device: torch.device,
    seed: int,
) -> dict[str, Any]:
    """Return what it takes to judge again. Names no folder: paths may tell of people."""
    model = None
    if tokenizer:
        model = {
            "file": tokenizer.path.name,
            "codebook_hash": tokenizer.codebook_hash,
            "parameters": sum(parameter.numel() for parameter in tokenizer.tokenizer.parameters()),
        }
        model |= tokenizer.info.model_dump(mode="json")
    return {
        "model": model,
        "prior": None if prior is None else prior.info.model_dump(mode="json", exclude={"noise_model"}),
        "data": data.info.model_dump(mode="json"),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": commit(),
        "versions": versions(),
        "hardware": {
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        },
        "seed": seed,
    }
