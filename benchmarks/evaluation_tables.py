"""The tables of samples, of the audit for copies, and of the cost of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from cells import NOT_MEASURED, NOTHING, Results, Target, mean, number, table, where

Row = tuple[Any, ...]
"""Title, formatter of the value, and keys of the value in a report."""

KERNEL = "kernel distance"
REAL = "real patients, 95th percentile"
KINDS = {"texture": "texture", "structure": "structure", "efficientnet-lite0": "EfficientNet-Lite0"}
PLANTED = {
    "one_copy": "one copy",
    "planted_1_percent": "1 % copies",
    "planted_5_percent": "5 % copies",
}
PARTS = {
    "sampling": "sampling, not counted",
    "first": "evaluation, training features computed, not counted",
    "again": "**evaluation, training features stored**",
}


def generation(results: Results) -> str:
    """Return the main measures of samples and of real patients, one column per data set."""
    reports = priors(results)
    if not reports:
        return NOT_MEASURED
    rows: list[Row] = []
    for name, title in KINDS.items():
        samples = ("generation", "features", name, "samples")
        rows += [
            (f"{title}: {KERNEL}, samples ({REAL})", _distance, *samples, "kernel_distance"),
            (f"{title}: as close as real patients", _as_near, *samples, "kernel_distance"),
            (f"{title}: coverage, samples (real patients)", _share, *samples, "coverage"),
            (f"{title}: recall, samples (real patients)", _share, *samples, "recall"),
        ]
    rows += [
        (f"{title}: AUC of a classifier, samples (other patients)", _auc, "generation", "detection", name)
        for name, title in (KINDS | {"pixels": "pixels"}).items()
    ]
    rows += [
        ("MS-SSIM between two samples (two patients)", _alike, "generation", "diversity"),
        ("masks that pass the anatomy rules, generated (real)", _rules, "generation", "anatomy"),
        ("Dice of a segmentation network trained on samples (on patients)", _dice, "usefulness"),
        ("sampling time per slice, s", "{:.2f}".format, "sampling", "seconds_per_slice"),
    ]
    made = "".join(f"\n{report['title']}: {_made(report)} {where(report)}" for report in reports)
    return _columns({report["title"]: report for report in reports}, rows) + made


def likeness(results: Results) -> str:
    """Return every measure by features, one column per kind and data set; then the other measures."""
    reports = priors(results)
    if not reports:
        return NOT_MEASURED
    by_kind: list[Row] = []
    for title, name in ((KERNEL, "kernel_distance"), ("Fréchet distance", "frechet_distance")):
        by_kind += [
            (f"{title}, samples ({REAL})", _distance, "samples", name),
            (f"{title}, reconstructions from real tokens", _alone, "tokenizer_only", name),
            (f"{title}, real patients, median", _rounded, "samples", name, "real"),
        ]
    for name in ("coverage", "density", "precision", "recall"):
        by_kind.append((f"{name}, samples (real patients)", _share, "samples", name))
    by_kind += [
        ("coverage, reconstructions from real tokens", _share, "tokenizer_only", "coverage"),
        ("share of test slices covered by all samples", _summary, "samples", "coverage_by_patient"),
    ]
    rest: list[Row] = [
        (f"distance of spectra, dB, samples ({REAL})", _distance, "generation", "spectrum", "distance"),
        (f"distance of intensities, samples ({REAL})", _distance, "generation", "intensity", "distance"),
    ]
    labels_of = [report["usefulness"]["generated"]["labels"] for report in reports if report["usefulness"]]
    rest += [
        (f"label {label}: Dice, trained on samples (on patients)", partial(_dice, label=label), "usefulness")
        for label in sorted({label for labels in labels_of for label in labels})
    ]
    columns = {
        f"{report['title']}: {KINDS[name]}": features
        for report in reports
        for name, features in report["generation"]["features"].items()
    }
    return _columns(columns, by_kind) + "\n" + _columns({report["title"]: report for report in reports}, rest)


def audit(results: Results) -> str:
    """Return false alarm and detection rates of the audit, one row per number of held-out patients."""
    result = results["audit"]
    search, speed, training = result["search"], result["speed"], result["training"]
    rows = []
    for patients, cases in result["by_held_out_patients"].items():
        shares = [cases["clean"]["copies_found"], *(cases[case]["copies_found"] for case in PLANTED)]
        rows.append(
            [patients, *(f"{share:.1%}" for share in (*shares, cases["clean"]["nearer_than_the_quantile"]))]
        )
    head = ["held-out patients", "false alarms", *(f"copies found with {case}" for case in PLANTED.values())]
    head.append("false alarms of the test by the 1 % quantile")
    return (
        table(head, rows)
        + f"\n{result['title']}: {result['trials']} trials of {result['samples']} samples each, "
        f"{training['slices']:,} training slices of {training['patients']} patients. The search found the "
        f"source of {search['source_found']:.1%} of {search['copies']} copies. A search "
        f"of {speed['sought_slices']:,} slices among {speed['training_slices']:,} training slices takes "
        f"{speed['seconds']:.0f} s and {_gigabytes(speed):.1f} GB. {where(result)}"
    )


def evaluation(results: Results) -> str:
    """Return the cost of evaluating samples at the size of a study, and of evaluating a demo."""
    study, demo = results["evaluation"], results.get("evaluation-demo")
    rows = [row for name, title in PARTS.items() for row in _costs(title, study[name])]
    note = (
        f"\n{study['samples']} samples of {study['rows']}×{study['columns']} compared with "
        f"{study['slices']['test']} slices of {study['patients']['test']} test patients, against "
        f"{study['slices']['train']:,} training slices of {study['patients']['train']}."
    )
    if demo:
        rows += _costs("**`slicebook evaluate` of a demo**", demo)
        note += f" {where(study)}\n"
        note += f"The demo: {demo['samples']} samples, {demo['slices']} slices, no cached features."
    return table(["", "seconds", "CPU seconds", "memory, GB"], rows) + f"{note} {where(demo or study)}"


def priors(results: Results) -> list[Any]:
    """Return the results of `generation.py`, after those of a starter that generates."""
    starters = [
        {**entry["zero_shot"], "title": f"Phantom, 256×128: starter:{name}"}
        for name, entry in results.get("starters", {}).items()
        if "generation" in entry["zero_shot"]
    ]
    return starters + [report for name, report in results.items() if name.startswith("generation-")]


def targets(results: Results) -> Iterable[Target]:
    """Return the targets for samples and for the cost of an evaluation."""
    for report in priors(results):
        title, samples = report["title"], report["generation"]["features"]["texture"]["samples"]
        kernel = samples["kernel_distance"]
        yield (
            f"{title}: kernel distance of samples, texture, at most the 95th percentile of real patients'",
            f"{_rounded(kernel['generated'])}, {_rounded(kernel['real_range'][1])}",
            _as_near(kernel) == "yes",
        )
        coverage = samples["coverage"]
        shares = {
            "coverage of samples relative to real patients, texture: 80 % or more": (
                coverage["generated"] / coverage["real"] if coverage and coverage["real"] else None,
                0.8,
            ),
            "pass rate of the anatomy rules, samples relative to real masks: 90 % or more": (
                report["generation"]["anatomy"] and report["generation"]["anatomy"]["ratio"],
                0.9,
            ),
            "Dice of a segmentation network trained on samples relative to patients: 90 % or more": (
                report["usefulness"] and report["usefulness"]["ratio"],
                0.9,
            ),
        }
        for target, (share, least) in shares.items():
            if share is not None:
                yield f"{title}: {target}", f"{share:.1%}", share >= least
    if "evaluation" in results:
        yield from _cost_targets(results["evaluation"], results.get("evaluation-demo"))


def _cost_targets(study: Any, demo: Any) -> Iterable[Target]:
    wanted, cost = study["wanted"], study["again"]
    target = f"{study['samples']} samples evaluated against {study['slices']['train']:,} training slices"
    yield (
        f"{target} in {wanted['seconds']} s or less",
        f"{cost['seconds']:.0f} s",
        cost["seconds"] <= wanted["seconds"],
    )
    memory = _gigabytes(cost)
    yield f"{target} in {wanted['memory_gb']} GB or less", f"{memory:.1f} GB", memory <= wanted["memory_gb"]
    if demo:
        seconds = demo["seconds"]
        yield (
            f"a demo evaluated in {wanted['demo_seconds']} s or less",
            f"{seconds:.0f} s",
            seconds <= wanted["demo_seconds"],
        )


def _columns(columns: Mapping[str, Any], rows: Iterable[Row]) -> str:
    """Return a table of the values at the same keys of each column."""
    cells = []
    for title, show, *keys in rows:
        values = [_at(column, keys) for column in columns.values()]
        cells.append([title, *(NOTHING if value is None else show(value) for value in values)])
    return table(["", *columns], cells)


def _at(value: Any, keys: Iterable[str]) -> Any:
    for key in keys:
        value = None if value is None else value.get(key)
    return value


def _made(report: Any) -> str:
    sampling, generation = report["sampling"], report["generation"]
    compared = (
        f"{sampling['samples']} samples of {sampling['rows']}×{sampling['columns']} compared with "
        f"{generation['held_out_slices']} slices of {generation['held_out_patients']} test patients; "
    )
    if "tokenizer_seconds" not in report:
        return f"{compared}all its parts trained for {report['seconds'] / 60:.0f} minutes."
    decoder = report["decoder_seconds"]
    return (
        f"{compared}tokenizer trained for {report['tokenizer_seconds'] / 60:.0f} minutes, "
        f"{'' if decoder is None else f'generation decoder for {decoder / 60:.0f}, '}prior of "
        f"{sampling['parameters'] / 1e6:.1f} M parameters for {report['provenance']['seconds'] / 60:.0f}, on "
        f"{report['provenance']['train_patients']} patients."
    )


def _as_near(kernel: Any) -> str:
    """Return whether `Comparison.as_near_as_real`, as yes or no."""
    return "yes" if kernel["generated"] <= kernel["real_range"][1] else "no"


def _distance(relative: Any) -> str:
    """Return a distance with its interval, and the 95th percentile of that between real patients."""
    return f"{_alone(relative)} ({_rounded(relative['real_range'][1])})"


def _alone(relative: Any) -> str:
    return number(relative["generated"], relative["interval"], _form(relative["generated"]))


def _rounded(distance: float) -> str:
    return f"{distance:{_form(distance)}}"


def _form(distance: float) -> str:
    """Return a number format with about three significant digits."""
    return next(
        (form for most, form in ((1, ".3f"), (10, ".2f"), (100, ".1f")) if abs(distance) < most), ",.0f"
    )


def _share(relative: Any) -> str:
    return f"{number(relative['generated'], relative['interval'], '.2f')} ({relative['real']:.2f})"


def _summary(score: Any) -> str:
    return number(score["mean_of_patients"], score["interval"], ".2f")


def _auc(found: Any) -> str:
    return f"{number(found['auc'], found['interval'], '.2f')} ({found['reference']:.2f})"


def _alike(diversity: Any) -> str:
    return "{} ({})".format(*_two(diversity, ".3f"))


def _rules(anatomy: Any) -> str:
    return "{} ({})".format(*_two(anatomy, ".1%"))


def _two(measure: Any, form: str) -> list[str]:
    """Return the value of samples and that of real slices, each with its interval."""
    return [number(measure[group], measure[f"{group}_interval"], form) for group in ("generated", "real")]


def _dice(usefulness: Any, label: str | None = None) -> str:
    """Return the Dice of both segmenters: the mean over labels, or that of one label."""
    segmenters = [usefulness[segmenter] for segmenter in ("generated", "training_set")]
    if label is None:
        return "{} ({})".format(*(number(segmenter["mean"], None, ".3f") for segmenter in segmenters))
    return (
        "{} ({})".format(*(mean(segmenter["labels"], label) for segmenter in segmenters))
        if label in segmenters[0]["labels"]
        else NOTHING
    )


def _costs(title: str, cost: Any) -> list[list[str]]:
    """Return a row with the cost of a process, and rows of its parts."""
    whole = [f"{cost['seconds']:.0f}", f"{cost['cpu_seconds']:.0f}", f"{_gigabytes(cost):.1f}"]
    return [
        [title, *whole],
        *([f"– {part}", f"{seconds:.0f}", "", ""] for part, seconds in cost.get("parts", {}).items()),
    ]


def _gigabytes(cost: Any) -> float:
    return float(cost["peak_memory_mib"] * 2**20 / 1e9)
