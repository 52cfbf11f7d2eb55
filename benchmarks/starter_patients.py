"""Train on 1, 2, 5, … patients, from random weights and from a starter, and score the same test patients.

    python benchmarks/starter_patients.py DATA --work runs/starter-patients --minutes 3
    python benchmarks/starter_patients.py --draw

DATA is a prepared folder of real scans. The smaller sets of training patients are parts of the larger ones.
A repeated command resumes. `--draw` writes docs/starter-patients.png from the results.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
from matplotlib.figure import Figure
from quality import score_reconstruction

from slicebook.data.dataset import PreparedData
from slicebook.data.manifest import SliceRecord, write_info, write_manifest
from slicebook.errors import ConfigError, SlicebookError
from slicebook.io.atomic import replacing_folder
from slicebook.io.tensors import STATE_NAME, load_state
from slicebook.models.checkpoint import load_tokenizer
from slicebook.recipes import load_recipe
from slicebook.training.run import TrainingOptions
from slicebook.training.tokenizer import train_tokenizer

COUNTS = (1, 2, 5, 10, 20)  # and all
STARTER = "starter:compact"
STARTS = {"random weights": None, "starter": STARTER}
SEED = 0  # of the choice of patients
PICTURE = Path(__file__).parent.parent / "docs" / "starter-patients.png"
RESULT = "starter_patients.json"


def subset(data: PreparedData, count: int, folder: Path) -> None:
    """Write a prepared folder with so many of the training patients, and all validation patients.

    Raises:
        ConfigError: There are fewer training patients.
    """
    patients = sorted(data.split("train", blank=True).patients)
    if count > len(patients):
        raise ConfigError(f"{data.folder}: has {len(patients)} training patients, wanted {count}")
    chosen = set(np.random.default_rng(SEED).permutation(patients)[:count].tolist())
    images = np.memmap(data.folder / "images.f32", "<f4", "r")
    records: list[SliceRecord] = []
    offset = 0
    with replacing_folder(folder) as partial:
        with (partial / "images.f32").open("wb") as file:
            for record in data.records:
                if record.split != "validation" and record.patient not in chosen:
                    continue
                pixels = record.rows * record.columns
                file.write(images[record.offset : record.offset + pixels].tobytes())
                records.append(replace(record, index=len(records), offset=offset, label_offset=-1))
                offset += pixels
        write_manifest(partial, records)
        write_info(partial, data.info.model_copy(update={"label_values": ()}))


def measure(data: PreparedData, count: int, start: str, minutes: float, work: Path) -> dict[str, Any]:
    """Train for some minutes on some patients, or resume; score the test patients of the whole data set."""
    folder, run = work / f"patients-{count}", work / f"{start.split()[0]}-{count}-{minutes:g}min"
    if not (folder / "dataset.json").is_file():
        subset(data, count, folder)
    recipe = load_recipe("compact", [f"training.max_minutes={minutes:g}"])
    train_tokenizer(folder, recipe, run, TrainingOptions(device="cpu", start_from=STARTS[start]))
    report = score_reconstruction(load_tokenizer(run), data, run / "test", with_codecs=False)
    progress = load_state(run / STATE_NAME).progress["progress"]
    names = ("ssim_whole", "ssim_foreground", "psnr_whole")
    return {
        "patients": count,
        "from": start,
        "minutes": minutes,
        "steps": progress["step"],
        "scores": {name: report["scores"][name] for name in names},
    }


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw SSIM over the number of training patients, from both starts and without any training."""
    figure = Figure(figsize=(7, 3.6), dpi=130, layout="constrained")
    axes = figure.subplots()
    for start, colour in zip(STARTS, ("#8b919b", "#2f6ea5"), strict=True):
        runs = sorted(
            (run for run in results["runs"] if run["from"] == start), key=lambda run: run["patients"]
        )
        scores = [run["scores"]["ssim_whole"] for run in runs]
        counts, means = [run["patients"] for run in runs], [score["mean_of_patients"] for score in scores]
        low, high = zip(*(score["interval"] for score in scores), strict=True)
        axes.plot(counts, means, "o-", color=colour, label=f"{runs[0]['minutes']:g} minutes from {start}")
        axes.fill_between(counts, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.axhline(
        results["zero_shot"]["mean_of_patients"],
        color="#2f6ea5",
        linestyle="--",
        label="starter, no training",
    )
    axes.axhline(results["jpeg2000"]["mean_of_patients"], color="#b06a26", linestyle=":", label="JPEG 2000")
    axes.set_xscale("log")
    counts = sorted({run["patients"] for run in results["runs"]})
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_xlabel("training patients")
    axes.set_ylabel("SSIM, whole slice")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Software": None})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="DATA", type=Path, nargs="?", help="prepared folder of real scans")
    parser.add_argument("--name", default="test patients", help="what DATA is called")
    parser.add_argument("--work", metavar="DIR", type=Path, default=Path("runs/starter-patients"))
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS), help="besides all patients")
    parser.add_argument("--minutes", type=float, default=3, help="of each training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", metavar="DIR", type=Path, default=machine.RESULTS)
    parser.add_argument("--draw", action="store_true", help="write the picture of the results")
    parser.add_argument("--picture", metavar="PNG", type=Path, default=PICTURE)
    options = parser.parse_args(arguments)
    path = options.results / RESULT
    torch.set_num_threads(options.threads)
    try:
        if options.data is not None:
            _measure_all(options, path)
        elif not options.draw:
            parser.error("give DATA, or --draw")
        if options.draw:
            draw(json.loads(path.read_text(encoding="utf-8")), options.picture)
    except SlicebookError as error:
        print(f"starter_patients: {error}", file=sys.stderr)
        return 1
    return 0


def _measure_all(options: argparse.Namespace, path: Path) -> None:
    data = PreparedData.open(options.data)
    zero_shot = score_reconstruction(
        load_tokenizer(STARTER), data, options.work / "starter", with_codecs=True
    )
    result = machine.surroundings(options.threads, "imagecodecs") | {
        "name": options.name,
        "data": data.info.model_dump(mode="json"),
        "starter": load_tokenizer(STARTER).info.weights_sha256,
        "zero_shot": zero_shot["scores"]["ssim_whole"],
        "jpeg2000": zero_shot["codecs"]["jpeg2000"]["scores"]["ssim_whole"],
        "runs": [],
    }
    everyone = len(data.split("train").patients)
    for count in sorted({*options.counts, everyone}):
        for start in STARTS:
            result["runs"].append(measure(data, count, start, options.minutes, options.work))
            machine.write(path, result)


if __name__ == "__main__":
    sys.exit(main())
