"""The table of starters: reconstruction of real patients without and with training on others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cells import METRICS, Results, bits, mean, plural, signed, table, where

SHOWN = ("ssim_foreground", "ssim_whole", "psnr_whole")


HEAD = (
    "",
    "bits per pixel",
    *(METRICS[name] for name in SHOWN),
    "SSIM, whole: gain over JPEG 2000 at equal bits",
)


def starters(results: Results) -> str:
    """Return the scores of each starter, of trainings from it and from random weights, and of the codecs."""
    parts = []
    for name, entry in results["starters"].items():
        zero_shot = entry["zero_shot"]
        rows = [_row(f"**starter:{name}**, no training on patients", zero_shot["half"])]
        if "refined" in entry:
            rows.append(
                _row(f"starter:{name}, {_refined(entry['refined']['test'])}", entry["refined"]["test"])
            )
        rows += [_row(title, test) for title, test in _tuned(entry)]
        rows += [_codec_row(codec) for codec in zero_shot["half"]["codecs"].values()]
        counts = zero_shot["data"]["counts"]
        test, train = counts["test"]["patients"], counts["train"]["patients"]
        parts.append(table(HEAD, rows))
        parts.append(
            f"{zero_shot['name']}: {test} test patients, {zero_shot['half']['slices']} slices; trainings use "
            f"{train} other patients, with one thread. Mean of patients, with 95 % intervals by patient. "
            f"{where(zero_shot)}\n"
        )
    return "\n".join(parts)


def starters_elsewhere(results: Results) -> str:
    """Return the scores of each starter on other planes and organs, beside the codecs at the same bits."""
    parts = []
    for name, entry in results["starters"].items():
        if not entry["zero_shot"]["others"]:
            continue
        rows, counts = [], []
        for site, report in entry["zero_shot"]["others"].items():
            rows.append(_row(f"{site}: **starter:{name}**, no training on patients", report))
            if refined := entry.get("refined", {}).get("others", {}).get(site):
                rows.append(_row(f"{site}: starter:{name}, {_refined(refined)}", refined))
            rows += [_codec_row(codec, f"{site}: ") for codec in report["codecs"].values()]
            counts.append(f"{site}: {plural(report['patients'], 'patient')}, {report['slices']} slices")
        parts += [table(HEAD, rows), f"{'; '.join(counts)}. {where(entry['zero_shot'])}\n"]
    return "\n".join(parts)


def _codec_row(codec: Mapping[str, Any], site: str = "") -> list[str]:
    scores = [mean(codec["scores"], metric) for metric in SHOWN]
    return [f"{site}{codec['title']}", bits(codec), *scores, ""]


def _row(title: str, report: Mapping[str, Any]) -> list[str]:
    scores = [mean(report["scores"], metric) for metric in SHOWN]
    return [title, bits(report), *scores, signed(report["codecs"]["jpeg2000"]["advantage"], "ssim_whole")]


def _tuned(entry: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield title and scores of each training, the shortest first, without and with refined tokens."""
    for run in sorted(entry.get("tuned", {}).values(), key=lambda run: (run["minutes"], run["from"])):
        title = f"{run['minutes']:g} minutes from {run['from']}"
        yield title, run["test"]
        if "refined" in run:
            yield f"{title}, {_refined(run['refined'])}", run["refined"]


def _refined(report: Mapping[str, Any]) -> str:
    return f"`--refine {report['refine']}`"
