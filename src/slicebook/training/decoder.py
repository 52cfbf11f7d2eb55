"""Adversarial finetuning of a tokenizer's decoder, for generation. Tokens do not change.

The reconstruction loss is minimal for a blurred edge where tokens leave its position uncertain. A copy of the
decoder is therefore trained with a patch discriminator (Isola et al. 2017, https://arxiv.org/abs/1611.07004,
section 3.2.2), on encoded tokens and on samples of the prior. A sample has no original, so its image is
compared with that of the tokenizer's own decoder at low resolution: block averages over the cells of the
finest grid. Reconstruction keeps using the tokenizer's own decoder.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from lightning_fabric import Fabric
from torch import Tensor, nn

from slicebook.config import DecoderConfig, LossConfig, Recipe
from slicebook.data.augment import augment, draw_augmentation
from slicebook.data.dataset import PreparedData, SliceSet
from slicebook.data.loader import Batch, SliceBatches, explain_dead_worker
from slicebook.environment import InitialModel
from slicebook.errors import ConfigError
from slicebook.io.atomic import write_text
from slicebook.io.tensors import State, hash_tensors, load_kept, load_state, save_state
from slicebook.models.checkpoint import Kind, LoadedPrior, LoadedTokenizer, load_tokenizer, save_tokenizer
from slicebook.models.losses import loss
from slicebook.models.noise import denoise
from slicebook.models.sampling import SAMPLING_BATCH, sample
from slicebook.models.tokenizer import Reconstruction, Tokenizer
from slicebook.training.progress import Display
from slicebook.training.resume import Progress
from slicebook.training.run import DEFAULT_OPTIONS, TrainingOptions, lock_run, restart_run, state_to_resume
from slicebook.training.token_dataset import conditions_of
from slicebook.training.trainer import Trainer, provenance, step_generator, update_ema
from slicebook.training.warm_start import InitialWeights, initial_model, initial_record, load_initial

KIND: Kind = "generation decoder"
SAMPLES_NAME = "samples.safetensors"
FIRST_SEED = 2**62  # of the samples used for training, far above the seeds that users choose
SLOPE = 0.2  # negative slope of the leaky ReLUs
WARMUP = (0.2, 0.4)  # shares of the training between which the adversarial weight rises from 0
DISCRIMINATOR_LR_SCALE = 2.0  # over the decoder's learning rate (Heusel et al. 2017, section 2)
MOMENTUM = 0.1  # of the running (geometric) mean of the ratio of gradient norms

Samples = Mapping[tuple[int, int], Sequence[Int64[Tensor, "n _ _"]]]
"""Token grids sampled from a prior, finest first, by slice size."""
DECODE_BATCH = 16  # samples decoded at a time for the low-resolution targets


class Discriminator(nn.Module):
    """Patch discriminator with a receptive field of 30×30 pixels.

    Without normalisation layers, which would remove the strength of edges.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for wide, stride in ((width, 2), (2 * width, 2), (4 * width, 1)):
            layers += [nn.Conv2d(channels, wide, 4, stride=stride, padding=1), nn.LeakyReLU(SLOPE)]
            channels = wide
        self.body = nn.Sequential(*layers, nn.Conv2d(channels, 1, 3, padding=1))
        for layer in self.body:
            if isinstance(layer, nn.Conv2d):  # He et al. 2015: keeps the variance of activations
                nn.init.kaiming_normal_(layer.weight, SLOPE, nonlinearity="leaky_relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, images: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 _ _"]:
        """Return one logit per patch; above 0 is real."""
        logits: Tensor = self.body(images)
        return logits


class DecoderGAN(nn.Module):
    """The decoder in training, the moving average of its weights, which is saved, and the discriminator."""

    def __init__(self, tokenizer: Tokenizer, config: DecoderConfig, reconstruction_loss: LossConfig) -> None:
        super().__init__()
        self.average = copy.deepcopy(tokenizer).requires_grad_(False)
        self.learner = copy.deepcopy(self.average)
        for parameter in self.learner.pixel_decoder():
            parameter.requires_grad_(True)
        self.discriminator = Discriminator(config.discriminator_width)
        self.adaptive_weight: Tensor
        self.register_buffer("adaptive_weight", torch.zeros(()))  # 0 until the first step
        self.loss = reconstruction_loss
        self.lowres_weight = config.training.lowres_weight
        self.cell = tokenizer.config.scaling_rates[0]  # side in pixels

    def train(self, mode: bool = True) -> DecoderGAN:
        """Set the mode of the discriminator only: the tokenizers keep their batch norm statistics."""
        super().train(mode)
        self.average.eval()
        self.learner.eval()
        return self

    @torch.no_grad()
    def lowres_targets(self, grids: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Return the block averages of what the averaged decoder decodes from tokens."""
        parts = zip(*(torch.split(grid, DECODE_BATCH) for grid in grids), strict=True)
        return torch.cat([self.lowres(self.average.decode_unchecked(part, size).float()) for part in parts])

    def lowres(self, drawn: Tensor) -> Tensor:
        """Average images over the tokens of the finest grid."""
        return nn.functional.avg_pool2d(drawn, self.cell, ceil_mode=True)

    def forward(
        self, images: Tensor, sampled: Sequence[Tensor], lowres_targets: Tensor, weight: float, averaged: bool
    ) -> dict[str, Tensor]:
        """Return the scores of a batch; `loss` carries the gradients of decoder and discriminator.

        `sampled` are token grids sampled from a prior, `lowres_targets` the block averages of their
        images. Both are unused if the averaged weights are scored (`averaged`).
        """
        tokens = self.average.encode(images)
        size, count = (images.shape[-2], images.shape[-1]), len(images)
        if not averaged:
            both = [torch.cat(grids) for grids in zip(tokens, sampled, strict=True)]
            drawn = self.learner.decode_unchecked(both, size).float()
        else:
            drawn = self.average.decode_unchecked(tokens, size).float()
        rebuilt = drawn[:count]
        target = denoise(images, self.loss.denoise_strength) if self.loss.denoise_strength else images
        parts = loss(Reconstruction(rebuilt, tokens, images.new_zeros(())), images, self.loss)
        scores = {
            "reconstruction": parts.reconstruction,
            "ssim": parts.ssim,
            "sharpness": (_roughness(rebuilt) / _roughness(target)).detach(),
        }
        if averaged:
            return scores
        lowres_consistency = (self.lowres(drawn[count:]) - lowres_targets).abs().mean()
        (reconstruction_grad,) = torch.autograd.grad(
            parts.total + self.lowres_weight * lowres_consistency, drawn
        )
        logits = self.discriminator(drawn).float()
        # Divided afterwards: the gradient of a mean underflows in float16 (16-mixed).
        adversarial_grad = torch.autograd.grad(-logits.sum(), drawn)[0] / logits.numel()
        self._update_adaptive_weight(reconstruction_grad[:count], adversarial_grad[:count], fixed=weight > 0)
        at_pixels = reconstruction_grad + weight * self.adaptive_weight * adversarial_grad
        carrier = (drawn * at_pixels).sum()  # only its gradient is used
        real, false = self.discriminator(target).float(), self.discriminator(drawn.detach()).float()
        # The hinge loss (Lim & Ye 2017, https://arxiv.org/abs/1705.02894, section 3).
        discriminator_loss = (1 - real).relu().mean() + (1 + false).relu().mean()
        return scores | {
            "discriminator": discriminator_loss.detach(),
            "lowres_consistency": lowres_consistency.detach(),
            "loss": parts.reconstruction + carrier - carrier.detach() + discriminator_loss,
        }

    @torch.no_grad()
    def _update_adaptive_weight(
        self, reconstruction_grad: Tensor, adversarial_grad: Tensor, *, fixed: bool
    ) -> None:
        """Update the ratio of the norms of the reconstruction and adversarial gradients.

        It is fixed once the adversarial weight is above 0: a ratio measured at every step (Esser et al. 2021,
        eq. 7) would amplify a discriminator with vanishing gradients.
        """
        ratio = reconstruction_grad.norm() / adversarial_grad.norm().clamp(min=1e-12)
        mean = self.adaptive_weight if fixed else self.adaptive_weight ** (1 - MOMENTUM) * ratio**MOMENTUM
        # In place: DDP broadcasts the registered buffer.
        self.adaptive_weight.copy_(torch.where(self.adaptive_weight > 0, mean, ratio))


class DecoderObjective:
    """The training step of a generation decoder: reconstruction, low-resolution and adversarial loss."""

    monitor: str | None = None

    def __init__(
        self,
        tokenizer: LoadedTokenizer,
        samples: Samples,
        recipe: Recipe,
        data: PreparedData,
        fabric: Fabric,
        initial: InitialModel | None = None,
    ) -> None:
        assert recipe.decoder is not None
        self.initial = initial
        self.config = recipe.decoder
        self.samples = samples
        self.adversaries = DecoderGAN(tokenizer.tokenizer, self.config, recipe.training.loss)
        self.adversaries.to(fabric.device)
        self.lowres_targets = {
            size: self.adversaries.lowres_targets([grid.to(fabric.device) for grid in grids], size)
            for size, grids in samples.items()
        }
        self.module: nn.Module = self.adversaries  # the trainer replaces it by its wrapped module
        self.recipe = recipe
        self.data = data
        self.fabric = fabric

    def start_from(self, weights: InitialWeights, say: Callable[[str], None]) -> None:
        """Start the decoder, but not what its samples are compared with, from other weights."""
        weights.copy_to(self.adversaries.average.network.pixel_decoder, say)
        self.adversaries.learner.load_state_dict(self.adversaries.average.state_dict())

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the parameters of the decoder, and of the discriminator with a higher learning rate."""
        return [
            {"params": list(self.adversaries.learner.pixel_decoder()), "lr_scale": 1.0},
            {"params": list(self.adversaries.discriminator.parameters()), "lr_scale": DISCRIMINATOR_LR_SCALE},
        ]

    def setup(self, batches: Iterable[Batch]) -> None:
        """Do nothing."""

    def training_step(self, batch: Batch, step: int, fraction: float) -> dict[str, Tensor]:
        """Return the scores of a batch of augmented slices and as many samples."""
        config = self.config.training
        update_ema(self.adversaries.average, self.adversaries.learner, config.ema, step)
        draw = step_generator(config.seed, step, self.fabric.global_rank)
        images = batch.images.contiguous(memory_format=torch.channels_last)
        if config.augment:
            images = augment(images, draw_augmentation(config.augment, len(images), draw))
        start, end = WARMUP
        weight = config.adversarial_weight * min(1.0, max(0.0, (fraction - start) / (end - start)))
        size = (images.shape[-2], images.shape[-1])
        grids, lowres_targets = self.samples[size], self.lowres_targets[size]
        rows = torch.randint(len(grids[0]), (len(images),), generator=draw)
        sampled = [grid[rows].to(images.device) for grid in grids]
        scores: dict[str, Tensor] = self.module(
            images, sampled, lowres_targets[rows.to(lowres_targets.device)], weight, averaged=False
        )
        return scores

    def validation_step(self, batch: Batch) -> dict[str, Tensor]:
        """Return reconstruction loss, SSIM and sharpness (1 for real slices) of the averaged weights."""
        unused = batch.images.new_zeros(())
        scores: dict[str, Tensor] = self.module(batch.images, (), unused, 0.0, averaged=True)
        return scores

    def usage(self) -> dict[str, float]:
        """Return nothing."""
        return {}

    def epoch_metrics(self) -> dict[str, float]:
        """Return nothing."""
        return {}

    def save(self, path: Path, progress: Progress, scores: Mapping[str, float]) -> None:
        """Write the tokenizer with the averaged decoder."""
        train = self.data.split("train")
        made = provenance(self.data, train, self.fabric.device, progress, scores, self.initial)
        save_tokenizer(path, self.adversaries.average, self.recipe, made, kind=KIND)


def draw_samples(
    loaded: LoadedPrior, train: SliceSet, count: int, path: Path, *, display: Display
) -> Samples:
    """Sample from a prior with the conditions of training slices, or read saved samples.

    Args:
        loaded: The prior; its decoder is not used.
        train: Training slices; each slice size has its share of the samples, and at least one batch.
        count: Number of samples.
        path: File of the samples.
        display: Receives a line per slice size.
    """
    made_from = {"prior": hash_tensors(loaded.prior.state_dict()), "count": count}
    rows = load_kept(path, made_from)
    if rows is None:
        rows = {}
        for kind in loaded.info.slices:
            share = max(SAMPLING_BATCH, round(count * kind.slices / len(train)))
            display.say(f"{share} samples of {kind.rows}×{kind.columns} for training the decoder")
            alike = [r for r in train.records if (r.rows, r.columns) == (kind.rows, kind.columns)]
            chosen = np.random.default_rng(FIRST_SEED).integers(0, len(alike), share)
            conditions = conditions_of([alike[index] for index in chosen], loaded.info.classes)
            layout = loaded.tokenizer.layout((kind.rows, kind.columns))
            seeds = [FIRST_SEED + index for index in range(share)]
            rows[f"{kind.rows}x{kind.columns}"] = sample(loaded.prior, layout, seeds, conditions)
        save_state(path, State(rows, made_from))
    return _grids(loaded, rows)


def read_samples(loaded: LoadedPrior, folder: Path) -> Samples:
    """Return the samples that the decoder in `folder` was trained on."""
    return _grids(loaded, load_state(folder / SAMPLES_NAME).tensors)


def _grids(loaded: LoadedPrior, rows: Mapping[str, Tensor]) -> Samples:
    sizes = [(kind.rows, kind.columns) for kind in loaded.info.slices]
    return {size: loaded.tokenizer.grids(rows[f"{size[0]}x{size[1]}"], size)["image"] for size in sizes}


def train_decoder(
    tokenizer: LoadedTokenizer,
    prior: LoadedPrior,
    data: PreparedData,
    recipe: Recipe,
    out: Path,
    options: TrainingOptions = DEFAULT_OPTIONS,
) -> LoadedTokenizer:
    """Train a copy of a tokenizer's decoder, or resume; return the tokenizer with the new decoder.

    Args:
        tokenizer: Trained tokenizer; it is not changed.
        prior: Prior over its tokens, which provides samples.
        data: What both were trained on.
        recipe: Recipe with settings of `decoder`.
        out: Folder of this training.
        options: Device and the like.

    Raises:
        ConfigError: `out` holds a training with other settings, of another tokenizer or prior, or something
            else; or the loss became NaN or infinite.
    """
    if recipe.decoder is None:
        raise ConfigError(f"recipe {recipe.name}: decoder is null, wanted settings for it")
    recipe = options.apply_seed(recipe, "decoder.training")
    weights = load_initial(options.start_from, "decoder")
    if options.restart:
        restart_run(out, options.launch())
    with lock_run(out):
        return _train(tokenizer, prior, data, recipe, out, options, weights)


def _train(
    tokenizer: LoadedTokenizer,
    prior: LoadedPrior,
    data: PreparedData,
    recipe: Recipe,
    out: Path,
    options: TrainingOptions,
    weights: InitialWeights | None,
) -> LoadedTokenizer:
    assert recipe.decoder is not None
    config = recipe.decoder.training
    train, validation = data.split("train"), data.split("validation")
    identity = {
        "recipe": recipe.model_dump(mode="json", include={"decoder"}),
        "split_hash": data.split_hash,
        "tokenizers": [tokenizer.info.weights_sha256, hash_tensors(prior.prior.state_dict())],
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
    validation_batches = SliceBatches(validation, config.batch_size, workers=options.workers)
    display = Display(out, shown=options.progress and fabric.is_global_zero)
    if state is None and fabric.is_global_zero:
        write_text(out / "config.yaml", recipe.to_yaml())
    with fabric.rank_zero_first():
        samples = draw_samples(prior, train, recipe.decoder.samples, out / SAMPLES_NAME, display=display)
    objective = DecoderObjective(tokenizer, samples, recipe, data, fabric, initial)
    if weights and state is None:
        objective.start_from(weights, display.say)
    trainer = Trainer(objective, config, out, identity | initial_record(initial), fabric)
    with display, explain_dead_worker():
        trainer(batches, validation_batches, state, display)
    fabric.barrier()
    return load_tokenizer(out, kind=KIND)


def _roughness(images: Float[Tensor, "b 1 h w"]) -> Float[Tensor, ""]:
    """Root mean square difference of neighbouring pixels, a measure of sharpness."""
    down, right = images.diff(dim=-2).square().mean(), images.diff(dim=-1).square().mean()
    return (down + right).sqrt()
