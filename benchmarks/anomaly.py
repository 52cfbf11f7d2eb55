"""Judge whether a prior's surprise points at what does not belong: planted lesions, and organs taken away.

    python benchmarks/anomaly.py RUN DATA --name phantom --title 'Phantom, 256×128' --sheets runs/anomaly

RUN is a tokenizer's run with its prior, DATA the prepared folder of both, with masks. Lesions are planted
into the body of *test* slices, brighter and darker than what they replace; then each organ is filled from
around it, with noise like the slice's own. Asked is how well the map tells the changed pixels from the others
of the same slices, and how well its peak and its sum tell a changed slice from itself as it was, patient by
patient.
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
from slicebook.models.noise import noise_level
from slicebook.models.transformer import Conditions
from slicebook.visualization import contact_sheet

SEED = 42
BODY = 1  # label of what is no organ: where lesions grow
ORGANS = {3: "bladder", 4: "rectum", 5: "prostate"}
SMALLEST = 60  # pixels of an organ whose absence is asked for
RADII = (4.0, 9.0)  # pixels of a lesion's axes
CONTRAST = 0.6  # of a lesion, on [-1, 1]
INWARD = 6.0  # pixels: a lesion keeps about so far from the skin
SHOWN = 8  # slices a kind in the sheet
ABOUT = {
    "pixels": "pixels changed by half the contrast or more against the others of the changed slices",
    "pixels_in_body": "the same, inside the body alone",
    "peak": "changed slices against the same as they were, by the map's greatest value",
    "sum": "the same, by the nats of the whole slice",
}

Image = Float32[np.ndarray, "h w"]
Place = Bool[np.ndarray, "h w"]
Change = Callable[[int, np.random.Generator], tuple[Image, Place]]


@dataclass(frozen=True)
class Slices:
    """Test slices of one size, with their masks, places in the volume, and whose they are."""

    images: list[Image]
    masks: list[UInt8[np.ndarray, "h w"]]
    positions: list[float]
    patients: list[str]
    aspect: float


def measure(
    loaded: LoadedPrior, data: PreparedData, *, every: int, orders: int, sheets_to: Path
) -> dict[str, Any]:
    """Change test slices, map them before and after, and return how well the changes are found.

    Raises:
        ConfigError: The prior was trained on other data.
        DataError: The test slices have no masks.
    """
    if data.split_hash != loaded.info.provenance.split_hash:
        raise ConfigError(
            f"{data.folder}: holds other patients, or another split, than {loaded.path} was trained on"
        )
    slices = _read(loaded, data, every)
    before = _map(loaded, slices, range(len(slices.images)), slices.images, orders)
    panels: list[Any] = []
    found: dict[str, Any] = {}
    for title, change, chosen in _changes(loaded, slices):
        changed = [change(index, np.random.default_rng([SEED, index])) for index in chosen]
        images, places = [one for one, _ in changed], np.stack([place for _, place in changed])
        after = _map(loaded, slices, chosen, images, orders)
        found[title] = _judge(slices, chosen, places, before, after)
        print(title, {key: found[title][key]["mean_of_patients"] for key in ABOUT}, file=sys.stderr)
        panels += _panels(slices, images, places, after)
    contact_sheet.write_sheet(panels, sheets_to / "anomaly.png", columns=2 * SHOWN)
    return {
        "convention": AUROC_CONVENTION,
        "slices": len(slices.images),
        "patients": len(set(slices.patients)),
        "orders": orders,
        "changes": found,
    }


def lesion(
    image: Image, mask: UInt8[np.ndarray, "h w"], sign: int, draw: np.random.Generator
) -> tuple[Image, Place]:
    """Brighten or darken an ellipse of the body, soft at its edge; return where by half or more."""
    depth = gaussian_filter((mask > 0).astype(np.float64), INWARD)
    within = (mask == BODY) & (depth > 0.95)
    row, column = draw.choice(np.argwhere(within if within.any() else mask == BODY))
    radii, angle = draw.uniform(*RADII, 2), draw.uniform(0, np.pi)
    rows, columns = np.indices(image.shape)
    along = (columns - column) * np.cos(angle) + (rows - row) * np.sin(angle)
    across = (rows - row) * np.cos(angle) - (columns - column) * np.sin(angle)
    place = (along / radii[0]) ** 2 + (across / radii[1]) ** 2 <= 1
    soft = gaussian_filter(place.astype(np.float32), 1.0) * (mask == BODY)
    return np.clip(image + sign * CONTRAST * soft, -1, 1), soft > 0.5


def without(
    loaded: LoadedPrior, image: Image, organ: Place, draw: np.random.Generator
) -> tuple[Image, Place]:
    """Fill an organ and its edge from around it, as noisy as the slice."""
    place = binary_dilation(organ, iterations=2)
    filled = fill(image, place)
    if loaded.info.noise_model is not None:
        level = float(noise_level(torch.from_numpy(image)[None, None]))
        filled = loaded.info.noise_model.add_noise(filled, level, int(draw.integers(2**31)))
    return np.where(place, filled, image), place


def _changes(loaded: LoadedPrior, slices: Slices) -> list[tuple[str, Change, list[int]]]:
    """Each kind of change: its name, what it does to a slice, and to which slices."""

    def plant(sign: int) -> Change:
        return lambda index, draw: lesion(slices.images[index], slices.masks[index], sign, draw)

    def remove(label: int) -> Change:
        return lambda index, draw: without(loaded, slices.images[index], slices.masks[index] == label, draw)

    bodies = [index for index, mask in enumerate(slices.masks) if (mask == BODY).any()]
    found = [("bright lesion", plant(1), bodies), ("dark lesion", plant(-1), bodies)]
    for label, name in ORGANS.items():
        chosen = [index for index, mask in enumerate(slices.masks) if (mask == label).sum() >= SMALLEST]
        if chosen:
            found.append((f"no {name}", remove(label), chosen))
    return found


def _read(loaded: LoadedPrior, data: PreparedData, every: int) -> Slices:
    kind = loaded.info.slices[0]
    records = data.split("test", labelled=True).records
    some = tuple(one for one in records if (one.rows, one.columns) == (kind.rows, kind.columns))[::every]
    if not some:
        raise DataError(f"{data.folder}: no test slice of {kind.rows}×{kind.columns} has a mask")
    read = SliceSet(data.folder, some)
    return Slices(
        [read[index][0].numpy() for index in range(len(read))],
        [read.labels(index).numpy() for index in range(len(read))],
        [one.position for one in some],
        [one.patient for one in some],
        kind.row_mm / kind.column_mm,
    )


def _map(
    loaded: LoadedPrior, slices: Slices, chosen: Sequence[int], images: Sequence[Image], orders: int
) -> AnomalyScores:
    positions = torch.tensor([slices.positions[index] for index in chosen])
    conditions = Conditions(positions, torch.full((len(chosen),), -1))
    return anomaly_scores(loaded, torch.from_numpy(np.stack(images))[:, None], conditions, orders, SEED)


def _judge(
    slices: Slices,
    chosen: list[int],
    places: Bool[np.ndarray, "n h w"],
    before: AnomalyScores,
    after: AnomalyScores,
) -> dict[str, Any]:
    """Return the areas under the curve, each patient by itself, then over patients."""
    maps = after.maps.numpy()
    body = np.stack([slices.masks[index] > 0 for index in chosen])
    peaks = [one.maps.amax((1, 2)).numpy() for one in (before, after)]
    sums = [one.nats.numpy() for one in (before, after)]
    whose = np.array([slices.patients[index] for index in chosen])
    names = list(dict.fromkeys(whose.tolist()))
    found: dict[str, list[float | None]] = {key: [] for key in ABOUT}
    for name in names:
        mine = whose == name
        inside = body[mine]
        found["pixels"].append(auroc(maps[mine].ravel(), places[mine].ravel()))
        found["pixels_in_body"].append(auroc(maps[mine][inside], places[mine][inside]))
        marked = np.repeat([False, True], mine.sum())
        for key, (old, new) in (("peak", peaks), ("sum", sums)):
            found[key].append(auroc(np.concatenate([old[chosen][mine], new[mine]]), marked))
    scores = {key: summarise_one(ABOUT[key], values, names, SEED) for key, values in found.items()}
    return {"slices": len(chosen)} | {key: one.model_dump(mode="json") for key, one in scores.items()}


def _panels(
    slices: Slices, images: Sequence[Image], places: Bool[np.ndarray, "n h w"], after: AnomalyScores
) -> list[Any]:
    """Return changed slices with the place marked, each beside its map."""
    chosen = np.random.default_rng(SEED).permutation(len(images))[:SHOWN]
    warm = heatmap(after.maps.numpy())
    panels = []
    for index in chosen:
        panels.append(contact_sheet.tinted(images[index], places[index].astype(np.uint8), slices.aspect))
        panels.append(contact_sheet.hot(images[index], warm[index], slices.aspect))
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
    parser.add_argument("--every", type=int, default=1, help="take every so many test slices")
    parser.add_argument("--orders", type=int, default=8, help="of drawing, to average over")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", metavar="DIR", type=Path, default=machine.RESULTS)
    asked = parser.parse_args(arguments)
    if asked.every < 1 or asked.orders < 1:
        parser.error("--every and --orders: wanted 1 or more")
    if not re.fullmatch(r"[a-z0-9-]+", asked.name):
        parser.error(f"--name {asked.name}: wanted small letters, digits and dashes, such as phantom-64")
    torch.set_num_threads(asked.threads)
    try:
        loaded, data = load_prior(asked.run), PreparedData.open(asked.data)
        found = measure(loaded, data, every=asked.every, orders=asked.orders, sheets_to=asked.sheets)
    except SlicebookError as error:
        print(f"anomaly: {error}", file=sys.stderr)
        return 1
    info = loaded.info
    header = {
        "title": asked.title or asked.name,
        "data": data.info.model_dump(mode="json"),
        "recipe": info.recipe.model_dump(mode="json"),
        "provenance": info.provenance.model_dump(mode="json"),
        "model_sha256": info.weights_sha256,
        "lesions": {"radii_pixels": RADII, "contrast": CONTRAST, "seed": SEED},
    }
    path = asked.results / f"anomaly-{asked.name}.json"
    machine.write(path, machine.surroundings(asked.threads) | header | found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
