"""Commands that tell what evaluations found."""

from pathlib import Path
from typing import Annotated

import typer

from slicebook.commands.options import Json, say, show

Report = Annotated[
    Path, typer.Argument(metavar="REPORT", help="Folder that `slicebook evaluate` wrote, or its report.json.")
]


def compare(
    reports: Annotated[
        list[Path],
        typer.Argument(
            metavar="REPORT",
            help="Folders that `slicebook evaluate` wrote, or their report.json; two or more.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="Write the table as Markdown too.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Put several evaluations in one table, and say where they cannot be compared."""
    from slicebook.reporting.comparison import compare_reports, write_comparison

    found = compare_reports(reports)
    for warning in (*(f"not comparable: {line}" for line in found.differences), *found.warnings):
        say(f"warning: {warning}")
    if out:
        write_comparison(found, out)
    show(found, found.table(), as_json)


def card(
    report: Report,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.md", help="Where to write it; REPORT/MODEL_CARD.md, when not given."),
    ] = None,
) -> None:
    """Write the model card of an evaluation: what the model is, is for, and was found to do."""
    from slicebook.reporting.card import write_card

    typer.echo(write_card(report, out))
