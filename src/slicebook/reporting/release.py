"""The check before samples are shared: a valid audit of their model that found no copies."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slicebook.errors import ConfigError, DataError
from slicebook.evaluation.generation import SamplingInfo
from slicebook.evaluation.memorization import MemorizationResult
from slicebook.evaluation.report import Evaluation, read_report
from slicebook.inference.generate import ReleaseCheck, SamplingRequest
from slicebook.models.checkpoint import LoadedPrior
from slicebook.reporting.tables import estimate

AUDIT_NAME, WORDS_NAME = "audit.json", "AUDIT.md"
MAX_COPIES = 0.05  # upper bound on the fraction of copies; the fraction that the positive control plants


def release_check(report: str | Path) -> ReleaseCheck:
    """Return a check for `generate` that lets samples be shared only under an audit of their model.

    The check raises, before anything is sampled, unless the audit is of this model's weights and these
    sampling settings, is valid, found no copies, and bounds their fraction at 5 % or less. It returns the
    files that accompany the samples: audit.json, and AUDIT.md for readers.

    Args:
        report: The folder that `slicebook evaluate` wrote, or its report.json.

    Raises:
        DataError: There is no report, or no audit in it.
    """
    evaluation, path = read_report(report), Path(report)
    audit, sampling = evaluation.memorization, evaluation.sampling
    if audit is None or sampling is None:
        raise DataError(
            f"{path}: contains no audit{_reason(evaluation)}; evaluate again: slicebook evaluate MODEL DATA "
            "--out DIR --parts memorization"
        )

    def check(loaded: LoadedPrior, request: SamplingRequest) -> dict[str, str]:
        audited = (evaluation.provenance["prior"] or {}).get("weights_sha256", "")
        if audited != loaded.info.weights_sha256:
            raise DataError(
                f"{path}: is an audit of model {audited[:12]}, and {loaded.path} is "
                f"{loaded.info.weights_sha256[:12]}; evaluate this model"
            )
        _check_settings(path, sampling, request)
        if audit.copies.copies_found or not audit.copies.valid:
            raise DataError(f"{path}: its samples must not be shared. {audit.copies.verdict}")
        if audit.copies.max_copy_share > MAX_COPIES:
            raise DataError(
                f"{path}: {audit.copies.samples} audited samples bound the fraction of copies at "
                f"{audit.copies.max_copy_share:.1%}, wanted at most {MAX_COPIES:.0%}; evaluate more "
                "samples (-n)"
            )
        return {
            AUDIT_NAME: json.dumps(_summary(evaluation, audit), indent=2) + "\n",
            WORDS_NAME: _text(evaluation, audit),
        }

    return check


def _reason(evaluation: Evaluation) -> str:
    reason = evaluation.skipped.get("memorization")
    return f" ({reason})" if reason else ""


def _check_settings(path: Path, sampling: SamplingInfo, request: SamplingRequest) -> None:
    """Refuse samples of other settings than those audited: the rate of copies depends on them."""
    requested = {
        **asdict(request.settings),
        "size": f"{request.size[0]}×{request.size[1]}",
        "class": request.group or "any",
        "conditional": request.conditional,
        "position": "any" if request.position is None else request.position,
    }
    audited = {
        **sampling.settings,
        "size": f"{sampling.rows}×{sampling.columns}",
        "class": "any",
        "conditional": True,
        "position": "any",
    }
    different = [
        f"{name} {audited[name]} audited, {value} requested"
        for name, value in requested.items()
        if audited[name] != value
    ]
    if different:
        raise ConfigError(
            f"{path}: the audited samples have other settings ({'; '.join(different)}); use the same "
            "settings, or evaluate with these"
        )


def _summary(evaluation: Evaluation, audit: MemorizationResult) -> dict[str, Any]:
    """Return the audit without its closest pairs, which identify training slices."""
    content = audit.model_dump(mode="json")
    del content["copies"]["closest"]
    provenance, sampling = evaluation.provenance, evaluation.sampling
    return {
        "model_sha256": provenance["prior"]["weights_sha256"],
        "split_hash": provenance["data"]["split_hash"],
        **{name: provenance[name] for name in ("commit", "versions", "seed")},
        "sampling": sampling.model_dump(mode="json") if sampling else None,
        **content,
    }


def _text(evaluation: Evaluation, audit: MemorizationResult) -> str:
    model, copies, membership = evaluation.provenance["prior"], audit.copies, audit.membership
    auc = estimate(membership.auc, membership.interval)
    return f"""# Audit of the model that generated these slices

{copies.verdict}

- Model {model["weights_sha256"]}: {copies.samples} samples, generated with the
  settings of these. The audited samples are at positions of training slices; these may be at any position.
- At most {copies.max_copy_share:.1%} of such samples are copies like those planted (95 % confidence bound).
- Searched: {audit.training_slices} training slices of {audit.training_patients} patients, also shifted
  and mirrored.
- Not searched, because of another size: {audit.of_other_sizes} training slices.
- Baseline: {audit.baseline}.
- Membership inference from the likelihoods of the model has an AUC of {auc}; chance is 0.5.
  The attack needs the model, which is not included here: whoever shares the model also shares this risk.

Limits: the slices here are not those audited, but have the same settings. A copy changed by more than a
mirror image, a small shift and the tokenizer would not be detected. An audit reduces a risk; it does not make
data anonymous in the legal sense.
"""
