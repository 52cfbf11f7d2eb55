"""Models on disk: whole or refused, never half-written, never a wrong answer."""

import json
import os
import pickle
import shutil
import struct

import pytest
import torch
from helpers.checkpoint import resealed
from helpers.inference import model_file
from safetensors.torch import save_file

from slicebook import environment
from slicebook.config import Recipe, TokenizerConfig
from slicebook.environment import Provenance
from slicebook.errors import CheckpointError, DataError
from slicebook.io import tensors as tensor_file
from slicebook.io.tensors import State, hash_tensors, load_state, save_state
from slicebook.models.checkpoint import (
    MODEL_NAME,
    find_model,
    find_prior,
    load_prior,
    load_tokenizer,
    save_prior,
    save_tokenizer,
)
from slicebook.models.prior import Prior
from slicebook.models.sequence import JointTokenizer
from slicebook.models.tokenizer import Tokenizer

RECIPE = Recipe(
    name="tiny",
    tokenizer=TokenizerConfig(
        architecture="vqvae2",
        scaling_rates=(4, 2),
        codebook_sizes=(8, 4),
        code_dim=4,
        width=16,
        residual_width=8,
        residual_layers=1,
    ),
)
PROVENANCE = Provenance(
    versions={"slicebook": "0"},
    commit=None,
    device="cpu",
    split_hash="aa",
    train_patients=2,
    train_slices=8,
    spacing=None,
    epoch=1,
    step=4,
    seconds=1.5,
    validation={"ssim": 0.5},
)


def untrained(seed=0):
    torch.manual_seed(seed)
    return Tokenizer(RECIPE.tokenizer)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "run" / MODEL_NAME
    save_tokenizer(path, untrained(), RECIPE, PROVENANCE)
    return path


def test_a_model_comes_back_bit_for_bit_with_its_settings_and_origin(model):
    loaded = load_tokenizer(model)
    wanted = untrained().state_dict()
    actual = loaded.tokenizer.state_dict()
    assert actual.keys() == wanted.keys()
    assert all(
        actual[name].equal(wanted[name]) and actual[name].dtype == wanted[name].dtype for name in wanted
    )
    assert loaded.info.recipe == RECIPE
    assert loaded.info.provenance == PROVENANCE
    assert loaded.path == model
    assert not loaded.tokenizer.training


def test_a_model_is_found_by_its_file_its_run_and_its_demo(model):
    assert {find_model(where) for where in (model, model.parent, model.parent.parent)} == {model}


@pytest.mark.parametrize("where", ["empty", "nowhere"])
def test_before_any_training_the_message_says_what_to_run(where, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        CheckpointError, match="slicebook train tokenizer DATA --recipe compact --out"
    ) as caught:
        load_tokenizer(tmp_path / where)
    assert str(tmp_path / where) in str(caught.value)


def test_the_codebook_hash_is_that_of_the_weights_and_of_nothing_else(model, tmp_path):
    other = tmp_path / "other.safetensors"
    save_tokenizer(other, untrained(seed=1), RECIPE, PROVENANCE)
    again = tmp_path / "again.safetensors"
    save_tokenizer(again, untrained(), RECIPE.model_copy(update={"name": "renamed"}), PROVENANCE)
    first, different, same = (load_tokenizer(path).codebook_hash for path in (model, other, again))
    assert first == same != different


@pytest.mark.parametrize(
    "tensors",
    [
        {"b": torch.tensor([1.0, 2.0])},
        {"a": torch.tensor([2.0, 1.0])},
        {"a": torch.tensor([[1.0, 2.0]])},
        {"a": torch.tensor([1.0, 2.0]).view(torch.int32)},
        {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([])},
    ],
)
def test_the_hash_tells_names_values_shapes_and_types_apart(tensors):
    assert hash_tensors(tensors) != hash_tensors({"a": torch.tensor([1.0, 2.0])})


def refuse(path, message="."):
    with pytest.raises(CheckpointError, match=message) as caught:
        load_tokenizer(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.fault("bit-flipped model", "every flip is refused; copy it again")
def test_every_flipped_bit_is_seen(model):
    whole = model.read_bytes()
    (header,) = struct.unpack("<Q", whole[:8])
    places = [*range(8), *range(8, 8 + header, 41), *range(8 + header, len(whole), len(whole) // 40)]
    for number, at in enumerate(places):
        bit = 1 << number % 8
        model.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        refuse(model)
    model.write_bytes(whole)
    load_tokenizer(model)


def test_a_setting_changed_in_place_is_seen(model):
    whole = model.read_bytes()
    assert rb"\"epsilon\": 1e-05" in whole
    model.write_bytes(whole.replace(rb"\"epsilon\": 1e-05", rb"\"epsilon\": 1e-01", 1))
    refuse(model, "settings do not match their hash")


def test_a_weight_changed_in_place_is_seen(model):
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    refuse(model, "weights do not match their hash")


@pytest.mark.fault("truncated model", "every length is refused; copy it again")
def test_every_cut_is_seen(model):
    whole = model.read_bytes()
    for length in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        model.write_bytes(whole[:length])
        refuse(model, "not a complete safetensors file")


class Trap:
    """Unpickled, it would leave a mark."""

    def __reduce__(self):
        return os.mkdir, ("sprung",)


@pytest.mark.fault("pickle in a model's place", "refused and never run; give the model.safetensors of a run")
def test_a_pickle_in_a_models_place_is_refused_and_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / MODEL_NAME
    path.write_bytes(pickle.dumps(Trap()))
    refuse(path, "is a PyTorch pickle")
    torch.save({"weights": torch.zeros(3)}, path)
    refuse(path, "is a zip archive, perhaps a PyTorch pickle")
    assert not (tmp_path / "sprung").exists()


def test_another_programs_safetensors_is_refused(tmp_path):
    path = tmp_path / "theirs.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    refuse(path, "holds a file of another program, wanted a tokenizer")
    save_file({"weight": torch.zeros(3)}, path, metadata={"format": "pt"})
    refuse(path, "wanted a tokenizer")
    save_file({"weight": torch.zeros(3)}, path, metadata={"slicebook": "[]"})
    refuse(path)


def test_a_state_is_no_model_and_a_model_no_state(model, tmp_path):
    state = tmp_path / "state.safetensors"
    save_state(state, State({"a": torch.zeros(2)}, {"epoch": 1}))
    refuse(state, "holds a state, wanted a tokenizer")
    with pytest.raises(CheckpointError, match="is not a training state of format"):
        load_state(model)


@pytest.mark.fault("model of a newer version", "refused; names both versions")
def test_a_newer_format_names_both_versions(model):
    resealed(model, schema_version=99)
    refuse(model, "written in format 99 by Slicebook .*, which reads format 2; use the version that wrote it")


def test_settings_that_no_recipe_has_are_refused(model):
    resealed(model, recipe={"tokenizer": {"width": -1}})
    refuse(model, "its settings cannot be read")


def test_weights_that_do_not_fit_the_settings_are_refused(model):
    wider = RECIPE.tokenizer.model_copy(update={"width": 32})
    resealed(model, recipe=RECIPE.model_copy(update={"tokenizer": wider}).model_dump(mode="json"))
    refuse(model, "weights do not fit its settings")


HUGE = [
    ("tokenizer", "width", 2**30),
    ("tokenizer", "code_dim", 10**12),
    ("tokenizer", "residual_layers", 10**12),
    ("tokenizer", "scaling_rates", [2**40, 2]),
    ("prior", "widths", [2**30]),
    ("prior", "blocks", 10**12),
    ("prior", "embedding", 10**12),
    ("decoder", "widths", [2**30, 32]),
]


def with_setting(path, part, key, value):
    """Change one setting of a model, its hash made to fit."""
    recipe = tensor_file.read_tensors(path)[1]["recipe"]
    resealed(path, recipe=recipe | {part: recipe[part] | {key: value}})


@pytest.mark.fault(
    "settings that claim more memory than the file has weights", "refused before memory is taken"
)
@pytest.mark.parametrize("architecture", ["ladder", "vqvae2"])
@pytest.mark.parametrize(("part", "key", "value"), [huge for huge in HUGE if huge[0] == "tokenizer"])
def test_settings_that_claim_more_than_the_file_holds_are_refused_at_once(
    part, key, value, architecture, model, tmp_path
):
    """Built as they say, such models take hours or all memory of the machine."""
    path = model if architecture == "vqvae2" else model_file(tmp_path / "ladder.safetensors")
    with_setting(path, part, key, value)
    refuse(path, "its weights do not fit its settings")


def test_a_size_to_stretch_slices_to_is_bounded(model):
    with_setting(model, "tokenizer", "resize", [10**6, 10**6])
    refuse(model, r"resize\.0: Input should be less than or equal to 4096")


def test_a_state_comes_back_bit_for_bit(tmp_path):
    path = tmp_path / "state.safetensors"
    tensors = {"a": torch.randn(3, 2), "b": torch.tensor(7), "c": torch.randn(2, 3).t()}
    save_state(path, State(tensors, {"history": [{"loss": 0.1}], "best": 0.1 + 0.2}))
    state = load_state(path)
    assert state.progress == {"history": [{"loss": 0.1}], "best": 0.1 + 0.2}
    assert all(state.tensors[name].equal(tensors[name]) for name in tensors)


def test_a_damaged_state_is_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    save_state(path, State({"a": torch.zeros(64)}, {}))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="does not match its hash"):
        load_state(path)


@pytest.mark.parametrize("fails", ["io.tensors.save_file", "io.atomic.os.fsync", "io.atomic.os.replace"])
def test_a_save_that_fails_leaves_the_old_model_and_nothing_else(fails, model, monkeypatch):
    before = model.read_bytes()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"slicebook.{fails}", full)
    with pytest.raises(DataError, match=r"cannot be written.*No space left on device; [0-9,]+ bytes wanted"):
        save_tokenizer(model, untrained(seed=1), RECIPE, PROVENANCE)
    assert model.read_bytes() == before
    assert [item.name for item in model.parent.iterdir()] == [MODEL_NAME]


def test_a_kill_during_a_save_leaves_the_old_model(model, monkeypatch):
    before = model.read_bytes()

    def killed(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr("slicebook.io.atomic.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_tokenizer(model, untrained(seed=1), RECIPE, PROVENANCE)
    assert model.read_bytes() == before
    load_tokenizer(model)


def test_the_metadata_is_readable_by_anybody_and_names_no_place(model):
    content = model.read_bytes()
    (header,) = struct.unpack("<Q", content[:8])
    info = json.loads(json.loads(content[8 : 8 + header])["__metadata__"]["slicebook"])
    assert info["kind"] == "tokenizer"
    assert str(model.parent.parent) not in json.dumps(info)


def test_the_commit_is_that_of_this_tree_or_none():
    commit = environment.commit()
    assert commit is None or len(commit.rstrip("+")) == 40


# --- Priors


@pytest.fixture
def prior(trained, tmp_path):
    """A copy of a prior's file."""
    return shutil.copy(trained.run / "prior" / MODEL_NAME, tmp_path / "prior.safetensors")


def refuse_prior(path, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        load_prior(path)
    assert "\n" not in str(caught.value)


def test_a_prior_comes_back_bit_for_bit_with_its_tokenizers_and_settings(prior, tmp_path):
    first = load_prior(prior)
    other = tmp_path / "new" / "other.safetensors"
    info = first.info.model_copy(update={"weights_sha256": ""})
    save_prior(other, first.prior, first.tokenizer, info, first.decoder)
    again = load_prior(other)
    assert again.info == first.info
    assert again.path == other
    for part in (
        lambda loaded: loaded.prior,
        lambda loaded: loaded.tokenizer.images,
        lambda loaded: loaded.tokenizer.masks,
        lambda loaded: loaded.decoder,
    ):
        actual, wanted = part(again), part(first)
        assert hash_tensors(actual.state_dict()) == hash_tensors(wanted.state_dict())
        assert not actual.training


def test_a_prior_of_slices_alone_comes_back_without_masks(prior, tmp_path):
    first = load_prior(prior)
    joint_tokenizer = JointTokenizer(first.tokenizer.images)
    bare = Prior(
        first.info.recipe.prior,
        joint_tokenizer.codebooks,
        joint_tokenizer.strides,
        len(first.info.classes),
    )
    other = tmp_path / "other.safetensors"
    save_prior(other, bare, joint_tokenizer, first.info.model_copy(update={"masks": None}))
    reloaded = load_prior(other)
    assert reloaded.tokenizer.masks is None
    assert reloaded.decoder is None
    assert hash_tensors(reloaded.prior.state_dict()) == hash_tensors(bare.state_dict())


def test_every_flipped_bit_of_a_prior_is_seen(prior):
    whole = prior.read_bytes()
    (header,) = struct.unpack("<Q", whole[:8])
    places = [*range(0, 8 + header, header // 25), *range(8 + header, len(whole), len(whole) // 12)]
    for number, at in enumerate(places):
        prior.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << number % 8]) + whole[at + 1 :])
        refuse_prior(prior, str(prior))
    prior.write_bytes(whole)
    load_prior(prior)


def test_a_cut_prior_is_refused(prior):
    prior.write_bytes(prior.read_bytes()[:-1])
    refuse_prior(prior, "not a complete safetensors file.*copy it again")


def test_a_prior_whose_weights_do_not_fit_is_refused(prior):
    _, info = tensor_file.read_tensors(prior)
    info["recipe"]["prior"]["blocks"] = 2
    resealed(prior, recipe=info["recipe"])
    refuse_prior(prior, "its weights do not fit its settings; train it again")


@pytest.mark.fault(
    "settings that claim more memory than the file has weights",
    "refused before memory is taken, in a prior's file too",
)
@pytest.mark.parametrize(("part", "key", "value"), HUGE)
def test_settings_of_a_prior_that_claim_more_than_the_file_holds_are_refused_at_once(part, key, value, prior):
    with_setting(prior, part, key, value)
    refuse_prior(prior, "its weights do not fit its settings|stretch|decoder.widths")


def test_a_prior_of_no_widths_is_refused(prior):
    with_setting(prior, "prior", "widths", [])
    refuse_prior(prior, "prior.widths: Tuple should have at least 1 item")


def test_the_size_of_slices_that_a_prior_asks_for_is_bounded(prior):
    kinds = tensor_file.read_tensors(prior)[1]["slices"]
    resealed(prior, slices=[kinds[0] | {"rows": 10**6}])
    refuse_prior(prior, r"slices\.0\.rows: Input should be less than or equal to 16384")


def test_a_prior_file_holds_its_tokenizer(prior, trained):
    loaded, alone = load_tokenizer(prior), load_tokenizer(trained.run)
    assert loaded.info.weights_sha256 == alone.info.weights_sha256 == loaded.codebook_hash
    assert loaded.info.provenance == alone.info.provenance
    with pytest.raises(CheckpointError, match="holds a prior, wanted a label tokenizer"):
        load_tokenizer(prior, kind="label tokenizer")


def test_a_tokenizer_is_no_prior(prior, model):
    refuse_prior(model, "holds a tokenizer, wanted a prior; train one first: slicebook train generator ")


def test_a_label_tokenizer_is_neither(trained):
    masks = trained.run / "prior" / "masks"
    refuse(masks / MODEL_NAME, "holds a label tokenizer, wanted a tokenizer")
    refuse_prior(masks, "holds a label tokenizer, wanted a prior")


@pytest.mark.parametrize("where", [f"run/prior/{MODEL_NAME}", "run/prior", "run", "."])
def test_a_prior_is_found_by_its_file_its_folder_its_run_and_its_demo(where, trained):
    assert find_prior(trained.run.parent / where).samefile(trained.run / "prior" / MODEL_NAME)


def test_beside_a_prior_the_tokenizer_is_found_as_before(trained):
    for where in (trained.run, trained.run.parent):
        assert find_model(where) == trained.run / MODEL_NAME


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("empty", "empty: holds no trained model yet; train one first: slicebook train tokenizer"),
        ("nowhere", "nowhere: does not exist; train one first: slicebook train tokenizer"),
        (".", r"holds no prior yet; train one first: slicebook train generator .*\(or slicebook demo\)"),
        ("run", "holds a tokenizer, wanted a prior; train one first: slicebook train generator .*run$"),
    ],
)
def test_before_a_prior_is_trained_the_message_says_what_to_run(where, message, model):
    (model.parent.parent / "empty").mkdir()
    refuse_prior(model.parent.parent / where, message)


def test_a_save_of_a_prior_that_fails_leaves_the_old_one(prior, monkeypatch):
    before, loaded = prior.read_bytes(), load_prior(prior)

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("slicebook.io.tensors.save_file", full)
    with pytest.raises(DataError, match="No space left on device"):
        save_prior(prior, loaded.prior, loaded.tokenizer, loaded.info)
    assert prior.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.pth", b"PK\x03\x04rest", "is a PyTorch pickle; Slicebook reads safetensors alone"),
        ("model.CKPT", b"\x00" * 20, "is a PyTorch pickle; Slicebook reads safetensors alone"),
        ("model.safetensors", b"\x80\x02}q\x00.", "is a PyTorch pickle; Slicebook reads safetensors alone"),
        ("model.bin", b"PK\x03\x04rest", "is a zip archive, perhaps a PyTorch pickle"),
        ("model.h5", b"\x89HDF\r\n\x1a\n", "is not a complete safetensors file"),
    ],
)
def test_a_model_of_another_program_is_refused_by_its_kind(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    refuse(tmp_path / name, message)


def test_settings_of_a_newer_version_name_both_versions(model):
    resealed(model, provenance={"versions": {"slicebook": "99.1"}})
    refuse(model, "written by Slicebook 99.1, this is ")
