"""The table of starters: reconstruction of real patients without and with training on others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cells import METRICS, Results, bits, mean, plural, signed, table, where

SHOWN = ("ssim_foreground", "ssim_whole", "psnr_whole")


HEAD = (
    "",
    "bits per pixel",
    *(METRICS[name] for name in SHOWN),
    "SSIM, whole: gain over JPEG 2000 at equal bits",
)


def starters(results: Results, only: str | None = None) -> str:
    """Return the scores of starters, of trainings from them and from random weights, and of the codecs."""
    parts = []
    for name, entry in results["starters"].items():
        if only not in (None, name):
            continue
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
            f"{_wheres([zero_shot, *_others(entry)])}\n"
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
        measured = [entry["zero_shot"], *([entry["refined"]] if "refined" in entry else [])]
        parts += [table(HEAD, rows), f"{'; '.join(counts)}. {_wheres(measured)}\n"]
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


def _others(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the other measurements of a starter, which may be of another day and machine."""
    refined = [entry["refined"]] if "refined" in entry else []
    return refined + list(entry.get("tuned", {}).values())


def _wheres(measured: Sequence[Mapping[str, Any]]) -> str:
    """Return date, hardware and software of each measurement, those that are equal once."""
    return " ".join(dict.fromkeys(map(where, measured)))


def _refined(report: Mapping[str, Any]) -> str:
    return f"`--refine {report['refine']}`"
