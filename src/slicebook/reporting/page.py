"""An evaluation as one page that needs nothing else: no script, no request, all pictures inside.

The page is drawn from `report.json` and the pictures beside it, so that it can be drawn again without the
model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from slicebook.atomic import write_text
from slicebook.evaluation import read_report
from slicebook.reporting.answers import Answer, answers
from slicebook.reporting.sections import sections

PAGE_NAME = "report.html"
TONES: Mapping[tuple[str, str], str] = {
    ("Does it copy patients?", "yes"): "bad",
    ("Does it copy patients?", "none found"): "good",
}
USUAL_TONES = {"yes": "good", "partly": "fair", "no": "bad", "invalid": "bad"}


def write_page(folder: str | Path) -> Path:
    """Draw the page of an evaluation beside its report.json, and return where it is.

    Raises:
        DataError: There is no report, or it is of another version.
    """
    folder = Path(folder)
    found = read_report(folder)
    said = answers(found)
    model = found.provenance["model"] or found.provenance["prior"]
    template = files("slicebook.reporting") / "templates"
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string((template / "report.html.j2").read_text(encoding="utf-8")).render(
        style=(template / "report.css").read_text(encoding="utf-8"),
        title=f"{model['recipe']['name']} on {found.patients} {found.split} patients",
        subtitle=f"{found.slices} slices. Model {model['weights_sha256'][:12]}, split "
        f"{found.provenance['data']['split_hash'][:12]}, commit "
        f"{(found.provenance['commit'] or 'none')[:12]}, seed {found.provenance['seed']}.",
        versions=found.provenance["versions"],
        warnings=found.warnings,
        answers=[asdict(one) | {"tone": _tone(one)} for one in said],
        sections=list(sections(found, folder)),
    )
    path = folder / PAGE_NAME
    write_text(path, page)
    return path


def _tone(answer: Answer) -> str:
    return TONES.get((answer.question, answer.verdict)) or USUAL_TONES.get(answer.verdict, "none")
