"""From seeds to slices: draw tokens and decode them. Shared by generation, inpainting and evaluation.

    seeds, conditions ── draw ──▶ token sequences ── render ──▶ slices and masks

A sample depends on its own seed alone: the networks always see groups of `sampling.SAMPLING_BATCH` rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from slicebook.devices import choose_precision, fastest_precision
from slicebook.errors import ConfigError
from slicebook.memory import explained
from slicebook.models.checkpoint import LoadedPrior
from slicebook.models.conditions import Conditions
from slicebook.models.sampling import FIXED, SAMPLING_BATCH, SamplingSettings, sample
from slicebook.models.sequence import DecodedSlices

LAST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Surroundings:
    """Slices of which some pixels are kept, for inpainting.

    Attributes:
        images: In [-1, 1].
        kept: Which pixels are kept.
    """

    images: Float[Tensor, "b 1 h w"]
    kept: Bool[Tensor, "b 1 h w"]


@explained("sampling", lambda: FIXED)
@torch.no_grad()
def render(
    loaded: LoadedPrior,
    tokens: Int64[Tensor, "b n"],
    size: tuple[int, int],
    seeds: Sequence[int],
    steps: int = SamplingSettings.decoder_steps,
    surroundings: Surroundings | None = None,
) -> DecodedSlices:
    """Decode token sequences into slices, on the CPU, with the generation decoder if the model has one.

    Args:
        loaded: The prior, with its tokenizers and its decoder.
        tokens: One sequence per slice.
        size: Rows and columns of the slices.
        seeds: One per slice, for the noise that its decoder starts from.
        steps: Of the generation decoder.
        surroundings: Pixels that the decoder must continue.
    """
    page = decode_pages(loaded, tokens, size)
    if loaded.decoder is None:
        return page
    images = loaded.tokenizer.images
    device = next(images.parameters()).device
    base = images.pad(page.images)
    noise = torch.stack([_surface_noise(seed, base.shape[-2:]) for seed in seeds])
    finest = loaded.tokenizer.grids(tokens, size)["image"][0]
    known = None if surroundings is None else images.pad(surroundings.images)
    kept = None if surroundings is None else images.pad(surroundings.kept.float()) == 1
    drawn = []
    for rows in _whole_batches(len(tokens)):
        part = loaded.decoder.draw(
            base[rows].to(device),
            finest[rows].to(device),
            noise[rows].to(device),
            steps,
            known=None if known is None else known[rows].to(device),
            where=None if kept is None else kept[rows].to(device),
        )
        drawn.append(part.cpu())
    slices = images.unpad(torch.cat(drawn)[: len(tokens)], size).clamp(-1, 1)
    return DecodedSlices(slices, page.masks)


def _surface_noise(seed: int, shape: Sequence[int]) -> Float[Tensor, "1 h w"]:
    # A random stream apart from those of the tokens and of the position.
    generator = torch.Generator().manual_seed(int(np.random.default_rng([seed, 2]).integers(2**63)))
    return torch.randn((1, *shape), generator=generator)


def _whole_batches(count: int) -> Iterator[Int64[Tensor, " rows"]]:
    """Yield the rows of batches of always the same size; a batch of another size may round otherwise."""
    for start in range(0, count, SAMPLING_BATCH):
        yield torch.arange(start, start + SAMPLING_BATCH).clamp(max=count - 1)


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
) -> Int64[Tensor, "b n"]:
    """Return one token sequence per seed."""
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
    return sample(
        loaded.prior,
        loaded.tokenizer.layout(size),
        seeds,
        conditions,
        settings,
        precision=precision,
        progress=progress,
    )


def decode_pages(
    loaded: LoadedPrior, tokens: Int64[Tensor, "b n"], size: tuple[int, int], *, levels: int | None = None
) -> DecodedSlices:
    """Decode tokens with the tokenizers, batch by batch, onto the CPU; no slice depends on the others."""
    device, count = next(loaded.prior.parameters()).device, len(tokens)
    pages = [
        loaded.tokenizer.decode(tokens[rows].to(device), size, levels=levels)
        for rows in _whole_batches(count)
    ]
    masks = [page.masks.cpu() for page in pages if page.masks is not None]
    images = torch.cat([page.images.cpu() for page in pages])
    return DecodedSlices(images[:count], torch.cat(masks)[:count] if masks else None)
