"""Measure how well a prior's anomaly map detects synthetic lesions and removed organs.

    python benchmarks/anomaly.py RUN DATA --name phantom --title 'Phantom, 256×128' --sheets runs/anomaly

RUN is a tokenizer's run with its prior, DATA the prepared folder of both, with masks. Bright and dark lesions
are added inside the body of *test* slices; then each organ is replaced by a fill from its surroundings, with
noise like that of the slice. The result is the area under the ROC curve, per patient: of the map, for changed
pixels against the other pixels of the same slices; of its maximum and of its sum, for changed slices against
the same slices unchanged.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8
from scipy.ndimage import binary_dilation, gaussian_filter

from slicebook.data.dataset import PreparedData, SliceSet
from slicebook.errors import ConfigError, DataError, SlicebookError
from slicebook.inference.anomaly import AnomalyScores, anomaly_scores, heatmap
from slicebook.inference.inpaint import fill
from slicebook.metrics.statistics import AUROC_CONVENTION, auroc, summarise_one
from slicebook.models.checkpoint import LoadedPrior, load_prior
from slicebook.models.conditions import Conditions
from slicebook.models.noise import noise_level
from slicebook.visualization import contact_sheet

SEED = 42
BODY = 1  # label of the body outside organs, where lesions are placed
ORGANS = {3: "bladder", 4: "rectum", 5: "prostate"}
SMALLEST = 60  # pixels; smaller organs are not removed
RADII = (4.0, 9.0)  # pixels of a lesion's axes
CONTRAST = 0.6  # of a lesion, on [-1, 1]
INWARD = 6.0  # pixels, approximate distance of a lesion from the skin
SHOWN = 8  # slices per kind of change in the sheet
ABOUT = {
    "pixels": "pixels changed by half the contrast or more against the other pixels of the changed slices",
    "pixels_in_body": "the same, inside the body only",
    "peak": "changed slices against the same slices unchanged, by the maximum of the map",
    "sum": "the same, by the sum of nats over the slice",
}

Image = Float32[np.ndarray, "h w"]
Region = Bool[np.ndarray, "h w"]
Change = Callable[[int, np.random.Generator], tuple[Image, Region]]


@dataclass(frozen=True)
class Slices:
    """Test slices of one size, with their masks, positions in the volume, and patients."""

    images: list[Image]
    masks: list[UInt8[np.ndarray, "h w"]]
    positions: list[float]
    patients: list[str]
    aspect: float


def measure(
    loaded: LoadedPrior, data: PreparedData, *, every: int, draws: int, sheets_to: Path
) -> dict[str, Any]:
    """Change test slices, compute anomaly maps before and after, and score the detection.

    Raises:
        ConfigError: The prior was trained on other data.
        DataError: The test slices have no masks.
    """
    if data.split_hash != loaded.info.provenance.split_hash:
        raise ConfigError(
            f"{data.folder}: holds other patients, or another split, than {loaded.path} was trained on"
        )
    slices = _read(loaded, data, every)
    before = _map(loaded, slices, range(len(slices.images)), slices.images, draws)
    panels: list[Any] = []
    changes: dict[str, Any] = {}
    for title, change, chosen in _changes(loaded, slices):
        changed = [change(index, np.random.default_rng([SEED, index])) for index in chosen]
        images, regions = (
            [image for image, _ in changed],
            np.stack([region for _, region in changed]),
        )
        after = _map(loaded, slices, chosen, images, draws)
        changes[title] = _score(slices, chosen, regions, before, after)
        print(title, {key: changes[title][key]["mean_of_patients"] for key in ABOUT}, file=sys.stderr)
        panels += _panels(slices, images, regions, after)
    contact_sheet.write_sheet(panels, sheets_to / "anomaly.png", columns=2 * SHOWN)
    return {
        "convention": AUROC_CONVENTION,
        "slices": len(slices.images),
        "patients": len(set(slices.patients)),
        "draws": draws,
        "changes": changes,
    }


def lesion(
    image: Image, mask: UInt8[np.ndarray, "h w"], sign: int, draw: np.random.Generator
) -> tuple[Image, Region]:
    """Brighten or darken an ellipse with a soft edge; return where the change is large."""
    depth = gaussian_filter((mask > 0).astype(np.float64), INWARD)
    within = (mask == BODY) & (depth > 0.95)
    row, column = draw.choice(np.argwhere(within if within.any() else mask == BODY))
    radii, angle = draw.uniform(*RADII, 2), draw.uniform(0, np.pi)
    rows, columns = np.indices(image.shape)
    along = (columns - column) * np.cos(angle) + (rows - row) * np.sin(angle)
    across = (rows - row) * np.cos(angle) - (columns - column) * np.sin(angle)
    region = (along / radii[0]) ** 2 + (across / radii[1]) ** 2 <= 1
    soft = gaussian_filter(region.astype(np.float32), 1.0) * (mask == BODY)
    return np.clip(image + sign * CONTRAST * soft, -1, 1), soft > 0.5


def without(
    loaded: LoadedPrior, image: Image, organ: Region, draw: np.random.Generator
) -> tuple[Image, Region]:
    """Replace an organ and its edge by a fill from its surroundings, with the noise level of the slice."""
    region = binary_dilation(organ, iterations=2)
    filled = fill(image, region)
    level = float(noise_level(torch.from_numpy(image)[None, None]))
    filled = np.clip(filled + level * draw.standard_normal(image.shape, np.float32), -1, 1)
    return np.where(region, filled, image), region


def _changes(loaded: LoadedPrior, slices: Slices) -> list[tuple[str, Change, list[int]]]:
    """Return each kind of change: its name, the function that applies it, and the slices it applies to."""

    def plant(sign: int) -> Change:
        return lambda index, draw: lesion(slices.images[index], slices.masks[index], sign, draw)

    def remove(label: int) -> Change:
        return lambda index, draw: without(loaded, slices.images[index], slices.masks[index] == label, draw)

    bodies = [index for index, mask in enumerate(slices.masks) if (mask == BODY).any()]
    changes = [("bright lesion", plant(1), bodies), ("dark lesion", plant(-1), bodies)]
    for label, name in ORGANS.items():
        chosen = [index for index, mask in enumerate(slices.masks) if (mask == label).sum() >= SMALLEST]
        if chosen:
            changes.append((f"no {name}", remove(label), chosen))
    return changes


def _read(loaded: LoadedPrior, data: PreparedData, every: int) -> Slices:
    kind = loaded.info.slices[0]
    records = data.split("test", labelled=True).records
    chosen = tuple(
        record for record in records if (record.rows, record.columns) == (kind.rows, kind.columns)
    )[::every]
    if not chosen:
        raise DataError(f"{data.folder}: no test slice of {kind.rows}×{kind.columns} has a mask")
    slices = SliceSet(data.folder, chosen)
    return Slices(
        [slices[index][0].numpy() for index in range(len(slices))],
        [slices.labels(index).numpy() for index in range(len(slices))],
        [record.position for record in chosen],
        [record.patient for record in chosen],
        kind.row_mm / kind.column_mm,
    )


def _map(
    loaded: LoadedPrior, slices: Slices, chosen: Sequence[int], images: Sequence[Image], draws: int
) -> AnomalyScores:
    positions = torch.tensor([slices.positions[index] for index in chosen])
    conditions = Conditions(positions, torch.full((len(chosen),), -1))
    return anomaly_scores(loaded, torch.from_numpy(np.stack(images))[:, None], conditions, draws, SEED)


def _score(
    slices: Slices,
    chosen: list[int],
    regions: Bool[np.ndarray, "n h w"],
    before: AnomalyScores,
    after: AnomalyScores,
) -> dict[str, Any]:
    """Return the areas under the ROC curve per patient, summarised over patients."""
    maps = after.maps.numpy()
    body = np.stack([slices.masks[index] > 0 for index in chosen])
    peaks = [score.maps.amax((1, 2)).numpy() for score in (before, after)]
    totals = [score.nats.numpy() for score in (before, after)]
    patients = np.array([slices.patients[index] for index in chosen])
    names = list(dict.fromkeys(patients.tolist()))
    areas: dict[str, list[float | None]] = {key: [] for key in ABOUT}
    for name in names:
        own = patients == name
        inside = body[own]
        areas["pixels"].append(auroc(maps[own].ravel(), regions[own].ravel()))
        areas["pixels_in_body"].append(auroc(maps[own][inside], regions[own][inside]))
        marked = np.repeat([False, True], own.sum())
        for key, (old, new) in (("peak", peaks), ("sum", totals)):
            areas[key].append(auroc(np.concatenate([old[chosen][own], new[own]]), marked))
    scores = {key: summarise_one(ABOUT[key], values, names, SEED) for key, values in areas.items()}
    return {"slices": len(chosen)} | {key: score.model_dump(mode="json") for key, score in scores.items()}


def _panels(
    slices: Slices, images: Sequence[Image], regions: Bool[np.ndarray, "n h w"], after: AnomalyScores
) -> list[Any]:
    """Return changed slices with the changed region marked, each beside its map."""
    chosen = np.random.default_rng(SEED).permutation(len(images))[:SHOWN]
    heat = heatmap(after.maps.numpy())
    panels = []
    for index in chosen:
        panels.append(contact_sheet.tinted(images[index], regions[index].astype(np.uint8), slices.aspect))
        panels.append(contact_sheet.hot(images[index], heat[index], slices.aspect))
    return panels + [np.zeros_like(panels[0])] * (2 * SHOWN - len(panels))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run with a prior, or the prior's folder")
    parser.add_argument("data", metavar="DATA", type=Path, help="the prepared folder it was trained on")
    parser.add_argument("--name", default="phantom", help="of the result: anomaly-NAME.json")
    parser.add_argument("--title", default="", help="what the data are called in the table")
    parser.add_argument("--sheets", metavar="DIR", type=Path, default=Path("runs/anomaly"))
    parser.add_argument("--every", type=int, default=1, help="use every n-th test slice")
    parser.add_argument("--draws", type=int, default=8, help="draws of the noise to average over")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", metavar="DIR", type=Path, default=machine.RESULTS)
    options = parser.parse_args(arguments)
    if options.every < 1 or options.draws < 1:
        parser.error("--every and --draws: wanted 1 or more")
    if not re.fullmatch(r"[a-z0-9-]+", options.name):
        parser.error(f"--name {options.name}: wanted small letters, digits and dashes, such as phantom-64")
    torch.set_num_threads(options.threads)
    try:
        loaded, data = load_prior(options.run), PreparedData.open(options.data)
        result = measure(loaded, data, every=options.every, draws=options.draws, sheets_to=options.sheets)
    except SlicebookError as error:
        print(f"anomaly: {error}", file=sys.stderr)
        return 1
    info = loaded.info
    header = {
        "title": options.title or options.name,
        "data": data.info.model_dump(mode="json"),
        "recipe": info.recipe.model_dump(mode="json"),
        "provenance": info.provenance.model_dump(mode="json"),
        "model_sha256": info.weights_sha256,
        "lesions": {"radii_pixels": RADII, "contrast": CONTRAST, "seed": SEED},
    }
    path = options.results / f"anomaly-{options.name}.json"
    machine.write(path, machine.surroundings(options.threads) | header | result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
