"""What has to be known before samples leave the house: a valid audit of the model that found no copies."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slicebook.checkpoint import LoadedPrior
from slicebook.errors import ConfigError, DataError
from slicebook.evaluation import Evaluation, read_report
from slicebook.generating import Asked, Clear
from slicebook.judging.generation import SamplingInfo
from slicebook.judging.memorization import MemorizationResult

AUDIT_NAME, WORDS_NAME = "audit.json", "AUDIT.md"
MOST_COPIES = 0.05  # of samples drawn so, as far as the audit can tell: what its own control is about


def clearance(report: str | Path) -> Clear:
    """Return what allows samples to be shared by an audit of their model, for `generate`.

    It raises, before anything is drawn, unless the audit is of this model's weights and of samples that were
    asked to be the same, would have seen planted copies, saw none, and leaves room for few: less than a
    twentieth of the samples. Else the samples get its summary: audit.json, and AUDIT.md in words.

    Args:
        report: The folder that `slicebook evaluate` wrote, or its report.json.

    Raises:
        DataError: There is no report, or no audit in it.
    """
    found, path = read_report(report), Path(report)
    audit, drawing = found.audit, found.drawing
    if audit is None or drawing is None:
        raise DataError(
            f"{path}: holds no audit{_why(found)}; evaluate again: slicebook evaluate MODEL DATA --out DIR "
            "--only audit"
        )

    def clear(loaded: LoadedPrior, asked: Asked) -> dict[str, str]:
        audited = (found.provenance["prior"] or {}).get("weights_sha256", "")
        if audited != loaded.info.weights_sha256:
            raise DataError(
                f"{path}: audited model {audited[:12]}, and {loaded.path} is "
                f"{loaded.info.weights_sha256[:12]}; evaluate this one"
            )
        _check_alike(path, drawing, asked)
        if audit.copies.copies_found or not audit.copies.valid:
            raise DataError(f"{path}: its samples must not be shared. {audit.copies.verdict}")
        if audit.copies.at_most > MOST_COPIES:
            raise DataError(
                f"{path}: up to {audit.copies.at_most:.1%} of such samples may be copies, as far as "
                f"{audit.copies.samples} audited ones can tell, wanted at most {MOST_COPIES:.0%}; evaluate "
                "more samples (-n)"
            )
        return {
            AUDIT_NAME: json.dumps(_summary(found, audit), indent=2) + "\n",
            WORDS_NAME: _in_words(found, audit),
        }

    return clear


def _why(found: Evaluation) -> str:
    reason = found.left_out.get("audit")
    return f" ({reason})" if reason else ""


def _check_alike(path: Path, drawing: SamplingInfo, asked: Asked) -> None:
    """Refuse samples that are asked to be others than those audited: bolder or tamer ones copy otherwise."""
    found = {
        **asdict(asked.settings),
        "size": f"{asked.size[0]}×{asked.size[1]}",
        "grain": asked.grain,
        "class": asked.group or "any",
        "conditional": asked.conditional,
        "position": "any" if asked.position is None else asked.position,
    }
    audited = {
        **drawing.settings,
        "size": f"{drawing.rows}×{drawing.columns}",
        "grain": drawing.grain,
        "class": "any",
        "conditional": True,
        "position": "any",
    }
    other = [
        f"{name} {audited[name]} then, {value} now" for name, value in found.items() if audited[name] != value
    ]
    if other:
        raise ConfigError(
            f"{path}: the samples audited were drawn in another way ({'; '.join(other)}); draw alike, or "
            "evaluate with these settings"
        )


def _summary(found: Evaluation, audit: MemorizationResult) -> dict[str, Any]:
    """Return the audit without its pairs, which tell where training slices stand."""
    content = audit.model_dump(mode="json")
    del content["copies"]["closest"]
    return {
        "model_sha256": found.provenance["prior"]["weights_sha256"],
        "split_hash": found.provenance["data"]["split_hash"],
        "commit": found.provenance["commit"],
        "versions": found.provenance["versions"],
        "seed": found.provenance["seed"],
        "drawing": found.drawing.model_dump(mode="json") if found.drawing else None,
        **content,
    }


def _in_words(found: Evaluation, audit: MemorizationResult) -> str:
    member, copies, model = audit.membership, audit.copies, found.provenance["prior"]["weights_sha256"]
    reach = "" if member.interval is None else f" [{member.interval[0]:.2f}, {member.interval[1]:.2f}]"
    return f"""# Audit of the model that drew these slices

{copies.verdict}

- Model {model}: {copies.samples} samples, drawn with the settings of these; at
  positions of training slices, where these may be at any.
- Of such samples at most {copies.at_most:.1%} are copies like those planted, as far as that many can tell
  (95 % confidence).
- Searched: {audit.training_slices} training slices of {audit.training_patients} patients, moved and mirrored.
- Not searched, being of other sizes: {audit.of_other_sizes} training slices.
- Beside: {audit.baseline}.
- The model's likelihoods tell its training slices from others with an AUC of {member.auc:.2f}{reach}; 0.5
  tells nothing. That takes the model, which is not here: whoever shares the model shares this too.

What it cannot tell: the slices here are others than those audited, drawn alike. A copy changed by more than a
mirror image, a small shift and the tokenizer would be missed. An audit lowers a risk; it does not make data
anonymous in the sense of a law.
"""
