"""Reconstruct, encode and decode whole volumes with a trained tokenizer.

Volumes keep their pixel grid; each is mapped to [-1, 1] by its own percentiles. Outputs have the geometry and
intensity scale of the input.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from slicebook.data.transforms import IntensityMap
from slicebook.devices import choose_device
from slicebook.errors import CheckpointError, ShapeError
from slicebook.inference.volume_folder import process_volumes
from slicebook.inference.volumes import ListedVolume, Stack, list_volumes, read_single, spare_originals
from slicebook.io.atomic import write_csv
from slicebook.io.tokens import SUFFIX, TokenFile
from slicebook.io.volume import Orientation, Plane, Volume, from_slices
from slicebook.metrics.image_quality import SMALLEST_SIDE, scores
from slicebook.models.checkpoint import LoadedTokenizer, load_tokenizer
from slicebook.models.tokenizer import Tokenizer
from slicebook.progress import Progress
from slicebook.visualization import contact_sheet

BATCH = 16
DESCRIPTION = "Slicebook reconstruction"  # in every file's header


@dataclass(frozen=True)
class VolumeScores:
    """Scores of one volume. SSIM is computed on [0, 1], against the clipped original."""

    name: str
    output: Path
    slices: int
    ssim_whole: float
    ssim_foreground: float | None
    psnr_whole: float
    bits_per_pixel: float
    clipped_share: float
    """Fraction of voxels outside the percentiles, whose intensity is clipped."""
    clipping_mae: float
    """Mean absolute error due to clipping alone, in the volume's intensity units."""


@dataclass(frozen=True)
class ReconstructSummary:
    """What `reconstruct` wrote."""

    out: Path
    volumes: tuple[VolumeScores, ...]
    ssim_whole: float
    """Mean over all slices."""


@dataclass(frozen=True)
class TokenSummary:
    """What `encode` or `decode` wrote."""

    output: Path
    slices: int
    grids: tuple[str, ...]
    """Token rows × columns of each level, finest first."""
    bits_per_pixel: float
    """Raw: tokens × log2 K over the native pixels."""


def reconstruct(
    model: str | Path,
    source: str | Path,
    out: str | Path,
    *,
    device: str = "auto",
    pictures: bool = True,
    plane: Plane | None = None,
    refine: int = 0,
    progress: Progress | None = None,
) -> ReconstructSummary:
    """Reconstruct volumes; write each with its own geometry and intensity scale, and its scores.

    `out` receives `<name>.nii.gz`, `<name>.csv` (scores per slice) and `<name>/slice-000.png` (original |
    reconstruction). A NIfTI keeps its name; DICOM series, whose names may identify a patient, are numbered.
    A volume whose outputs are there already, from the same input, model and settings, is not done again.

    Args:
        model: A model file, or the folder of a run or of a demo.
        source: A NIfTI file, a DICOM file, or a folder of either.
        out: Folder, made if missing.
        device: auto, cpu, cuda or mps.
        pictures: Whether to write the PNG pairs.
        plane: Slice orientation of a NIfTI volume, or of the DICOM series to use; the acquired one by
            default.
        refine: Steps of the search for better tokens (`models.refinement`).
        progress: Called with the number of volumes done and of all volumes.

    Raises:
        CheckpointError: There is no trained model.
        DataError: A volume cannot be read, there is none, or `out` lies where the originals are.
        ShapeError: A slice is smaller than the window of SSIM.
    """
    loaded = load_tokenizer(model, choose_device(device))
    folder = Path(out)
    spare_originals(Path(source), folder)

    def process(listed: ListedVolume, place: Path) -> dict[str, Any]:
        name, stack = listed.name, Stack.of(listed.read(), plane)
        _check_sides(name, stack.size)
        drawn = reconstruct_slices(loaded, stack.slices, refine)
        stack.volume_of(drawn, DESCRIPTION).write(place / f"{name}.nii.gz")
        if pictures:
            _write_pairs(place / name, stack, drawn)
        return _score(place / f"{name}.csv", stack, drawn, loaded.tokenizer)

    listed = list_volumes(source, plane)
    request = _request(loaded, plane, refine) | {"pictures": pictures}
    results = process_volumes(listed, folder, "reconstruct", request, process, progress)
    volumes = [
        VolumeScores(name=volume.name, output=folder / f"{volume.name}.nii.gz", **result)
        for volume, result in zip(listed, results, strict=True)
    ]
    total = sum(volume.slices for volume in volumes)
    return ReconstructSummary(
        folder, tuple(volumes), sum(volume.ssim_whole * volume.slices for volume in volumes) / total
    )


def _request(loaded: LoadedTokenizer, plane: Plane | None, refine: int) -> dict[str, Any]:
    """Return what all outputs depend on besides their input."""
    device = next(loaded.tokenizer.parameters()).device
    sha256 = loaded.info.weights_sha256
    return {"model_sha256": sha256, "plane": plane, "refine": refine, "device": device.type}


def encode(
    model: str | Path,
    source: str | Path,
    out: str | Path,
    *,
    device: str = "auto",
    plane: Plane | None = None,
    refine: int = 0,
) -> TokenSummary:
    """Write the tokens of one volume to a safetensors file, with its geometry and the hash of the model.

    `refine` is the number of steps of the search for better tokens (`models.refinement`).

    Raises:
        CheckpointError: There is no trained model.
        DataError: The source is not one readable volume, or `out` cannot be written.
    """
    loaded = load_tokenizer(model, choose_device(device))
    tokens = encode_stack(loaded, Stack.of(read_single(source, plane), plane), refine)
    tokens.write(out)
    return _token_summary(Path(out), tokens, loaded)


def encode_folder(
    model: str | Path,
    source: str | Path,
    out: str | Path,
    *,
    device: str = "auto",
    plane: Plane | None = None,
    refine: int = 0,
    progress: Progress | None = None,
) -> tuple[TokenSummary, ...]:
    """Write the tokens of each volume of a folder to `out`/NAME.safetensors, named as by `reconstruct`.

    A volume whose tokens are there already, from the same input, model and options, is not encoded again.

    Args:
        model: A model file, or the folder of a run or of a demo.
        source: A folder of NIfTI or DICOM files, or such a file.
        out: Folder, made if missing.
        device: auto, cpu, cuda or mps.
        plane: Slice orientation, as for `reconstruct`.
        refine: Steps of the search for better tokens (`models.refinement`).
        progress: Called with the number of volumes done and of all volumes.

    Raises:
        CheckpointError: There is no trained model.
        DataError: A volume cannot be read, or there is none.
    """
    loaded, folder = load_tokenizer(model, choose_device(device)), Path(out)

    def process(listed: ListedVolume, place: Path) -> dict[str, Any]:
        tokens = encode_stack(loaded, Stack.of(listed.read(), plane), refine)
        tokens.write(place / f"{listed.name}{SUFFIX}")
        summary = asdict(_token_summary(folder, tokens, loaded))
        return {key: value for key, value in summary.items() if key != "output"}

    listed = list_volumes(source, plane)
    request = _request(loaded, plane, refine)
    results = process_volumes(listed, folder, "encode", request, process, progress, endings=(SUFFIX,))
    return tuple(
        TokenSummary(output=folder / f"{volume.name}{SUFFIX}", **result | {"grids": tuple(result["grids"])})
        for volume, result in zip(listed, results, strict=True)
    )


def encode_stack(loaded: LoadedTokenizer, stack: Stack, refine: int = 0) -> TokenFile:
    """Return the tokens of a volume, with its geometry and the hash of the model."""
    grids = zip(
        *(loaded.encode(batch, refine) for batch in _batches(loaded.tokenizer, stack.slices)), strict=True
    )
    geometry = stack.volume.geometry
    return TokenFile(
        tokens=tuple(torch.cat(level).cpu().numpy().astype(np.uint16) for level in grids),
        size=stack.size,
        codebook_hash=loaded.codebook_hash,
        low=stack.intensity.low,
        high=stack.intensity.high,
        axes=stack.orientation.axes,
        flips=stack.orientation.flips,
        affine=stack.volume.affine,
        shape_on_disk=stack.volume.shape_on_disk,
        geometry=b"" if geometry is None else geometry.binaryblock,
    )


def decode(model: str | Path, source: str | Path, out: str | Path, *, device: str = "auto") -> TokenSummary:
    """Decode a token file into a volume with its geometry and intensity scale.

    Raises:
        CheckpointError: There is no trained model, or another one wrote the tokens.
        DataError: The token file is damaged, or `out` cannot be written.
        ShapeError: The tokens do not fit the size of the slices.
    """
    loaded = load_tokenizer(model, choose_device(device))
    tokens = TokenFile.read(source)
    volume = decode_tokens(loaded, tokens, str(source))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    volume.write(out)
    return _token_summary(Path(out), tokens, loaded)


def decode_tokens(
    loaded: LoadedTokenizer, tokens: TokenFile, where: str = "tokens", *, levels: int | None = None
) -> Volume:
    """Decode the tokens of a volume into a volume with its geometry and intensity scale.

    Args:
        loaded: The model that encoded the volume.
        tokens: Its tokens.
        where: What the message of an error names.
        levels: Use only this many of the coarsest levels; the finer ones are set to their mean code.

    Raises:
        CheckpointError: Another model wrote the tokens.
        ShapeError: The tokens do not fit the size of the slices, or there are not as many levels.
    """
    if tokens.codebook_hash != loaded.codebook_hash:
        raise CheckpointError(
            f"{where}: its tokens were written by model {tokens.codebook_hash[:12]}, this is "
            f"{loaded.codebook_hash[:12]}; use the model that encoded them"
        )
    count, tokenizer = len(tokens.tokens[0]), loaded.tokenizer
    if levels is not None and not 1 <= levels <= tokenizer.levels:
        raise ShapeError(f"levels {levels}: wanted 1 to {tokenizer.levels}, as many as the tokenizer has")
    whole = [torch.from_numpy(grid.astype(np.int64)) for grid in tokens.tokens]
    device = next(tokenizer.parameters()).device
    parts = []
    for start in range(0, count, BATCH):
        grids = [grid[start : start + BATCH].to(device) for grid in whole]
        try:
            part = tokenizer.decode(grids, tokens.size, levels=levels)
        except ShapeError as error:
            raise ShapeError(f"{where}: {error}; encode the volume again") from error
        parts.append(part[:, 0].cpu())
    orientation = Orientation(tokens.axes, tokens.flips)
    slices = IntensityMap(tokens.low, tokens.high).inverse(torch.cat(parts).clamp(-1, 1).numpy())
    array = np.ascontiguousarray(from_slices(slices, orientation))
    return Volume(array, tokens.affine, tokens.shape_on_disk, tokens.header(), DESCRIPTION)


def _check_sides(name: str, size: tuple[int, int]) -> None:
    if min(size) < SMALLEST_SIDE:
        raise ShapeError(
            f"{name}: its slices of {size[0]}×{size[1]} pixels are too small to score, wanted sides of "
            f"at least {SMALLEST_SIDE}; choose another --plane, or use slicebook encode"
        )


def _batches(tokenizer: Tokenizer, slices: Float32[np.ndarray, "n h w"]) -> Iterator[torch.Tensor]:
    device = next(tokenizer.parameters()).device
    for start in range(0, len(slices), BATCH):
        yield torch.from_numpy(slices[start : start + BATCH])[:, None].to(device)


@torch.no_grad()
def reconstruct_slices(
    loaded: LoadedTokenizer, slices: Float32[np.ndarray, "n h w"], refine: int = 0
) -> Float32[np.ndarray, "n h w"]:
    """Encode and decode slices in [-1, 1], batch by batch; the result is clipped to [-1, 1]."""
    tokenizer, size = loaded.tokenizer, (slices.shape[1], slices.shape[2])
    drawn = [
        tokenizer.decode_unchecked(loaded.encode(batch, refine), size)[:, 0]
        for batch in _batches(tokenizer, slices)
    ]
    return np.concatenate([part.clamp(-1, 1).cpu().numpy() for part in drawn], dtype=np.float32)


def _score(
    table: Path, stack: Stack, drawn: Float32[np.ndarray, "n h w"], tokenizer: Tokenizer
) -> dict[str, Any]:
    """Score every slice, write the table, return the fields of `VolumeScores` without the paths."""
    originals, copies = (stack.slices + 1) / 2, (drawn + 1) / 2
    rows = [
        scores(original.clip(0, 1), copy.clip(0, 1), volume_max=float(originals.max()))
        for original, copy in zip(originals, copies, strict=True)
    ]
    write_csv(table, [{"slice": number, **row.named()} for number, row in enumerate(rows)])
    low, high = stack.intensity.low, stack.intensity.high
    array = stack.volume.array
    foregrounds = [row.ssim_foreground for row in rows if row.ssim_foreground is not None]
    return {
        "slices": len(rows),
        "ssim_whole": float(np.mean([row.ssim_whole for row in rows])),
        "ssim_foreground": float(np.mean(foregrounds)) if foregrounds else None,
        "psnr_whole": float(np.mean([row.psnr_whole for row in rows])),
        "bits_per_pixel": tokenizer.bits(stack.size) / (stack.size[0] * stack.size[1]),
        "clipped_share": float(((array < low) | (array > high)).mean()),
        "clipping_mae": float(np.abs(array - array.clip(low, high)).mean()),
    }


def _write_pairs(folder: Path, stack: Stack, drawn: Float32[np.ndarray, "n h w"]) -> None:
    folder.mkdir(exist_ok=True)
    for number, (original, copy) in enumerate(zip(stack.slices, drawn, strict=True)):
        panels = [contact_sheet.gray(image, stack.aspect) for image in (original, copy)]
        contact_sheet.write_sheet(panels, folder / f"slice-{number:03}.png", columns=2)


def _token_summary(output: Path, tokens: TokenFile, loaded: LoadedTokenizer) -> TokenSummary:
    rows, columns = tokens.size
    return TokenSummary(
        output=output,
        slices=len(tokens.tokens[0]),
        grids=tuple(f"{grid.shape[1]}×{grid.shape[2]}" for grid in tokens.tokens),
        bits_per_pixel=loaded.tokenizer.bits(tokens.size) / (rows * columns),
    )
