"""Trainings that start from the weights of another model: what is copied, recorded, and refused."""

import shutil
from dataclasses import replace

import pytest
import torch
from helpers.training import OPTIONS, prepared_folder, tiny, train

from slicebook.data.dataset import PreparedData
from slicebook.errors import CheckpointError, ConfigError
from slicebook.io.tensors import STATE_NAME, load_state
from slicebook.models.checkpoint import load_prior, load_tokenizer
from slicebook.models.tokenizer import Tokenizer
from slicebook.training.generator import train_generator, train_prior
from slicebook.training.tokenizer import TokenizerObjective
from slicebook.training.warm_start import load_initial


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepared_folder(tmp_path_factory.mktemp("data") / "prepared")


@pytest.fixture(scope="module")
def other_data(tmp_path_factory):
    return prepared_folder(tmp_path_factory.mktemp("data") / "other", seed=1)


@pytest.fixture(scope="module")
def start(data, tmp_path_factory):
    """A trained tokenizer."""
    run = tmp_path_factory.mktemp("runs") / "start"
    train(data, tiny(), run)
    return run


def weights_at_first_step(monkeypatch):
    """Record the weights with which the first training step runs; its measurement of precision is off."""
    seen: dict[str, torch.Tensor] = {}
    whole = TokenizerObjective.training_step

    def spy(self, batch, step, fraction):
        if not seen:
            seen.update({name: tensor.clone() for name, tensor in self.tokenizer.state_dict().items()})
        return whole(self, batch, step, fraction)

    monkeypatch.setattr(TokenizerObjective, "training_step", spy)
    return seen


def test_all_weights_and_codebooks_are_carried_over(start, other_data, tmp_path, monkeypatch, capsys):
    seen = weights_at_first_step(monkeypatch)
    monkeypatch.setattr(Tokenizer, "init_from_kmeans", lambda *_: pytest.fail("k-means over copied codes"))
    train(other_data, tiny(), tmp_path / "run", start_from=start, progress=True)
    wanted = load_tokenizer(start).tokenizer.state_dict()
    assert seen.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert seen[name].equal(tensor), name
    count = len(wanted)
    assert f"{count} of {count} weight tensors of the tokenizer come from {start}" in capsys.readouterr().err


def test_what_does_not_fit_starts_at_random_and_is_named(start, other_data, tmp_path, monkeypatch, capsys):
    """A codebook of another size: the other level, and the network, are carried over."""
    seen = weights_at_first_step(monkeypatch)
    levels = []
    whole = Tokenizer.init_from_kmeans

    def spy(self, images, generator, chosen=None):
        levels.append(chosen)
        return whole(self, images, generator, chosen)

    monkeypatch.setattr(Tokenizer, "init_from_kmeans", spy)
    recipe = tiny("tokenizer.codebook_sizes=[8, 6]")
    train(other_data, recipe, tmp_path / "run", start_from=start, progress=True)
    wanted = load_tokenizer(start).tokenizer.state_dict()
    different = {name for name in wanted if seen[name].shape != wanted[name].shape}
    assert different == {"quantizers.1.ema_embed_sum", "quantizers.1.ema_cluster_size"}
    assert all(seen[name].equal(tensor) for name, tensor in wanted.items() if name not in different)
    assert levels == [[1]]
    printed = capsys.readouterr().err
    assert "at their random start: quantizers.1.ema_cluster_size, quantizers.1.ema_embed_sum" in printed


def test_both_averages_of_a_codebook_are_copied_or_neither(start):
    """With another code dimension the counts would fit, and the sums would not."""
    initial = load_initial(start, "images")
    assert initial is not None
    other = Tokenizer(tiny("tokenizer.code_dim=6").tokenizer)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    copied = initial.copy_to(other, lambda _: None)
    assert not [name for name in copied if name.startswith("quantizers")]
    assert other.quantizers[0].get_buffer("ema_cluster_size").equal(before["quantizers.0.ema_cluster_size"])


def test_codebooks_do_not_come_to_a_network_at_random_weights(start, other_data, tmp_path, monkeypatch):
    """With another width a few biases fit, and so would the codebooks, whose codes nothing would use."""
    levels = []
    whole = Tokenizer.init_from_kmeans

    def spy(self, images, generator, chosen=None):
        levels.append(chosen)
        return whole(self, images, generator, chosen)

    monkeypatch.setattr(Tokenizer, "init_from_kmeans", spy)
    train(other_data, tiny("tokenizer.width=32"), tmp_path / "run", start_from=start)
    assert levels == [[0, 1]]


def test_a_model_of_which_nothing_fits_is_refused(start, other_data, tmp_path):
    recipe = tiny("tokenizer.architecture=vqvae2", "tokenizer.code_dim=6", "tokenizer.codebook_sizes=[5, 3]")
    with pytest.raises(ConfigError, match="no weight of its tokenizer fits the new one"):
        train(other_data, recipe, tmp_path / "run", start_from=start)


def test_provenance_says_from_which_model_and_whose_patients_trained_it(start, other_data, tmp_path):
    train(other_data, tiny(), tmp_path / "run", start_from=start)
    made = load_tokenizer(tmp_path / "run").info.provenance
    source = load_tokenizer(start).info
    assert made.split_hash == PreparedData.open(other_data).split_hash
    assert made.initial is not None
    assert made.initial.weights_sha256 == source.weights_sha256
    assert made.initial.provenance == source.provenance
    train(other_data, tiny(), tmp_path / "next", start_from=tmp_path / "run")
    chain = load_tokenizer(tmp_path / "next").info.provenance.initial
    assert chain is not None
    assert chain.provenance.initial == made.initial


def test_it_resumes_like_any_other_also_without_the_first_model(start, other_data, tmp_path, monkeypatch):
    train(other_data, tiny("training.epochs=3"), tmp_path / "whole", start_from=start)
    whole = TokenizerObjective.training_step

    def interrupted(self, batch, step, fraction):
        if step == 7:
            raise KeyboardInterrupt
        return whole(self, batch, step, fraction)

    source = shutil.copytree(start, tmp_path / "source")
    with monkeypatch.context() as patch:
        patch.setattr(TokenizerObjective, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(other_data, tiny("training.epochs=3"), tmp_path / "run", start_from=source)
    shutil.rmtree(source)
    train(other_data, tiny("training.epochs=3"), tmp_path / "run")  # --from is needed no more
    resumed, once = (load_state(tmp_path / name / STATE_NAME) for name in ("run", "whole"))
    assert all(resumed.tensors[name].equal(tensor) for name, tensor in once.tensors.items())
    made = load_tokenizer(tmp_path / "run").info.provenance
    assert made.initial == load_tokenizer(tmp_path / "whole").info.provenance.initial


@pytest.mark.parametrize(("first", "named"), [(True, "other"), (False, "random")])
def test_a_run_does_not_go_on_from_other_weights(first, named, start, data, other_data, tmp_path):
    train(data, tiny("training.seed=7"), tmp_path / "other")
    train(other_data, tiny(), tmp_path / "run", start_from=start if first else None)
    with pytest.raises(ConfigError, match=f"run: was started from {named} weights"):
        train(other_data, tiny(), tmp_path / "run", start_from=tmp_path / "other")


def test_a_model_that_is_not_there_is_refused_before_anything_is_deleted(data, start, tmp_path):
    run = shutil.copytree(start, tmp_path / "run")
    with pytest.raises(CheckpointError, match="nowhere: does not exist"):
        train(data, tiny(), run, start_from=tmp_path / "nowhere", restart=True)
    assert (run / STATE_NAME).is_file()


def test_a_run_may_restart_from_itself(data, start, tmp_path):
    run = shutil.copytree(start, tmp_path / "run")
    train(data, tiny(), run, start_from=run, restart=True)
    made = load_tokenizer(run).info.provenance
    assert made.initial is not None
    assert made.initial.weights_sha256 == load_tokenizer(start).info.weights_sha256


# --- The parts of a generator


def test_all_parts_start_from_a_generator(trained, tmp_path, capsys):
    options = replace(OPTIONS, start_from=trained.run, progress=True)
    train_generator(trained.run, ["prior.training.epochs=1"], out=tmp_path / "out", options=options)
    printed = capsys.readouterr().err
    for part in ("mask tokenizer", "prior", "generation decoder"):
        assert f"weight tensors of the {part} come from {trained.run}" in printed, part
    assert "random start" not in printed
    made, source = load_prior(tmp_path / "out").info, load_prior(trained.run).info
    for provenance in (made.provenance, made.decoder_provenance):
        assert provenance is not None
        assert provenance.initial is not None
        assert provenance.initial.weights_sha256 == source.weights_sha256


def test_a_prior_starts_from_the_weights_of_a_prior(trained, tmp_path, monkeypatch):
    """The learning rate is too small to move a weight: what is saved is what it started from."""
    shutil.copytree(trained.run / "prior" / "masks", tmp_path / "out" / "masks")
    settings = [
        "prior.training.epochs=1",
        "prior.training.learning_rate=1e-12",
        "prior.training.weight_decay=0",
    ]
    options = replace(OPTIONS, start_from=trained.run / "prior")
    train_prior(trained.run, settings, out=tmp_path / "out", options=options)
    wanted = load_prior(trained.run).prior.state_dict()
    for name, tensor in load_prior(tmp_path / "out").prior.state_dict().items():
        assert torch.allclose(tensor, wanted[name], atol=1e-6), name


def test_a_tokenizer_starts_from_the_tokenizer_in_a_priors_file(trained):
    initial = load_initial(trained.run / "prior", "images")
    assert initial is not None
    wanted = load_prior(trained.run).tokenizer.images.state_dict()
    assert initial.tensors.keys() == wanted.keys()


def test_a_tokenizer_alone_has_no_prior_to_start_from(start, trained, tmp_path):
    with pytest.raises(CheckpointError, match="holds a tokenizer, wanted a prior"):
        train_prior(
            trained.run, out=tmp_path / "out", masks=False, options=replace(OPTIONS, start_from=start)
        )
    assert not (tmp_path / "out").exists()


def test_a_generator_without_masks_leaves_the_masks_at_random(trained, tmp_path):
    options = replace(OPTIONS, start_from=None)
    settings = ["prior.training.epochs=1", "decoder=null"]
    train_generator(trained.run, settings, out=tmp_path / "plain", masks=False, options=options)
    with pytest.raises(ConfigError, match="has no mask tokenizer to start from"):
        load_initial(tmp_path / "plain", "masks")
    with pytest.raises(ConfigError, match="has no generation decoder to start from"):
        load_initial(tmp_path / "plain", "decoder")
