"""Write the tables of the pages from benchmarks/results/*.json; `--check` fails where they differ.

    python benchmarks/table.py

A table is between `<!-- table: NAME -->` and `<!-- end -->`. Pages have results nowhere else.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import evaluation_tables
from cells import METRICS, NOT_MEASURED, Results, bits, mean, plural, signed, table, where
from course_tables import COURSE
from process_tables import processes, scale
from scale_tables import study_sizes
from speed_tables import networks, other_speed, quantizers, sampling
from starter_tables import starters, starters_elsewhere
from targets import targets

ROOT = Path(__file__).parent.parent
PAGES = (
    "README.md",
    "benchmarks/README.md",
    "docs/course.md",
    "docs/many-processes.md",
    "docs/recipes-and-starters.md",
    "docs/results.md",
)
BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

SITES = {"test": "held-out patients", "other_site": "another site"}
TITLES = {
    "compact": "**compact** (ours)",
    "detail": "**detail** (ours)",
    "comp3710": "comp3710 (recipe of the founding document)",
    "vqvae2": "VQ-VAE-2 with the training settings of compact",
}
# Keys of older results files, and their present names.
RENAMED = {
    "drawing": "sampling",
    "grain": "noise",
    "orders": "draws",
    "noise_put_back": "noise_level",
    "left_out": "skipped",
    "blank_slices_left_out": "blank_slices_skipped",
    "at_most": "max_copy_share",
    "times_farther": "distance_ratio",
    "beyond": "exceeding",
    "seen": "detected",
    "traced": "source_found",
    "coded": "prior_bits_per_pixel",
    "tokenizer_alone": "tokenizer_only",
    "covered": "coverage_by_patient",
}


def rename_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of a results file with the present names of its keys."""
    return {
        re.sub(r"_a_(slice|second|token|comparison)$", r"_per_\1", RENAMED.get(name, name)): value
        for name, value in pairs
    }


def quality(results: Results) -> str:
    """Return the table of docs/results.md: every contender, and the codecs at the bits of `compact`."""
    result = results["quality"]
    shown = ("ssim_foreground", "ssim_whole", "psnr_whole")
    sites = [site for site in SITES if site in result["sites"]]
    head = ["", "bits per pixel", *(METRICS[name] for name in shown)]
    head += [
        "SSIM, whole: gain over JPEG 2000 at equal bits",
        *(["SSIM, whole: patients of another site"] if len(sites) > 1 else []),
    ]
    rows = []
    for name, contender in result["contenders"].items():
        row = [
            _title(name, contender),
            bits(contender["test"]),
            *(mean(contender["test"]["scores"], metric) for metric in shown),
        ]
        row.append(signed(contender["test"]["codecs"]["jpeg2000"]["advantage"], "ssim_whole"))
        row += [mean(contender[site]["scores"], "ssim_whole") for site in sites[1:]]
        rows.append(row)
        for codec, at_its_bits in contender["test"]["codecs"].items() if name == "compact" else ():
            row = [at_its_bits["title"], bits(at_its_bits)]
            row += [*(mean(at_its_bits["scores"], metric) for metric in shown), ""]
            row += [mean(contender[site]["codecs"][codec]["scores"], "ssim_whole") for site in sites[1:]]
            rows.append(row)
    return table(head, rows) + "\n" + _how(result)


def scores(results: Results) -> str:
    """Return every score of every contender and of the codecs at its bits, by site."""
    result = results["quality"]
    parts = []
    for site, site_info in result["sites"].items():
        rows = []
        for name, contender in result["contenders"].items():
            for title, report in ((_title(name, contender), contender[site]), *_codecs(contender[site])):
                cells = [mean(report["scores"], metric, bounds=False) for metric in METRICS]
                rows.append([title, bits(report), *cells])
        counts = site_info["data"]["counts"]["test"]
        parts.append(
            f"{site_info['name']}: {plural(counts['patients'], 'patient')}, {counts['slices']} slices.\n"
        )
        parts.append(table(["", "bits per pixel", *METRICS.values()], rows))
    return "\n".join(parts)


def leads(results: Results) -> str:
    """Return the gains of contenders over the codecs at equal bits, and of `compact` over the others."""
    result = results["quality"]
    shown = ("ssim_foreground", "ssim_whole", "psnr_foreground", "psnr_whole")
    rows = []
    for site, site_info in result["sites"].items():
        for name, contender in result["contenders"].items():
            for codec in contender[site]["codecs"].values():
                gains = [signed(codec["advantage"], metric) for metric in shown]
                rows.append(
                    [
                        site_info["name"],
                        f"{name} ({bits(contender[site])}) over {codec['title']} ({bits(codec)})",
                        *gains,
                    ]
                )
        for name, lead in result["lead"].items():
            rates = [bits(result["contenders"][contender][site]) for contender in ("compact", name)]
            gains = [signed(lead[site], metric) for metric in shown]
            rows.append([site_info["name"], f"compact ({rates[0]}) over {name} ({rates[1]})", *gains])
    return table(["patients", "gain (bits per pixel)", *(METRICS[metric] for metric in shown)], rows)


def trainings(results: Results) -> str:
    """Return the course of each training: short ones of the learning rate search, and full ones."""
    rows = []
    for contender in results["quality"]["contenders"].values():
        searched = [(f"{name}, learning rate search", run) for name, run in contender["tries"].items()]
        rows += [
            [
                name,
                f"{run['seconds'] / 60:.1f}",
                f"{run['steps']:,}",
                f"{run['slices_seen']:,}",
                f"{run['slices_per_second']:.1f}",
                f"{run['validation_ssim']:.4f}",
            ]
            for name, run in (*searched, (contender["run"], contender["training"]))
        ]
    head = ["run", "minutes", "steps", "slices seen", "slices/s", "SSIM on validation patients"]
    return table(head, rows)


def codes(results: Results) -> str:
    """Return the use of each codebook on the training slices."""
    owners = dict(results.get("quality", {"contenders": {}})["contenders"])
    owners |= {"comp3710, 38 epochs on the phantom": results["founding"]} if "founding" in results else {}
    rows = [
        [
            name,
            f"{level['level']}",
            f"{level['codebook_size']:,}",
            f"{level['tokens_per_code']:,.0f}",
            f"{level['usage']:.1%}",
            f"{level['perplexity']:,.0f}",
        ]
        for name, contender in owners.items()
        for level in contender["training_tokens"]
    ]
    return table(["", "level", "codes", "training tokens per code", "codes in use", "perplexity"], rows)


def founding(results: Results) -> str:
    """Return the scores of the founding document's recipe on test patients."""
    result = results["founding"]
    test, document = result["test"], result["document"]
    rows = [["as reported by the document, on training slices", "", "", f"{document['reported']}", ""]]
    shown = ("ssim_whole", "ssim_foreground", "ssim_skimage_default", "psnr_whole")
    rows.append([f"reproduced, {result['name']}", *(mean(test["scores"], metric) for metric in shown)])
    counts = result["data"]["counts"]
    return (
        table(["", *(METRICS[metric] for metric in shown)], rows)
        + f"\n{result['epochs']} epochs of {counts['train']['slices']:,} slices in "
        f"{result['seconds'] / 60:.0f} minutes; {test['patients']} test patients, {test['slices']} slices, "
        f"{bits(test)} bits per native pixel. The document requires an SSIM of "
        f"{document['goal']}; its reported value is the {document['how']}.\n" + where(result)
    )


def anomaly(results: Results) -> str:
    """Return how well anomaly maps detect changes, one block of rows per data set."""
    reports = [report for name, report in results.items() if name.startswith("anomaly-")]
    if not reports:
        return NOT_MEASURED
    rows, notes = [], ""
    for report in reports:
        for change, scores in report["changes"].items():
            cells = [mean(scores, key) for key in ("pixels", "pixels_in_body", "peak", "sum")]
            rows.append([report["title"], change, str(scores["slices"]), *cells])
        radii = "–".join(f"{radius:g}" for radius in report["lesions"]["radii_pixels"])
        notes += (
            f"\n{report['title']}: {report['slices']} slices of {report['patients']} test patients. "
            f"{report['convention']}. Lesions of contrast {report['lesions']['contrast']:g} on [-1, 1] with "
            f"semi-axes of {radii} pixels; {report['draws']} draws of the noise. {where(report)}"
        )
    head = [
        "",
        "change",
        "slices",
        "pixels",
        "pixels in the body",
        "slices, by the maximum",
        "slices, by the sum",
    ]
    return table(head, rows) + notes


TABLES: dict[str, tuple[Callable[[Results], str], tuple[str, ...]]] = {
    "quality": (quality, ("quality",)),
    "scores": (scores, ("quality",)),
    "leads": (leads, ("quality",)),
    "trainings": (trainings, ("quality",)),
    "codes": (codes, ()),
    "founding": (founding, ("founding",)),
    "quantizers": (quantizers, ("speed",)),
    "networks": (networks, ("speed",)),
    "processes": (processes, ("processes",)),
    "scale": (scale, ("processes",)),
    "study-sizes": (study_sizes, ("scale",)),
    "generation": (evaluation_tables.generation, ()),
    "likeness": (evaluation_tables.likeness, ()),
    "audit": (evaluation_tables.audit, ("audit",)),
    "evaluation": (evaluation_tables.evaluation, ("evaluation",)),
    "anomaly": (anomaly, ()),
    "sampling": (sampling, ("speed",)),
    "other-speed": (other_speed, ("speed",)),
    "starters": (starters, ("starters",)),
    "starter-compact": (partial(starters, only="compact"), ("starters",)),
    "starter-generate": (partial(starters, only="generate"), ("starters",)),
    "starters-elsewhere": (starters_elsewhere, ("starters",)),
    "targets": (targets, ()),
    **COURSE,
}
"""By name: the function that draws a table, and the results that it needs."""


def draw(name: str, results: Results) -> str:
    """Return a table as Markdown, or a note that its results are missing.

    Raises:
        KeyError: No table has this name.
    """
    draw_table, needed = TABLES[name]
    there = all(result_name in results for result_name in needed) if needed else bool(results)
    return draw_table(results).rstrip("\n") if there else NOT_MEASURED


def fill(text: str, results: Results) -> tuple[str, list[str]]:
    """Return a page with its tables redrawn, and the names of those that changed."""
    changed: list[str] = []

    def redraw(match: re.Match[str]) -> str:
        fresh = f"{match[1]}\n{draw(match[2], results)}\n\n{match[3]}"
        if fresh != match[0]:
            changed.append(match[2])
        return fresh

    return BLOCK.sub(redraw, text), changed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 where a page differs"
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="the project's folder")
    options = parser.parse_args(arguments)
    files = sorted((options.root / "benchmarks" / "results").glob("*.json"))
    results = {
        path.stem: json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=rename_keys)
        for path in files
    }
    different = []
    for page in PAGES:
        path = options.root / page
        text = path.read_text(encoding="utf-8")
        fresh, changed = fill(text, results)
        different += [f"{page}: table {name} differs from benchmarks/results" for name in changed]
        if not options.check and changed:
            path.write_text(fresh, encoding="utf-8")
    if options.check and different:
        print("\n".join([*different, "run: python benchmarks/table.py"]), file=sys.stderr)
        return 1
    return 0


def _title(name: str, contender: Mapping[str, Any]) -> str:
    tries = len(contender["tries"])
    rate = contender["recipe"]["training"]["learning_rate"]
    return TITLES[name] + (f", best of {tries} learning rates ({rate:g})" if tries > 1 else "")


def _codecs(report: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    return ((f"{codec['title']} at the same bits", codec) for codec in report["codecs"].values())


def _how(result: Mapping[str, Any]) -> str:
    """Return the data, training time and hardware of a comparison."""
    data = result["sites"]["test"]["data"]
    train, test = data["counts"]["train"], data["counts"]["test"]
    size = "native size" if data["size"] is None else f"{data['size'][0]}×{data['size'][1]}"
    note = (
        f"{result['sites']['test']['name']}: {result['minutes']:g} minutes of training each on "
        f"{train['patients']} patients ({train['slices']} slices of {size}), scored on "
        f"{test['patients']} other patients ({test['slices']} slices). Means of patients, with 95 % "
        "intervals over patients."
    )
    if "other_site" in result["sites"]:
        other = result["sites"]["other_site"]
        counts = other["data"]["counts"]["test"]
        note += f" The other site: {other['name']}, {counts['patients']} patients, {counts['slices']} slices."
    note += " The codecs' budget for each slice is the number of bits of compact."
    compact = result["contenders"].get("compact", {"test": {"codecs": {}}})
    for codec in compact["test"]["codecs"].values():
        if codec["slices_over_budget"]:
            slices = f"{codec['slices_over_budget']} slices"
            note += f" Even the smallest stream of {codec['title']} exceeds it for {slices}."
    note += "\n"
    return note + " ".join(dict.fromkeys(where(contender) for contender in result["contenders"].values()))


if __name__ == "__main__":
    sys.exit(main())
