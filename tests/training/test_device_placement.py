"""Every kind of step on another device, without one: all tensors are on `meta`.

A tensor left on the CPU raises, and so does every wait for a value: a meta tensor has none.
"""

import contextlib

import pytest
import torch
from helpers.training import tiny
from lightning_fabric import Fabric

from slicebook.data.dataset import PreparedData
from slicebook.data.loader import Batch, SliceBatches
from slicebook.models.checkpoint import load_prior, load_tokenizer
from slicebook.models.sampling import SamplingSettings, sample
from slicebook.models.tokenizer import Tokenizer
from slicebook.models.transformer import Conditions
from slicebook.training.decoder import DecoderGAN, DecoderObjective
from slicebook.training.prior import PriorObjective
from slicebook.training.token_dataset import TokenBatch
from slicebook.training.tokenizer import LabelObjective, TokenizerObjective

META = torch.device("meta")


@pytest.fixture(autouse=True)
def on_meta(monkeypatch):
    """Let Fabric choose `meta`, and autocast do nothing there: torch has none for it."""
    whole = torch.autocast

    def autocast(device_type, *arguments, **options):
        if device_type == "meta":
            return contextlib.nullcontext()
        return whole(device_type, *arguments, **options)

    monkeypatch.setattr(torch, "autocast", autocast)
    monkeypatch.setattr(Fabric, "device", property(lambda _: META))


def fabric():
    return Fabric(accelerator="cpu", devices=1)


def backward(objective, batch):
    """Run steps with and without a reset of dead codes, early and late in a training."""
    objective.module.train()
    for step, fraction in ((0, 0.0), (19, 0.5), (1, 0.99)):
        scores = objective.training_step(batch, step, fraction)
        assert {value.device.type for value in scores.values()} == {"meta"}
        scores["loss"].backward()
    with torch.no_grad():
        objective.module.eval()
        scores = objective.validation_step(batch)
    assert {value.device.type for value in scores.values()} == {"meta"}


@pytest.mark.parametrize(
    "settings",
    [
        ("training.loss.level_dropout=0.2", "training.augment.contrast.probability=0.5"),
        ("training.loss.denoise_strength=2",),
        ("training.loss.kind=mse", "training.augment=null"),
        ("tokenizer.architecture=vqvae2", "tokenizer.resize=[32, 32]"),
    ],
)
def test_a_training_step_of_a_tokenizer(settings, trained):
    recipe, data = tiny(*settings), PreparedData.open(trained.data)
    objective = TokenizerObjective(Tokenizer(recipe.tokenizer).to(META), recipe, data, fabric())
    backward(objective, next(iter(SliceBatches(data.split("train"), 4))).to(META))


def test_a_training_step_of_a_mask_tokenizer(trained):
    loaded = load_tokenizer(trained.run / "prior" / "masks", kind="label tokenizer")
    data = PreparedData.open(trained.data)
    objective = LabelObjective(loaded.tokenizer.to(META), loaded.info.recipe, data, fabric())
    backward(objective, next(iter(SliceBatches(data.split("train"), 4, what="labels"))).to(META))


def token_batch(loaded, count=3):
    size = (loaded.info.slices[0].rows, loaded.info.slices[0].columns)
    layout = loaded.tokenizer.layout(size)
    tokens = torch.zeros(count, layout.starts[-1], dtype=torch.long)
    conditions = Conditions(torch.rand(count), torch.zeros(count, dtype=torch.long))
    return TokenBatch(layout, tokens, conditions, torch.arange(count))


def test_a_training_step_of_a_prior(trained):
    loaded = load_prior(trained.run)
    config = loaded.info.recipe.prior.training
    objective = PriorObjective(loaded.prior, config, fabric(), lambda *_: None)
    objective.module.to(META)
    backward(objective, token_batch(loaded).to(META))


def test_a_training_step_of_a_decoder(trained, monkeypatch):
    loaded = load_tokenizer(trained.run)
    data, recipe = PreparedData.open(trained.data), loaded.info.recipe
    samples = {
        size: [torch.zeros(6, *grid, dtype=torch.long) for grid in loaded.tokenizer.grids(size)]
        for size in ((32, 64), (36, 64))
    }
    # Only tokens of unknown origin are checked, which reads their values.
    monkeypatch.setattr(Tokenizer, "_validate_images", lambda self, images: images)
    objective = DecoderObjective(loaded, samples, recipe, data, fabric())
    assert isinstance(objective.adversaries, DecoderGAN)
    batch = next(iter(SliceBatches(data.split("train"), 4)))
    backward(objective, Batch(batch.images, batch.indices).to(META))


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_sampling_waits_for_the_device_once_a_batch(guidance, trained, monkeypatch):
    loaded = load_prior(trained.run)
    layout = loaded.tokenizer.layout((32, 64))
    copies = []

    def cpu(tensor):
        copies.append(tensor.shape)
        return torch.zeros(tensor.shape, dtype=tensor.dtype)

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    settings = SamplingSettings(guidance=guidance)
    tokens = sample(loaded.prior.to(META), layout, range(20), Conditions.unknown(20), settings)
    assert tokens.shape == (20, layout.starts[-1])
    assert len(copies) == 2  # two groups of 16


def test_decoding(trained):
    tokenizer = load_tokenizer(trained.run).tokenizer.to(META)
    grids = [torch.zeros(2, *grid, dtype=torch.long, device=META) for grid in tokenizer.grids((32, 64))]
    for levels in (None, 1):
        assert tokenizer.decode_unchecked(grids, (32, 64), levels=levels).device == META


def test_the_stand_in_notices_a_tensor_on_the_cpu_and_a_wait():
    with pytest.raises(RuntimeError, match="device"):
        torch.zeros(3, device=META) + torch.zeros(3)
    with pytest.raises(RuntimeError, match="meta"):
        float(torch.zeros((), device=META))
