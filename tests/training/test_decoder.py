"""The training of a generation decoder: what it learns, what it leaves unchanged, and how it resumes."""

import csv
from dataclasses import replace

import pytest
import torch
from helpers.training import OPTIONS
from lightning_fabric import Fabric

from slicebook.data.dataset import PreparedData
from slicebook.data.loader import Batch, SliceBatches
from slicebook.errors import CheckpointError, ConfigError
from slicebook.inference.reconstruct import reconstruct
from slicebook.io.tensors import hash_tensors
from slicebook.models.checkpoint import load_decoder, load_prior, load_tokenizer
from slicebook.recipes import override
from slicebook.training import decoder as decoding
from slicebook.training.decoder import DecoderObjective, train_decoder
from slicebook.training.generator import train_generator


@pytest.fixture
def own(trained):
    """The trained tokenizer, its data and its recipe."""
    loaded = load_tokenizer(trained.run)
    return loaded, PreparedData.open(trained.data), loaded.info.recipe


def objective(own, *settings):
    loaded, data, recipe = own
    torch.manual_seed(0)
    chosen = override(recipe, ["decoder.training.augment=null", *settings])
    made = DecoderObjective(loaded, chosen, data, Fabric(accelerator="cpu", devices=1))
    made.module.train()
    made.setup(SliceBatches(data.split("train"), 4))
    return made


def batch(own, count=4):
    slices = own[1].split("train")
    return Batch(torch.stack([slices[index] for index in range(count)]), torch.arange(count))


def test_the_spread_is_that_of_what_the_tokenizer_leaves_out(own):
    made = objective(own)
    tokenizer, slices = own[0].tokenizer, own[1].split("train")
    images = torch.stack([slices[index] for index in range(len(slices)) if slices[index].shape[-2] == 32])
    with torch.no_grad():
        left_out = images - tokenizer(images).images
    spread = float(made.pair.learner.get_buffer("spread"))
    assert spread == pytest.approx(float(left_out.square().mean().sqrt()), rel=0.25)
    assert made.pair.average.get_buffer("spread").equal(made.pair.learner.get_buffer("spread"))


def test_the_decoder_learns_and_the_tokenizer_does_not(own):
    made = objective(own)
    before = hash_tensors(own[0].tokenizer.state_dict())
    made.training_step(batch(own), 0, 0.0)["loss"].backward()
    learning = {name for name, p in made.pair.learner.named_parameters() if p.grad is not None}
    assert learning == {name for name, _ in made.pair.learner.named_parameters()}
    assert all(parameter.grad is None for parameter in own[0].tokenizer.parameters())
    assert hash_tensors(own[0].tokenizer.state_dict()) == before


def test_it_learns_to_explain_the_velocity(own):
    """An untrained decoder explains nothing; a trained one more than the noise that it is given."""
    made, slices = objective(own), batch(own)
    before = float(made.validation_step(slices)["explained"])
    optimizer = torch.optim.AdamW(made.pair.learner.parameters(), 3e-3)
    for step in range(80):
        optimizer.zero_grad()
        made.training_step(slices, step, 0.0)["loss"].backward()
        optimizer.step()
    after = float(made.validation_step(slices)["explained"])
    assert before == pytest.approx(0, abs=0.02)
    assert 0.3 < after < 1


def test_a_step_draws_its_augmentation_and_noise_from_seed_and_step_alone(own):
    made = objective(own, "decoder.training.augment={}")
    losses = [float(made.training_step(batch(own), step, 0.0)["loss"].detach()) for step in (3, 4, 3)]
    assert losses[0] == losses[2] != losses[1]


# --- A run


def train(own, out, *settings, **options):
    loaded, data, recipe = own
    return train_decoder(loaded, data, override(recipe, settings), out, replace(OPTIONS, **options))


def test_slices_are_loaded_by_workers(own, tmp_path, monkeypatch):
    counts: list[int] = []

    def batches(*arguments, workers, **settings):
        counts.append(workers)
        return SliceBatches(*arguments, **settings)

    monkeypatch.setattr(decoding, "SliceBatches", batches)
    train(own, tmp_path / "decoder", "decoder.training.epochs=1", workers=3)
    assert counts == [3, 3]  # for training and for validation


def test_the_average_of_the_best_epoch_is_saved(trained, own):
    with (trained.run / "prior" / "decoder" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    best = max(
        (row for row in rows if row["validation_explained"]),
        key=lambda row: float(row["validation_explained"]),
    )
    info = load_decoder(trained.run / "prior" / "decoder", own[0]).info
    assert info.kind == "generation decoder"
    assert info.provenance.epoch == int(best["epoch"])
    assert set(info.provenance.validation) >= {"validation_explained"}


def test_an_interrupted_training_resumes_bit_for_bit(own, tmp_path, monkeypatch):
    settings = ("decoder.training.epochs=4", "decoder.training.validate_every=2")
    wanted = train(own, tmp_path / "whole", *settings)
    whole = DecoderObjective.training_step

    def stopped(self, batch, step, fraction):
        if step == 14:
            raise KeyboardInterrupt
        return whole(self, batch, step, fraction)

    monkeypatch.setattr(DecoderObjective, "training_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(own, tmp_path / "parts", *settings)
    monkeypatch.setattr(DecoderObjective, "training_step", whole)
    assert train(own, tmp_path / "parts", *settings).info.weights_sha256 == wanted.info.weights_sha256
    monkeypatch.setattr(DecoderObjective, "training_step", lambda *_: pytest.fail("trained on"))
    assert train(own, tmp_path / "parts", *settings).info.weights_sha256 == wanted.info.weights_sha256


def test_a_decoder_of_another_tokenizer_is_not_resumed(own, tmp_path):
    train(own, tmp_path / "decoder", "decoder.training.epochs=1")
    loaded, data, recipe = own
    other = replace(loaded, info=loaded.info.model_copy(update={"weights_sha256": "0" * 64}))
    with pytest.raises(ConfigError, match="--restart"):
        train_decoder(
            other, data, override(recipe, ["decoder.training.epochs=1"]), tmp_path / "decoder", OPTIONS
        )


# --- In the file of a prior


def test_the_prior_file_holds_the_decoder(trained, own):
    loaded = load_prior(trained.run)
    alone = load_decoder(trained.run / "prior" / "decoder", own[0])
    assert loaded.decoder is not None
    assert hash_tensors(loaded.decoder.state_dict()) == alone.info.weights_sha256
    assert loaded.info.decoder_provenance == alone.info.provenance


def test_without_a_decoder_the_prior_file_has_none(trained, own, tmp_path):
    import shutil

    shutil.copytree(trained.run, tmp_path / "run")
    before = load_prior(tmp_path / "run").info
    train_generator(tmp_path / "run", ["decoder=null"], data=trained.data, options=OPTIONS)
    after = load_prior(tmp_path / "run")
    assert after.decoder is None
    assert after.info.decoder_provenance is None
    assert after.info.weights_sha256 != before.weights_sha256


def test_a_generation_decoder_does_not_reconstruct(trained, tmp_path):
    with pytest.raises(CheckpointError, match="generation decoder"):
        reconstruct(trained.run / "prior" / "decoder", trained.raw, tmp_path / "out")
