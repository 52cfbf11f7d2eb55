"""Measure what tells early whether generation will work: on a tokenizer, and on a prior over its tokens."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from slicebook.config import PriorConfig
from slicebook.grain import noise_level
from slicebook.likelihood import likelihood
from slicebook.prior import Conditions, Prior
from slicebook.stages import Layout, draw_orders
from slicebook.symptoms import OVERFITTED, Brittleness, Copies, Hierarchy, Learning, NoiseFlips, Overfit
from slicebook.tokenizer import Tokenizer

BATCH = 32
SWAPPED = 0.1  # share of the tokens
NEAR = 4  # codes a token is swapped among
OVERFIT_SLICES, OVERFIT_BATCH = 32, 8
WARMUP = 20  # steps
THUMBNAIL = 32  # pixels along a side
TAIL = 0.01  # of the held-out slices: the nearest hundredth, and the farthest


@torch.no_grad()
def noise_flips(tokenizer: Tokenizer, images: Float[Tensor, "b 1 h w"], seed: int) -> NoiseFlips:
    """Encode slices in [-1, 1] again with white noise of their own noise level added."""
    draw, device = torch.Generator().manual_seed(seed), _device(tokenizer)
    flips, tokens = [0] * tokenizer.levels, [0] * tokenizer.levels
    for part in torch.split(images, BATCH):
        strength = noise_level(part)[:, None, None, None]
        noisy = (part + strength * torch.randn(part.shape, generator=draw)).clamp(-1, 1)
        pairs = zip(tokenizer.encode(part.to(device)), tokenizer.encode(noisy.to(device)), strict=True)
        for level, (before, after) in enumerate(pairs):
            flips[level] += int((before != after).sum())
            tokens[level] += before.numel()
    shares = tuple(flipped / all_of for flipped, all_of in zip(flips, tokens, strict=True))
    return NoiseFlips(float(noise_level(images).median()), shares)


@torch.no_grad()
def brittleness(tokenizer: Tokenizer, images: Float[Tensor, "b 1 h w"], seed: int) -> Brittleness:
    """Decode slices in [-1, 1] from their tokens, and from tokens of which some gave way to near codes."""
    draw, device = torch.Generator().manual_seed(seed), _device(tokenizer)
    size = (images.shape[-2], images.shape[-1])
    near = [near_codes(tokenizer.codebook(level).codes) for level in range(tokenizer.levels)]
    scores = []
    for part in torch.split(images, BATCH):
        tokens = tokenizer.encode(part.to(device))
        swapped = [_swap(grid, near[level], draw) for level, grid in enumerate(tokens)]
        drawn = [tokenizer.decode(grids, size).clamp(-1, 1).cpu() for grids in (tokens, swapped)]
        errors = [(one - part).square().mean((1, 2, 3)).clamp(min=1e-12) for one in drawn]
        scores.append(torch.stack([10 * (4 / error).log10() for error in errors]))
    psnr, after = torch.cat(scores, 1).mean(1).tolist()
    return Brittleness(psnr, psnr - after)


def near_codes(codes: Float[Tensor, "k d"]) -> Int64[Tensor, "k near"]:
    """Return the nearest other codes of each code, at most 4."""
    apart = torch.cdist(codes, codes)
    apart.fill_diagonal_(math.inf)
    return apart.topk(min(NEAR, len(codes) - 1), largest=False).indices


def _swap(grid: Tensor, near: Tensor, draw: torch.Generator) -> Tensor:
    chosen = (torch.rand(grid.shape, generator=draw) < SWAPPED).to(grid.device)
    which = torch.randint(near.shape[1], grid.shape, generator=draw).to(grid.device)
    return torch.where(chosen, near[grid].gather(-1, which[..., None])[..., 0], grid)


def hierarchy(
    prior: Prior,
    layout: Layout,
    tokens: Int64[Tensor, "b n"],
    conditions: Conditions,
    patients: Sequence[str],
    seed: int,
) -> Hierarchy | None:
    """Give slices the coarser tokens of other patients' slices; None for one level or one patient."""
    coarser = [i for i, stage in enumerate(layout.stages[:-1]) if stage.kind == "image"]
    if not coarser or len(set(patients)) < 2:
        return None
    tokens = tokens.clone()
    for index, stage in enumerate(layout.stages):
        if stage.kind == "mask":  # it would tell what the coarser levels tell
            tokens[:, layout.part(index)] = stage.size
    draw = np.random.default_rng(seed)
    others = [
        int(draw.choice([row for row, one in enumerate(patients) if one != patient])) for patient in patients
    ]
    mixed = tokens.clone()
    for index in coarser:
        mixed[:, layout.part(index)] = tokens[others, layout.part(index)]
    finest = layout.part(len(layout.stages) - 1)
    own, strangers = (
        float(likelihood(prior, layout, one, conditions, orders=1, seed=seed).nats[:, finest].mean())
        for one in (tokens, mixed)
    )
    return Hierarchy(own, strangers)


def overfit(
    config: PriorConfig,
    codebooks: Sequence[Float[Tensor, "_ _"]],
    layout: Layout,
    tokens: Int64[Tensor, "b n"],
    conditions: Conditions,
    *,
    seconds: float,
    seed: int,
) -> Overfit:
    """Train a fresh prior on at most 32 slices until it knows them, or the time is over.

    A prior that cannot learn them by heart has a fault. Each slice keeps one order of drawing, so that there
    is something to know by heart.
    """
    tokens, conditions = tokens[:OVERFIT_SLICES], conditions[torch.arange(min(len(tokens), OVERFIT_SLICES))]
    device = codebooks[0].device
    known = tokens < torch.cat([torch.full((len(stage),), stage.size) for stage in layout.stages])
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        prior = Prior(config.model_copy(update={"dropout": 0.0}), codebooks).to(device)
    rate = config.training.learning_rate
    optimizer = torch.optim.AdamW(prior.parameters(), lr=rate, weight_decay=0.0)
    orders = draw_orders(layout, len(tokens), draw)
    began, steps, out_of_time = time.perf_counter(), 0, False
    losses: list[Tensor] = []
    first = layout.starts[-2]
    while not out_of_time:
        losses = []
        for rows in torch.split(torch.randperm(len(tokens), generator=draw), OVERFIT_BATCH):
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (steps + 1) / WARMUP)
            found = prior(
                layout, tokens[rows].to(device), orders[rows].to(device), conditions[rows].to(device)
            )
            # As in training: each trunk has its own mean.
            coarse = found[:, :first].mean() if first else found.new_zeros(())
            optimizer.zero_grad()
            (coarse + found[:, first:].mean()).backward()
            nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
            optimizer.step()
            losses.append(found.detach()[known[rows]])
            steps += 1
            out_of_time = time.perf_counter() - began >= seconds
            if out_of_time:
                break
        if float(torch.cat(losses).mean()) < OVERFITTED:
            out_of_time = False
            break
    nats = float(torch.cat(losses).mean())
    return Overfit(len(tokens), steps, time.perf_counter() - began, nats, out_of_time)


def learning(history: Sequence[Mapping[str, str]], tokens_a_step: float) -> Learning | None:
    """Read the rows of a prior's metrics.csv; None where no validation is among them."""
    found = [
        (float(row["step"]) * tokens_a_step, -float(row["validation_likelihood"]))
        for row in history
        if row.get("validation_likelihood")
    ]
    if not found:
        return None
    late = found[len(found) // 2 :]
    slope = None
    if len(late) > 1:
        tokens, nats = np.array(late).T
        slope = float(np.polyfit(np.log10(tokens), nats, 1)[0])
    return Learning(found[-1][1], found[-1][0], slope)


def thumbnails(images: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b n"]:
    """Return slices at 32×32 pixels, without their mean and of length 1: products are correlations."""
    small = functional.adaptive_avg_pool2d(images.float(), THUMBNAIL).flatten(1)
    return functional.normalize(small - small.mean(1, keepdim=True), dim=1)


def copies(
    generated: Float[Tensor, "b n"],
    held_out: Float[Tensor, "m n"],
    training: Float[Tensor, "k n"],
    patients: Sequence[str],
) -> Copies:
    """Compare thumbnails with those of training slices, whose patients are given."""
    ours, theirs = (one @ training.T for one in (generated, held_out))
    usual = theirs.amax(1)
    likeness, nearest = ours.max(1)
    return Copies(
        samples=len(generated),
        generated=float(likeness.median()),
        held_out=float(usual.median()),
        nearer=float((likeness > usual.quantile(1 - TAIL)).float().mean()),
        farther=float((likeness < usual.quantile(TAIL)).float().mean()),
        patients=len({patients[index] for index in nearest.tolist()}),
    )


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
