"""Teach a trained tokenizer's last decoder to draw crisply, for generation. No token changes.

The loss that a tokenizer learns from is least for a soft edge wherever the tokens leave its place open:
faithful, but no real slice looks so, and least of all one drawn from tokens that a prior sampled. Here a copy
of the last decoder goes on with a discriminator (Isola et al. 2017, https://arxiv.org/abs/1611.07004, section
3.2.2), which judges drawings of both kinds of tokens. A sample has no original to be true to, so its drawing
is held to what the faithful decoder makes of it, on the average over each cell of the finest grid: what lies
within a cell is free. Reconstruction keeps the faithful decoder.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
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
from slicebook.errors import ConfigError
from slicebook.io.atomic import write_text
from slicebook.io.tensors import State, hash_tensors, load_kept, load_state, save_state
from slicebook.models.checkpoint import Kind, LoadedPrior, LoadedTokenizer, load_tokenizer, save_tokenizer
from slicebook.models.losses import loss
from slicebook.models.noise import denoise
from slicebook.models.sampling import SAMPLING_BATCH, sample
from slicebook.models.tokenizer import Reconstruction, Tokenizer
from slicebook.training.progress import Display
from slicebook.training.run import DEFAULT_OPTIONS, TrainingOptions, hold_run, open_run, restart_run
from slicebook.training.token_dataset import conditions_of
from slicebook.training.trainer import Progress, Trainer, provenance, step_generator, update_ema

KIND: Kind = "generation decoder"
SAMPLES_NAME = "samples.safetensors"
FIRST_SEED = 2**62  # of the samples that are learned from: no user starts so high, so none is drawn again
SLOPE = 0.2  # of the leaky rectifiers
WARMUP = (0.2, 0.4)  # shares of the training between which the adversarial weight rises from 0
DISCRIMINATOR_LR_SCALE = 2.0  # over the decoder's learning rate (Heusel et al. 2017, section 2)
SETTLING = 0.1  # share that a step has in the running mean of the pulls' proportion

Samples = Mapping[tuple[int, int], Sequence[Int64[Tensor, "n _ _"]]]
"""Of each size of slice, the token grids that a prior drew, finest first."""
AT_ONCE = 16  # samples that the faithful decoder draws


class Discriminator(nn.Module):
    """Tells real patches from drawn ones: each of its outputs sees 30 pixels a side.

    Without norms: they would take away how strong an edge is.
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
            if isinstance(layer, nn.Conv2d):  # He et al. 2015: signals keep their size from layer to layer
                nn.init.kaiming_normal_(layer.weight, SLOPE, nonlinearity="leaky_relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, images: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 _ _"]:
        """Return a verdict a patch: above 0 is real."""
        verdicts: Tensor = self.body(images)
        return verdicts


class DecoderGAN(nn.Module):
    """A decoder that learns, the average of its weights that is kept, and the discriminator between them."""

    def __init__(self, tokenizer: Tokenizer, config: DecoderConfig, judged_by: LossConfig) -> None:
        super().__init__()
        self.average = copy.deepcopy(tokenizer).requires_grad_(False)
        self.learner = copy.deepcopy(self.average)
        for parameter in self.learner.pixel_decoder():
            parameter.requires_grad_(True)
        self.discriminator = Discriminator(config.discriminator_width)
        self.adaptive_weight: Tensor
        self.register_buffer("adaptive_weight", torch.zeros(()))  # not known yet
        self.loss = judged_by
        self.lowres_weight = config.training.lowres_weight
        self.cell = tokenizer.config.scaling_rates[0]  # pixels of a side

    def train(self, mode: bool = True) -> DecoderGAN:
        """Set the mode of the discriminator alone: both tokenizers keep their batch norm's statistics."""
        super().train(mode)
        self.average.eval()
        self.learner.eval()
        return self

    @torch.no_grad()
    def lowres_targets(self, grids: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Return the block averages of what the averaged decoder decodes from tokens."""
        parts = zip(*(torch.split(grid, AT_ONCE) for grid in grids), strict=True)
        return torch.cat([self.lowres(self.average.decode_unchecked(part, size).float()) for part in parts])

    def lowres(self, drawn: Tensor) -> Tensor:
        """Average images over the tokens of the finest grid."""
        return nn.functional.avg_pool2d(drawn, self.cell, ceil_mode=True)

    def forward(
        self, images: Tensor, sampled: Sequence[Tensor], lowres_targets: Tensor, weight: float, averaged: bool
    ) -> dict[str, Tensor]:
        """Return the scores of a batch; to learn from, `loss` carries the gradients of both sides.

        `sampled` are token grids that a prior drew, and `lowres_targets` the block averages of the faithful
        decoder's images of them. Neither is used where the averaged weights are scored.
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
        verdicts = self.discriminator(drawn).float()
        # Divided afterwards: the gradient of a mean is too small for float16, which 16-mixed computes it in.
        adversarial_grad = torch.autograd.grad(-verdicts.sum(), drawn)[0] / verdicts.numel()
        self._weigh(reconstruction_grad[:count], adversarial_grad[:count], settled=weight > 0)
        at_pixels = reconstruction_grad + weight * self.adaptive_weight * adversarial_grad
        carrier = (drawn * at_pixels).sum()  # its gradient is wanted, its value is not
        real, false = self.discriminator(target).float(), self.discriminator(drawn.detach()).float()
        # The hinge loss (Lim & Ye 2017, https://arxiv.org/abs/1705.02894, section 3).
        discriminator_loss = (1 - real).relu().mean() + (1 + false).relu().mean()
        return scores | {
            "discriminator": discriminator_loss.detach(),
            "lowres_consistency": lowres_consistency.detach(),
            "loss": parts.reconstruction + carrier - carrier.detach() + discriminator_loss,
        }

    @torch.no_grad()
    def _weigh(self, reconstruction_grad: Tensor, adversarial_grad: Tensor, *, settled: bool) -> None:
        """Measure what makes the discriminator's gradient at the pixels as long as the loss's.

        Once settled it stays: a proportion kept in every step (Esser et al. 2021, eq. 7) would amplify a
        discriminator that has nothing to say.
        """
        ratio = reconstruction_grad.norm() / adversarial_grad.norm().clamp(min=1e-12)
        mean = self.adaptive_weight if settled else self.adaptive_weight ** (1 - SETTLING) * ratio**SETTLING
        # In place: several processes share the buffer that they began with.
        self.adaptive_weight.copy_(torch.where(self.adaptive_weight > 0, mean, ratio))


class DecoderObjective:
    """The training step of a last decoder: tokens, a drawing of them, and two judges."""

    monitor: str | None = None

    def __init__(
        self,
        tokenizer: LoadedTokenizer,
        samples: Samples,
        recipe: Recipe,
        data: PreparedData,
        fabric: Fabric,
    ) -> None:
        assert recipe.decoder is not None
        self.config = recipe.decoder
        self.samples = samples
        self.adversaries = DecoderGAN(tokenizer.tokenizer, self.config, recipe.training.loss)
        self.adversaries.to(fabric.device)
        self.lowres_targets = {
            size: self.adversaries.lowres_targets([grid.to(fabric.device) for grid in grids], size)
            for size, grids in samples.items()
        }
        self.module: nn.Module = self.adversaries  # the loop puts its wrapped form here
        self.recipe = recipe
        self.data = data
        self.fabric = fabric

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the decoder's parameters, and the discriminator's, which learn faster."""
        return [
            {"params": list(self.adversaries.learner.pixel_decoder()), "lr_scale": 1.0},
            {"params": list(self.adversaries.discriminator.parameters()), "lr_scale": DISCRIMINATOR_LR_SCALE},
        ]

    def setup(self, batches: Iterable[Batch]) -> None:
        """Nothing to prepare."""

    def training_step(self, batch: Batch, step: int, fraction: float) -> dict[str, Tensor]:
        """Return the scores of slices, some mirrored, and of as many samples."""
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
        """Return the averaged weights' reconstruction loss, SSIM, and sharpness; 1 is that of real slices."""
        nothing = batch.images.new_zeros(())
        scores: dict[str, Tensor] = self.module(batch.images, (), nothing, 0.0, averaged=True)
        return scores

    def usage(self) -> dict[str, float]:
        """Nothing to tell."""
        return {}

    def epoch_metrics(self) -> dict[str, float]:
        """Nothing to tell."""
        return {}

    def save(self, path: Path, progress: Progress, scores: Mapping[str, float]) -> None:
        """Write the tokenizer with the averaged decoder."""
        train = self.data.split("train")
        made = provenance(self.data, train, self.fabric.device, progress, scores)
        save_tokenizer(path, self.adversaries.average, self.recipe, made, kind=KIND)


def draw_samples(
    loaded: LoadedPrior, train: SliceSet, count: int, path: Path, *, display: Display
) -> Samples:
    """Draw from a prior under conditions of training slices, or read what was drawn before.

    Args:
        loaded: The prior; its tokens alone matter, not its decoder.
        train: Each size of slice has its share of the samples, and at least a group.
        count: Of the samples.
        path: Where they are kept.
        display: Says how many are drawn.
    """
    made_from = {"prior": hash_tensors(loaded.prior.state_dict()), "count": count}
    rows = load_kept(path, made_from)
    if rows is None:
        rows = {}
        for kind in loaded.info.slices:
            share = max(SAMPLING_BATCH, round(count * kind.slices / len(train)))
            display.say(f"{share} samples of {kind.rows}×{kind.columns}, for the decoder to learn from")
            alike = [r for r in train.records if (r.rows, r.columns) == (kind.rows, kind.columns)]
            chosen = np.random.default_rng(FIRST_SEED).integers(0, len(alike), share)
            conditions = conditions_of([alike[index] for index in chosen], loaded.info.classes)
            layout = loaded.tokenizer.layout((kind.rows, kind.columns))
            seeds = [FIRST_SEED + index for index in range(share)]
            rows[f"{kind.rows}x{kind.columns}"] = sample(loaded.prior, layout, seeds, conditions)
        save_state(path, State(rows, made_from))
    return _grids(loaded, rows)


def read_samples(loaded: LoadedPrior, folder: Path) -> Samples:
    """Return the samples of a prior that a decoder in `folder` was trained on."""
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
    """Train a copy of a tokenizer's last decoder as `recipe.decoder` says, or resume; return the whole.

    Args:
        tokenizer: Trained. Left as it is.
        prior: Trained over its tokens; its samples are judged beside what the tokenizer rebuilds.
        data: What both were trained on.
        recipe: Its recipe; `decoder` is not None.
        out: Folder of this training.
        options: Device and the like.

    Raises:
        ConfigError: `out` holds a training with other settings, of another tokenizer or prior, or something
            else; or the loss became NaN or infinite.
    """
    if recipe.decoder is None:
        raise ConfigError(f"recipe {recipe.name}: decoder is null, wanted settings for it")
    recipe = options.apply_seed(recipe, "decoder.training")
    if options.restart:
        restart_run(out, options.launch())
    with hold_run(out):
        return _train(tokenizer, prior, data, recipe, out, options)


def _train(
    tokenizer: LoadedTokenizer,
    prior: LoadedPrior,
    data: PreparedData,
    recipe: Recipe,
    out: Path,
    options: TrainingOptions,
) -> LoadedTokenizer:
    assert recipe.decoder is not None
    config = recipe.decoder.training
    train, validation = data.split("train"), data.split("validation")
    identity = {
        "recipe": recipe.model_dump(mode="json", include={"decoder"}),
        "split_hash": data.split_hash,
        "book": [tokenizer.info.weights_sha256, hash_tensors(prior.prior.state_dict())],
    }
    state = open_run(out, identity)
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
    objective = DecoderObjective(tokenizer, samples, recipe, data, fabric)
    trainer = Trainer(objective, config, out, identity, fabric)
    with display, explain_dead_worker():
        trainer(batches, validation_batches, state, display)
    fabric.barrier()
    return load_tokenizer(out, kind=KIND)


def _roughness(images: Float[Tensor, "b 1 h w"]) -> Float[Tensor, ""]:
    """Root mean square difference of neighbouring pixels: soft edges have less."""
    down, right = images.diff(dim=-2).square().mean(), images.diff(dim=-1).square().mean()
    return (down + right).sqrt()
