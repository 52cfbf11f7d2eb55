"""The tab Judge: the evaluation of this model, if it lies beside the model, and how to make one."""

from __future__ import annotations

from html import escape
from pathlib import Path

import gradio as gr

from slicebook.errors import SlicebookError
from slicebook.evaluation.report import REPORT_NAME, Evaluation, read_report
from slicebook.models.checkpoint import find_model, find_prior
from slicebook.reporting.html import PAGE_NAME
from slicebook.reporting.verdicts import Verdict, patient_group, verdicts
from slicebook.starters import PREFIX, read_card
from slicebook.studio.context import Studio

REPORT_PATH = "report"  # address of the whole page
HOW = """### How to evaluate this model

`slicebook evaluate` compares reconstructions and samples with held-out patients, and searches the samples for
copies of training patients. Write the report beside the model, and open the studio again:

```text
slicebook evaluate MODEL DATA --out MODEL/evaluation
```

`MODEL` is the folder that you gave to the studio, `DATA` the folder that `slicebook prepare` wrote.
"""


def find_report(studio: Studio) -> Path | None:
    """Return the folder of an evaluation of these weights in a folder of the model or beside it."""
    if studio.model.startswith(PREFIX):
        return None
    path = Path(studio.model)
    file = (find_prior(path) if studio.prior else find_model(path)).resolve()
    for folder in list(file.parents)[:3]:
        for report in sorted(folder.glob(f"*/{REPORT_NAME}")):
            if _weights(report.parent) & {studio.weights, studio.tokenizer.info.weights_sha256}:
                return report.parent
    return None


def _weights(folder: Path) -> set[str]:
    """Return the hashes of the models that a report is about; none of a report that cannot be read."""
    try:
        provenance = read_report(folder).provenance
    except SlicebookError:
        return set()
    return {model["weights_sha256"] for key in ("model", "prior") if (model := provenance.get(key))}


def verdict_cards(report: Evaluation) -> str:
    """Return the verdicts of a report as HTML."""
    cards = "".join(_card(verdict) for verdict in verdicts(report))
    words = f"Evaluated on {report.patients} {patient_group(report)}, {report.slices} slices."
    return f'<div class="sb-judge"><p>{escape(words)}</p><div class="sb-cards">{cards}</div></div>'


def _card(verdict: Verdict) -> str:
    kind = verdict.answer.replace(" ", "-")
    return (
        f'<section class="sb-card"><h3>{escape(verdict.question)}</h3>'
        f'<p class="sb-answer sb-{kind}">{escape(verdict.answer)}</p><p>{escape(verdict.finding)}</p>'
        f"<details><summary>Rule</summary><p>{escape(verdict.rule)}</p></details></section>"
    )


def build(studio: Studio) -> Path | None:
    """Lay out the tab; return the page of the report, to be served at `REPORT_PATH`."""
    folder = find_report(studio)
    if folder is not None:
        gr.HTML(verdict_cards(read_report(folder)), elem_id="judge-report")
        page = folder / PAGE_NAME
        if page.is_file():
            gr.HTML(
                f'<a class="sb-download" href="{REPORT_PATH}" target="_blank" rel="noopener">'
                "Open the whole report</a>",
                elem_id="judge-page",
            )
            return page
        return None
    if studio.model.startswith(PREFIX):
        gr.Markdown(read_card(studio.model[len(PREFIX) :]), elem_id="judge-card")
    else:
        gr.Markdown("There is no evaluation of this model beside it.")
    gr.Markdown(HOW, elem_id="judge-how")
    return None
