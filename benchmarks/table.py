"""Write the tables of the pages from benchmarks/results/*.json; `--check` fails where they differ.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`, and nowhere else does a page hold a result.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import judged
from cells import NOT_MEASURED, Results, Target, bits, mean, signed, table, where

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "benchmarks/README.md")
BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

SITES = {"test": "held-out patients", "other_site": "another site"}
TITLES = {
    "compact": "**compact** (ours)",
    "detail": "**detail** (ours)",
    "comp3710": "comp3710, as written",
    "vqvae2": "vqvae2 in compact's recipe",
}
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

RENAMED = {
    "drawing": "sampling",
    "grain": "noise",
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
    """Return an object of a results file under the present names of its keys."""
    return {
        RENAMED.get(name, name).replace("seconds_a_slice", "seconds_per_slice"): value
        for name, value in pairs
    }


def quality(results: Results) -> str:
    """The first page's table: every contender, and the codecs at the bits of `compact`."""
    found = results["quality"]
    shown = ("ssim_foreground", "ssim_whole", "psnr_whole")
    sites = [site for site in SITES if site in found["sites"]]
    head = ["", "bits per pixel", *(METRICS[name] for name in shown)]
    head += [
        "SSIM, whole: difference to JPEG 2000 at the same bits",
        *(["SSIM, whole: another site"] if len(sites) > 1 else []),
    ]
    rows = []
    for name, one in found["contenders"].items():
        row = [
            _title(name, one),
            bits(one["test"]),
            *(mean(one["test"]["scores"], metric) for metric in shown),
        ]
        row.append(signed(one["test"]["codecs"]["jpeg2000"]["advantage"], "ssim_whole"))
        row += [mean(one[site]["scores"], "ssim_whole") for site in sites[1:]]
        rows.append(row)
        for codec, at_its_bits in one["test"]["codecs"].items() if name == "compact" else ():
            row = [at_its_bits["title"], bits(at_its_bits)]
            row += [*(mean(at_its_bits["scores"], metric) for metric in shown), ""]
            row += [mean(one[site]["codecs"][codec]["scores"], "ssim_whole") for site in sites[1:]]
            rows.append(row)
    return table(head, rows) + "\n" + _how(found)


def scores(results: Results) -> str:
    """Every score of every contender and of the codecs at its bits, site by site."""
    found = results["quality"]
    parts = []
    for site, of in found["sites"].items():
        rows = []
        for name, one in found["contenders"].items():
            for title, whose in ((_title(name, one), one[site]), *_codecs(one[site])):
                cells = [mean(whose["scores"], metric, bounds=False) for metric in METRICS]
                rows.append([title, bits(whose), *cells])
        counts = of["data"]["counts"]["test"]
        parts.append(f"{of['name']}: {counts['patients']} patients, {counts['slices']} slices.\n")
        parts.append(table(["", "bits per pixel", *METRICS.values()], rows))
    return "\n".join(parts)


def leads(results: Results) -> str:
    """By how much contenders lead the codecs at their bits, and `compact` the others; with intervals."""
    found = results["quality"]
    shown = ("ssim_foreground", "ssim_whole", "psnr_foreground", "psnr_whole")
    rows = []
    for site, of in found["sites"].items():
        for name, one in found["contenders"].items():
            for codec in one[site]["codecs"].values():
                gains = [signed(codec["advantage"], metric) for metric in shown]
                rows.append([of["name"], f"{name} over {codec['title']} at {bits(one[site])} bits", *gains])
        for name, lead in found["lead"].items():
            against = found["contenders"][name][site]
            gains = [signed(lead[site], metric) for metric in shown]
            rows.append([of["name"], f"compact over {name} at {bits(against)} bits", *gains])
    return table(["patients", "", *(METRICS[metric] for metric in shown)], rows)


def trainings(results: Results) -> str:
    """How each training went: short ones that chose among tries, and those whose model was scored."""
    rows = []
    for one in results["quality"]["contenders"].values():
        searched = [(f"{name}, learning rate search", go) for name, go in one["tries"].items()]
        rows += [
            [
                name,
                f"{go['seconds'] / 60:.1f}",
                f"{go['steps']:,}",
                f"{go['slices_seen']:,}",
                f"{go['slices_a_second']:.1f}",
                f"{go['validation_ssim']:.4f}",
            ]
            for name, go in (*searched, (one["run"], one["training"]))
        ]
    head = ["run", "minutes", "steps", "slices seen", "slices/s", "SSIM on validation patients"]
    return table(head, rows)


def codes(results: Results) -> str:
    """How the training slices use each codebook."""
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
        for name, one in owners.items()
        for level in one["training_tokens"]
    ]
    return table(["", "level", "codes", "training tokens per code", "codes in use", "perplexity"], rows)


def founding(results: Results) -> str:
    """The founding document's recipe to the letter, on patients it never saw."""
    found = results["founding"]
    test, document = found["test"], found["document"]
    rows = [["the document, on its training slices", "", "", f"{document['reported']}", ""]]
    shown = ("ssim_whole", "ssim_foreground", "ssim_skimage_default", "psnr_whole")
    rows.append([f"ours, {found['name']}", *(mean(test["scores"], metric) for metric in shown)])
    counts = found["data"]["counts"]
    return (
        table(["", *(METRICS[metric] for metric in shown)], rows)
        + f"\n{found['epochs']} epochs of {counts['train']['slices']:,} slices, {found['seconds'] / 60:.0f} "
        f"minutes; {test['patients']} test patients, {test['slices']} slices, {bits(test)} bits per native "
        f"pixel. The document requires {document['goal']}; its number is the {document['how']}.\n"
        + where(found)
    )


def quantizers(results: Results) -> str:
    """A training step of each quantiser: time, ratio to ours, memory."""
    found = results["speed"]["quantizers"]
    rows = []
    for setting in found["settings"]:
        of, size = setting["contenders"], [f"{setting['codes']:,}", f"{setting['dimension']}"]
        for name, one in of.items():
            times = [f"{one['ratio']:.2f}", f"{one['ratio'] / of['matrix product']['ratio']:.2f}"]
            weighed = one.get("extra_memory_mib")
            memory = ["", ""]
            if weighed is not None:
                memory = [f"{weighed:.1f}", f"{weighed / of['slicebook']['extra_memory_mib']:.1f}"]
            rows.append([*size, name, f"{1000 * one['seconds']:.1f}", *times, *memory])
        rows += [[*size, name, why, "", "", "", ""] for name, why in found["missing"].items()]
    head = [
        "K",
        "D",
        "",
        "ms per step",
        "relative to ours",
        "relative to the product",
        "extra memory, MiB",
        "relative to ours",
    ]
    return (
        table(head, rows) + f"\n{found['vectors']:,} vectors. {found['memory']}\n" + where(results["speed"])
    )


def networks(results: Results) -> str:
    """Slices a second through each network."""
    found = results["speed"]["networks"]
    names = [*found["settings"][0]["contenders"]]
    rows = []
    for setting in found["settings"]:
        side, of = setting["side"], setting["contenders"]
        rates = [f"{of[name]['images_a_second']:.1f}" for name in names]
        faster = f"{of['vqvae2']['ratio']:.2f}"
        rows.append([setting["task"], f"{side}×{side}", setting["precision"], *rates, faster])
    head = ["slices/s", "pixels", "precision", *names, "ladder over vqvae2"]
    sizes = ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in found["parameters"].items())
    missing = "".join(f" {name}: {why}." for name, why in found["missing"].items())
    return table(head, rows) + f"\nBatches of {found['batch_size']}. Parameters: {sizes}.{missing}"


def anomaly(results: Results) -> str:
    """How well a prior's surprise points at what was changed: one block of rows a data set."""
    found = [one for name, one in results.items() if name.startswith("anomaly-")]
    if not found:
        return NOT_MEASURED
    rows, made = [], ""
    for one in found:
        for change, scores in one["changes"].items():
            cells = [mean(scores, key) for key in ("pixels", "pixels_in_body", "peak", "sum")]
            rows.append([one["title"], change, str(scores["slices"]), *cells])
        radii = "–".join(f"{radius:g}" for radius in one["lesions"]["radii_pixels"])
        made += (
            f"\n{one['title']}: {one['slices']} slices of {one['patients']} test patients. "
            f"{one['convention']}. Lesions of contrast {one['lesions']['contrast']:g} on [-1, 1], their half "
            f"axes {radii} pixels; {one['orders']} orders. {where(one)}"
        )
    head = ["", "change", "slices", "pixels", "pixels in the body", "slices, by maximum", "slices, by sum"]
    return table(head, rows) + made


def sampling(results: Results) -> str:
    """How long a slice's tokens take to draw, beside MONAI's transformer."""
    found = results["speed"].get("generation")
    if found is None:
        return NOT_MEASURED
    rows = [
        [
            name,
            f"{one['parameters'] / 1e6:.2f} M",
            f"{one['seconds_per_slice']:.2f}",
            f"{one.get('ratio', 1):.1f}",
        ]
        for name, one in found["contenders"].items()
    ]
    rows += [[name, why, "", ""] for name, why in found["missing"].items()]
    tokens = ", ".join(f"{name} {count}" for name, count in found["tokens"].items())
    return (
        table(["", "parameters", "seconds per slice", "relative to ours"], rows)
        + f"\nA slice of {found['rows']}×{found['columns']} at batch {found['batch_size']}, "
        f"{found['precision']}; tokens: {tokens}. Decoding them takes "
        f"{found['decoding_seconds_per_slice']:.3f} s more. The peer: {found['peer']}.\n"
        + where(results["speed"])
    )


def other_speed(results: Results) -> str:
    """The data path and the command line."""
    path, line = results["speed"]["data_path"], results["speed"]["command_line"]
    rows = [
        ["prepared folder to batches, slices/s", f"{path['slices_a_second']['read']:,.0f}"],
        ["the same with augmentation", f"{path['slices_a_second']['augmented']:,.0f}"],
        *([f"`{name}`, seconds", f"{seconds:.2f}"] for name, seconds in line.items()),
    ]
    return table(["", ""], rows) + "\nSlices of the phantom, 256×128, read by the training process itself."


def targets(results: Results) -> str:
    """What was promised before anything was measured, and what was found."""
    rows: list[list[str]] = []
    for wanted, found, met in (
        *_quality_targets(results),
        *_speed_targets(results),
        *judged.targets(results),
        *_sampling_targets(results),
        *_founding_target(results),
    ):
        rows.append([wanted, found, "**yes**" if met else "**no**"])
    missing = [name for name in ("quality", "speed", "founding", "evaluation") if name not in results]
    missing += [] if judged.priors(results) else ["generation"]
    note = f"\nNot measured yet: {', '.join(missing)}." if missing else ""
    return table(["target", "result", "met"], rows) + note


def _quality_targets(results: Results) -> Iterable[Target]:
    found = results.get("quality", {"contenders": {}})
    ours = found["contenders"].get("compact")
    if ours is None:
        return
    bits = ours["test"]["bits_per_pixel"]["mean_of_slices"]
    yield "compact: 0.17 bits per pixel or less", f"{bits:.4f}", bits <= 0.17
    leads: list[tuple[str, Any, float, float | None]] = [
        ("JPEG 2000 at the same bits", ours["test"]["codecs"]["jpeg2000"]["advantage"], 0.10, 1.0)
    ]
    if "vqvae2" in found["lead"]:
        leads.append(("vqvae2 at its best of three rates", found["lead"]["vqvae2"]["test"], 0.20, None))
    for whom, gains, more_ssim, more_psnr in leads:
        for metric in ("ssim_whole", "ssim_foreground", "psnr_whole", "psnr_foreground"):
            least = more_psnr if metric.startswith("psnr") else more_ssim
            if least is not None:
                wanted = f"compact over {whom}, {METRICS[metric]}: {least:+g} or more"
                yield wanted, signed(gains, metric), gains[metric]["mean_of_patients"] >= least
    use = [level["usage"] for level in ours["training_tokens"]]
    yield (
        "compact's codes in use on training tokens: 90 % or more at each level",
        ", ".join(f"{share:.1%}" for share in use),
        min(use) >= 0.9,
    )
    tokens = [level["tokens_per_code"] for level in ours["training_tokens"]]
    yield (
        "compact's training tokens per code, 20 or more at each level",
        ", ".join(f"{count:.0f}" for count in tokens),
        min(tokens) >= 20,
    )


def _speed_targets(results: Results) -> Iterable[Target]:
    if "speed" not in results:
        return
    found = results["speed"]
    for setting in found["quantizers"]["settings"]:
        if setting["dimension"] == 64:
            yield from _quantizer_targets(setting, found["quantizers"]["missing"])
    for setting in found["networks"]["settings"]:
        if setting["task"] == "training":
            ratio = setting["contenders"]["vqvae2"]["ratio"]
            which = f"{setting['side']}×{setting['side']}, {setting['precision']}"
            yield (
                f"ladder trains slices/s over vqvae2, {which}: 2.5 or more",
                f"{ratio:.2f}",
                ratio >= 2.5,
            )
    seconds = found["command_line"]["slicebook --help"]
    yield "`slicebook --help` in under 0.5 s", f"{seconds:.2f} s", seconds < 0.5


def _sampling_targets(results: Results) -> Iterable[Target]:
    drawn = results.get("speed", {}).get("generation")
    if drawn is not None:
        seconds = drawn["contenders"]["slicebook"]["seconds_per_slice"]
        yield "tokens of a 256×128 slice sampled in 1 s or less, batch 16", f"{seconds:.2f} s", seconds <= 1
        peers = {name: one["ratio"] for name, one in drawn["contenders"].items() if "ratio" in one}
        absent = [f"{name} {why}" for name, why in drawn["missing"].items()]
        found = ", ".join([*(f"{name} {ratio:.0f}" for name, ratio in peers.items()), *absent])
        yield (
            "sampling time of each peer relative to ours: 20 or more",
            found,
            bool(peers) and min(peers.values()) >= 20,
        )


def _quantizer_targets(setting: Mapping[str, Any], missing: Mapping[str, str]) -> Iterable[Target]:
    of, which = setting["contenders"], f"K {setting['codes']:,}, D 64"
    ours = of["slicebook"]
    peers = {name: one for name, one in of.items() if name not in ("slicebook", "matrix product")}
    absent = [f"{name} {why}" for name, why in missing.items()]
    times = {name: one["ratio"] for name, one in peers.items()}
    memory = {
        name: one["extra_memory_mib"] / ours["extra_memory_mib"]
        for name, one in peers.items()
        if one["extra_memory_mib"] is not None and ours["extra_memory_mib"]
    }
    for what, shares in (("step", times), ("extra memory", memory)):
        found = ", ".join([*(f"{name} {share:.1f}" for name, share in shares.items()), *absent])
        met = bool(shares) and min(shares.values()) >= 5
        yield f"each peer's {what} relative to ours, {which}: 5 or more", found or "not measured", met


def _founding_target(results: Results) -> Iterable[Target]:
    if "founding" not in results:
        return
    found = results["founding"]
    scores, goal = found["test"]["scores"], found["document"]["goal"]
    yield (
        f"comp3710, {found['epochs']} epochs on the phantom, SSIM on test patients: over {goal}",
        mean(scores, "ssim_whole"),
        scores["ssim_whole"]["mean_of_patients"] > goal,
    )


TABLES: dict[str, tuple[Callable[[Results], str], tuple[str, ...]]] = {
    "quality": (quality, ("quality",)),
    "scores": (scores, ("quality",)),
    "leads": (leads, ("quality",)),
    "trainings": (trainings, ("quality",)),
    "codes": (codes, ()),
    "founding": (founding, ("founding",)),
    "quantizers": (quantizers, ("speed",)),
    "networks": (networks, ("speed",)),
    "generation": (judged.generation, ()),
    "likeness": (judged.likeness, ()),
    "audit": (judged.audit, ("audit",)),
    "evaluation": (judged.evaluation, ("evaluation",)),
    "anomaly": (anomaly, ()),
    "sampling": (sampling, ("speed",)),
    "other-speed": (other_speed, ("speed",)),
    "targets": (targets, ()),
}
"""By name: how a table is drawn, and the results that it cannot do without."""


def draw(name: str, results: Results) -> str:
    """Return a table as Markdown, or that nothing was measured.

    Raises:
        KeyError: No table has this name.
    """
    drawn, needed = TABLES[name]
    there = all(one in results for one in needed) if needed else bool(results)
    return drawn(results).rstrip("\n") if there else NOT_MEASURED


def fill(text: str, results: Results) -> tuple[str, list[str]]:
    """Return a page with its tables drawn anew, and the names of those that changed."""
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
    asked = parser.parse_args(arguments)
    files = sorted((asked.root / "benchmarks" / "results").glob("*.json"))
    results = {
        path.stem: json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=rename_keys)
        for path in files
    }
    different = []
    for page in PAGES:
        path = asked.root / page
        text = path.read_text(encoding="utf-8")
        fresh, changed = fill(text, results)
        different += [f"{page}: table {name} differs from benchmarks/results" for name in changed]
        if not asked.check and changed:
            path.write_text(fresh, encoding="utf-8")
    if asked.check and different:
        print("\n".join([*different, "run: python benchmarks/table.py"]), file=sys.stderr)
        return 1
    return 0


def _title(name: str, contender: Mapping[str, Any]) -> str:
    tries = len(contender["tries"])
    best = (
        f", best of {tries} rates ({contender['recipe']['training']['learning_rate']:g})" if tries > 1 else ""
    )
    return TITLES[name] + best


def _codecs(report: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    return ((f"{codec['title']} at the same bits", codec) for codec in report["codecs"].values())


def _how(found: Mapping[str, Any]) -> str:
    """Say what the numbers of a comparison rest on."""
    data = found["sites"]["test"]["data"]
    train, test = data["counts"]["train"], data["counts"]["test"]
    size = "native size" if data["size"] is None else f"{data['size'][0]}×{data['size'][1]}"
    said = (
        f"{found['sites']['test']['name']}: {found['minutes']:g} minutes of training each on "
        f"{train['patients']} patients ({train['slices']} slices of {size}), scored on {test['patients']} "
        f"others ({test['slices']} slices). Mean of patients, with 95 % intervals by patient."
    )
    if "other_site" in found["sites"]:
        other = found["sites"]["other_site"]
        counts = other["data"]["counts"]["test"]
        said += f" Another site: {other['name']}, {counts['patients']} patients, {counts['slices']} slices."
    said += " The codecs use the bits of compact.\n"
    return said + " ".join(dict.fromkeys(where(one) for one in found["contenders"].values()))


if __name__ == "__main__":
    sys.exit(main())
