"""Training steps, trainings, sampling and decoding on a GPU, compared with the CPU.

On a machine without a GPU they are deselected; SLICEBOOK_TEST_DEVICE=cpu compares the CPU with itself.
"""

import csv
import math
import os
from dataclasses import replace

import pytest
import torch
from helpers.settings import SMALL
from helpers.steps import (
    SETTINGS,
    backward,
    decoder_step,
    fabric,
    mask_step,
    prior_step,
    tokenizer_step,
)
from helpers.training import OPTIONS, prepared_folder, tiny, train

from slicebook.data.dataset import PreparedData
from slicebook.devices import PRECISIONS
from slicebook.inference.generate import generate
from slicebook.models.checkpoint import load_prior, load_tokenizer
from slicebook.models.conditions import Conditions
from slicebook.models.prior import likelihood
from slicebook.models.sampling import sample
from slicebook.recipes import load_recipe
from slicebook.training.generator import train_generator
from slicebook.training.tokenizer import TokenizerObjective, train_tokenizer

DEVICE = os.environ.get("SLICEBOOK_TEST_DEVICE", "cuda")

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:level")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepared_folder(tmp_path_factory.mktemp("data") / "prepared")


@pytest.fixture(scope="module")
def there(trained, tmp_path_factory):
    """A tokenizer, masks, a prior and a decoder, all trained on the device: the folder of the run."""
    run, options = tmp_path_factory.mktemp("there") / "run", replace(OPTIONS, device=DEVICE, precision="auto")
    train_tokenizer(trained.data, load_recipe("compact", SMALL), run, options)
    train_generator(run, options=options)
    return run


@pytest.fixture
def exactly():
    """Convolutions in float32 and not in TF32, which keeps 10 bits of the mantissa."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = allowed


def rows_of(run):
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_step_of_a_tokenizer(settings, trained):
    check_step(*tokenizer_step(trained, settings, fabric(DEVICE)))


def test_a_step_of_a_mask_tokenizer(trained):
    check_step(*mask_step(trained, fabric(DEVICE)))


def test_a_step_of_a_prior(trained):
    check_step(*prior_step(trained, fabric(DEVICE)))


def test_a_step_of_a_decoder(trained):
    check_step(*decoder_step(trained, fabric(DEVICE)))


def check_step(objective, batch):
    scores = backward(objective, batch)
    assert {value.device.type for value in scores} == {DEVICE}
    assert all(math.isfinite(value.detach()) for value in scores)


@pytest.mark.parametrize("settings", SETTINGS[:2])
def test_a_step_of_a_tokenizer_does_not_wait_for_the_device(settings, trained):
    objective, batch = tokenizer_step(trained, settings, fabric(DEVICE))
    backward(objective, batch)  # the first steps allocate and choose kernels
    if DEVICE == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        backward(objective, batch)
    finally:
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["auto", *PRECISIONS[DEVICE]])
def test_a_tokenizer_trains(precision, data, tmp_path):
    summary = train(data, tiny(), tmp_path / "run", device=DEVICE, precision=precision)
    assert summary.steps == 6
    assert all(math.isfinite(value) for row in rows_of(tmp_path / "run") for value in row.values())
    assert load_tokenizer(tmp_path / "run").info.provenance.device.startswith(DEVICE)


@pytest.mark.parametrize("precision", PRECISIONS[DEVICE])
def test_an_interrupted_training_resumes(precision, data, tmp_path, monkeypatch):
    options = {"device": DEVICE, "precision": precision}
    train(data, tiny(), tmp_path / "whole", **options)
    step = TokenizerObjective.training_step

    def interrupted(self, batch, number, fraction):
        if number == 4:  # in the second epoch
            raise KeyboardInterrupt
        return step(self, batch, number, fraction)

    with monkeypatch.context() as patch:
        patch.setattr(TokenizerObjective, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(data, tiny(), tmp_path / "parts", **options)
    assert train(data, tiny(), tmp_path / "parts", **options).steps == 6
    whole, parts = (rows_of(tmp_path / name) for name in ("whole", "parts"))
    assert [row["step"] for row in parts] == [row["step"] for row in whole]
    # Sums on a GPU are taken in any order.
    assert parts[-1]["train_loss"] == pytest.approx(whole[-1]["train_loss"], rel=0.02)
    assert parts[-1]["validation_ssim"] == pytest.approx(whole[-1]["validation_ssim"], abs=0.02)


def test_a_generator_trained_on_the_device_draws_there(there, tmp_path):
    summary = generate(there, tmp_path / "drawn", count=3, device=DEVICE)
    assert summary.samples == 3
    assert summary.with_masks


def test_reconstruction_agrees_with_the_cpu(trained, exactly):
    here, there = (load_tokenizer(trained.run, device).tokenizer for device in ("cpu", DEVICE))
    images = PreparedData.open(trained.data).split("test")[0][None]
    grids, other = here.encode(images), there.encode(images.to(DEVICE))
    for grid, same in zip(grids, other, strict=True):
        assert (grid == same.cpu()).float().mean() > 0.98  # vectors halfway between two codes may differ
    size = (images.shape[-2], images.shape[-1])
    decoded = there.decode([grid.to(DEVICE) for grid in grids], size).cpu()
    torch.testing.assert_close(decoded, here.decode(grids, size), atol=1e-3, rtol=0)


def test_likelihood_and_samples_agree_with_the_cpu(trained, exactly):
    here, there = (load_prior(trained.run, device) for device in ("cpu", DEVICE))
    layout, conditions = here.tokenizer.layout((32, 64)), Conditions.unknown(4)
    tokens = sample(here.prior, layout, range(4), conditions)
    assert (sample(there.prior, layout, range(4), conditions) == tokens).float().mean() > 0.9
    nats = [likelihood(loaded.prior, layout, tokens, conditions).nats for loaded in (here, there)]
    torch.testing.assert_close(nats[1], nats[0], atol=1e-3, rtol=1e-3)
