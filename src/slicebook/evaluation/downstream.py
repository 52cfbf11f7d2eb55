"""Downstream evaluation: a segmenter trained on generated pairs alone, tested on real patients.

The baseline is the same segmenter trained on the training set for as many steps. It is MONAI's U-Net, of the
extra `downstream`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from slicebook.errors import ConfigError, DataError
from slicebook.evaluation.kept import NOTHING_KEPT, KeptWork
from slicebook.evaluation.slices import SliceCollection
from slicebook.metrics.anatomy import dice
from slicebook.metrics.statistics import Summary
from slicebook.models.masks import labels_from
from slicebook.progress import Progress
from slicebook.records import Record


class SegmenterResult(Record):
    """Scores of the segmenter trained on one set of pairs."""

    pairs: int
    labels: dict[str, Summary]
    """Dice of each label value but the background's, pooled by patient."""
    mean: float | None
    """Mean over labels of their means of patients; None if no test slice has a label."""


class DownstreamResult(Record):
    """Segmenters trained on generated pairs and on the training set, tested on held-out patients."""

    convention: str
    steps: int
    batch_size: int
    seed: int
    generated: SegmenterResult
    training_set: SegmenterResult
    ratio: float | None
    """Mean Dice of `generated` divided by that of `training_set`; None if the latter is 0 or undefined."""


def evaluate_downstream(
    samples: SliceCollection,
    train: SliceCollection,
    held_out: SliceCollection,
    values: Sequence[int],
    *,
    steps: int,
    seed: int,
    say: Callable[[str], None] = lambda _: None,
    kept: KeptWork = NOTHING_KEPT,
) -> DownstreamResult:
    """Train a small U-Net on generated pairs, another on the training set, and test both.

    Args:
        samples: Samples with masks.
        train: The training set, with masks.
        held_out: Slices of patients that were never trained on, with masks.
        values: Label values, the background first.
        steps: Training steps of each segmenter, 8 pairs per step.
        seed: Seed of both trainings and of the bootstrap.
        say: Called before each training.
        kept: Keeps the scores of each segmenter.

    Raises:
        DataError: The samples, the training set or the held-out slices have no masks.
    """
    results = {}
    for name, pairs in (("generated pairs", samples), ("pairs of the training set", train)):
        say(f"segmenter on {len(pairs)} {name}")
        if pairs.masks is None or held_out.masks is None:
            raise DataError(
                "there are no masks to train a segmenter with; train the prior with masks, on data that have "
                "them (prepare --mask)"
            )
        results[name] = kept.record(
            f"segmenter on {name}",
            SegmenterResult,
            partial(_train_and_score, pairs.images, pairs.masks, held_out, values, steps, seed, kept),
        )
    generated, training_set = results.values()
    ratio = None
    if generated.mean is not None and training_set.mean:
        ratio = generated.mean / training_set.mean
    return DownstreamResult(
        convention="Dice of each label over all slices of a held-out patient, mean of patients; "
        f"{NAME}, trained from scratch on the pairs, half of them mirrored; the mean is over "
        "the labels",
        steps=steps,
        batch_size=BATCH,
        seed=seed,
        generated=generated,
        training_set=training_set,
        ratio=ratio,
    )


def _train_and_score(
    images: Float[Tensor, "n 1 h w"],
    masks: UInt8[Tensor, "n h w"],
    held_out: SliceCollection,
    values: Sequence[int],
    steps: int,
    seed: int,
    kept: KeptWork,
) -> SegmenterResult:
    progress = kept.counter("step")
    network = train_segmenter(images, masks, values, steps=steps, seed=seed, progress=progress)
    predictions = [labels.numpy() for labels in segment(network, held_out.images, values)]
    return _score(len(images), predictions, held_out, values, seed)


def _score(
    pairs: int,
    predictions: list[UInt8[np.ndarray, "h w"]],
    real: SliceCollection,
    values: Sequence[int],
    seed: int,
) -> SegmenterResult:
    scores = dice(predictions, real.label_maps(), real.patients, list(values)[1:], seed=seed)
    means = [score.mean_of_patients for score in scores.values() if score.mean_of_patients is not None]
    return SegmenterResult(
        pairs=pairs,
        labels={str(value): score for value, score in scores.items()},
        mean=float(np.mean(means)) if means else None,
    )


BATCH, RATE = 8, 3e-3
CHANNELS = (16, 32, 64, 128)  # of each scale; each is half the one before
NAME = f"MONAI's UNet, channels {', '.join(map(str, CHANNELS))}, two residual units a scale, batch norm"

_FOLD = 2  # side of the pixel blocks: convolutions at full resolution are slow on a CPU
_STRIDE = _FOLD * 2 ** (len(CHANNELS) - 1)


def is_installed() -> bool:
    """Return whether MONAI is installed."""
    return importlib.util.find_spec("monai") is not None


class Segmenter(nn.Module):
    """MONAI's UNet for slices of any size; each 2×2 block of pixels is one position with four channels."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        try:
            from monai.networks.nets.unet import UNet
        except ModuleNotFoundError as error:
            raise ConfigError(
                "downstream: MONAI is not installed, needed for the segmenter that is trained on samples; "
                "run: pip install 'slicebook[downstream]', or evaluate other parts (--parts)"
            ) from error
        self.network = UNet(
            spatial_dims=2,
            in_channels=_FOLD**2,
            out_channels=_FOLD**2 * labels,
            channels=CHANNELS,
            strides=(2,) * (len(CHANNELS) - 1),
            num_res_units=2,
            norm="batch",
        )

    def forward(self, images: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b labels h w"]:
        """Return logits, one channel per label."""
        rows, columns = images.shape[-2:]
        whole = functional.pad(images, (0, -columns % _STRIDE, 0, -rows % _STRIDE), mode="replicate")
        folded = functional.pixel_unshuffle(whole, _FOLD).contiguous(memory_format=torch.channels_last)
        logits: Tensor = functional.pixel_shuffle(self.network(folded), _FOLD)
        return logits[..., :rows, :columns]


def train_segmenter(
    images: Float[Tensor, "n 1 h w"],
    masks: UInt8[Tensor, "n h w"],
    values: Sequence[int],
    *,
    steps: int,
    seed: int,
    progress: Progress | None = None,
) -> Segmenter:
    """Train from scratch on pairs drawn with replacement, half of them mirrored; the rate falls to 0.

    The loss weight of a label is one over the square root of its share of the pixels; otherwise organs of 1 %
    of a slice are not learnt in so few steps.

    Raises:
        ConfigError: MONAI is not installed.
    """
    draw = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network = Segmenter(len(values))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    optimizer = torch.optim.AdamW(network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1)
    label_indices = torch.bucketize(masks, torch.tensor(values, dtype=masks.dtype))
    share = torch.bincount(label_indices.flatten(), minlength=len(values)) / label_indices.numel()
    weights = share.clamp(min=1e-6).rsqrt()
    for step in range(steps):
        if progress:
            progress(step, steps)
        indices = torch.randint(len(images), (BATCH,), generator=draw)
        axes = [(-1,) if mirrored else () for mirrored in torch.rand(BATCH, generator=draw) < 0.5]
        pairs = [
            (images[i].flip(axis), label_indices[i].flip(axis)) for i, axis in zip(indices, axes, strict=True)
        ]
        logits = network(torch.stack([x for x, _ in pairs]))
        loss = functional.cross_entropy(logits, torch.stack([y for _, y in pairs]), weights)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # MONAI carries no types
        optimizer.step()
        schedule.step()
    if progress:
        progress(steps, steps)
    return network.eval()


@torch.no_grad()
def segment(
    network: Segmenter, images: Float[Tensor, "n 1 h w"], values: Sequence[int]
) -> UInt8[Tensor, "n h w"]:
    """Return the most likely label of each pixel."""
    return torch.cat([labels_from(network(part), values) for part in torch.split(images, BATCH)])
