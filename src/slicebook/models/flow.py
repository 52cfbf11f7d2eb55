"""Rectified flow: noise becomes data along straight lines (Liu et al. 2023, https://arxiv.org/abs/2209.03003).

At time t, from 0 to 1, a sample is `t * data + (1 - t) * noise`. A network estimates the data from it, and
`solve` follows its estimates from noise to data. A state is a list of grids that share their time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

Grids = list[Float[Tensor, "b _ _ _"]]
TIME_FEATURES = 64
FASTEST = 1000.0  # radians per unit of time
GOLDEN = 40503  # of 2^16: the golden ratio, less 1


def draw_times(count: int, generator: torch.Generator) -> Float[Tensor, " count"]:
    """Draw times of training: logit-normal, most of them in the middle.

    Esser et al. 2024, section 3.1, https://arxiv.org/abs/2403.03206.
    """
    return torch.sigmoid(torch.randn(count, generator=generator))


def spread_times(indices: Int64[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Return times of slices for validation, by their indices in a set, over which they are spread evenly.

    The sequence of the golden ratio: any run of indices has times all over (0, 1).
    """
    # In whole numbers: float32 would lose the fraction of a large index.
    turns = (indices * GOLDEN) % 2**16
    return (turns.float() + 0.5) / 2**16


def gaussian(like: Float[Tensor, "b ..."], generators: Sequence[torch.Generator]) -> Float[Tensor, "b ..."]:
    """Return noise in the shape of a batch, of one generator per sample, on the CPU."""
    noise = [torch.randn(like.shape[1:], generator=generator) for generator in generators]
    return torch.stack(noise).to(like.device, non_blocking=True)


def time_features(times: Float[Tensor, " b"]) -> Float[Tensor, "b features"]:
    """Return Fourier features of times."""
    angles = (
        times[:, None] * torch.linspace(0, math.log(FASTEST), TIME_FEATURES // 2, device=times.device).exp()
    )
    return torch.cat([angles.sin(), angles.cos()], 1)


def noisy(data: Tensor, noise: Tensor, times: Float[Tensor, " b"]) -> Tensor:
    """Return samples at a time, one per sample."""
    t = times.view(-1, *[1] * (data.ndim - 1))
    return t * data + (1 - t) * noise


def solve(estimate: Callable[[Grids, float], Sequence[Tensor]], noise: Sequence[Tensor], steps: int) -> Grids:
    """Follow the flow from noise to data, with one evaluation of the network per step.

    The second-order multistep solver of Lu et al. 2022 (https://arxiv.org/abs/2211.01095, algorithm 2), with
    `t` as the scale of the data and `1 - t` as that of the noise. The first and the last step are of first
    order, since there one of the two is 0.

    Args:
        estimate: Estimates the data, given samples and their time.
        noise: The samples at time 0.
        steps: Evaluations, in even steps of time.

    Returns:
        The last estimate, which is the sample at time 1.
    """
    samples, previous, last_step = list(noise), None, math.inf
    times = [index / steps for index in range(steps + 1)]
    for start, end in itertools.pairwise(times):
        data = list(estimate(samples, start))
        if end == 1:
            return data
        # Log ratio of data to noise, by which the solver measures its steps.
        step = _log_ratio(end) - _log_ratio(start)
        target = data
        if previous is not None and math.isfinite(last_step):
            share = step / (2 * last_step)
            target = [(1 + share) * now - share * then for now, then in zip(data, previous, strict=True)]
        kept = (1 - end) / (1 - start)
        samples = [kept * x + (end - start * kept) * d for x, d in zip(samples, target, strict=True)]
        previous, last_step = data, step
    return samples


def solve_with_fresh_noise(
    estimate: Callable[[Grids, float], Sequence[Tensor]],
    noise: Callable[[], Sequence[Tensor]],
    steps: int,
    share: float = 1.0,
) -> Grids:
    """Go from noise to data by estimating the data and adding noise, less at each step and in part new.

    An error of one step is covered by the new noise of the next and corrected, where the flow would keep it.
    With all noise new (Song et al. 2023, https://arxiv.org/abs/2303.01469, algorithm 1) samples spread less
    than the data, the more so the less certain the estimates are. With none it is the flow, by Euler's method
    (DDIM, Song et al. 2021, https://arxiv.org/abs/2010.02502, equation 12, whose sigma `share` stands for).

    Args:
        estimate: Estimates the data, given samples and their time.
        noise: Draws standard normal noise, once for each step.
        steps: Evaluations, in even steps of time.
        share: Of the noise that is new at each step, as a standard deviation, from 0 to 1.

    Returns:
        The last estimate, which is the sample at time 1.
    """
    samples = list(noise())
    for index in range(steps - 1):
        start, end = index / steps, (index + 1) / steps
        data = estimate(samples, start)
        kept = math.sqrt(1 - share**2) / (1 - start)  # times the noise that is in the samples
        samples = [
            end * d + (1 - end) * (kept * (x - start * d) + share * n)
            for x, d, n in zip(samples, data, noise(), strict=True)
        ]
    return list(estimate(samples, (steps - 1) / steps))


def _log_ratio(time: float) -> float:
    return math.log(time / (1 - time)) if time > 0 else -math.inf
