"""Parts of the tables: Markdown, numbers with intervals, and where results were measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NOT_MEASURED = "*Not measured yet.*"
NOTHING = "–"

METRICS = {
    "ssim_foreground": "SSIM, foreground",
    "ssim_whole": "SSIM, whole",
    "ssim_skimage_default": "SSIM, scikit-image default",
    "ssim_fastmri": "SSIM, fastMRI",
    "psnr_foreground": "PSNR, foreground",
    "psnr_whole": "PSNR, whole",
    "mae_whole": "MAE",
    "nmse_whole": "NMSE",
    "hfen_whole": "HFEN",
}
"""Titles of scores, by name."""

Results = Mapping[str, Any]
"""The content of each file in results/, by its name without `.json`."""

Target = tuple[str, str, bool]
"""What was promised, what was measured, and whether the promise is met."""


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
    """Return the mean of patients and its interval; 2 digits for dB, otherwise 3."""
    score = scores[metric]
    form = f"{sign}.{2 if metric.startswith('psnr') else 3}f"
    return number(score["mean_of_patients"], score["interval"] if bounds else None, form)


def signed(gains: Mapping[str, Any], metric: str) -> str:
    return mean(gains, metric, sign="+")


def bits(report: Mapping[str, Any]) -> str:
    return f"{report['bits_per_pixel']['mean_of_slices']:.3f}"


def where(result: Mapping[str, Any]) -> str:
    """Return the date, hardware and software of a measurement."""
    machine, commit = result["hardware"], result["commit"]
    version = f"commit {commit[:8]}{'+' * commit.endswith('+')}" if commit else "no commit"
    return (
        f"Measured {result['date']} on {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']:.0f} GiB; {plural(result['threads'], 'thread')}, {result['precision']}, "
        f"torch {result['versions']['torch']}, {version}."
    )


def plural(count: int, noun: str) -> str:
    """Return a count with its noun, such as `1 thread` or `2 threads`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
