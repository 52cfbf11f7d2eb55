"""From seeds to slices: draw tokens, decode them, add noise. Shared by generation, inpainting and evaluation.

    seeds, conditions ── draw ──▶ token sequences ── decode_pages ──▶ slices and masks ── add noise ──▶ slices

A sample depends on its own seed alone: the networks always see groups of `sampling.SAMPLING_BATCH` rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from slicebook.devices import choose_precision, fastest_precision
from slicebook.errors import ConfigError
from slicebook.models.checkpoint import LoadedPrior
from slicebook.models.sampling import SAMPLING_BATCH, SamplingSettings, sample
from slicebook.models.sequence import DecodedSlices
from slicebook.models.transformer import Conditions

LAST_SEED = 2**63 - 1


@dataclass(frozen=True)
class RenderedSlices:
    """Decoded slices, with noise where it was asked for.

    Attributes:
        images: In [-1, 1].
        masks: Label values; None where the model has none.
        noise: Level of the noise of each slice, on [-1, 1]; 0 where none was added.
    """

    images: Float[Tensor, "b 1 h w"]
    masks: UInt8[Tensor, "b h w"] | None
    noise: list[float]


def render(
    loaded: LoadedPrior,
    tokens: Int64[Tensor, "b n"],
    size: tuple[int, int],
    seeds: Sequence[int],
    noise: bool | Sequence[float] = True,
) -> RenderedSlices:
    """Decode token sequences into slices and add noise, on the CPU.

    Args:
        loaded: The prior, with its tokenizers and its model of noise.
        tokens: One sequence per slice.
        size: Rows and columns of the slices.
        seeds: One per slice, for its noise.
        noise: Whether to add noise at levels like the training set's, or the level of each slice. A
            tokenizer that keeps noise gets none either way.
    """
    page = decode_pages(loaded, tokens, size)
    if isinstance(noise, bool):
        levels = noise_levels(loaded, page.images, seeds) if noise else [0.0] * len(seeds)
    else:
        levels = list(noise)
    return RenderedSlices(put_noise_back(loaded, page.images, levels, seeds), page.masks, levels)


def check_seeds(seed: int, count: int) -> None:
    """Refuse seeds that no generator takes: below 0, or beyond 63 bits."""
    if not 0 <= seed <= LAST_SEED - count:
        raise ConfigError(f"seed {seed}: wanted a whole number from 0, such that all {count} fit 63 bits")


def check_class(loaded: LoadedPrior, group: str | None) -> None:
    """Refuse a class that the prior was not trained with."""
    known = loaded.info.classes
    if group is not None and group not in known:
        hint = f"known are {', '.join(known)}" if known else "its data had no classes (prepare --class-regex)"
        raise ConfigError(f"{loaded.path}: was not trained with class {group!r}; {hint}")


def choose_sampling_precision(loaded: LoadedPrior, name: str) -> str:
    """Return the precision to sample in; `auto` on a CPU is measured on a slice of one coarsest token.

    It is no default: two measurements may differ, and a seed would not give the same sample again.

    Raises:
        ConfigError: The precision is not known, or does not work on the prior's device.
    """
    layout = loaded.tokenizer.layout((1, 1))  # padded to the stride of the coarsest grid

    def step() -> None:
        sample(loaded.prior, layout, [0], Conditions.unknown(1))

    device = next(loaded.prior.parameters()).device
    return choose_precision(name, device) or fastest_precision(step, device)[0]


def draw(
    loaded: LoadedPrior,
    size: tuple[int, int],
    seeds: list[int],
    positions: list[float] | None,
    settings: SamplingSettings,
    *,
    group: str | None = None,
    precision: str = "32-true",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Int64[Tensor, "b n"], Conditions]:
    """Return one token sequence per seed, and the conditions that it was drawn under."""
    repeated = {seed for seed in seeds if seeds.count(seed) > 1} if len(set(seeds)) < len(seeds) else set()
    if repeated:
        raise ConfigError(f"seed {min(repeated)} is given twice and would give the same sample twice")
    check_class(loaded, group)
    conditions = Conditions.unknown(len(seeds))
    if positions is not None:
        conditions = Conditions(torch.tensor(positions, dtype=torch.float32), conditions.group)
    if group is not None:
        conditions = Conditions(
            conditions.position, torch.full((len(seeds),), loaded.info.classes.index(group))
        )
    tokens = sample(
        loaded.prior,
        loaded.tokenizer.layout(size),
        seeds,
        conditions,
        settings,
        precision=precision,
        progress=progress,
    )
    return tokens, conditions


def decode_pages(
    loaded: LoadedPrior, tokens: Int64[Tensor, "b n"], size: tuple[int, int], *, levels: int | None = None
) -> DecodedSlices:
    """Decode tokens batch by batch, onto the CPU; a slice does not depend on the others."""
    device, count = next(loaded.prior.parameters()).device, len(tokens)
    # Always as many rows, as in sampling: a batch of another size may round otherwise.
    tokens = torch.cat([tokens, tokens[-1:].expand(-count % SAMPLING_BATCH, -1)])
    pages = [
        loaded.tokenizer.decode(part.to(device), size, levels=levels)
        for part in torch.split(tokens, SAMPLING_BATCH)
    ]
    masks = [page.masks.cpu() for page in pages if page.masks is not None]
    images = torch.cat([page.images.cpu() for page in pages])
    return DecodedSlices(images[:count], torch.cat(masks)[:count] if masks else None)


def noise_levels(loaded: LoadedPrior, images: Float[Tensor, "b 1 h w"], seeds: Sequence[int]) -> list[float]:
    """Draw how noisy each decoded slice is, as training slices are; 0 where the tokenizer keeps noise."""
    noise = loaded.info.noise_model
    if noise is None:
        return [0.0] * len(seeds)
    return [noise.level(image.numpy(), seed) for image, seed in zip(images[:, 0], seeds, strict=True)]


def put_noise_back(
    loaded: LoadedPrior, images: Float[Tensor, "b 1 h w"], levels: Sequence[float], seeds: Sequence[int]
) -> Float[Tensor, "b 1 h w"]:
    """Return decoded slices with noise of these levels."""
    noise = loaded.info.noise_model
    if noise is None:
        return images
    noisy = [
        noise.add_noise(image.numpy(), level, seed)
        for image, level, seed in zip(images[:, 0], levels, seeds, strict=True)
    ]
    return torch.from_numpy(np.stack(noisy))[:, None]
