"""Generated slices with their masks as a data set: files, pictures, and a list of them.

Samples are drawn and written in groups of 16. Until all are drawn they lie in `OUT.partial`, with the request
that they answer and a record of each finished group; the same command then goes on from the next group.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int64
from matplotlib.image import imread
from torch import Tensor

from slicebook.data.manifest import SliceKind
from slicebook.data.transforms import IntensityMap
from slicebook.devices import choose_device
from slicebook.errors import ConfigError, DataError
from slicebook.inference.synthesis import RenderedSlices, check_class, check_seeds, decode_pages, draw, render
from slicebook.io.atomic import write_csv, write_text
from slicebook.io.nifti import write_nifti
from slicebook.io.volume import Volume, from_slices, orientation_of
from slicebook.models.checkpoint import LoadedPrior, load_prior
from slicebook.models.likelihood import likelihood
from slicebook.models.sampling import GROUP, SamplingSettings
from slicebook.version import __version__
from slicebook.visualization import contact_sheet, figures

DESCRIPTION = "SYNTHETIC, drawn by Slicebook: no patient"  # in every file's header
SHEET = 64  # samples in the contact sheet, at most
LEVELS_SHOWN = 4  # samples whose partial decodings are shown level by level
SLICE_MM = 1.0  # through-plane size of a single synthetic slice, which has no neighbours
REQUEST_NAME = "request.json"


@dataclass(frozen=True)
class GenerateSummary:
    """What `generate` wrote."""

    out: Path
    samples: int
    size: tuple[int, int]
    with_masks: bool
    bits_per_pixel: float
    """Of the samples under the prior; the mean."""


@dataclass(frozen=True)
class Sample:
    """One line of the manifest of a generated set.

    Attributes:
        name: Of its files.
        seed: From which alone it can be drawn again, with the same model and settings.
        position: In the volume, 0 to 1, that it was asked to show.
        group: Class that it was asked to be of; empty where none was asked for.
        log_likelihood: In nats, of its tokens under the prior; the mean over orders.
        spread: Standard deviation over orders of the same.
        bits_per_pixel: Of the same, image and mask.
        noise: Level that the noise was brought to, on [-1, 1], as `grain.noise_level` measures it; 0 where
            none was put back.
    """

    name: str
    seed: int
    position: float | None
    group: str
    log_likelihood: float
    spread: float
    bits_per_pixel: float
    noise: float


@dataclass(frozen=True)
class Asked:
    """What samples are asked to be; an audit speaks of samples that were asked to be the same.

    Attributes:
        size: Rows and columns.
        settings: How boldly tokens are drawn.
        noise: Whether noise is put back.
        group: Class of all; None for any.
        conditional: Whether the prior is told anything at all.
        position: Of all; None for any.
    """

    size: tuple[int, int]
    settings: SamplingSettings
    noise: bool
    group: str | None
    conditional: bool
    position: float | None


Clear: TypeAlias = Callable[[LoadedPrior, Asked], Mapping[str, str]]
"""Asked before anything is drawn: raises, or returns files that have to lie beside the samples, by name."""


def generate(
    model: str | Path,
    out: str | Path,
    *,
    count: int = 64,
    seed: int = 0,
    position: float | None = None,
    group: str | None = None,
    conditional: bool = True,
    size: tuple[int, int] | None = None,
    settings: SamplingSettings | None = None,
    noise: bool = True,
    clear: Clear | None = None,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> GenerateSummary:
    """Generate slices with their masks and write them as a data set.

    `out` receives `images/sample-000000.nii.gz` (and `…_mask.nii.gz`), `pictures/*.png`, `sheet.png` (and
    `sheet-masks.png`), `levels.png` (what each level decided), `manifest.csv` (one `Sample` per row) and
    `generation.json`. It appears when all samples are drawn; until then finished groups of 16 lie in
    `out`.partial. If the command is interrupted, the same call goes on from there, with the same result.

    Args:
        model: A prior's file, or the folder of a run or demo that holds one.
        out: New folder.
        count: Number of samples; sample i is drawn from seed + i.
        seed: Seed of the first sample.
        position: Position in the volume, 0 to 1, of every sample; by default drawn uniformly per sample.
        group: Class of every sample; unknown by default.
        conditional: Whether the prior is given any conditions.
        size: Rows and columns; the most frequent size of the training set by default.
        settings: Sampling temperature, top-p and guidance.
        noise: Whether to add noise like the training set's, if the tokenizer was trained to leave it out.
        clear: Decides whether the samples may be shared, such as `reporting.release.release_check`; not
            called by default.
        device: auto, cpu, cuda or mps.
        progress: Called with the number of samples written and of all samples, after each group.

    Raises:
        CheckpointError: There is no trained prior.
        ConfigError: A size or class that the prior was not trained on, a setting out of range, or
            `out`.partial holds samples of other settings.
        DataError: `out` is not empty, or the disk is too small.
    """
    _check_wishes(count, seed, position, group, conditional)
    loaded = load_prior(model, choose_device(device))
    kind = _kind(loaded, size)
    check_class(loaded, group)
    asked = Asked(
        (kind.rows, kind.columns), settings or SamplingSettings(), noise, group, conditional, position
    )
    task = _Task(loaded, kind, asked, count, seed)
    folder = _Folder(Path(out), task.request())
    folder.refuse_full()
    beside = clear(loaded, asked) if clear else {}
    folder.open(kind, count)
    for first in range(folder.groups * GROUP, count, GROUP):
        samples, slices, tokens = _draw_group(task, first)
        _write_samples(folder.set, samples, slices, kind)
        if first == 0:
            _draw_levels(folder.set, slices, tokens, kind, loaded)
        folder.finish_group(samples)
        if progress:
            progress(min(first + GROUP, count), count)
    samples = folder.samples()
    _draw_sheets(folder.set, samples, kind)
    _write_lists(folder.set, samples, task)
    for name, text in beside.items():
        (folder.set / name).write_text(text, encoding="utf-8")
    folder.finish()
    mean = sum(one.bits_per_pixel for one in samples) / count
    return GenerateSummary(Path(out), count, asked.size, loaded.book.masks is not None, mean)


@dataclass(frozen=True)
class _Task:
    """What is to be drawn, and by which model."""

    loaded: LoadedPrior
    kind: SliceKind
    asked: Asked
    count: int
    seed: int

    def request(self) -> dict[str, Any]:
        """Return all that the samples depend on, as JSON: only an equal request may go on."""
        asked = self.asked
        return {
            "slicebook_version": __version__,
            "model_sha256": self.loaded.info.weights_sha256,
            "count": self.count,
            "seed": self.seed,
            "size": list(asked.size),
            "position": asked.position,
            "class": asked.group,
            "conditional": asked.conditional,
            **asdict(asked.settings),
            "noise": asked.noise,
            "device": next(self.loaded.prior.parameters()).device.type,
        }


class _Folder:
    """The folder of a generated set, and the one beside it in which the set grows."""

    def __init__(self, out: Path, request: Mapping[str, Any]) -> None:
        self.out, self.request = out, request
        self.place = out.resolve()  # `.` has no name, and a link to an empty folder stays one
        self.partial = self.place.with_name(f"{self.place.name}.partial")
        self.set = self.partial / "set"

    def refuse_full(self) -> None:
        """Refuse a folder that is not empty."""
        if not self.out.exists() or (self.out.is_dir() and not any(self.out.iterdir())):
            return
        record = self.out / "generation.json"
        if record.is_file() and json.loads(record.read_text(encoding="utf-8")).get("request") == self.request:
            if self._is_ours():  # the kill came after the set was moved
                shutil.rmtree(self.partial)
            raise DataError(
                f"{self.out}: already holds all {self.request['count']} samples of this command; choose "
                "another folder to draw others"
            )
        raise DataError(f"{self.out}: is not empty; choose another folder")

    def open(self, kind: SliceKind, count: int) -> None:
        """Begin, or go on with the same request; count the groups that are finished."""
        if self._is_ours():
            before = json.loads((self.partial / REQUEST_NAME).read_text(encoding="utf-8"))
            other = [
                f"{key} {before.get(key)} then, {self.request.get(key)} now"
                for key in {**before, **self.request}
                if before.get(key) != self.request.get(key)
            ]
            if other:
                raise ConfigError(
                    f"{self.partial}: holds unfinished samples of other settings ({'; '.join(other)}); "
                    "repeat that command, choose another --out, or remove this folder"
                )
        elif self.partial.exists() and (not self.partial.is_dir() or any(self.partial.iterdir())):
            raise DataError(
                f"{self.partial}: is not empty, and is needed for unfinished samples; move it away or choose "
                "another --out"
            )
        self.groups = 0
        while self._record(self.groups).is_file():
            self.groups += 1
        _check_room(self.out, max(0, count - self.groups * GROUP), kind)
        self.partial.mkdir(parents=True, exist_ok=True)
        if not self._is_ours():
            write_text(self.partial / REQUEST_NAME, json.dumps(self.request, indent=2) + "\n")
        for folder in (self.set / "images", self.partial / "groups"):
            folder.mkdir(parents=True, exist_ok=True)

    def finish_group(self, samples: list[Sample]) -> None:
        """Record a group whose files are all written."""
        write_text(self._record(self.groups), json.dumps([asdict(one) for one in samples]))
        self.groups += 1

    def samples(self) -> list[Sample]:
        """Return the samples of all finished groups."""
        groups = [json.loads(self._record(index).read_text()) for index in range(self.groups)]
        return [Sample(**one) for group in groups for one in group]

    def finish(self) -> None:
        """Put the finished set in its place."""
        if self.place.is_dir():
            self.place.rmdir()
        os.replace(self.set, self.place)
        shutil.rmtree(self.partial)

    def _is_ours(self) -> bool:
        return (self.partial / REQUEST_NAME).is_file()

    def _record(self, group: int) -> Path:
        return self.partial / "groups" / f"{group:06}.json"


def _check_wishes(
    count: int, seed: int, position: float | None, group: str | None, conditional: bool
) -> None:
    if count < 1:
        raise ConfigError(f"{count} samples: wanted 1 or more")
    check_seeds(seed, count)
    if not conditional and (position is not None or group is not None):
        raise ConfigError("a position or class was given for unconditional samples; drop one of the two")
    if position is not None and not 0 <= position <= 1:
        raise ConfigError(f"position {position:g}: wanted a position in the volume, from 0 to 1")


def _draw_group(task: _Task, first: int) -> tuple[list[Sample], RenderedSlices, Int64[Tensor, "b n"]]:
    """Draw at most 16 samples: what is said of each, its slices, and its tokens."""
    loaded, asked = task.loaded, task.asked
    seeds = [task.seed + index for index in range(first, min(first + GROUP, task.count))]
    positions = None
    if asked.conditional:
        positions = [_position(one) if asked.position is None else asked.position for one in seeds]
    tokens, conditions = draw(loaded, asked.size, seeds, positions, asked.settings, group=asked.group)
    judged = likelihood(loaded.prior, loaded.book.layout(asked.size), tokens, conditions)
    nats = judged.nats.sum(1)
    slices = render(loaded, tokens, asked.size, seeds, asked.noise)
    samples = [
        Sample(
            name=f"sample-{one:06}",
            seed=one,
            position=None if positions is None else positions[index],
            group=asked.group or "",
            log_likelihood=-float(nats[index]),
            spread=float(judged.spread[index]),
            bits_per_pixel=float(nats[index]) / math.log(2) / (asked.size[0] * asked.size[1]),
            noise=slices.noise[index],
        )
        for index, one in enumerate(seeds)
    ]
    return samples, slices, tokens


def _kind(loaded: LoadedPrior, size: tuple[int, int] | None) -> SliceKind:
    kinds = loaded.info.slices
    found = [kind for kind in kinds if size in (None, (kind.rows, kind.columns))]
    if not found:
        known = ", ".join(f"{kind.rows}×{kind.columns}" for kind in kinds)
        asked = "×".join(map(str, size or ()))
        raise ConfigError(f"{loaded.path}: was not trained on slices of {asked}; wanted one of {known}")
    return found[0]


def _position(seed: int) -> float:
    # Another stream than that of the tokens, so that a given position changes nothing else.
    return float(np.random.default_rng([seed, 1]).random())


def _check_room(out: Path, count: int, kind: SliceKind) -> None:
    """Refuse a disk that will not hold the samples."""
    there = out.absolute()
    while not there.exists():
        there = there.parent
    # A float32 slice hardly compresses; one byte per pixel for the mask and one for the picture.
    wanted = count * kind.rows * kind.columns * 6
    free = shutil.disk_usage(there).free
    if wanted > free:
        raise DataError(
            f"{out}: {count} samples take about {wanted / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free; "
            "ask for fewer, or choose another disk"
        )


def _affine(kind: SliceKind) -> np.ndarray:
    """Voxels to millimetres: axial, left-right first, the slice's centre at the origin."""
    affine = np.diag([kind.column_mm, kind.row_mm, SLICE_MM, 1.0])
    affine[:2, 3] = -np.array([kind.column_mm * (kind.columns - 1), kind.row_mm * (kind.rows - 1)]) / 2
    return affine


def _write_samples(out: Path, samples: list[Sample], slices: RenderedSlices, kind: SliceKind) -> None:
    """Write each sample's volume, its mask, and a picture of both."""
    affine, intensity, aspect = _affine(kind), IntensityMap(kind.low, kind.high), kind.row_mm / kind.column_mm
    blank = np.zeros((kind.columns, kind.rows, 1), dtype=np.float32)
    orientation = orientation_of(Volume(blank, affine, blank.shape), None)
    for index, one in enumerate(samples):
        image = slices.images[index].numpy()
        array = np.ascontiguousarray(from_slices(intensity.inverse(image), orientation))
        write_nifti(out / "images" / f"{one.name}.nii.gz", array, affine=affine, description=DESCRIPTION)
        panels = [contact_sheet.gray(image[0], aspect)]
        if slices.masks is not None:
            labels = slices.masks[index : index + 1].numpy()
            array = np.ascontiguousarray(from_slices(labels, orientation))
            path = out / "images" / f"{one.name}_mask.nii.gz"
            write_nifti(path, array, affine=affine, description=DESCRIPTION)
            panels.append(contact_sheet.tinted(image[0], labels[0], aspect))
        contact_sheet.write_sheet(panels, out / "pictures" / f"{one.name}.png", columns=len(panels))


def _draw_levels(
    out: Path, slices: RenderedSlices, tokens: Tensor, kind: SliceKind, loaded: LoadedPrior
) -> None:
    """Show of a few samples what each level decided."""
    few = tokens[:LEVELS_SHOWN]
    partials = [
        decode_pages(loaded, few, (kind.rows, kind.columns), levels=levels).images[:, 0]
        for levels in range(1, loaded.book.images.levels + 1)
    ]
    figures.levels(
        list(slices.images[: len(few), 0].numpy()),
        [list(part) for part in partials],
        out / "levels.png",
        aspect=kind.row_mm / kind.column_mm,
        first="sample",
        caption="What each level decided, coarsest first; finer levels at their mean code",
    )


def _draw_sheets(out: Path, samples: list[Sample], kind: SliceKind) -> None:
    """Put the first samples' pictures on a contact sheet, and with their masks on another."""
    shown = []
    for one in samples[:SHEET]:
        picture = imread(out / "pictures" / f"{one.name}.png")[..., :3]
        shown.append((picture * 255).round().astype(np.uint8))
    contact_sheet.write_sheet([picture[:, : kind.columns] for picture in shown], out / "sheet.png")
    beside = kind.columns + contact_sheet.GAP
    if shown[0].shape[1] > beside:
        contact_sheet.write_sheet([picture[:, beside:] for picture in shown], out / "sheet-masks.png")


def _write_lists(out: Path, samples: list[Sample], task: _Task) -> None:
    """Write what is known of each sample, and of all."""
    write_csv(out / "manifest.csv", [asdict(one) for one in samples])
    info = task.loaded.info
    record = {
        "synthetic": True,
        "slicebook_version": __version__,
        "model_sha256": info.weights_sha256,
        "request": task.request(),
        "settings": asdict(task.asked.settings) | {"noise": task.asked.noise},
        "slices": task.kind.model_dump(mode="json", exclude={"slices"}),
        "label_values": [] if info.masks is None else list(info.masks.tokenizer.label_values),
        "recipe": info.recipe.model_dump(mode="json"),
        "provenance": info.provenance.model_dump(mode="json"),
    }
    write_text(out / "generation.json", json.dumps(record, indent=2) + "\n")
