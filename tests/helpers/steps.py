"""Every kind of training step on a device, for tests of devices."""

import torch
from helpers.training import tiny
from lightning_fabric import Fabric

from slicebook.data.dataset import PreparedData
from slicebook.data.loader import Batch, SliceBatches
from slicebook.models.checkpoint import load_prior, load_tokenizer
from slicebook.models.conditions import Conditions
from slicebook.models.tokenizer import Tokenizer
from slicebook.training.decoder import DecoderObjective
from slicebook.training.prior import PriorObjective
from slicebook.training.token_dataset import TokenBatch
from slicebook.training.tokenizer import LabelObjective, TokenizerObjective

SETTINGS = [
    ("training.loss.level_dropout=0.2", "training.augment.contrast.probability=0.5"),
    ("training.loss.denoise_strength=2",),
    ("training.loss.kind=mse", "training.augment=null"),
    ("tokenizer.architecture=vqvae2", "tokenizer.resize=[32, 32]"),
]
"""Of tokenizers: together they take every path of a training step."""


def fabric(kind="cpu"):
    return Fabric(accelerator=kind, devices=1)


def backward(objective, batch):
    """Run steps with and without a reset of dead codes, early and late in a training; return all scores."""
    scores = []
    objective.module.train()
    for step, fraction in ((0, 0.0), (19, 0.5), (1, 0.99)):
        scores.append(objective.training_step(batch, step, fraction))
        scores[-1]["loss"].backward()
    with torch.no_grad():
        objective.module.eval()
        scores.append(objective.validation_step(batch))
    return [value for row in scores for value in row.values()]


def tokenizer_step(trained, settings, fabric):
    """Return an objective on the device of `fabric`, and a batch, as do all that follow."""
    recipe, data = tiny(*settings), PreparedData.open(trained.data)
    objective = TokenizerObjective(Tokenizer(recipe.tokenizer).to(fabric.device), recipe, data, fabric)
    return objective, next(iter(SliceBatches(data.split("train"), 4))).to(fabric.device)


def mask_step(trained, fabric):
    loaded = load_tokenizer(trained.run / "prior" / "masks", kind="label tokenizer")
    data = PreparedData.open(trained.data)
    objective = LabelObjective(loaded.tokenizer.to(fabric.device), loaded.info.recipe, data, fabric)
    return objective, next(iter(SliceBatches(data.split("train"), 4, what="labels"))).to(fabric.device)


def prior_step(trained, fabric, count=3):
    loaded = load_prior(trained.run)
    config = loaded.info.recipe.prior.training
    objective = PriorObjective(loaded.prior, config, fabric, lambda *_: None)
    objective.module.to(fabric.device)
    size = (loaded.info.slices[0].rows, loaded.info.slices[0].columns)
    layout = loaded.tokenizer.layout(size)
    tokens = torch.zeros(count, layout.starts[-1], dtype=torch.long)
    conditions = Conditions(torch.rand(count), torch.zeros(count, dtype=torch.long))
    return objective, TokenBatch(layout, tokens, conditions, torch.arange(count)).to(fabric.device)


def decoder_step(trained, fabric):
    loaded = load_tokenizer(trained.run)
    data, recipe = PreparedData.open(trained.data), loaded.info.recipe
    objective = DecoderObjective(loaded, recipe, data, fabric)
    objective.module.to(fabric.device)
    batch = next(iter(SliceBatches(data.split("train"), 4)))
    return objective, Batch(batch.images, batch.indices).to(fabric.device)
