"""Slices that no scanner made, with their masks, as a data set: files, pictures, and a list of them."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from slicebook import __version__, pictures, sheets
from slicebook.atomic import replacing_folder, write_csv, write_text
from slicebook.book import Page
from slicebook.checkpoint import LoadedPrior, SliceKind, load_prior
from slicebook.devices import choose_device
from slicebook.errors import ConfigError, DataError
from slicebook.likelihood import likelihood
from slicebook.preparation import IntensityMap
from slicebook.prior import Conditions
from slicebook.sampling import GROUP, SamplingSettings, sample
from slicebook.volumes import Volume, from_slices, orientation_of, write_nifti

DESCRIPTION = "SYNTHETIC, drawn by Slicebook: no patient"  # in every file's header
SHEET = 64  # samples in the contact sheet, at most
LEVELS_SHOWN = 4  # samples of which it is shown what each level decided
LAST_SEED = 2**63 - 1
SLICE_MM = 1.0  # through-plane size of a single synthetic slice, which has no neighbours


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
        grain: Whether noise is put back.
        group: Class of all; None for any.
        conditional: Whether the prior is told anything at all.
        position: Of all; None for any.
    """

    size: tuple[int, int]
    settings: SamplingSettings
    grain: bool
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
    grain: bool = True,
    clear: Clear | None = None,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> GenerateSummary:
    """Draw slices with their masks and write them as a data set.

    `out` receives `images/sample-000000.nii.gz` (and `…_mask.nii.gz`), `pictures/*.png`, `sheet.png` (and
    `sheet-masks.png`), `levels.png` (what each level decided), `manifest.csv` (a `Sample` a line) and
    `generation.json`. It appears whole or not at all.

    Args:
        model: A prior's file, or the folder of a run or demo that holds one.
        out: New folder.
        count: Samples; sample i is drawn from seed + i.
        seed: Of the first.
        position: In the volume, 0 to 1, of every sample; drawn uniformly from each sample's seed by default.
        group: Class of every sample; unknown by default.
        conditional: Whether the prior is told anything at all.
        size: Rows and columns; the most frequent of the training by default.
        settings: How boldly tokens are drawn.
        grain: Whether to put back noise like the training set's, if the tokenizer was taught to leave it out.
        clear: What allows the samples to be shared, such as `reporting.sharing.clearance`; not asked by
            default.
        device: auto, cpu, cuda or mps.
        progress: Called with samples done and all samples.

    Raises:
        CheckpointError: There is no trained prior.
        ConfigError: A size that the prior was not trained on, or a setting out of range.
        DataError: `out` holds something, or the disk is too small.
    """
    if count < 1:
        raise ConfigError(f"{count} samples: wanted 1 or more")
    check_seeds(seed, count)
    if not conditional and (position is not None or group is not None):
        raise ConfigError("a position or class was given and the prior is to be told nothing: drop one")
    if position is not None and not 0 <= position <= 1:
        raise ConfigError(f"position {position:g}: wanted a place in the volume, from 0 to 1")
    out, settings = Path(out), settings or SamplingSettings()
    loaded = load_prior(model, choose_device(device))
    kind = _kind(loaded, size)
    _check_room(out, count, kind)
    asked = Asked((kind.rows, kind.columns), settings, grain, group, conditional, position)
    beside = clear(loaded, asked) if clear else {}
    seeds = [seed + index for index in range(count)]
    positions = [_position(one) if position is None else position for one in seeds] if conditional else None
    tokens, conditions = draw(
        loaded, (kind.rows, kind.columns), seeds, positions, settings, group=group, progress=progress
    )
    layout = loaded.book.layout((kind.rows, kind.columns))
    found = likelihood(loaded.prior, layout, tokens, conditions)
    nats = found.nats.sum(1)
    pixels = kind.rows * kind.columns
    page = decode_pages(loaded, tokens, (kind.rows, kind.columns))
    noise = noise_levels(loaded, page.images, seeds) if grain else [0.0] * count
    page = Page(put_noise_back(loaded, page.images, noise, seeds), page.masks)
    samples = [
        Sample(
            name=f"sample-{one:06}",
            seed=one,
            position=None if positions is None else positions[index],
            group=group or "",
            log_likelihood=-float(nats[index]),
            spread=float(found.spread[index]),
            bits_per_pixel=float(nats[index]) / math.log(2) / pixels,
            noise=noise[index],
        )
        for index, one in enumerate(seeds)
    ]
    with replacing_folder(out) as partial:
        _write_samples(partial, samples, page, kind)
        _draw_sheets(partial, samples, page, kind, loaded, tokens)
        _write_lists(partial, samples, loaded, settings, kind, grain)
        for name, text in beside.items():
            write_text(partial / name, text)
    mean = sum(one.bits_per_pixel for one in samples) / count
    return GenerateSummary(out, count, (kind.rows, kind.columns), page.masks is not None, mean)


def check_seeds(seed: int, count: int) -> None:
    """Refuse seeds that no generator takes: below 0, or beyond 63 bits."""
    if not 0 <= seed <= LAST_SEED - count:
        raise ConfigError(f"seed {seed}: wanted a whole number from 0, such that all {count} fit 63 bits")


def draw(
    loaded: LoadedPrior,
    size: tuple[int, int],
    seeds: list[int],
    positions: list[float] | None,
    settings: SamplingSettings,
    *,
    group: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Int64[Tensor, "b n"], Conditions]:
    """Return the tokens of a sample a seed, and the conditions it was drawn under."""
    repeated = {one for one in seeds if seeds.count(one) > 1} if len(set(seeds)) < len(seeds) else set()
    if repeated:
        raise ConfigError(f"seed {min(repeated)} stands twice: the same seed gives the same sample again")
    known = loaded.info.classes
    if group is not None and group not in known:
        raise ConfigError(
            f"{loaded.path}: was not trained with class {group!r}; "
            + (
                f"known are {', '.join(known)}"
                if known
                else "its data had no classes (prepare --class-regex)"
            )
        )
    conditions = Conditions.unknown(len(seeds))
    if positions is not None:
        conditions = Conditions(torch.tensor(positions, dtype=torch.float32), conditions.group)
    if group is not None:
        conditions = Conditions(conditions.position, torch.full((len(seeds),), known.index(group)))
    tokens = sample(loaded.prior, loaded.book.layout(size), seeds, conditions, settings, progress=progress)
    return tokens, conditions


def decode_pages(
    loaded: LoadedPrior, tokens: Int64[Tensor, "b n"], size: tuple[int, int], *, levels: int | None = None
) -> Page:
    """Decode tokens batch by batch, onto the CPU; a page is the same alone or among others."""
    device, count = next(loaded.prior.parameters()).device, len(tokens)
    # Always as many rows, as in sampling: a batch of another size may round otherwise.
    tokens = torch.cat([tokens, tokens[-1:].expand(-count % GROUP, -1)])
    pages = [loaded.book.decode(part.to(device), size, levels=levels) for part in torch.split(tokens, GROUP)]
    masks = [page.masks.cpu() for page in pages if page.masks is not None]
    images = torch.cat([page.images.cpu() for page in pages])
    return Page(images[:count], torch.cat(masks)[:count] if masks else None)


def noise_levels(loaded: LoadedPrior, images: Float[Tensor, "b 1 h w"], seeds: Sequence[int]) -> list[float]:
    """Draw how noisy each decoded slice is, as training slices are; 0 where the tokenizer keeps noise."""
    grain = loaded.info.grain
    if grain is None:
        return [0.0] * len(seeds)
    return [grain.level(image.numpy(), seed) for image, seed in zip(images[:, 0], seeds, strict=True)]


def put_noise_back(
    loaded: LoadedPrior, images: Float[Tensor, "b 1 h w"], levels: Sequence[float], seeds: Sequence[int]
) -> Float[Tensor, "b 1 h w"]:
    """Return decoded slices with noise of these levels."""
    grain = loaded.info.grain
    if grain is None:
        return images
    noisy = [
        grain.put_back(image.numpy(), level, seed)
        for image, level, seed in zip(images[:, 0], levels, seeds, strict=True)
    ]
    return torch.from_numpy(np.stack(noisy))[:, None]


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
    """Refuse a folder that holds something, and a disk that will not hold the samples."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: holds something already; choose another folder")
    there = out.absolute()
    while not there.exists():
        there = there.parent
    # A float32 slice hardly compresses; a byte a pixel for the mask and one for the picture.
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


def _write_samples(out: Path, samples: list[Sample], page: Page, kind: SliceKind) -> None:
    affine, intensity = _affine(kind), IntensityMap(kind.low, kind.high)
    blank = np.zeros((kind.columns, kind.rows, 1), dtype=np.float32)
    orientation = orientation_of(Volume(blank, affine, blank.shape), None)
    (out / "images").mkdir()
    for index, one in enumerate(samples):
        image = page.images[index].numpy()
        array = np.ascontiguousarray(from_slices(intensity.inverse(image), orientation))
        write_nifti(out / "images" / f"{one.name}.nii.gz", array, affine=affine, description=DESCRIPTION)
        if page.masks is not None:
            labels = page.masks[index : index + 1].numpy()
            array = np.ascontiguousarray(from_slices(labels, orientation))
            path = out / "images" / f"{one.name}_mask.nii.gz"
            write_nifti(path, array, affine=affine, description=DESCRIPTION)


def _draw_sheets(
    out: Path, samples: list[Sample], page: Page, kind: SliceKind, loaded: LoadedPrior, tokens: Tensor
) -> None:
    aspect = kind.row_mm / kind.column_mm
    images = page.images[:, 0].numpy()
    plain = [sheets.gray(image, aspect) for image in images]
    coloured = plain
    if page.masks is not None:
        masks = page.masks.numpy()
        coloured = [sheets.tinted(image, mask, aspect) for image, mask in zip(images, masks, strict=True)]
        sheets.write_sheet(coloured[:SHEET], out / "sheet-masks.png")
    sheets.write_sheet(plain[:SHEET], out / "sheet.png")
    for one, left, right in zip(samples, plain, coloured, strict=True):
        both = [left] if left is right else [left, right]
        sheets.write_sheet(both, out / "pictures" / f"{one.name}.png", columns=2)
    count, few = loaded.book.images.levels, tokens[:LEVELS_SHOWN]
    partials = [
        decode_pages(loaded, few, (kind.rows, kind.columns), levels=levels).images[:, 0]
        for levels in range(1, count + 1)
    ]
    pictures.levels(
        list(images[: len(few)]),
        [list(part) for part in partials],
        out / "levels.png",
        aspect=aspect,
        first="sample",
        caption="What each level decided, coarsest first; finer levels at their mean code",
    )


def _write_lists(
    out: Path,
    samples: list[Sample],
    loaded: LoadedPrior,
    settings: SamplingSettings,
    kind: SliceKind,
    grain: bool,
) -> None:
    write_csv(out / "manifest.csv", [asdict(one) for one in samples])
    info = loaded.info
    record = {
        "synthetic": True,
        "slicebook_version": __version__,
        "model_sha256": info.weights_sha256,
        "settings": asdict(settings) | {"grain": grain},
        "slices": kind.model_dump(mode="json", exclude={"slices"}),
        "label_values": [] if info.masks is None else list(info.masks.tokenizer.label_values),
        "recipe": info.recipe.model_dump(mode="json"),
        "provenance": info.provenance.model_dump(mode="json"),
    }
    write_text(out / "generation.json", json.dumps(record, indent=2) + "\n")
