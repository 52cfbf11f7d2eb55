"""The training of a generation decoder: a flow to what a tokenizer's decoder leaves out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from slicebook.config import Recipe
from slicebook.data.augment import augment, draw_augmentation
from slicebook.data.dataset import PreparedData
from slicebook.data.loader import Batch, SliceBatches, explain_dead_worker
from slicebook.distributed import slice_generators, step_generator, summed, validation_generators
from slicebook.environment import InitialModel
from slicebook.errors import ConfigError
from slicebook.models.checkpoint import LoadedDecoder, LoadedTokenizer, load_decoder, save_decoder
from slicebook.models.flow import draw_times, gaussian, noisy, spread_times
from slicebook.models.flow_decoder import FlowDecoder
from slicebook.models.tokenizer import Tokenizer
from slicebook.training.ema import EMAModel, update_ema
from slicebook.training.progress import Display
from slicebook.training.resume import Progress
from slicebook.training.run import (
    DEFAULT_OPTIONS,
    TrainingOptions,
    lock_run,
    provenance,
    restart_run,
    state_to_resume,
    write_settings,
)
from slicebook.training.trainer import Trainer
from slicebook.training.warm_start import InitialWeights, initial_model, initial_record, load_initial

SPREAD_BATCHES = 16  # training batches from which the spread of residuals is measured


class DecoderObjective:
    """The training step of a generation decoder: the velocity of residuals at a random time.

    Its validation score is the share of the velocity's variance that the decoder explains, at most 1.
    """

    settings = "decoder.training"
    monitor: str | None = "explained"

    def __init__(
        self,
        tokenizer: LoadedTokenizer,
        recipe: Recipe,
        data: PreparedData,
        fabric: Fabric,
        initial: InitialModel | None = None,
    ) -> None:
        assert recipe.decoder is not None
        self.tokenizer: Tokenizer = tokenizer.tokenizer.to(fabric.device)
        self.config = recipe.decoder.training
        self.pair = EMAModel(FlowDecoder(recipe.decoder, self.tokenizer))
        self.module: nn.Module = self.pair  # the trainer replaces it by its wrapped module
        self.recipe, self.data, self.fabric, self.initial = recipe, data, fabric, initial

    def start_from(self, weights: InitialWeights, say: Callable[[str], None]) -> None:
        """Start the decoder from other weights."""
        weights.copy_to(self.pair.learner, say)
        self.pair.average.load_state_dict(self.pair.learner.state_dict())

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the trained parameters."""
        return [{"params": list(self.pair.learner.parameters()), "lr_scale": 1.0}]

    def setup(self, batches: SliceBatches) -> None:
        """Measure the spread of residuals."""
        squares: list[Tensor] = []
        for batch in itertools.islice(batches, SPREAD_BATCHES):
            images = batch.images.to(self.fabric.device)
            base, _ = self._decode(images)
            square = (self.tokenizer.pad(images) - base).square().mean()
            squares.append(summed(square * batch.part.count / batch.part.total, batch.part))
        for decoder in (self.pair.learner, self.pair.average):
            decoder.get_buffer("spread").copy_(torch.stack(squares).mean().sqrt())

    def training_step(self, batch: Batch, step: int, fraction: float) -> dict[str, Tensor]:
        """Return the mean squared error of the velocity."""
        update_ema(self.pair, self.config.ema, step)
        draw, part = step_generator(self.config.seed, step), batch.part
        images = batch.images
        if self.config.augment:
            change = draw_augmentation(self.config.augment, part.total, draw)[part.rows]
            images = augment(images, change)
        times = draw_times(part.total, draw)[part.rows]
        noise = slice_generators(self.config.seed, step, part)
        error, _ = self._errors(images, times, noise, averaged=False)
        return {"loss": error}

    def validation_step(self, batch: Batch) -> dict[str, Tensor]:
        """Return the explained share of the velocity's variance, for the averaged weights."""
        noise = validation_generators(self.config.seed, batch.indices)
        times, part = spread_times(batch.indices), batch.part
        errors = torch.stack(self._errors(batch.images, times, noise, averaged=True))
        error, variance = summed(errors * part.count / part.total, part)
        return {"loss": error, "explained": 1 - error / variance}

    def _errors(
        self, images: Tensor, times: Tensor, generators: Sequence[torch.Generator], *, averaged: bool
    ) -> tuple[Tensor, Tensor]:
        """Return mean squared error and variance of the velocity."""
        base, finest = self._decode(images)
        decoder = self.pair.average if averaged else self.pair.learner
        residual = (self.tokenizer.pad(images) - base) / decoder.get_buffer("spread")
        noise = gaussian(residual, generators)
        times = times.to(images.device, non_blocking=True)
        samples, velocity = noisy(residual, noise, times), residual - noise

        def predict(decoder: nn.Module) -> Tensor:
            estimate: Tensor = decoder(samples, base, finest, times)
            return (estimate.float() - velocity).square().mean()

        return self.module(predict, averaged=averaged), velocity.square().mean()

    @torch.no_grad()
    def _decode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokenizer's slices, padded, and the tokens of their finest grid."""
        padded = self.tokenizer.pad(images)
        tokens = self.tokenizer.encode(padded)
        base = self.tokenizer.decode_unchecked(tokens, (padded.shape[-2], padded.shape[-1]))
        return base.float(), tokens[0]

    def usage(self) -> dict[str, float]:
        """Return nothing."""
        return {}

    def epoch_metrics(self) -> dict[str, float]:
        """Return nothing."""
        return {}

    def save(self, path: Path, progress: Progress, scores: Mapping[str, float]) -> None:
        """Write the averaged decoder."""
        train = self.data.split("train")
        made = provenance(self.data, train, self.fabric.device, progress, scores, self.initial)
        decoder = self.pair.average
        assert isinstance(decoder, FlowDecoder)
        save_decoder(path, decoder, self.recipe, made)


def train_decoder(
    tokenizer: LoadedTokenizer,
    data: PreparedData,
    recipe: Recipe,
    out: Path,
    options: TrainingOptions = DEFAULT_OPTIONS,
) -> LoadedDecoder:
    """Train a generation decoder for a tokenizer, or resume its training.

    Args:
        tokenizer: Trained tokenizer; it is not changed.
        data: What it was trained on.
        recipe: Recipe with settings of `decoder`.
        out: Folder of this training.
        options: Device and the like.

    Raises:
        ConfigError: `out` holds a training with other settings, of another tokenizer, or something else; or
            the loss became NaN or infinite.
    """
    if recipe.decoder is None:
        raise ConfigError(f"recipe {recipe.name}: decoder is null, wanted settings for it")
    recipe = options.apply_seed(recipe, "decoder.training")
    weights = load_initial(options.start_from, "decoder")
    if options.restart:
        restart_run(out, options.launch())
    with lock_run(out):
        return _train(tokenizer, data, recipe, out, options, weights)


def _train(
    tokenizer: LoadedTokenizer,
    data: PreparedData,
    recipe: Recipe,
    out: Path,
    options: TrainingOptions,
    weights: InitialWeights | None,
) -> LoadedDecoder:
    assert recipe.decoder is not None
    config = recipe.decoder.training
    train, validation = data.split("train"), data.split("validation")
    identity = {
        "recipe": recipe.model_dump(mode="json", include={"decoder"}),
        "split_hash": data.split_hash,
        "tokenizers": [tokenizer.info.weights_sha256],
    }
    state = state_to_resume(out, identity)
    initial = initial_model(out, state, weights)
    fabric = options.launch()
    fabric.seed_everything(config.seed, verbose=False)
    batches = SliceBatches(
        train,
        config.batch_size,
        shuffle=True,
        seed=config.seed,
        workers=options.workers,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
    validation_batches = SliceBatches(
        validation,
        config.batch_size,
        workers=options.workers,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
    display = Display(out, shown=options.progress and fabric.is_global_zero)
    if fabric.is_global_zero:
        write_settings(out, recipe, config, state)
    objective = DecoderObjective(tokenizer, recipe, data, fabric, initial)
    if weights and state is None:
        objective.start_from(weights, display.say)
    trainer = Trainer(objective, config, out, identity | initial_record(initial), fabric)
    with display, explain_dead_worker():
        trainer(batches, validation_batches, state, display)
    fabric.barrier()
    return load_decoder(out, tokenizer)
