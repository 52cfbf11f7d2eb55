"""Redraw a region of a slice: its tokens are drawn to fit the others, its pixels blended inside it alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from scipy.ndimage import binary_dilation, distance_transform_edt, gaussian_filter
from torch import Tensor
from torch.nn import functional

from slicebook.devices import choose_device
from slicebook.errors import ConfigError, DataError
from slicebook.inference.generate import DESCRIPTION
from slicebook.inference.synthesis import check_seeds, render
from slicebook.inference.volumes import Stack, read_single, spare_originals
from slicebook.io.atomic import write_csv
from slicebook.io.nifti import read_labels, write_nifti
from slicebook.io.volume import Plane, from_slices, to_slices
from slicebook.models.checkpoint import LoadedPrior, load_prior
from slicebook.models.noise import noise_level
from slicebook.models.sampling import SamplingSettings, sample
from slicebook.models.sequence import Layout
from slicebook.models.transformer import Conditions
from slicebook.visualization import contact_sheet

FEATHER = 3.0  # pixels inside the region over which its drawing fades in
AFFINE_TOLERANCE = 1e-3  # mm
UNSEEN = 1e-3  # weight below which a pixel's surroundings are too far to be heard


@dataclass(frozen=True)
class Seam:
    """How well one redrawn slice fits at the edge of its region.

    Attributes:
        sample: Number of the drawing.
        slice: In the volume, in display order.
        seed: From which the tokens were drawn.
        pixels: Redrawn.
        jump: Mean absolute difference across the edge of the region, on [-1, 1].
        usual: The same between neighbours just outside the region.
    """

    sample: int
    slice: int
    seed: int
    pixels: int
    jump: float
    usual: float


@dataclass(frozen=True)
class InpaintSummary:
    """What `inpaint` wrote."""

    out: Path
    samples: int
    slices: int
    pixels: int
    seam: float
    """Mean jump across the edge over the usual one: 1 is no seam at all."""


def inpaint(
    model: str | Path,
    image: str | Path,
    mask: str | Path,
    out: str | Path,
    *,
    count: int = 1,
    seed: int = 0,
    settings: SamplingSettings | None = None,
    plane: Plane | None = None,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> InpaintSummary:
    """Redraw where a mask is not 0. Every pixel outside keeps its value, bit for bit.

    The region is filled from around it before it is encoded, so no token has seen what is replaced. Tokens
    of the finest level that touch the region are drawn anew, and coarser ones that lie in it by half. Where
    the tokenizer was taught to leave noise out, the drawing gets noise as strong as that outside.

    `out` receives `sample-00.nii.gz`, `sample-00/slice-000.png` (before | region | after) and `seams.csv`.

    Args:
        model: A prior's file, or the folder of a run or demo that holds one.
        image: A NIfTI or DICOM volume, or one slice.
        mask: NIfTI of the same shape and place, 0 outside the region.
        out: Folder, made if missing.
        count: Drawings of the region; drawing i hangs on seed + i.
        seed: Of the first.
        settings: How boldly tokens are drawn.
        plane: Slices to take of a NIfTI volume; as acquired by default.
        device: auto, cpu, cuda or mps.
        progress: Called with slices drawn and all slices.

    Raises:
        CheckpointError: There is no trained prior.
        ConfigError: A setting out of range.
        DataError: The image is no single volume, or the mask is of another shape or place, or empty.
    """
    if count < 1:
        raise ConfigError(f"{count} drawings: wanted 1 or more")
    check_seeds(seed, count)
    loaded, folder = load_prior(model, choose_device(device)), Path(out)
    spare_originals(Path(image), folder)
    stack = Stack.of(read_single(image, plane), plane)
    task = _ask(loaded, stack, _read_region(mask, image, stack))
    folder.mkdir(parents=True, exist_ok=True)
    seams: list[Seam] = []
    for number in range(count):
        seeds = [slice_seed(seed + number, index) for index in task.chosen]
        after = _redraw(loaded, task, seeds, settings or SamplingSettings(), progress)
        seams += [
            _seam(number, index, one, after[index], task.region[index])
            for index, one in zip(task.chosen, seeds, strict=True)
        ]
        _write(folder, number, stack, task.region, after, task.chosen)
    write_csv(folder / "seams.csv", [asdict(one) for one in seams])
    ratio = sum(one.jump for one in seams) / max(sum(one.usual for one in seams), 1e-9)
    return InpaintSummary(folder, count, len(task.chosen), int(task.region.sum()), ratio)


@dataclass(frozen=True)
class _Task:
    """What is to be redrawn.

    Attributes:
        stack: The volume.
        region: Where it is replaced.
        chosen: Slices that the region touches, by their index in the stack.
        filled: These slices, the region filled from around it.
        tokens: Of the filled slices, one sequence each.
        keep: Which of the tokens stay as they are.
        conditions: Positions of the slices.
        noise: Level of the noise of each slice outside the region.
    """

    stack: Stack
    region: Bool[np.ndarray, "slices h w"]
    chosen: list[int]
    filled: Float32[np.ndarray, "b h w"]
    tokens: Int64[Tensor, "b n"]
    keep: Bool[Tensor, "b n"]
    conditions: Conditions
    noise: list[float]


def _ask(loaded: LoadedPrior, stack: Stack, region: Bool[np.ndarray, "slices h w"]) -> _Task:
    """Fill the region, encode the slices that it touches, and choose the tokens to draw."""
    device = next(loaded.prior.parameters()).device
    chosen = [index for index in range(len(region)) if region[index].any()]
    filled = np.stack([fill(stack.slices[index], region[index]) for index in chosen])
    images, inside = torch.from_numpy(filled)[:, None], torch.from_numpy(region[chosen])[:, None]
    tokens = torch.cat([loaded.book.encode(part.to(device)).cpu() for part in torch.split(images, 32)])
    anew = redrawn_tokens(loaded.book.layout(stack.size), loaded.book.images.pad(inside.float()))
    noise = noise_level(images, ~inside).tolist()
    return _Task(stack, region, chosen, filled, tokens, ~anew, positions(chosen, len(stack.slices)), noise)


def _redraw(
    loaded: LoadedPrior,
    task: _Task,
    seeds: list[int],
    settings: SamplingSettings,
    progress: Callable[[int, int], None] | None,
) -> Float32[np.ndarray, "slices h w"]:
    """Return all slices of the volume, the region drawn anew."""
    stack = task.stack
    drawn = sample(
        loaded.prior,
        loaded.book.layout(stack.size),
        seeds,
        task.conditions,
        settings,
        given=task.tokens,
        keep=task.keep,
        progress=progress,
    )
    images = render(loaded, drawn, stack.size, seeds, task.noise).images[:, 0].numpy()
    after = stack.slices.copy()
    for place, index in enumerate(task.chosen):
        after[index] = blend(stack.slices[index], task.filled[place], images[place], task.region[index])
    return after


def fill(image: Float32[np.ndarray, "h w"], region: Bool[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    """Fill a region smoothly from around it, from its edge inwards; a slice without any outside becomes 0."""
    known, found = (~region).astype(np.float64), np.where(region, 0.0, image)
    sigma = 1.0
    values, missing = found.copy(), region.copy()
    while missing.any() and known.any():
        weight = gaussian_filter(known, sigma)
        spread = gaussian_filter(found, sigma) / np.maximum(weight, UNSEEN)
        reached = missing & (weight > UNSEEN)
        values[reached] = spread[reached]
        missing &= ~reached
        sigma *= 2
    return values.astype(np.float32)


def blend(
    original: Float32[np.ndarray, "h w"],
    filled: Float32[np.ndarray, "h w"],
    drawn: Float32[np.ndarray, "h w"],
    region: Bool[np.ndarray, "h w"],
) -> Float32[np.ndarray, "h w"]:
    """Put a drawing into a region, fading in from its edge; outside, the original as it is."""
    share = np.clip((distance_transform_edt(region) - 0.5) / FEATHER, 0, 1).astype(np.float32)
    return np.where(region, share * drawn + (1 - share) * filled, original)


def slice_seed(seed: int, index: int) -> int:
    """Return the seed of one slice of a drawing: a stream of its own for each pair."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def redrawn_tokens(layout: Layout, region: Float[Tensor, "b 1 _ _"]) -> Bool[Tensor, "b n"]:
    """Return which tokens to draw anew for a region: of the image alone, those of a mask stay as they are.

    Args:
        layout: Of the tokens.
        region: 1 where pixels are to be replaced, as `Tokenizer.enter` hands it to the network.
    """
    found = []
    for stage in layout.stages:
        if stage.kind == "mask":
            found.append(torch.zeros(len(region), len(stage), dtype=torch.bool))
            continue
        share = functional.avg_pool2d(region, stage.stride).flatten(1)
        found.append(share > 0 if stage.level == 0 else share >= 0.5)
    return torch.cat(found, 1)


def positions(chosen: list[int], slices: int) -> Conditions:
    """Return where slices stand in a volume; unknown for a single slice."""
    found = Conditions.unknown(len(chosen))
    if slices == 1:
        return found
    return Conditions(torch.tensor(chosen, dtype=torch.float32) / (slices - 1), found.group)


def _read_region(mask: str | Path, image: str | Path, stack: Stack) -> Bool[np.ndarray, "n h w"]:
    labels = read_labels(mask)
    if labels.array.shape != stack.volume.array.shape:
        raise DataError(
            f"{mask}: its shape is {labels.array.shape}, that of {image} {stack.volume.array.shape}; "
            "draw the mask on the image itself"
        )
    if np.abs(labels.affine - stack.volume.affine).max() > AFFINE_TOLERANCE:
        raise DataError(
            f"{mask}: lies elsewhere (affine {labels.affine.round(3).tolist()}) than {image} "
            f"({stack.volume.affine.round(3).tolist()}); resample the mask onto the image"
        )
    region: Bool[np.ndarray, "n h w"] = np.ascontiguousarray(to_slices(labels.array, stack.orientation)) > 0
    if not region.any():
        raise DataError(f"{mask}: is 0 everywhere, so there is nothing to redraw; mark the region with 1")
    return region


def _seam(
    number: int, index: int, seed: int, after: Float32[np.ndarray, "h w"], region: Bool[np.ndarray, "h w"]
) -> Seam:
    near = binary_dilation(region, iterations=4) & ~region
    across, beside = [], []
    for axis in (0, 1):
        difference = np.abs(np.diff(after, axis=axis))
        first, second = np.delete(region, -1, axis), np.delete(region, 0, axis)
        across.append(difference[first != second])
        beside.append(difference[np.delete(near, -1, axis) & np.delete(near, 0, axis)])
    jump, usual = (np.concatenate(part) for part in (across, beside))
    return Seam(
        number,
        index,
        seed,
        int(region.sum()),
        float(jump.mean()) if jump.size else 0.0,
        float(usual.mean()) if usual.size else 0.0,
    )


def _write(
    folder: Path,
    number: int,
    stack: Stack,
    region: Bool[np.ndarray, "n h w"],
    after: Float32[np.ndarray, "n h w"],
    chosen: list[int],
) -> None:
    inside = np.ascontiguousarray(from_slices(region, stack.orientation))
    new = np.ascontiguousarray(from_slices(stack.intensity.inverse(after), stack.orientation))
    array = np.where(inside, new, stack.volume.array)
    name = f"sample-{number:02}"
    write_nifti(folder / f"{name}.nii.gz", array, stack.volume, description=DESCRIPTION)
    for index in chosen:
        before, mask = stack.slices[index], region[index].astype(np.uint8)
        panels = [
            contact_sheet.gray(before, stack.aspect),
            contact_sheet.tinted(before, mask, stack.aspect),
            contact_sheet.gray(after[index], stack.aspect),
        ]
        contact_sheet.write_sheet(panels, folder / name / f"slice-{index:03}.png", columns=3)
