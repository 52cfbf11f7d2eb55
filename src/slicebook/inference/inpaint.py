"""Inpaint a region of slices: its tokens are resampled given all others, its pixels blended inside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
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
from slicebook.inference.synthesis import Surroundings, check_seeds, choose_sampling_precision, render
from slicebook.inference.volumes import Stack, read_single, spare_originals
from slicebook.io.atomic import write_csv
from slicebook.io.nifti import read_labels
from slicebook.io.volume import Plane, Volume, from_slices, to_slices
from slicebook.models.checkpoint import LoadedPrior, load_prior
from slicebook.models.conditions import Conditions
from slicebook.models.sampling import SamplingSettings, sample
from slicebook.models.sequence import SequenceLayout
from slicebook.visualization import contact_sheet

FEATHER = 3.0  # pixels inside the region over which the generated image fades in
AFFINE_TOLERANCE = 1e-3  # mm
UNSEEN = 1e-3  # filter weight below which the surroundings of a pixel are too far away


@dataclass(frozen=True)
class Seam:
    """How well one inpainted slice fits at the edge of the region.

    Attributes:
        sample: Number of the sample.
        slice: Index in the volume, in display order.
        seed: Seed of its tokens.
        pixels: Number of inpainted pixels.
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
    """Mean jump across the edge divided by the usual one; 1 means that there is no visible seam."""


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
    precision: str = "32-true",
    progress: Callable[[int, int], None] | None = None,
) -> InpaintSummary:
    """Inpaint where a mask is not 0. Every pixel outside keeps its exact value.

    The region is filled smoothly from around it before encoding, so no token depends on what is replaced.
    Tokens of the finest level that touch the region are resampled, and coarser ones at least half inside it.
    A generation decoder continues the surfaces outside into the region.

    `out` receives `sample-00.nii.gz`, `sample-00/slice-000.png` (before | region | after) and `seams.csv`.

    Args:
        model: A prior's file, or the folder of a run or demo that holds one.
        image: A NIfTI or DICOM volume, or one slice.
        mask: NIfTI of the same shape and affine, 0 outside the region.
        out: Folder, made if missing.
        count: Number of samples; sample i has seed + i.
        seed: Seed of the first sample.
        settings: Steps of sampling, and guidance.
        plane: Slice orientation of a NIfTI volume; the acquired one by default.
        device: auto, cpu, cuda or mps.
        precision: Precision of sampling; `auto` measures on a CPU which is faster.
        progress: Called with the number of slices done and of all slices.

    Raises:
        CheckpointError: There is no trained prior.
        ConfigError: A setting out of range.
        DataError: The image is not a single volume, or the mask has another shape or affine, or is empty.
    """
    if count < 1:
        raise ConfigError(f"{count} samples: wanted 1 or more")
    check_seeds(seed, count)
    loaded, folder = load_prior(model, choose_device(device)), Path(out)
    spare_originals(Path(image), folder)
    stack = Stack.of(read_single(image, plane), plane)
    region = region_of(read_labels(mask), stack, str(mask), str(image))
    task = InpaintTask.of(loaded, stack, region, choose_sampling_precision(loaded, precision))
    folder.mkdir(parents=True, exist_ok=True)
    seams: list[Seam] = []
    for number in range(count):
        seeds = task.seeds(seed + number)
        after = inpaint_once(loaded, task, seeds, settings or SamplingSettings(), progress)
        seams += [
            _seam(number, index, token_seed, after[index], task.region[index])
            for index, token_seed in zip(task.chosen, seeds, strict=True)
        ]
        _write(folder, number, task, after)
    write_csv(folder / "seams.csv", [asdict(seam) for seam in seams])
    ratio = sum(seam.jump for seam in seams) / max(sum(seam.usual for seam in seams), 1e-9)
    return InpaintSummary(folder, count, len(task.chosen), int(task.region.sum()), ratio)


@dataclass(frozen=True)
class InpaintTask:
    """What is inpainted.

    Attributes:
        stack: The volume.
        region: Pixels to replace.
        chosen: Indices of the slices that contain such pixels.
        filled: These slices with the region filled from around it.
        tokens: Tokens of the filled slices, one sequence per slice.
        keep: Which tokens are kept.
        conditions: Positions of the slices.
        precision: Precision of sampling.
    """

    stack: Stack
    region: Bool[np.ndarray, "slices h w"]
    chosen: list[int]
    filled: Float32[np.ndarray, "b h w"]
    tokens: Int64[Tensor, "b n"]
    keep: Bool[Tensor, "b n"]
    conditions: Conditions
    precision: str

    @classmethod
    def of(
        cls, loaded: LoadedPrior, stack: Stack, region: Bool[np.ndarray, "slices h w"], precision: str
    ) -> InpaintTask:
        """Fill the region, encode the slices that it touches, and choose the tokens to resample."""
        device = next(loaded.prior.parameters()).device
        chosen = [index for index in range(len(region)) if region[index].any()]
        filled = np.stack([fill(stack.slices[index], region[index]) for index in chosen])
        images, inside = torch.from_numpy(filled)[:, None], torch.from_numpy(region[chosen])[:, None]
        parts = [loaded.tokenizer.encode(part.to(device)).cpu() for part in torch.split(images, 32)]
        layout = loaded.tokenizer.layout(stack.size)
        anew = redrawn_tokens(layout, loaded.tokenizer.images.pad(inside.float()))
        where = positions(chosen, len(stack.slices))
        return cls(stack, region, chosen, filled, torch.cat(parts), ~anew, where, precision)

    def seeds(self, seed: int) -> list[int]:
        """Return the seed of each chosen slice, of the sample with a seed."""
        return [slice_seed(seed, index) for index in self.chosen]

    def volume_of(self, after: Float32[np.ndarray, "slices h w"]) -> Volume:
        """Return the volume after inpainting: outside the region, every voxel keeps its exact value."""
        stack = self.stack
        inside = np.ascontiguousarray(from_slices(self.region, stack.orientation))
        new = stack.volume_of(after, DESCRIPTION)
        return replace(new, array=np.where(inside, new.array, stack.volume.array))


def inpaint_once(
    loaded: LoadedPrior,
    task: InpaintTask,
    seeds: list[int],
    settings: SamplingSettings,
    progress: Callable[[int, int], None] | None,
) -> Float32[np.ndarray, "slices h w"]:
    """Return all slices of the volume, with one sample of the region."""
    stack = task.stack
    drawn = sample(
        loaded.prior,
        loaded.tokenizer.layout(stack.size),
        seeds,
        task.conditions,
        settings,
        known_tokens=task.tokens,
        known_mask=task.keep,
        precision=task.precision,
        progress=progress,
    )
    surroundings = Surroundings(
        torch.from_numpy(task.filled)[:, None], ~torch.from_numpy(task.region[task.chosen])[:, None]
    )
    steps = settings.decoder_steps
    images = render(loaded, drawn, stack.size, seeds, steps, surroundings).images[:, 0].numpy()
    after = stack.slices.copy()
    for place, index in enumerate(task.chosen):
        after[index] = blend(stack.slices[index], task.filled[place], images[place], task.region[index])
    return after


def fill(image: Float32[np.ndarray, "h w"], region: Bool[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    """Fill a region smoothly from its edge inwards; a slice without pixels outside becomes 0."""
    known, masked = (~region).astype(np.float64), np.where(region, 0.0, image)
    sigma = 1.0
    values, missing = masked.copy(), region.copy()
    while missing.any() and known.any():
        weight = gaussian_filter(known, sigma)
        spread = gaussian_filter(masked, sigma) / np.maximum(weight, UNSEEN)
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
    """Blend a generated image into a region from its edge inwards; the original stays outside."""
    share = np.clip((distance_transform_edt(region) - 0.5) / FEATHER, 0, 1).astype(np.float32)
    return np.where(region, share * drawn + (1 - share) * filled, original)


def slice_seed(seed: int, index: int) -> int:
    """Return the seed of one slice of a sample, independent for each pair."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def redrawn_tokens(layout: SequenceLayout, region: Float[Tensor, "b 1 _ _"]) -> Bool[Tensor, "b n"]:
    """Return which image tokens to resample for a region; mask tokens are kept.

    Args:
        layout: Layout of the token sequences.
        region: 1 where pixels are replaced, as `Tokenizer.enter` hands it to the network.
    """
    resampled = []
    for stage in layout.stages:
        if stage.kind == "mask":
            resampled.append(torch.zeros(len(region), len(stage), dtype=torch.bool))
            continue
        share = functional.avg_pool2d(region, stage.stride).flatten(1)
        resampled.append(share > 0 if stage.level == 0 else share >= 0.5)
    return torch.cat(resampled, 1)


def positions(chosen: list[int], slices: int) -> Conditions:
    """Return the positions of slices in a volume as conditions; unknown for a single slice."""
    unknown = Conditions.unknown(len(chosen))
    if slices == 1:
        return unknown
    return Conditions(torch.tensor(chosen, dtype=torch.float32) / (slices - 1), unknown.group)


def region_of(labels: Volume, stack: Stack, mask: str, image: str) -> Bool[np.ndarray, "n h w"]:
    """Return where a mask is not 0, as slices of the image.

    Args:
        labels: The mask.
        stack: The image.
        mask: What the message of an error calls the mask.
        image: What it calls the image.

    Raises:
        DataError: The mask has another shape or affine, or is empty.
    """
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
        raise DataError(f"{mask}: is 0 everywhere, so there is nothing to inpaint; mark the region with 1")
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


def _write(folder: Path, number: int, task: InpaintTask, after: Float32[np.ndarray, "n h w"]) -> None:
    name, stack = f"sample-{number:02}", task.stack
    task.volume_of(after).write(folder / f"{name}.nii.gz")
    for index in task.chosen:
        before, mask = stack.slices[index], task.region[index].astype(np.uint8)
        panels = [
            contact_sheet.gray(before, stack.aspect),
            contact_sheet.tinted(before, mask, stack.aspect),
            contact_sheet.gray(after[index], stack.aspect),
        ]
        contact_sheet.write_sheet(panels, folder / name / f"slice-{index:03}.png", columns=3)
