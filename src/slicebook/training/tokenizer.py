"""Training of tokenizers, of slices and of label masks."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from lightning_fabric import Fabric
from torch import Tensor, nn

from slicebook.config import AugmentConfig, LossConfig, Recipe
from slicebook.data.augment import augment_labels, augment_slices, draw_augmentation
from slicebook.data.dataset import PreparedData
from slicebook.data.loader import Batch, SliceBatches, explain_dead_worker
from slicebook.distributed import Part, step_generator
from slicebook.environment import InitialModel
from slicebook.models.checkpoint import save_tokenizer
from slicebook.models.losses import compare, loss
from slicebook.models.masks import check_labels, one_hot
from slicebook.models.tokenizer import Tokenizer, draw_dropped_levels
from slicebook.training.progress import Display
from slicebook.training.resume import Progress
from slicebook.training.run import (
    DEFAULT_OPTIONS,
    TrainingOptions,
    lock_run,
    provenance,
    restart_run,
    state_to_resume,
    write_batch,
    write_settings,
)
from slicebook.training.trainer import Trainer
from slicebook.training.warm_start import CODEBOOK, initial_model, initial_record, load_initial

LOW_USAGE = 0.25


DICE_WEIGHT = 0.2  # relative to nats per pixel; enough for small organs


class _ScoredTokenizer(nn.Module):
    """A tokenizer with its loss in the forward pass, so that autocast and DDP wrap the whole step."""

    def __init__(self, tokenizer: Tokenizer, config: LossConfig) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.config = config

    def forward(self, images: Tensor, **options: Any) -> dict[str, Tensor]:
        """Return loss, SSIM and commitment; the loss carries the gradient."""
        output = self.tokenizer(images, **options)
        parts = loss(output, images, self.config)
        return {"loss": parts.total, "ssim": parts.ssim, "commitment": output.commitment.detach()}


class _ScoredLabelTokenizer(nn.Module):
    """The same for label masks, uint8."""

    def __init__(self, tokenizer: Tokenizer, config: LossConfig) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.config = config

    def forward(self, masks: Tensor, **options: Any) -> dict[str, Tensor]:
        """Return loss, cross-entropy (nats per pixel), Dice and commitment; the loss carries the gradient."""
        values = self.tokenizer.config.label_values
        output = self.tokenizer(one_hot(masks[:, 0], values), **options)
        parts = compare(output.images, masks[:, 0], values)
        with torch.autocast(masks.device.type, enabled=False):
            distance = parts.cross_entropy + DICE_WEIGHT * (1 - parts.soft_dice)
            total = distance + self.config.commitment * output.commitment.float()
        return {
            "loss": total,
            "cross_entropy": parts.cross_entropy.detach(),
            "dice": parts.dice,
            "commitment": output.commitment.detach(),
        }


class _ReconstructionObjective(ABC):
    """A tokenizer's training step: augment, reconstruct, compare."""

    settings: str
    monitor: str | None
    scored: type[nn.Module]
    """The module that computes loss and scores."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        recipe: Recipe,
        data: PreparedData,
        fabric: Fabric,
        initial: InitialModel | None = None,
        copied: Collection[str] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.initial = initial
        self.copied = copied  # weights that come from the initial model
        # The trainer replaces it by its wrapped module.
        self.module = self.scored(tokenizer, recipe.training.loss)
        self.recipe = recipe
        self.data = data
        self.fabric = fabric

    @abstractmethod
    def model_input(self, images: Tensor) -> Tensor:
        """Return a batch in the format of the tokenizer's input."""

    @abstractmethod
    def augmented(
        self, images: Tensor, config: AugmentConfig, generator: torch.Generator, part: Part
    ) -> Tensor:
        """Return randomly augmented slices, which are a part of a batch."""

    def param_groups(self) -> list[dict[str, Any]]:
        """Return all parameters."""
        return [{"params": list(self.module.parameters()), "lr_scale": 1.0}]

    def setup(self, batches: SliceBatches) -> None:
        """Initialise codebooks that were not copied by k-means of `kmeans_slices` slices of one shape.

        Every process takes the same slices, so that the codes do not depend on the number of processes.
        """
        wanted = self.recipe.tokenizer.quantizer.kmeans_slices
        levels = [
            level
            for level in range(self.tokenizer.levels)
            if f"quantizers.{level}.{CODEBOOK[0]}" not in self.copied
        ]
        if not wanted or not levels:
            return
        images: list[Tensor] = []
        for batch in batches.undivided():
            if not images or batch.images.shape[1:] == images[0].shape[1:]:
                images.append(batch.images)
            if sum(map(len, images)) >= wanted:
                break
        generator = torch.Generator().manual_seed(self.recipe.training.seed)
        first = torch.cat(images)[:wanted].to(self.fabric.device)
        self.tokenizer.init_from_kmeans(self.model_input(first), generator, levels)

    def training_step(self, batch: Batch, step: int, fraction: float) -> dict[str, Tensor]:
        """Return the scores of augmented slices, the commitment among them."""
        images = batch.images
        images = images.contiguous(memory_format=torch.channels_last)
        config = self.recipe.training
        draw = step_generator(config.seed, step)
        if config.augment:
            images = self.augmented(images, config.augment, draw, batch.part)
        dropped_levels = None
        if config.loss.level_dropout:
            drawn = draw_dropped_levels(
                self.tokenizer.levels, batch.part.total, config.loss.level_dropout, draw
            )
            dropped_levels = drawn[:, batch.part.rows].to(images.device, non_blocking=True)
        every = self.recipe.tokenizer.quantizer.reset_every
        # No reset near the end, so that codes and decoder converge.
        reset_dead_codes = every > 0 and step % every == every - 1 and fraction < 0.9
        scores: dict[str, Tensor] = self.module(
            images, reset_dead_codes=reset_dead_codes, dropped_levels=dropped_levels
        )
        return scores

    def validation_step(self, batch: Batch) -> dict[str, Tensor]:
        """Return the scores of validation slices."""
        scores: dict[str, Tensor] = self.module(batch.images)
        return scores

    def usage(self) -> dict[str, float]:
        """Return usage and perplexity of each level's training tokens since the last report."""
        metrics = {}
        for level in range(self.tokenizer.levels):
            usage = self.tokenizer.codebook(level).usage()
            metrics[f"usage_{level}"], metrics[f"perplexity_{level}"] = usage.utilization, usage.perplexity
        return metrics

    def epoch_metrics(self) -> dict[str, float]:
        """Return the usage, warn where it is low, and reset the counts."""
        metrics = self.usage()
        for level in range(self.tokenizer.levels):
            codebook, used = self.tokenizer.codebook(level), metrics[f"usage_{level}"]
            codebook.reset_usage()
            if used < LOW_USAGE:
                warnings.warn(
                    f"level {level} uses {used:.0%} of its {codebook.size} codes, too few for a prior to "
                    f"learn from; make tokenizer.codebook_sizes[{level}] smaller or train longer",
                    stacklevel=2,
                )
        return metrics

    def save(self, path: Path, progress: Progress, scores: Mapping[str, float]) -> None:
        """Write `model.safetensors`."""
        train = self.data.split("train", labelled=bool(self.recipe.tokenizer.label_values))
        made = provenance(self.data, train, self.fabric.device, progress, scores, self.initial)
        save_tokenizer(path, self.tokenizer, self.recipe, made)


class TokenizerObjective(_ReconstructionObjective):
    """Objective of a tokenizer of slices in [-1, 1], monitored by SSIM."""

    settings = "training"
    monitor: str | None = "ssim"
    scored = _ScoredTokenizer

    def model_input(self, images: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
        """Return the slices."""
        return images

    def augmented(
        self, images: Float[Tensor, "b 1 h w"], config: AugmentConfig, generator: torch.Generator, part: Part
    ) -> Float[Tensor, "b 1 h w"]:
        """Return the slices, with random geometry and intensity."""
        return augment_slices(images, config, generator, part)


class LabelObjective(_ReconstructionObjective):
    """Objective of a tokenizer of label masks, monitored by Dice."""

    settings = "labels.training"
    monitor: str | None = "dice"
    scored = _ScoredLabelTokenizer

    def model_input(self, images: UInt8[Tensor, "b 1 h w"]) -> Float[Tensor, "b c h w"]:
        """Return the masks, one-hot."""
        return one_hot(images[:, 0], self.tokenizer.config.label_values)

    def augmented(
        self, images: UInt8[Tensor, "b 1 h w"], config: AugmentConfig, generator: torch.Generator, part: Part
    ) -> UInt8[Tensor, "b 1 h w"]:
        """Return the masks, with random geometry."""
        return augment_labels(images, draw_augmentation(config, part.total, generator)[part.rows])


@dataclass(frozen=True)
class TrainingSummary:
    """How a training ended."""

    run: Path
    epochs: int
    steps: int
    seconds: float
    best_epoch: int
    scores: dict[str, float]
    """The row of `metrics.csv` of the best epoch."""


def train_tokenizer(
    data: str | Path, recipe: Recipe, out: str | Path, options: TrainingOptions = DEFAULT_OPTIONS
) -> TrainingSummary:
    """Train a tokenizer on a prepared folder, or resume the training in `out`.

    Args:
        data: Folder that `slicebook prepare` wrote.
        recipe: All settings.
        out: Folder of the run.
        options: Seed, device and the like.

    Raises:
        DataError: The folder is not prepared, or a loading process died.
        ConfigError: `out` holds a training with other settings or data, or the loss became NaN or infinite.
    """
    return _train(PreparedData.open(data), options.apply_seed(recipe, "training"), Path(out), options)


def train_labels(
    data: str | Path, recipe: Recipe, out: str | Path, options: TrainingOptions = DEFAULT_OPTIONS
) -> TrainingSummary:
    """Train the tokenizer of label masks that `recipe.labels` describes, or resume its training.

    Learns from the slices with a mask. The model file holds the recipe as `Recipe.for_labels` makes it.

    Args:
        data: Folder that `slicebook prepare` wrote.
        recipe: All settings; where it names no label values, those of the data are taken.
        out: Folder of the run.
        options: Seed, device and the like.

    Raises:
        DataError: The folder is not prepared or without masks, or a mask has a label that the recipe lacks.
        ConfigError: `out` holds a training with other settings or data, or the loss became NaN or infinite.
    """
    opened = PreparedData.open(data)
    opened.split("train", labelled=True)  # without masks there are no label values to fill in
    recipe = options.apply_seed(recipe, "labels.training").for_labels(opened.info.label_values)
    return _train(opened, recipe, Path(out), options)


def _train(opened: PreparedData, recipe: Recipe, run: Path, options: TrainingOptions) -> TrainingSummary:
    """Train a tokenizer of slices, or, where its settings have label values, of masks."""
    masks = bool(recipe.tokenizer.label_values)
    # An empty split is refused before anything is deleted or written.
    train, validation = (opened.split(name, labelled=masks) for name in ("train", "validation"))
    if masks:  # here, because a look at the values of a batch would wait for the device at every step
        check_labels(opened.info.label_values, recipe.tokenizer.label_values)
    weights = load_initial(options.start_from, "masks" if masks else "images")
    if options.restart:
        restart_run(run, options.launch())
    with lock_run(run):
        identity = {
            "recipe": recipe.model_dump(mode="json", include={"tokenizer", "training"}),
            "split_hash": opened.split_hash,
        }
        state = state_to_resume(run, identity)
        initial = initial_model(run, state, weights)
        fabric = options.launch()
        config = recipe.training
        fabric.seed_everything(config.seed, verbose=False)
        tokenizer = Tokenizer(recipe.tokenizer)
        what: Literal["images", "labels"] = "labels" if masks else "images"
        batches = SliceBatches(
            train,
            config.batch_size,
            shuffle=True,
            seed=config.seed,
            workers=options.workers,
            rank=fabric.global_rank,
            world_size=fabric.world_size,
            what=what,
        )
        validation_batches = SliceBatches(
            validation,
            config.batch_size,
            workers=options.workers,
            rank=fabric.global_rank,
            world_size=fabric.world_size,
            what=what,
        )
        display = Display(run, shown=options.progress and fabric.is_global_zero)
        if fabric.is_global_zero:
            write_settings(run, recipe, config, state)
            if state is None:
                write_batch(run, recipe, train, display)
        copied = weights.copy_to(tokenizer, display.say) if weights and state is None else set()
        objective = (LabelObjective if masks else TokenizerObjective)(
            tokenizer, recipe, opened, fabric, initial, copied
        )
        # The path of the data is for training a prior; the data may be moved later.
        record = {"data": str(opened.folder.resolve())} | initial_record(initial)
        trainer = Trainer(objective, config, run, identity | record, fabric)
        with display, explain_dead_worker():
            progress = trainer(batches, validation_batches, state, display)
        fabric.barrier()  # without it, gloo sometimes aborts at exit
    return summarise_run(run, progress)


def summarise_run(run: Path, progress: Progress) -> TrainingSummary:
    """Return how a training ended, with the scores of its best epoch."""
    best = next(row for row in progress.history if row["epoch"] == progress.best_epoch)
    return TrainingSummary(run, progress.epoch, progress.step, progress.seconds, progress.best_epoch, best)
