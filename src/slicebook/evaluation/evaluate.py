"""Evaluation of a model on held-out patients: reconstruction, generation, memorization, downstream use.

One JSON file holds every number with its convention and its provenance.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slicebook.data.dataset import PreparedData, SliceSet
from slicebook.data.splits import Split
from slicebook.errors import ConfigError, DataError
from slicebook.evaluation import downstream
from slicebook.evaluation.features import descriptors
from slicebook.evaluation.generation import (
    GenerationResult,
    Measure,
    SamplingInfo,
    draw_samples,
    evaluate_generation,
)
from slicebook.evaluation.kept import KeptWork
from slicebook.evaluation.memorization import (
    MemorizationResult,
    describe_training,
    evaluate_memorization,
)
from slicebook.evaluation.provenance import (
    LoadedModels,
    collect_warnings,
    describe_provenance,
    describe_request,
)
from slicebook.evaluation.reconstruction import ReconstructionResult, evaluate_reconstruction
from slicebook.evaluation.report import PARTS, Evaluation, read_history, write_report, written_whole
from slicebook.evaluation.results import Results
from slicebook.evaluation.slices import SliceCollection, check_trained_on, read_slices
from slicebook.io.atomic import write_csv
from slicebook.metrics import codecs as codec_metrics
from slicebook.models.checkpoint import (
    LoadedPrior,
    LoadedTokenizer,
    has_prior,
    load_prior,
    load_tokenizer,
)
from slicebook.models.sampling import SamplingSettings
from slicebook.progress import Counter
from slicebook.visualization import contact_sheet

SHEET_SLICES = 32  # samples in the contact sheet, and the number of real slices
STEPS = 300  # training steps of each segmenter
MIN_SAMPLES, MAX_SAMPLES = 100, 540


def evaluate(
    model: str | Path,
    data: PreparedData,
    out: str | Path,
    *,
    parts: Sequence[str] | None = None,
    split: Split = "test",
    codecs: bool | None = None,
    samples: int | None = None,
    refine: int = 0,
    settings: SamplingSettings | None = None,
    steps: int = STEPS,
    device: str | torch.device = "cpu",
    precision: str = "32-true",
    seed: int = 42,
    say: Callable[[str], None] = lambda _: None,
    counter: Counter | None = None,
) -> Evaluation:
    """Evaluate a model on one split and write the results into a folder, report.json last.

    Parts with too little data are skipped, with a reason. An earlier report is replaced by a complete one.
    What an interrupted evaluation has done is kept in a hidden folder in `out`, and the same call goes on.

    Args:
        model: Folder or file. A tokenizer alone allows only `reconstruction`.
        data: The prepared folder that the model was trained on.
        out: Output folder.
        parts: Parts to evaluate, from `PARTS`; by default all that the model allows.
        split: The split to evaluate on. Test patients are meant to be used once.
        codecs: Compare with JPEG 2000 and JPEG XL (extra `codecs`); by default if installed.
        samples: Number of samples; by default the number of real slices, between 100 and 540.
        refine: Steps of the search for better tokens (`models.refinement`), for the part reconstruction.
        settings: Steps of sampling, and guidance.
        steps: Training steps of each segmenter.
        device: Device of the models; scores are computed on the CPU.
        precision: Precision of sampling; `auto` measures on a CPU which is faster.
        seed: Seed of all random draws.
        say: Called with a line before each piece of work.
        counter: Returns the progress line of each piece of work.

    Raises:
        CheckpointError: There is no model for a requested part.
        DataError: The split has too few slices for any part.
        ConfigError: A part is unknown, a library is missing, or the data are not the prior's.
    """
    _check_parts(parts)
    device, slices = torch.device(device), data.split(split)
    models = _load(Path(model), parts, device)
    requested, not_installed = _requested_parts(models, parts)
    if models.prior:
        check_trained_on(models.prior, data)
    codecs = codec_metrics.installed() if codecs is None else codecs
    options = _Options(
        split, codecs, samples, refine, settings or SamplingSettings(), steps, device, precision, seed
    )
    request = describe_request(models, data) | {"parts": requested} | vars(options)
    request |= {"settings": asdict(options.settings), "device": str(device)}
    with written_whole(Path(out), request) as work:
        results = Results(
            say,
            {str(data.folder): "DATA", str(model): "MODEL"},
            work.content,
            KeptWork(work.journal, counter),
        )
        if "reconstruction" in requested:
            _evaluate_reconstruction(results, models.tokenizer, slices, options)
        if models.prior and requested != PARTS[:1]:
            _evaluate_samples(results, models.prior, data, requested, options)
        report = _assemble(results, models, data, not_installed, options)
        if report.generation:
            rows = [_row(measure) for measure in report.generation.measures()]
            write_csv(work.content / "measures.csv", rows)
        write_report(work.content, report)
    return report


@dataclass(frozen=True)
class _Options:
    """The arguments of `evaluate` that its parts share."""

    split: Split
    codecs: bool
    samples: int | None
    refine: int
    settings: SamplingSettings
    steps: int
    device: torch.device
    precision: str
    seed: int


def _check_parts(parts: Sequence[str] | None) -> None:
    unknown = [part for part in parts or () if part not in PARTS]
    if unknown:
        raise ConfigError(
            f"{unknown[0]}: is not a part of an evaluation; wanted one or more of {', '.join(PARTS)}"
        )


def _evaluate_reconstruction(
    results: Results, tokenizer: LoadedTokenizer, slices: SliceSet, options: _Options
) -> None:
    results.say(f"reconstruction: {len(slices)} slices of {len(slices.patients)} patients")

    def compute() -> ReconstructionResult:
        return evaluate_reconstruction(
            tokenizer,
            slices,
            results.out,
            codecs=options.codecs,
            refine=options.refine,
            seed=options.seed,
            kept=results.kept,
        )

    with results.measuring("reconstruction"):
        results.add("reconstruction", ReconstructionResult, compute)


def _assemble(
    results: Results,
    models: LoadedModels,
    data: PreparedData,
    not_installed: dict[str, str],
    options: _Options,
) -> Evaluation:
    """Return the report.

    Raises:
        DataError: No part could be evaluated.
    """
    if not results.records.keys() - {"sampling"}:
        results.kept.forget()  # nothing to continue
        reasons = "; ".join(dict.fromkeys(results.skipped.values()))
        raise DataError(f"{data.folder}: no part could be evaluated: {reasons}")
    slices = data.split(options.split)
    tokenizer, prior = models.tokenizer, models.prior
    reconstruction: ReconstructionResult | None = results.records.get("reconstruction")
    return Evaluation(
        split=options.split,
        patients=len(slices.patients),
        slices=len(slices),
        blank_slices_skipped=sum(record.blank for record in data.records if record.split == options.split),
        warnings=collect_warnings(models, data, options.split, reconstruction),
        skipped=not_installed | results.skipped,
        training=read_history(tokenizer.path.parent, prior.path.parent if prior else None),
        seconds=results.seconds,
        provenance=describe_provenance(models, data, options.device, options.seed),
        **results.records,
    )


def _row(measure: Measure) -> dict[str, Any]:
    undefined = (None, None)
    return {
        "features": measure.features,
        "measure": measure.measure,
        "generated": measure.generated,
        **dict(zip(("low", "high"), measure.interval or undefined, strict=True)),
        "real": measure.real,
        **dict(zip(("real_low", "real_high"), measure.real_range or undefined, strict=True)),
        "tokenizer_only": measure.tokenizer_only,
    }


def _evaluate_samples(
    results: Results, prior: LoadedPrior, data: PreparedData, requested: Sequence[str], options: _Options
) -> None:
    """Draw samples, and evaluate the requested parts on them."""
    kind, seed, say = prior.info.slices[0], options.seed, results.say
    size = (kind.rows, kind.columns)
    real: SliceCollection | None = None
    with results.measuring(
        "real slices", [part for part in ("generation", "downstream") if part in requested]
    ):
        real = read_slices(data, options.split, size)
    count = options.samples or min(max(len(real or ()), MIN_SAMPLES), MAX_SAMPLES)
    say(f"{count} samples of {kind.rows}×{kind.columns}")
    with results.measuring("sampling", [part for part in requested if part != "reconstruction"]):
        samples, sampling = draw_samples(
            prior,
            data,
            count,
            settings=options.settings,
            precision=options.precision,
            seed=seed,
            kept=results.kept,
        )
        results.add("sampling", SamplingInfo, lambda: sampling)
    if "sampling" not in results.records:
        return
    _draw_sheets(samples, real, kind.row_mm / kind.column_mm, seed, results.out)
    if "generation" in requested and real:
        with results.measuring("generation"):
            compare = partial(
                evaluate_generation,
                prior,
                data,
                samples,
                real,
                steps=options.settings.decoder_steps,
                seed=seed,
                kinds=descriptors(results.kept),
                say=say,
                kept=results.kept,
            )
            results.add("generation", GenerationResult, compare)
    if "memorization" in requested:
        _audit_samples(results, prior, data, samples, options)
    if "downstream" in requested and real:
        with results.measuring("downstream"):
            _train_segmenters(results, data, samples, real, options)


def _train_segmenters(
    results: Results,
    data: PreparedData,
    samples: SliceCollection,
    real: SliceCollection,
    options: _Options,
) -> None:
    size = (samples.images.shape[-2], samples.images.shape[-1])
    limit = options.steps * downstream.BATCH  # no more are used

    def compute() -> downstream.DownstreamResult:
        return downstream.evaluate_downstream(
            samples,
            read_slices(data, "train", size, limit=limit, seed=options.seed),
            real,
            data.info.label_values,
            steps=options.steps,
            seed=options.seed,
            say=results.say,
            kept=results.kept,
        )

    results.add("downstream", downstream.DownstreamResult, compute)


def _audit_samples(
    results: Results, prior: LoadedPrior, data: PreparedData, samples: SliceCollection, options: _Options
) -> None:
    size = (samples.images.shape[-2], samples.images.shape[-1])
    with results.measuring("memorization"):
        started = time.perf_counter()
        training = describe_training(data, size, say=results.say, kept=results.kept)
        results.took("audit, describing the training set", started)
        audit = partial(
            evaluate_memorization,
            prior,
            data,
            samples,
            seed=options.seed,
            steps=options.settings.decoder_steps,
            training=training,
            out=results.out,
            say=results.say,
            kept=results.kept,
        )
        results.add("memorization", MemorizationResult, audit)


def _load(model: Path, parts: Sequence[str] | None, device: torch.device) -> LoadedModels:
    """Load the tokenizer and the prior, where they exist and the requested parts need them."""
    tokenizer = load_tokenizer(model, device)
    needs_prior = set(parts) - {"reconstruction"} if parts else has_prior(model)
    return LoadedModels(tokenizer, load_prior(model, device) if needs_prior else None)


def _requested_parts(
    models: LoadedModels, parts: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the parts to evaluate, and the reason for those whose library is not installed.

    Raises:
        ConfigError: Such a part was requested by name.
    """
    possible = PARTS[: None if models.prior else 1]
    requested = tuple(part for part in possible if part in (parts or possible))
    if "downstream" not in requested or downstream.is_installed():
        return requested, {}
    if parts:
        downstream.Segmenter(1)  # raises the error that says what is missing
    reason = "MONAI is not installed; run: pip install 'slicebook[downstream]'"
    return requested[:-1], {"downstream": reason}


def _draw_sheets(
    samples: SliceCollection, real: SliceCollection | None, aspect: float, seed: int, out: Path
) -> None:
    """Write contact sheets of the first samples and of random real slices, with masks if present."""
    sheets = [("samples", samples, list(range(min(SHEET_SLICES, len(samples)))))]
    if real:
        sheets.append(
            ("real", real, np.random.default_rng(seed).permutation(len(real))[:SHEET_SLICES].tolist())
        )
    for name, slices, indices in sheets:
        cells = [contact_sheet.gray(slices.images[index, 0].numpy(), aspect) for index in indices]
        contact_sheet.write_sheet(cells, out / f"{name}.png", columns=8)
        if slices.masks is not None:
            overlays = [
                contact_sheet.tinted(slices.images[index, 0].numpy(), slices.masks[index].numpy(), aspect)
                for index in indices
            ]
            contact_sheet.write_sheet(overlays, out / f"{name}-masks.png", columns=8)
