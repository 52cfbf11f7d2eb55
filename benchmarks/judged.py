"""The tables of what was judged: samples, the audit for copies, and what judging costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from cells import NOT_MEASURED, NOTHING, Results, Target, mean, number, table, where

Row = tuple[Any, ...]
"""What it is called, how a value is shown, and the keys that lead to the value."""

KERNEL = "kernel distance"
REAL = "real patients, 95th percentile"
KINDS = {"texture": "texture", "efficientnet-lite0": "EfficientNet-Lite0"}
PLANTED = {
    "one_copy": "one copy",
    "planted_1_percent": "copies in 1 %",
    "planted_5_percent": "copies in 5 %",
}
PARTS = {
    "sampling": "sampling, not counted",
    "first": "evaluation, training features computed, not counted",
    "again": "**evaluation, training features stored**",
}


def generation(results: Results) -> str:
    """What priors draw, beside what real patients score against each other: one column a data set."""
    found = priors(results)
    if not found:
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
        ("MS-SSIM between two samples (two patients)", _alike, "generation", "diversity"),
        ("masks that pass the anatomy rules, generated (real)", _rules, "generation", "anatomy"),
        ("Dice of a segmentation network trained on samples (on patients)", _dice, "usefulness"),
        ("sampling time per slice, s", "{:.2f}".format, "sampling", "seconds_per_slice"),
    ]
    made = "".join(f"\n{one['title']}: {_made(one)} {where(one)}" for one in found)
    return _columns({one["title"]: one for one in found}, rows) + made


def likeness(results: Results) -> str:
    """Every measure by features, one column a kind of a data set; then what `generation` leaves out."""
    found = priors(results)
    if not found:
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
        ("mean level of added noise, on [-1, 1]", "{:.3f}".format, "sampling", "noise_level"),
    ]
    taught = [one["usefulness"]["generated"]["labels"] for one in found if one["usefulness"]]
    rest += [
        (f"label {label}: Dice, trained on samples (on patients)", partial(_dice, label=label), "usefulness")
        for label in sorted({label for labels in taught for label in labels})
    ]
    columns = {
        f"{one['title']}: {KINDS[name]}": features
        for one in found
        for name, features in one["generation"]["features"].items()
    }
    return _columns(columns, by_kind) + "\n" + _columns({one["title"]: one for one in found}, rest)


def audit(results: Results) -> str:
    """How often the audit calls originals copies, and finds planted ones: a row a number of patients."""
    found = results["audit"]
    search, speed, training = found["search"], found["speed"], found["training"]
    rows = []
    for patients, of in found["by_held_out_patients"].items():
        shares = [of["clean"]["copies_found"], *(of[case]["copies_found"] for case in PLANTED)]
        rows.append(
            [patients, *(f"{share:.1%}" for share in (*shares, of["clean"]["nearer_than_the_quantile"]))]
        )
    head = ["held-out patients", "false alarms", *(f"{case} found" for case in PLANTED.values())]
    head.append("false alarms of the share nearer than the 1 % quantile")
    return (
        table(head, rows)
        + f"\n{found['title']}: {found['trials']} trials of {found['samples']} samples each, "
        f"{training['slices']:,} training slices of {training['patients']} patients. The search found the "
        f"source of {search['source_found']:.1%} of {search['copies']} copies. Among "
        f"{speed['training_slices']:,} training slices it seeks {speed['sought_slices']:,} in "
        f"{speed['seconds']:.0f} s, in {_gigabytes(speed):.1f} GB. {where(found)}"
    )


def evaluation(results: Results) -> str:
    """What it costs to judge a study's worth of samples, and a whole demo."""
    study, demo = results["evaluation"], results.get("evaluation-demo")
    rows = [row for name, title in PARTS.items() for row in _costs(title, study[name])]
    said = (
        f"\n{study['samples']} samples of {study['rows']}×{study['columns']} compared with "
        f"{study['slices']['test']} slices of {study['patients']['test']} test patients, against "
        f"{study['slices']['train']:,} training slices of {study['patients']['train']}."
    )
    if demo:
        rows += _costs("**`slicebook evaluate` of a demo**", demo)
        said += (
            f" {where(study)}\nThe demo: {demo['samples']} samples, {demo['slices']} slices, nothing kept."
        )
    return table(["", "seconds", "CPU seconds", "memory, GB"], rows) + f"{said} {where(demo or study)}"


def priors(results: Results) -> list[Any]:
    """Return the results of `generation.py`."""
    return [one for name, one in results.items() if name.startswith("generation-")]


def targets(results: Results) -> Iterable[Target]:
    """What was wanted of samples and of judging, and what was found."""
    for one in priors(results):
        title, samples = one["title"], one["generation"]["features"]["texture"]["samples"]
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
                one["generation"]["anatomy"] and one["generation"]["anatomy"]["ratio"],
                0.9,
            ),
            "Dice of a segmentation network trained on samples relative to patients: 90 % or more": (
                one["usefulness"] and one["usefulness"]["ratio"],
                0.9,
            ),
        }
        for what, (share, least) in shares.items():
            if share is not None:
                yield f"{title}: {what}", f"{share:.1%}", share >= least
    if "evaluation" in results:
        yield from _cost_targets(results["evaluation"], results.get("evaluation-demo"))


def _cost_targets(study: Any, demo: Any) -> Iterable[Target]:
    wanted, cost = study["wanted"], study["again"]
    what = f"{study['samples']} samples evaluated against {study['slices']['train']:,} training slices"
    yield (
        f"{what} in {wanted['seconds']} s or less",
        f"{cost['seconds']:.0f} s",
        cost["seconds"] <= wanted["seconds"],
    )
    memory = _gigabytes(cost)
    yield f"{what} in {wanted['memory_gb']} GB or less", f"{memory:.1f} GB", memory <= wanted["memory_gb"]
    if demo:
        seconds = demo["seconds"]
        yield (
            f"a demo evaluated in {wanted['demo_seconds']} s or less",
            f"{seconds:.0f} s",
            seconds <= wanted["demo_seconds"],
        )


def _columns(columns: Mapping[str, Any], rows: Iterable[Row]) -> str:
    """Draw rows of values that stand at the same keys of each column."""
    cells = []
    for title, show, *keys in rows:
        values = [_at(one, keys) for one in columns.values()]
        cells.append([title, *(NOTHING if value is None else show(value) for value in values)])
    return table(["", *columns], cells)


def _at(found: Any, keys: Iterable[str]) -> Any:
    for key in keys:
        found = None if found is None else found.get(key)
    return found


def _made(one: Any) -> str:
    drawing, judged, decoder = one["sampling"], one["generation"], one["decoder_seconds"]
    return (
        f"{drawing['samples']} samples of {drawing['rows']}×{drawing['columns']} compared with "
        f"{judged['held_out_slices']} slices of {judged['held_out_patients']} test patients; tokenizer "
        f"trained for {one['tokenizer_seconds'] / 60:.0f} minutes, "
        f"{'' if decoder is None else f'generation decoder for {decoder / 60:.0f}, '}prior of "
        f"{drawing['parameters'] / 1e6:.1f} M parameters for {one['provenance']['seconds'] / 60:.0f}, on "
        f"{one['provenance']['train_patients']} patients."
    )


def _as_near(kernel: Any) -> str:
    """Say what `Comparison.as_near_as_real` says."""
    return "yes" if kernel["generated"] <= kernel["real_range"][1] else "no"


def _distance(beside: Any) -> str:
    """Return a distance of samples with its interval, and where 95 % of those between real patients end."""
    return f"{_alone(beside)} ({_rounded(beside['real_range'][1])})"


def _alone(beside: Any) -> str:
    return number(beside["generated"], beside["interval"], _form(beside["generated"]))


def _rounded(distance: float) -> str:
    return f"{distance:{_form(distance)}}"


def _form(distance: float) -> str:
    """Return how a distance is written: three digits or so, whatever its unit."""
    return next(
        (form for most, form in ((1, ".3f"), (10, ".2f"), (100, ".1f")) if abs(distance) < most), ",.0f"
    )


def _share(beside: Any) -> str:
    return f"{number(beside['generated'], beside['interval'], '.2f')} ({beside['real']:.2f})"


def _summary(score: Any) -> str:
    return number(score["mean_of_patients"], score["interval"], ".2f")


def _alike(diversity: Any) -> str:
    return "{} ({})".format(*_two(diversity, ".3f"))


def _rules(anatomy: Any) -> str:
    return "{} ({})".format(*_two(anatomy, ".1%"))


def _two(found: Any, form: str) -> list[str]:
    """Return a number of samples and that of real slices, each with its interval."""
    return [number(found[side], found[f"{side}_interval"], form) for side in ("generated", "real")]


def _dice(taught: Any, label: str | None = None) -> str:
    """Return the Dice of both segmenters: the mean of labels, or that of one."""
    sides = [taught[side] for side in ("generated", "training_set")]
    if label is None:
        return "{} ({})".format(*(number(side["mean"], None, ".3f") for side in sides))
    return (
        "{} ({})".format(*(mean(side["labels"], label) for side in sides))
        if label in sides[0]["labels"]
        else NOTHING
    )


def _costs(title: str, found: Any) -> list[list[str]]:
    """Return a row of what a process cost, and rows of its parts."""
    whole = [f"{found['seconds']:.0f}", f"{found['cpu_seconds']:.0f}", f"{_gigabytes(found):.1f}"]
    return [
        [title, *whole],
        *([f"– {part}", f"{seconds:.0f}", "", ""] for part, seconds in found.get("parts", {}).items()),
    ]


def _gigabytes(found: Any) -> float:
    return float(found["peak_memory_mib"] * 2**20 / 1e9)
