"""Evaluate a model from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from slicebook.api.inputs import Progress
from slicebook.data.dataset import PreparedData
from slicebook.data.splits import Split
from slicebook.devices import choose_device
from slicebook.evaluation.evaluate import evaluate as run_evaluation
from slicebook.evaluation.report import Evaluation
from slicebook.models.checkpoint import find_model
from slicebook.models.sampling import SamplingSettings
from slicebook.reporting.html import write_page


def evaluate(
    model: str | Path,
    data: str | Path | PreparedData,
    out: str | Path,
    *,
    parts: Sequence[str] | None = None,
    split: Split = "test",
    codecs: bool | None = None,
    samples: int | None = None,
    refine: int = 0,
    guidance: float = 0.0,
    steps: int = 16,
    decoder_steps: int = 8,
    device: str = "auto",
    precision: str = "32-true",
    seed: int = 42,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a model on held-out patients; write the report and its page, as `slicebook evaluate` does.

    Args:
        model: A model file, the folder of a run or of a demo, or a starter.
        data: The prepared folder that the model was trained on.
        out: Folder for `report.json`, `report.html`, tables and figures. An earlier report is replaced.
        parts: Of reconstruction, generation, memorization and downstream; by default all possible ones.
        split: Patients to evaluate on. Use test patients only once, for the final model.
        codecs: Compare with JPEG 2000 and JPEG XL (extra `codecs`); by default if installed.
        samples: Number of slices to generate; by default the number of real slices, between 100 and 540.
        refine: As for `Model.reconstruct`, for the part reconstruction.
        guidance: As for `Model.generate`.
        steps: As for `Model.generate`.
        decoder_steps: As for `Model.generate`.
        device: auto, cpu, cuda or mps.
        precision: As for `Model.generate`.
        seed: Seed of all random draws.
        progress: Called with the number of samples drawn and of all samples.

    Returns:
        The content of `report.json`.

    Raises:
        CheckpointError: There is no model for a requested part.
        ConfigError: A part is unknown, a library is missing, or the data are not the prior's.
        DataError: The folder is not a prepared one, or the split has too few slices for any part.
    """
    find_model(Path(model))  # a missing model is reported before missing data
    report = run_evaluation(
        model,
        data if isinstance(data, PreparedData) else PreparedData.open(data),
        out,
        parts=parts,
        split=split,
        codecs=codecs,
        samples=samples,
        refine=refine,
        settings=SamplingSettings(steps, decoder_steps, guidance),
        device=choose_device(device),
        precision=precision,
        seed=seed,
        counter=None if progress is None else {"sample": progress}.get,
    )
    write_page(Path(out))
    return report
