"""Teach a trained tokenizer's last decoder to draw crisply, for generation. No token changes.

The loss that a tokenizer learns from is least for a soft edge wherever the tokens leave its place open:
faithful, but no real slice looks so. Here a copy of the last decoder goes on with a discriminator (Isola et
al. 2017, https://arxiv.org/abs/1611.07004, section 3.2.2). Reconstruction keeps the faithful one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor, nn

from slicebook.checkpoint import Kind, LoadedTokenizer, load_tokenizer, save_tokenizer
from slicebook.config import DecoderConfig, LossConfig, Recipe
from slicebook.dataset import Batch, PreparedData, SliceBatches, augment, draw_augmentation
from slicebook.devices import launch
from slicebook.display import Display
from slicebook.errors import ConfigError
from slicebook.grain import smooth
from slicebook.objectives import Progress, draw_for, provenance, update_average
from slicebook.run_folder import open_run
from slicebook.tokenizer import Reconstruction, Tokenizer, loss
from slicebook.training import Fit

KIND: Kind = "decoder of generation"
SLOPE = 0.2  # of the leaky rectifiers
WARMUP = (0.05, 0.1)  # shares of the training between which the adversarial weight rises from 0
DISCRIMINATOR_LR_SCALE = 2.0  # over the decoder's learning rate (Heusel et al. 2017, section 2)


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


class _Adversaries(nn.Module):
    """A decoder that learns, the average of its weights that is kept, and the discriminator between them."""

    def __init__(self, tokenizer: Tokenizer, config: DecoderConfig, judged_by: LossConfig) -> None:
        super().__init__()
        self.average = copy.deepcopy(tokenizer).requires_grad_(False)
        self.learner = copy.deepcopy(self.average)
        for parameter in self.learner.last_decoder():
            parameter.requires_grad_(True)
        self.discriminator = Discriminator(config.discriminator_width)
        self.loss = judged_by

    def train(self, mode: bool = True) -> _Adversaries:
        """Set the mode of the discriminator alone: both tokenizers keep their batch norm's statistics."""
        super().train(mode)
        self.average.eval()
        self.learner.eval()
        return self

    def forward(self, images: Tensor, weight: float, averaged: bool) -> dict[str, Tensor]:
        """Return the scores of a batch; to learn from, `loss` carries the gradients of both sides."""
        tokens = self.average.encode(images)
        size = (images.shape[-2], images.shape[-1])
        drawn = (self.average if averaged else self.learner).render(tokens, size).float()
        target = smooth(images, self.loss.smooth) if self.loss.smooth else images
        parts = loss(Reconstruction(drawn, tokens, images.new_zeros(())), images, self.loss)
        scores = {
            "fidelity": parts.fidelity,
            "ssim": parts.ssim,
            "sharpness": (_roughness(drawn) / _roughness(target)).detach(),
        }
        if averaged:
            return scores
        # Two gradients at the pixels, of lengths in a fixed proportion (after Esser et al. 2021, eq. 7).
        (pull,) = torch.autograd.grad(parts.total, drawn)
        (push,) = torch.autograd.grad(-self.discriminator(drawn).float().mean(), drawn)
        at_pixels = pull + weight * pull.norm() / push.norm().clamp(min=1e-12) * push
        carrier = (drawn * at_pixels).sum()  # its gradient is wanted, its value is not
        real, false = self.discriminator(target).float(), self.discriminator(drawn.detach()).float()
        # The hinge loss (Lim & Ye 2017, https://arxiv.org/abs/1705.02894, section 3).
        discriminator_loss = (1 - real).relu().mean() + (1 + false).relu().mean()
        return scores | {
            "discriminator": discriminator_loss.detach(),
            "loss": parts.fidelity + carrier - carrier.detach() + discriminator_loss,
        }


class DecoderObjective:
    """The training step of a last decoder: tokens, a drawing of them, and two judges."""

    best: str | None = None

    def __init__(
        self, tokenizer: LoadedTokenizer, recipe: Recipe, data: PreparedData, fabric: Fabric
    ) -> None:
        assert recipe.decoder is not None
        self.config = recipe.decoder
        self.adversaries = _Adversaries(tokenizer.tokenizer, self.config, recipe.training.loss)
        self.module: nn.Module = self.adversaries  # the loop puts its wrapped form here
        self.recipe = recipe
        self.data = data
        self.fabric = fabric

    def groups(self) -> list[dict[str, Any]]:
        """Return the decoder's parameters, and the discriminator's, which learn faster."""
        return [
            {"params": list(self.adversaries.learner.last_decoder()), "lr_scale": 1.0},
            {"params": list(self.adversaries.discriminator.parameters()), "lr_scale": DISCRIMINATOR_LR_SCALE},
        ]

    def start(self, batches: Iterable[Batch]) -> None:
        """Nothing to prepare."""

    def step(self, batch: Batch, step: int, fraction: float) -> dict[str, Tensor]:
        """Return the scores of slices, some mirrored."""
        config = self.config.training
        update_average(self.adversaries.average, self.adversaries.learner, config.ema, step)
        draw = draw_for(config.seed, step, self.fabric.global_rank)
        images = batch.images.contiguous(memory_format=torch.channels_last)
        if config.augment:
            images = augment(images, draw_augmentation(config.augment, len(images), draw))
        start, end = WARMUP
        weight = config.adversarial * min(1.0, max(0.0, (fraction - start) / (end - start)))
        scores: dict[str, Tensor] = self.module(images, weight, averaged=False)
        return scores

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Return the averaged weights' fidelity (a loss), SSIM, and sharpness; 1 is that of real slices."""
        scores: dict[str, Tensor] = self.module(batch.images, 0.0, averaged=True)
        return scores

    def usage(self) -> dict[str, float]:
        """Nothing to tell."""
        return {}

    def report(self) -> dict[str, float]:
        """Nothing to tell."""
        return {}

    def save(self, path: Path, progress: Progress, scores: Mapping[str, float]) -> None:
        """Write the tokenizer with the averaged decoder."""
        train = self.data.split("train")
        made = provenance(self.data, train, self.fabric.device, progress, scores)
        save_tokenizer(path, self.adversaries.average, self.recipe, made, kind=KIND)


def train_decoder(
    tokenizer: LoadedTokenizer,
    data: PreparedData,
    recipe: Recipe,
    out: Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    progress: bool = True,
) -> LoadedTokenizer:
    """Train a copy of a tokenizer's last decoder as `recipe.decoder` says, or go on; return the whole.

    Args:
        tokenizer: Trained. Left as it is.
        data: What it was trained on.
        recipe: Its recipe; `decoder` is not None.
        out: Folder of this training.
        device: As in `train_tokenizer`.
        precision: As in `train_tokenizer`.
        progress: Show the progress.

    Raises:
        ConfigError: `out` holds a training with other settings, of another tokenizer, or something else; or
            the loss left the numbers.
    """
    if recipe.decoder is None:
        raise ConfigError(f"recipe {recipe.name}: decoder is null, wanted settings for it")
    config = recipe.decoder.training
    train, validation = data.split("train"), data.split("validation")
    identity = {
        "recipe": recipe.model_dump(mode="json", include={"decoder"}),
        "split_hash": data.split_hash,
        "book": [tokenizer.info.weights_sha256],
    }
    state = open_run(out, identity)
    fabric = launch(device, precision)
    fabric.seed_everything(config.seed, verbose=False)
    batches = SliceBatches(
        train,
        config.batch_size,
        shuffle=True,
        seed=config.seed,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
    display = Display(out, shown=progress and fabric.is_global_zero)
    if state is None and fabric.is_global_zero:
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    fit = Fit(DecoderObjective(tokenizer, recipe, data, fabric), config, out, identity, fabric)
    with display:
        fit(batches, SliceBatches(validation, config.batch_size), state, display)
    fabric.barrier()
    return load_tokenizer(out, kind=KIND)


def _roughness(images: Float[Tensor, "b 1 h w"]) -> Float[Tensor, ""]:
    """Root mean square difference of neighbouring pixels: soft edges have less."""
    down, right = images.diff(dim=-2).square().mean(), images.diff(dim=-1).square().mean()
    return (down + right).sqrt()
