"""What a training loop trains: one module, the loss of a batch, and scores. Here, of a tokenizer.

A prior is another objective of the same loop.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from lightning_fabric import Fabric
from torch import Tensor, nn

from slicebook.checkpoint import save_tokenizer
from slicebook.config import AugmentConfig, LossConfig, Recipe
from slicebook.dataset import Batch, PreparedData, SliceSet, augment, augment_labels, draw_augmentation
from slicebook.labels import compare, one_hot
from slicebook.provenance import Provenance, commit, versions
from slicebook.tokenizer import Tokenizer, draw_silence, loss

LOW_USAGE = 0.25
DICE_WEIGHT = 0.2  # against nats a pixel: enough for the small organs, and the large ones keep their edges


@dataclass
class Progress:
    """Where a training stands; written into its state."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    best: float = -math.inf
    best_epoch: int = 0
    finished: bool = False
    history: list[dict[str, float]] = field(default_factory=list)
    """One row of `metrics.csv` a validation."""


S = TypeVar("S", bound="Portable")


@runtime_checkable
class Portable(Sized, Protocol):
    """A batch: so many slices, movable to a device."""

    def to(self: S, device: torch.device) -> S:
        """Move what the device computes with."""


P = TypeVar("P", bound=Portable)
Out = TypeVar("Out", bound=Portable, covariant=True)
In = TypeVar("In", bound=Portable, contravariant=True)


@runtime_checkable
class Batches(Protocol[Out]):
    """Batches in an order that depends on the epoch alone."""

    @property
    def repeated(self) -> int:
        """Batches of an epoch that come twice, so that every process takes the same number of steps."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Out]: ...

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""


@runtime_checkable
class Objective(Protocol[In]):
    """What the loop trains: one module, the loss of a batch, and scores."""

    module: nn.Module
    best: str | None
    """The validation score that chooses the model: the higher the better. None keeps the latest."""

    def groups(self) -> list[dict[str, Any]]:
        """Return the parameters, as an optimiser takes them; `lr_scale` multiplies the learning rate."""

    def start(self, batches: Iterable[In]) -> None:
        """Prepare an untrained module, which is on its device."""

    def step(self, batch: In, step: int, fraction: float) -> dict[str, Tensor]:
        """Return the scores of a training batch; `loss` among them carries the gradient."""

    def validate(self, batch: In) -> dict[str, Tensor]:
        """Return the mean scores of a validation batch."""

    def usage(self) -> dict[str, float]:
        """Return what the module tells of the training steps since the last report."""

    def report(self) -> dict[str, float]:
        """Return the same and begin anew; warn of what a user should mend."""

    def save(self, path: Path, progress: Progress, scores: Mapping[str, float]) -> None:
        """Write the model to share."""


def draw_for(seed: int, step: int, rank: int) -> torch.Generator:
    """Return the generator of one step, and seed torch's own by it.

    Hangs on (seed, step, rank) alone: a training that goes on draws what it would have drawn.
    """
    own = ((seed * 1_000_003 + step) * 4096 + rank) % 2**63
    torch.manual_seed(own)
    return torch.Generator().manual_seed(own)


@torch.no_grad()
def update_average(average: nn.Module, learner: nn.Module, decay: float, step: int) -> None:
    """Move a running average of weights a step towards the learner's."""
    # Short at first, so that the start is soon forgotten.
    decay = min(decay, (1 + step) / (10 + step))
    kept: list[Tensor] = list(average.parameters())
    new: list[Tensor] = list(learner.parameters())
    torch._foreach_lerp_(kept, new, 1 - decay)


def provenance(
    data: PreparedData, train: SliceSet, device: torch.device, reached: Progress, scores: Mapping[str, float]
) -> Provenance:
    """Say where a model comes from that was trained until now."""
    return Provenance(
        versions=versions(),
        commit=commit(),
        device=str(device),
        split_hash=data.split_hash,
        train_patients=len(train.patients),
        train_slices=len(train),
        spacing=data.info.spacing,
        epoch=reached.epoch,
        step=reached.step,
        seconds=reached.seconds,
        validation=dict(scores),
    )


class _Judged(nn.Module):
    """A tokenizer whose forward pass ends in its scores, so that autocast and DDP see one whole step."""

    def __init__(self, tokenizer: Tokenizer, config: LossConfig) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.config = config

    def forward(self, images: Tensor, **how: Any) -> dict[str, Tensor]:
        """Return loss, SSIM and commitment; the loss carries the gradient."""
        found = self.tokenizer(images, **how)
        parts = loss(found, images, self.config)
        return {"loss": parts.total, "ssim": parts.ssim, "commitment": found.commitment.detach()}


class _JudgedLabels(nn.Module):
    """The same for masks, uint8."""

    def __init__(self, tokenizer: Tokenizer, config: LossConfig) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.config = config

    def forward(self, masks: Tensor, **how: Any) -> dict[str, Tensor]:
        """Return loss, cross-entropy (nats a pixel), Dice and commitment; the loss carries the gradient."""
        values = self.tokenizer.config.label_values
        found = self.tokenizer(one_hot(masks[:, 0], values), **how)
        parts = compare(found.images, masks[:, 0], values)
        with torch.autocast(masks.device.type, enabled=False):
            fidelity = parts.cross_entropy + DICE_WEIGHT * (1 - parts.soft_dice)
            total = fidelity + self.config.commitment * found.commitment.float()
        return {
            "loss": total,
            "cross_entropy": parts.cross_entropy.detach(),
            "dice": parts.dice,
            "commitment": found.commitment.detach(),
        }


class _Reconstructing(ABC):
    """A tokenizer's training step: augment, reconstruct, compare."""

    best: str | None
    judged: type[nn.Module]
    """The tokenizer with its scores behind it."""

    def __init__(self, tokenizer: Tokenizer, recipe: Recipe, data: PreparedData, fabric: Fabric) -> None:
        self.tokenizer = tokenizer
        self.module = self.judged(tokenizer, recipe.training.loss)  # the loop puts its wrapped form here
        self.recipe = recipe
        self.data = data
        self.fabric = fabric

    @abstractmethod
    def entering(self, images: Tensor) -> Tensor:
        """Return a batch as the tokenizer takes it."""

    @abstractmethod
    def augmented(self, images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
        """Return a batch, changed at random."""

    def groups(self) -> list[dict[str, Any]]:
        """Return all parameters."""
        return [{"params": list(self.module.parameters()), "lr_scale": 1.0}]

    def start(self, batches: Iterable[Batch]) -> None:
        """Start the codebooks by k-means, of as many slices of one shape as the recipe asks for."""
        wanted = self.recipe.tokenizer.quantizer.kmeans_slices
        if not wanted:
            return
        found: list[Tensor] = []
        for batch in batches:
            if not found or batch.images.shape[1:] == found[0].shape[1:]:
                found.append(batch.images)
            if sum(map(len, found)) >= wanted:
                break
        generator = torch.Generator().manual_seed(self.recipe.training.seed)
        first = torch.cat(found)[:wanted].to(self.fabric.device)
        self.tokenizer.start(self.entering(first), generator)

    def step(self, batch: Batch, step: int, fraction: float) -> dict[str, Tensor]:
        """Return the scores of augmented slices, the commitment among them."""
        images = batch.images
        if len(images) == 1 and self.recipe.tokenizer.architecture == "vqvae2":
            images = images.repeat(
                2, 1, 1, 1
            )  # batch norm refuses a 1×1 grid of one slice: it has no variance
        images = images.contiguous(memory_format=torch.channels_last)
        config = self.recipe.training
        draw = draw_for(config.seed, step, self.fabric.global_rank)
        if config.augment:
            images = self.augmented(images, config.augment, draw)
        silent = None
        if config.loss.level_dropout:
            silent = draw_silence(self.tokenizer.levels, len(images), config.loss.level_dropout, draw).to(
                images.device
            )
        every = self.recipe.tokenizer.quantizer.revive_every
        # No revival at the end, so that the codes and their decoder come to rest.
        revive = every > 0 and step % every == every - 1 and fraction < 0.9
        scores: dict[str, Tensor] = self.module(images, revive=revive, silent=silent)
        return scores

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Return the scores of unseen slices."""
        scores: dict[str, Tensor] = self.module(batch.images)
        return scores

    def usage(self) -> dict[str, float]:
        """Return usage and perplexity of each level's training tokens since the last report."""
        found = {}
        for level in range(self.tokenizer.levels):
            usage = self.tokenizer.codebook(level).usage()
            found[f"usage_{level}"], found[f"perplexity_{level}"] = usage.used, usage.perplexity
        return found

    def report(self) -> dict[str, float]:
        """Return the usage, warn where it is low, and begin to count anew."""
        found = self.usage()
        for level in range(self.tokenizer.levels):
            codebook, used = self.tokenizer.codebook(level), found[f"usage_{level}"]
            codebook.forget_usage()
            if used < LOW_USAGE:
                warnings.warn(
                    f"level {level} uses {used:.0%} of its {codebook.size} codes, too few for a prior to "
                    f"learn from; make tokenizer.codebook_sizes[{level}] smaller or train longer",
                    stacklevel=2,
                )
        return found

    def save(self, path: Path, progress: Progress, scores: Mapping[str, float]) -> None:
        """Write `model.safetensors`."""
        train = self.data.split("train", labelled=bool(self.recipe.tokenizer.label_values))
        made = provenance(self.data, train, self.fabric.device, progress, scores)
        save_tokenizer(path, self.tokenizer, self.recipe, made)


class TokenizerObjective(_Reconstructing):
    """Of slices in [-1, 1], judged by SSIM."""

    best: str | None = "ssim"
    judged = _Judged

    def entering(self, images: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
        """Return the slices."""
        return images

    def augmented(
        self, images: Float[Tensor, "b 1 h w"], config: AugmentConfig, generator: torch.Generator
    ) -> Float[Tensor, "b 1 h w"]:
        """Return the slices, moved and changed in intensity."""
        return augment(images, draw_augmentation(config, len(images), generator))


class LabelObjective(_Reconstructing):
    """Of label masks, judged by Dice."""

    best: str | None = "dice"
    judged = _JudgedLabels

    def entering(self, images: UInt8[Tensor, "b 1 h w"]) -> Float[Tensor, "b c h w"]:
        """Return the masks, one-hot."""
        return one_hot(images[:, 0], self.tokenizer.config.label_values)

    def augmented(
        self, images: UInt8[Tensor, "b 1 h w"], config: AugmentConfig, generator: torch.Generator
    ) -> UInt8[Tensor, "b 1 h w"]:
        """Return the masks, moved."""
        return augment_labels(images, draw_augmentation(config, len(images), generator))
