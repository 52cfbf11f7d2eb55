"""Every kind of step on another device, without one: all tensors are on `meta`.

A tensor left on the CPU raises, and so does every wait for a value: a meta tensor has none.
"""

import contextlib

import pytest
import torch
from helpers.steps import (
    SETTINGS,
    backward,
    decoder_step,
    fabric,
    mask_step,
    prior_step,
    tokenizer_step,
)
from lightning_fabric import Fabric

from slicebook.models.checkpoint import load_prior, load_tokenizer
from slicebook.models.conditions import Conditions
from slicebook.models.sampling import SamplingSettings, sample
from slicebook.models.tokenizer import Tokenizer

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


def assert_on_meta(objective, batch):
    assert {value.device.type for value in backward(objective, batch)} == {"meta"}


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_training_step_of_a_tokenizer(settings, trained):
    assert_on_meta(*tokenizer_step(trained, settings, fabric()))


def test_a_training_step_of_a_mask_tokenizer(trained):
    assert_on_meta(*mask_step(trained, fabric()))


def test_a_training_step_of_a_prior(trained):
    assert_on_meta(*prior_step(trained, fabric()))


def test_a_training_step_of_a_decoder(trained, monkeypatch):
    # Only tokens of unknown origin are checked, which reads their values.
    monkeypatch.setattr(Tokenizer, "_validate_images", lambda self, images: images)
    assert_on_meta(*decoder_step(trained, fabric()))


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
