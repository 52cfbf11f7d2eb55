"""Anomaly maps: where a slice is unlikely under the prior, in nats per pixel (`prior.likelihood`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32
from scipy.ndimage import gaussian_filter
from torch import Tensor

from slicebook.devices import choose_device
from slicebook.inference.inpaint import positions
from slicebook.inference.volume_folder import process_volumes
from slicebook.inference.volumes import ListedVolume, Stack, list_volumes, spare_originals
from slicebook.io.atomic import write_csv
from slicebook.io.volume import Plane
from slicebook.models.checkpoint import LoadedPrior, load_prior
from slicebook.models.conditions import Conditions
from slicebook.models.prior import likelihood
from slicebook.models.sequence import SequenceLayout
from slicebook.progress import Progress
from slicebook.visualization import contact_sheet

DESCRIPTION = "Slicebook: nats per pixel"  # in every file's header
COLDEST, HOTTEST = 0.8, 0.998  # quantiles of a volume's map that a heatmap shows as 0 and as 1


@dataclass(frozen=True)
class AnomalySummary:
    """What `anomaly` wrote."""

    out: Path
    volumes: int
    slices: int
    bits_per_pixel: float
    """Mean over slices, of their tokens under the prior: an upper bound."""


def anomaly(
    model: str | Path,
    source: str | Path,
    out: str | Path,
    *,
    draws: int = 4,
    seed: int = 0,
    plane: Plane | None = None,
    pictures: bool = True,
    device: str = "auto",
    progress: Progress | None = None,
) -> AnomalySummary:
    """Map how unlikely each part of a slice is under a prior.

    `out` receives for each volume `<name>.nii.gz` (nats per pixel, in the volume's geometry), `<name>.csv`
    (per slice its nats, their standard deviation over draws, bits per pixel, and the map's peak) and
    `<name>/slice-000.png`. A small lesion changes the peak more than the sum over the slice. A volume whose
    outputs are there already, from the same input, model and settings, is not done again.

    Args:
        model: A prior's file, or the folder of a run or demo that holds one.
        source: A NIfTI or DICOM file, or a folder of either.
        out: Folder, made if missing.
        draws: Draws of the noise to average over.
        seed: Seed of the noise.
        plane: Slice orientation of a NIfTI volume; the acquired one by default.
        pictures: Whether to write the PNG.
        device: auto, cpu, cuda or mps.
        progress: Called with the number of volumes done and of all volumes of a folder; of slices of a file.

    Raises:
        CheckpointError: There is no trained prior.
        DataError: A volume cannot be read, or `out` lies where the originals are.
    """
    loaded, folder = load_prior(model, choose_device(device)), Path(out)
    spare_originals(Path(source), folder)
    listed = list_volumes(source, plane)
    of_slices, of_volumes = (None, progress) if Path(source).is_dir() else (progress, None)

    def process(volume: ListedVolume, place: Path) -> list[float]:
        stack = Stack.of(volume.read(), plane)
        conditions = positions(list(range(len(stack.slices))), len(stack.slices))
        images = torch.from_numpy(stack.slices)[:, None]
        scores = anomaly_scores(loaded, images, conditions, draws, seed, of_slices)
        maps = scores.maps.numpy()
        stack.volume_of_values(maps, DESCRIPTION).write(place / f"{volume.name}.nii.gz")
        pixels = stack.size[0] * stack.size[1]
        bits: list[float] = (scores.nats / math.log(2) / pixels).tolist()
        _write_scores(place / f"{volume.name}.csv", scores, bits)
        if pictures:
            _write_pictures(place / volume.name, stack, maps)
        return bits

    request = {
        "model_sha256": loaded.info.weights_sha256,
        "draws": draws,
        "seed": seed,
        "plane": plane,
        "pictures": pictures,
        "device": next(loaded.prior.parameters()).device.type,
    }
    results = process_volumes(listed, folder, "anomaly", request, process, of_volumes)
    rates = [rate for bits in results for rate in bits]
    return AnomalySummary(folder, len(listed), len(rates), sum(rates) / len(rates))


@dataclass(frozen=True)
class AnomalyScores:
    """How unlikely slices are.

    Attributes:
        maps: Nats per pixel.
        nats: Sum over each slice; the mean over draws.
        spread: Standard deviation of the same over draws.
    """

    maps: Float[Tensor, "b h w"]
    nats: Float[Tensor, " b"]
    spread: Float[Tensor, " b"]


def anomaly_scores(
    loaded: LoadedPrior,
    images: Float[Tensor, "b 1 h w"],
    conditions: Conditions,
    draws: int = 4,
    seed: int = 0,
    progress: Progress | None = None,
) -> AnomalyScores:
    """Return how unlikely slices in [-1, 1] are, per pixel and in total. Their masks count as unknown.

    A token's nats are spread evenly over its pixels, summed over levels, and smoothed over the size of the
    finest tokens. Padding is cut off.
    """
    device = next(loaded.prior.parameters()).device
    size = (images.shape[-2], images.shape[-1])
    layout = loaded.tokenizer.layout(size)
    maps, nats, spread = [], [], []
    for rows in torch.split(torch.arange(len(images)), 32):
        tokens = loaded.tokenizer.encode(images[rows].to(device))
        scores = likelihood(loaded.prior, layout, tokens, conditions[rows], draws=draws, seed=seed)
        maps.append(_spread(layout, scores.nats, loaded, size))
        nats.append(scores.nats.sum(1))
        spread.append(scores.spread)
        if progress:
            progress(int(rows[-1]) + 1, len(images))
    return AnomalyScores(torch.cat(maps), torch.cat(nats), torch.cat(spread))


def heatmap(maps: Float32[np.ndarray, "b h w"]) -> Float32[np.ndarray, "b h w"]:
    """Scale maps for a picture: 0 for most pixels, 1 for the peaks."""
    low, high = np.quantile(maps, [COLDEST, HOTTEST])
    scaled: Float32[np.ndarray, "b h w"] = ((maps - low) / max(high - low, 1e-9)).clip(0, 1)
    return scaled.astype(np.float32)


def _spread(
    layout: SequenceLayout, nats: Float[Tensor, "b n"], loaded: LoadedPrior, size: tuple[int, int]
) -> Float[Tensor, "b h w"]:
    finest = layout.stages[-1]
    padded = (finest.rows * finest.stride, finest.columns * finest.stride)
    maps = torch.zeros(len(nats), 1, *padded)
    for index, stage in enumerate(layout.stages):
        if stage.kind == "image":
            grid = nats[:, layout.slice_of(index)].view(-1, 1, stage.rows, stage.columns) / stage.stride**2
            maps += grid.repeat_interleave(stage.stride, 2).repeat_interleave(stage.stride, 3)
    sigma = finest.stride / 2
    maps = torch.from_numpy(gaussian_filter(maps.numpy(), (0, 0, sigma, sigma), mode="reflect"))
    return loaded.tokenizer.images.unpad(maps, size)[:, 0]


def _write_scores(path: Path, scores: AnomalyScores, bits: list[float]) -> None:
    columns = {
        "nats": scores.nats.tolist(),
        "spread": scores.spread.tolist(),
        "bits_per_pixel": bits,
        "peak": scores.maps.amax((1, 2)).tolist(),
    }
    rows = [
        {"slice": index, **{name: f"{values[index]:.6g}" for name, values in columns.items()}}
        for index in range(len(bits))
    ]
    write_csv(path, rows)


def _write_pictures(folder: Path, stack: Stack, maps: Float32[np.ndarray, "b h w"]) -> None:
    for index, (image, heat) in enumerate(zip(stack.slices, heatmap(maps), strict=True)):
        panels = [contact_sheet.gray(image, stack.aspect), contact_sheet.hot(image, heat, stack.aspect)]
        contact_sheet.write_sheet(panels, folder / f"slice-{index:03}.png", columns=2)
