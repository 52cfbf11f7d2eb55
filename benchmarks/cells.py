"""What the tables are made of: Markdown, numbers with their intervals, and where they were measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NOT_MEASURED = "*Not measured yet.*"
NOTHING = "–"

Results = Mapping[str, Any]
"""The content of each file in results/, by its name without `.json`."""

Target = tuple[str, str, bool]
"""What was wanted, what was found, and whether it is met."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def number(value: float | None, interval: Sequence[float] | None, form: str) -> str:
    """Return a number and its interval, if it has one."""
    if value is None:
        return NOTHING
    if interval is None:
        return f"{value:{form}}"
    return f"{value:{form}} [{interval[0]:{form}}, {interval[1]:{form}}]"


def mean(scores: Mapping[str, Any], metric: str, *, bounds: bool = True, sign: str = "") -> str:
    """Return the mean of patients and its interval; dB with fewer digits."""
    score = scores[metric]
    form = f"{sign}.{2 if metric.startswith('psnr') else 3}f"
    return number(score["mean_of_patients"], score["interval"] if bounds else None, form)


def signed(gains: Mapping[str, Any], metric: str) -> str:
    return mean(gains, metric, sign="+")


def bits(whose: Mapping[str, Any]) -> str:
    return f"{whose['bits_per_pixel']['mean_of_slices']:.3f}"


def where(found: Mapping[str, Any]) -> str:
    """Say on what a result was measured."""
    machine, commit = found["hardware"], found["commit"]
    version = f"commit {commit[:8]}{'+' * commit.endswith('+')}" if commit else "no commit"
    return (
        f"Measured {found['date']} on {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']:.0f} GiB; {found['threads']} threads, {found['precision']}, "
        f"torch {found['versions']['torch']}, {version}."
    )
