"""A training that is interrupted anywhere ends like one that is not, bit for bit."""

import csv
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers.settings import SMALL
from helpers.training import OPTIONS, prepared_folder, tiny, train

from slicebook.config import TrainingConfig
from slicebook.errors import CheckpointError, ConfigError
from slicebook.io.tensors import STATE_NAME, load_state, save_state
from slicebook.models.checkpoint import MODEL_NAME
from slicebook.models.tokenizer import Tokenizer
from slicebook.recipes import load_recipe
from slicebook.training.decoder import DecoderObjective
from slicebook.training.generator import train_decoder, train_masks, train_prior
from slicebook.training.prior import PriorObjective
from slicebook.training.resume import PREVIOUS_NAME, read_state, restore
from slicebook.training.tokenizer import LabelObjective, TokenizerObjective, train_tokenizer
from slicebook.training.trainer import Trainer

ALWAYS = 1e-9  # minutes: a state is kept after every step


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepared_folder(tmp_path_factory.mktemp("data") / "prepared")


def _tokenizer(trained, out, minutes, architecture="ladder"):
    settings = [
        *(f"tokenizer.architecture={architecture}", "training.loss.level_dropout=0.5"),
        *("training.validate_every=2", "training.augment.contrast.probability=0.5"),
        *("tokenizer.quantizer.reset_every=3", "tokenizer.quantizer.reset_below=0.95"),
    ]
    recipe = load_recipe("compact", [*SMALL[:-1], *settings, f"training.save_minutes={minutes}"])
    return train_tokenizer(trained.data, recipe, out, OPTIONS)


def _masks(trained, out, minutes):
    settings = [f"labels.training.save_minutes={minutes}", "labels.training.epochs=3"]
    return train_masks(trained.run, settings, out=out, options=OPTIONS)


def _prior(trained, out, minutes):
    if not (out / "masks").exists():
        shutil.copytree(trained.run / "prior" / "masks", out / "masks")
    return train_prior(trained.run, [f"prior.training.save_minutes={minutes}"], out=out, options=OPTIONS)


def _decoder(trained, out, minutes):
    if not out.exists():
        shutil.copytree(trained.run / "prior", out, ignore=shutil.ignore_patterns("decoder"))
    settings = [f"decoder.training.save_minutes={minutes}", "decoder.training.epochs=3"]
    return train_decoder(trained.run, settings, out=out, options=OPTIONS)


class Kind(NamedTuple):
    """One kind of training, its step, and where in the output folder its files are."""

    train: Callable[..., Any]
    objective: Any
    folder: str = "."


KINDS = {
    "tokenizer": Kind(_tokenizer, TokenizerObjective),
    "vqvae2": Kind(partial(_tokenizer, architecture="vqvae2"), TokenizerObjective),
    "masks": Kind(_masks, LabelObjective, "masks"),
    "prior": Kind(_prior, PriorObjective),
    "decoder": Kind(_decoder, DecoderObjective, "decoder"),
}


@contextmanager
def watched(objective=TokenizerObjective, stop=None):
    """Yield a list of the steps that are taken; stop before a step as Ctrl-C would."""
    steps, whole = [], objective.training_step

    def step(self, batch, number, fraction):
        if number == stop:
            raise KeyboardInterrupt
        steps.append(number)
        return whole(self, batch, number, fraction)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective, "training_step", step)
        if stop is None:
            yield steps
        else:
            with pytest.raises(KeyboardInterrupt):
                yield steps


def outcome(run):
    """Return the last state's tensors, and the metrics without those that depend on the time."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        del row["seconds"], row["images_per_second"]
    return load_state(run / STATE_NAME).tensors, rows


def assert_equal(run, other):
    (tensors, rows), (other_tensors, other_rows) = outcome(run), outcome(other)
    assert tensors.keys() == other_tensors.keys()
    assert [name for name in tensors if not tensors[name].equal(other_tensors[name])] == []
    assert rows == other_rows


@pytest.mark.parametrize("name", KINDS)
def test_a_training_resumes_in_the_middle_of_an_epoch_bit_for_bit(name, trained, tmp_path):
    kind = KINDS[name]
    kind.train(trained, tmp_path / "whole", 5)
    with watched(kind.objective, stop=10):
        kind.train(trained, tmp_path / "parts", ALWAYS)
    run = tmp_path / "parts" / kind.folder
    state = read_state(run)
    assert (state.progress["progress"]["step"], state.progress["progress"]["epoch"]) == (10, 1)
    assert 0 < state.progress["epoch"]["steps"] < 10
    torch.rand(5)  # what a process drew before is of no matter
    np.random.seed(1)  # noqa: NPY002
    with watched(kind.objective) as steps:
        kind.train(trained, tmp_path / "parts", 5)
    assert steps[0] == 10  # no step is taken twice
    assert_equal(run, tmp_path / "whole" / kind.folder)


def test_a_training_stopped_between_the_last_step_and_the_validation_resumes(data, tmp_path, monkeypatch):
    recipe = tiny(f"training.save_minutes={ALWAYS}")
    train(data, recipe, tmp_path / "whole")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TokenizerObjective, "validation_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train(data, recipe, tmp_path / "parts")
    assert read_state(tmp_path / "parts").progress["epoch"]["steps"] == 3
    with watched() as steps:
        train(data, recipe, tmp_path / "parts")
    assert steps == [3, 4, 5]
    assert_equal(tmp_path / "parts", tmp_path / "whole")


def test_the_clock_goes_on_where_it_stopped(data, tmp_path):
    recipe = tiny("training.max_minutes=60", "training.epochs=3", f"training.save_minutes={ALWAYS}")
    with watched(stop=4):
        train(data, recipe, tmp_path / "run")
    state = read_state(tmp_path / "run")
    assert state.progress["progress"]["seconds"] > 0
    late = state.progress | {"progress": state.progress["progress"] | {"seconds": 3600.0}}
    save_state(tmp_path / "run" / STATE_NAME, type(state)(state.tensors, late))
    summary = train(data, recipe, tmp_path / "run")
    assert (summary.epochs, summary.steps) == (2, 4)  # the hour was over before the next step
    assert summary.seconds > 3600


def test_moments_are_restored_in_the_memory_order_of_their_weights(data, tmp_path):
    """In another order, other kernels might round differently, and each step would copy."""
    recipe = tiny("training.epochs=1")
    train(data, recipe, tmp_path / "run")
    state = read_state(tmp_path / "run")
    module: Any = TokenizerObjective.scored(Tokenizer(recipe.tokenizer), recipe.training.loss)
    module.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(module.parameters())
    restore(state, module, optimizer)
    assert any(parameter.dim() == 4 and not parameter.is_contiguous() for parameter in module.parameters())
    for parameter, moments in optimizer.state.items():
        assert moments["exp_avg"].stride() == parameter.stride()


# --- Two states are kept


@pytest.fixture
def stopped(data, tmp_path):
    """A training stopped before its sixth step, with the states of two steps; its recipe and its folder."""
    recipe = tiny(f"training.save_minutes={ALWAYS}", "training.epochs=3")
    with watched(stop=5):
        train(data, recipe, tmp_path / "run")
    return recipe, tmp_path / "run"


def steps_of(run):
    return [load_state(run / name).progress["progress"]["step"] for name in (PREVIOUS_NAME, STATE_NAME)]


def test_the_state_before_the_last_is_kept(stopped):
    assert steps_of(stopped[1]) == [4, 5]


@pytest.mark.fault("damaged state", "the one before it is used, with a warning")
@pytest.mark.parametrize("fault", ["cut", "flipped", "empty"])
def test_a_damaged_last_state_falls_back_to_the_one_before_with_a_warning(fault, stopped, data, tmp_path):
    recipe, run = stopped
    content = (run / STATE_NAME).read_bytes()
    damaged = {"cut": content[:-9], "flipped": content[:-1] + bytes([content[-1] ^ 1]), "empty": b""}
    (run / STATE_NAME).write_bytes(damaged[fault])
    wanted = r"run/state\.safetensors: is damaged; .*previous-state.*, step 4"
    with watched() as steps, pytest.warns(UserWarning, match=wanted):
        train(data, recipe, run)
    assert steps[0] == 4
    train(data, recipe, tmp_path / "whole")
    assert_equal(run, tmp_path / "whole")


def test_a_state_that_was_cut_off_does_not_replace_the_good_one_before_it(stopped, data):
    recipe, run = stopped
    (run / STATE_NAME).write_bytes((run / STATE_NAME).read_bytes()[:-9])
    with watched(stop=5), pytest.warns(UserWarning, match="is damaged"):
        train(data, recipe, run)
    assert steps_of(run) == [4, 5]


def test_a_training_killed_between_the_two_renames_resumes_from_the_one_before(stopped, data):
    recipe, run = stopped
    (run / STATE_NAME).unlink()
    with watched() as steps:
        train(data, recipe, run)
    assert steps[0] == 4


@pytest.mark.fault("damaged state", "refused where both are damaged")
def test_two_damaged_states_are_refused(stopped, data):
    recipe, run = stopped
    for name in (STATE_NAME, PREVIOUS_NAME):
        (run / name).write_bytes((run / name).read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"run/state\.safetensors: is not a complete safetensors file"):
        train(data, recipe, run)


def test_a_weight_of_nan_is_never_kept(data, tmp_path, monkeypatch):
    """The loss of the step that makes the weight NaN is still finite."""
    whole = Trainer._clip

    def poison(self):
        whole(self)
        if self.progress.step == 4:
            next(self.unwrapped.parameters()).grad.fill_(float("nan"))

    monkeypatch.setattr(Trainer, "_clip", poison)
    recipe = tiny(f"training.save_minutes={ALWAYS}")
    with pytest.raises(ConfigError, match=r"NaN or infinite after step 5; .*model\.safetensors is the best"):
        train(data, recipe, tmp_path / "run")
    assert steps_of(tmp_path / "run") == [3, 4]
    assert (tmp_path / "run" / MODEL_NAME).is_file()


def test_the_minutes_between_states_may_change(stopped, data):
    recipe, run = stopped
    training: TrainingConfig = recipe.training.model_copy(update={"save_minutes": 7.0})
    assert train(data, recipe.model_copy(update={"training": training}), run).steps == 9


def test_states_are_kept_by_the_minute_not_by_the_step(data, tmp_path):
    with watched(stop=2):
        train(data, tiny(), tmp_path / "run")
    assert read_state(tmp_path / "run") is None
