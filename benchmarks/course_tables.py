"""The tables of docs/course.md: one per choice of the student project."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from cells import Results, bits, mean, plural, table, where

HEAD = ("", "bits per pixel", "SSIM, whole", "PSNR, whole", "perplexity, by level (codes)", "parameters")


def _perplexities(model: Mapping[str, Any]) -> str:
    """Return the number of codes in effective use of each level, finest first."""
    return ", ".join(
        f"{codes['perplexity']:.0f} ({size:,})"
        for codes, size in zip(model["codes"], model["codebook_sizes"], strict=True)
    )


def _row(title: str, model: Mapping[str, Any], scores: str = "scores") -> list[str]:
    shown = [mean(model[scores], name, bounds=False) for name in ("ssim_whole", "psnr_whole")]
    rest = [_perplexities(model), f"{model['parameters']:,}"]
    return [title, bits(model), *shown, *rest]


def _group(name: str, results: Results) -> str:
    result = results["course"]
    rows = []
    for key, title in result["groups"][name].items():
        model = result["models"][key]
        rows.append(_row(title, model))
        if "scores_clean" in model:
            rows.append(_row(f"{title}, compared with the slices before it", model, "scores_clean"))
    test, train = result["data"]["test"], result["data"]["train"]
    note = (
        f"Phantom, {result['size'][0]}×{result['size'][1]}: {result['steps']} steps of {result['batch']} "
        f"slices, "
        f"{train['patients']} training patients ({train['slices']} slices); means of "
        f"{plural(test['patients'], 'test patient')} ({test['slices']} slices). "
    )
    return f"{table(HEAD, rows)}\n{note}{where(result)}\n"


COURSE: dict[str, tuple[Callable[[Results], str], tuple[str, ...]]] = {
    f"course-{name}": (partial(_group, name), ("course",))
    for name in (
        "levels",
        "codebook-size",
        "code-dim",
        "codebook",
        "loss",
        "learning-rate",
        "noise",
        "resize",
    )
}
"""By name: the function that draws a table, and the results that it needs."""
