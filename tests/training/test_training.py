"""Training on tiny slices: what a run leaves, how it goes on, and how it stops."""

import csv
import re
import socket
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.processes import run_processes
from helpers.training import poison, prepared_folder, tiny, train
from safetensors.torch import load_file

from slicebook.config import Recipe, TrainingConfig
from slicebook.data.dataset import PreparedData
from slicebook.errors import ConfigError, DataError
from slicebook.io.tensors import STATE_NAME
from slicebook.models.checkpoint import MODEL_NAME, load_tokenizer
from slicebook.models.tokenizer import Tokenizer
from slicebook.recipes import load_recipe
from slicebook.training import trainer
from slicebook.training.resume import PREVIOUS_NAME
from slicebook.training.run import _first_batch, lock_run
from slicebook.training.tokenizer import TokenizerObjective


def rows_of(run):
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def train_until(step, data, recipe, run):
    """Train, and stop as Ctrl-C would just before a step."""
    whole = TokenizerObjective.training_step

    def interrupted(self, batch, number, fraction):
        if number == step:
            raise KeyboardInterrupt
        return whole(self, batch, number, fraction)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TokenizerObjective, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(data, recipe, run)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepared_folder(tmp_path_factory.mktemp("data") / "prepared")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A finished training of two epochs, and what it returned."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    return run, train(data, tiny(), run)


# --- What a run leaves


def test_a_run_leaves_its_settings_curves_pictures_model_and_state(finished):
    run, summary = finished
    assert sorted(item.name for item in run.iterdir() if not item.name.startswith("events")) == [
        *("batch.png", "config.yaml", "curves.png", "metrics.csv", MODEL_NAME, PREVIOUS_NAME, STATE_NAME)
    ]
    for picture in ("batch.png", "curves.png"):
        assert (run / picture).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert load_recipe(run / "config.yaml") == tiny()
    assert (summary.epochs, summary.steps) == (2, 6)


def test_the_metrics_have_a_row_per_validation_with_usage_and_perplexity_of_each_level(finished):
    rows = rows_of(finished[0])
    assert {
        *("epoch", "step", "seconds", "train_loss", "train_ssim", "validation_loss", "validation_ssim"),
        *("images_per_second", "learning_rate", "usage_0", "usage_1", "perplexity_0", "perplexity_1"),
    } <= set(rows[0])
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 3), (2, 6)]
    assert all(0 < row["usage_0"] <= 1 <= row["perplexity_0"] <= 8 for row in rows)


def test_the_model_has_its_provenance(finished, data):
    run, summary = finished
    origin = load_tokenizer(run).info.provenance
    assert (origin.train_patients, origin.train_slices) == (3, 12)
    assert origin.split_hash == PreparedData.open(data).split_hash
    assert origin.epoch == summary.best_epoch
    assert origin.validation["validation_ssim"] == summary.scores["validation_ssim"]
    assert {"slicebook", "torch", "python"} <= set(origin.versions)


def test_training_makes_the_loss_fall_and_the_ssim_rise(data, tmp_path):
    train(
        data,
        tiny("training.epochs=16", "training.validate_every=5", "training.augment=null"),
        tmp_path / "run",
    )
    rows = rows_of(tmp_path / "run")
    assert [row["epoch"] for row in rows] == [5, 10, 15, 16]
    assert rows[-1]["train_loss"] < 0.9 * rows[0]["train_loss"]
    assert rows[-1]["train_ssim"] > rows[0]["train_ssim"]


def test_the_best_model_on_validation_is_kept_not_the_last(data, tmp_path, monkeypatch):
    ssim = iter([0.2, 0.6, 0.5, 0.4])
    monkeypatch.setattr(
        TokenizerObjective,
        "validation_step",
        lambda self, batch: {"loss": torch.tensor(0.0), "ssim": torch.tensor(next(ssim))},
    )
    summary = train(data, tiny("training.epochs=4"), tmp_path / "run")
    assert summary.best_epoch == load_tokenizer(tmp_path / "run").info.provenance.epoch == 2
    assert summary.scores["validation_ssim"] == pytest.approx(0.6)


def test_a_training_without_progress_for_so_long_ends(data, tmp_path, monkeypatch):
    ssim = iter([0.2, 0.6, 0.5, 0.4, 0.3, 0.2])
    monkeypatch.setattr(
        TokenizerObjective,
        "validation_step",
        lambda self, batch: {"loss": torch.tensor(0.0), "ssim": torch.tensor(next(ssim))},
    )
    recipe = tiny("training.epochs=6", "training.patience=2")
    assert train(data, recipe, tmp_path / "run").epochs == 4
    assert train(data, recipe, tmp_path / "run").epochs == 4  # and stays ended


def test_training_patients_are_trained_on_and_validation_patients_scored(data, tmp_path, monkeypatch):
    seen: dict[str, list[bytes]] = {"training_step": [], "validation_step": []}

    def watch(name):
        whole = getattr(TokenizerObjective, name)

        def watched(self, batch, *rest):
            seen[name] += [image.numpy().tobytes() for image in batch.images]
            return whole(self, batch, *rest)

        monkeypatch.setattr(TokenizerObjective, name, watched)

    watch("training_step")
    watch("validation_step")
    train(data, tiny("training.epochs=1"), tmp_path / "run")
    opened = PreparedData.open(data)
    train_slices, validation_slices = (
        {split[index].numpy().tobytes() for index in range(len(split))}
        for split in (opened.split("train"), opened.split("validation"))
    )
    assert set(seen["training_step"]) == train_slices
    assert set(seen["validation_step"]) == validation_slices
    assert len(seen["validation_step"]) == 4


def test_a_validation_does_not_change_the_model(data, tmp_path, monkeypatch):
    whole = TokenizerObjective.validation_step
    changed: list[str] = []

    def watched(self, batch):
        before = {name: value.clone() for name, value in self.tokenizer.state_dict().items()}
        scores = whole(self, batch)
        after = self.tokenizer.state_dict()
        changed.extend(name for name in before if not before[name].equal(after[name]))
        return scores

    monkeypatch.setattr(TokenizerObjective, "validation_step", watched)
    train(data, tiny("tokenizer.architecture=vqvae2"), tmp_path / "run")
    assert changed == []


def watch_steps(look, data, recipe, run):
    """Train, and return what `look(objective, images)` saw before each step."""
    seen, whole = [], TokenizerObjective.training_step

    def watched(self, batch, *rest):
        seen.append(look(self, batch))
        return whole(self, batch, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TokenizerObjective, "training_step", watched)
        train(data, recipe, run)
    return seen


def test_usage_is_reset_after_each_validation(data, tmp_path):
    hits = watch_steps(
        lambda objective, _: int(objective.tokenizer.codebook(0).code_hits.sum()),
        data,
        tiny(),
        tmp_path / "run",
    )
    assert hits == [0, 256, 512] * 2  # four slices of 8×8 tokens a step


def test_the_seed_orders_the_slices_and_every_epoch_has_its_own_order(data, tmp_path):
    orders = [
        watch_steps(
            lambda _, batch: batch.images.numpy().tobytes(),
            data,
            tiny(f"training.seed={seed}"),
            tmp_path / str(seed),
        )
        for seed in (42, 43)
    ]
    assert orders[0] != orders[1]
    assert orders[0][:3] != orders[0][3:]


def test_dead_codes_are_revived_every_so_many_steps_but_not_at_the_end(data, tmp_path, monkeypatch):
    asked, whole = [], Tokenizer.forward

    def watched(self, images, *, reset_dead_codes=False, dropped_levels=None):
        if self.training:
            asked.append(reset_dead_codes)
        return whole(self, images, reset_dead_codes=reset_dead_codes, dropped_levels=dropped_levels)

    monkeypatch.setattr(Tokenizer, "forward", watched)
    train(data, tiny("training.epochs=4", "tokenizer.quantizer.reset_every=4"), tmp_path / "run")
    assert [step for step, reset_dead_codes in enumerate(asked) if reset_dead_codes] == [
        3,
        7,
    ]  # step 11 of 12 is in the last tenth


@pytest.mark.fault("sizes mixed", "trained in batches of one size each")
def test_slices_of_several_shapes_and_fewer_than_a_batch_train(tmp_path):
    data = prepared_folder(tmp_path / "data", shapes=((32, 32), (36, 30)), slices=2)
    summary = train(data, tiny("training.batch_size=64", "training.epochs=1"), tmp_path / "run")
    assert summary.steps == 2


def test_the_founding_architecture_trains_in_the_same_loop(data, tmp_path):
    settings = ["tokenizer.codebook_sizes=[8, 8]", "tokenizer.scaling_rates=[4, 2]", "tokenizer.width=16"]
    recipe = load_recipe(
        "comp3710", [*settings, "tokenizer.code_dim=4", "tokenizer.resize=[32, 32]", "training.epochs=1"]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so short a training uses few codes, and says so
        train(data, recipe, tmp_path / "run")
    assert load_tokenizer(tmp_path / "run").tokenizer.config.architecture == "vqvae2"


def test_a_training_can_end_by_the_clock(data, tmp_path):
    summary = train(data, tiny("training.max_minutes=0.01", "training.epochs=100000"), tmp_path / "run")
    assert 0.6 <= summary.seconds < 20
    assert rows_of(tmp_path / "run")[-1]["step"] == summary.steps > 0


# --- Going on


def test_repeating_a_finished_training_trains_nothing(finished, data, monkeypatch):
    run, summary = finished
    before = {item.name: item.read_bytes() for item in run.iterdir()}
    monkeypatch.setattr(
        TokenizerObjective, "training_step", lambda *_: pytest.fail("a finished run was trained")
    )
    assert train(data, tiny(), run) == summary
    assert {item.name: item.read_bytes() for item in run.iterdir()} == before


@pytest.mark.parametrize("architecture", ["ladder", "vqvae2"])
def test_an_interrupted_training_resumes_to_the_same_weights(architecture, data, tmp_path):
    recipe = tiny(
        *(f"tokenizer.architecture={architecture}", "training.epochs=3", "training.loss.level_dropout=0.5"),
        *("tokenizer.quantizer.reset_every=2", "tokenizer.quantizer.reset_below=0.95"),
    )
    train(data, recipe, tmp_path / "whole")
    train_until(
        5, data, recipe, tmp_path / "parts"
    )  # in the second epoch: its first two steps are lost and done again
    assert len(rows_of(tmp_path / "parts")) == 1
    torch.rand(5)  # what a process did before is of no matter
    train(data, recipe, tmp_path / "parts")
    for name in (MODEL_NAME, STATE_NAME):
        whole, parts = load_file(tmp_path / "whole" / name), load_file(tmp_path / "parts" / name)
        assert whole.keys() == parts.keys()
        assert [key for key in whole if not whole[key].equal(parts[key])] == []
    timed = {"seconds", "images_per_second"}
    whole_rows, parts_rows = (
        [{name: value for name, value in row.items() if name not in timed} for row in rows_of(tmp_path / run)]
        for run in ("whole", "parts")
    )
    assert whole_rows == parts_rows


def test_a_training_killed_before_its_first_validation_starts_again(finished, data, tmp_path):
    run = tmp_path / "run"
    train_until(1, data, tiny(), run)
    (run / f".{MODEL_NAME}.x1y2z3").write_bytes(b"half a mod")
    train(data, tiny(), run)
    first, again = load_file(finished[0] / MODEL_NAME), load_file(run / MODEL_NAME)
    assert all(first[name].equal(again[name]) for name in first)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.learning_rate=0.5", r"training\.learning_rate: 0\.003 then, 0\.5 now"),
        ("tokenizer.quantizer.decay=0.9", r"tokenizer\.quantizer\.decay: 0\.99 then, 0\.9 now"),
        ("training.augment=null", r"training\.augment: "),
    ],
)
def test_other_settings_are_refused_by_name(setting, message, finished, data):
    run, _ = finished
    before = (run / STATE_NAME).read_bytes()
    with pytest.raises(ConfigError, match=f"was started with other settings .*{message}.*another --out"):
        train(data, tiny(setting), run)
    assert (run / STATE_NAME).read_bytes() == before


def test_other_data_are_refused(finished, tmp_path):
    other = prepared_folder(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match="was trained on other data or another split; use another --out"):
        train(other, tiny(), finished[0])


def test_a_folder_that_is_no_run_is_left_alone(data, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="is not a training that can be resumed; use another --out"):
        train(data, tiny(), tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ConfigError, match="is not a training that can be resumed"):
        train(data, tiny(), tmp_path / "thesis.txt")


# --- Seeds


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(finished, data, tmp_path):
    torch.manual_seed(123)
    np.random.seed(5)  # noqa: NPY002 (nothing may hang on the global state)
    train(data, tiny(), tmp_path / "again")
    train(data, tiny(), tmp_path / "other", seed=43)
    first, again, other = (
        load_tokenizer(run).codebook_hash for run in (finished[0], tmp_path / "again", tmp_path / "other")
    )
    assert first == again != other


# --- Stopping


@pytest.mark.fault("NaN loss", "stops and keeps the last good model; lower learning_rate")
def test_a_loss_of_nan_stops_and_keeps_the_last_good_model(tmp_path):
    data, run = prepared_folder(tmp_path / "data"), tmp_path / "run"
    train_until(3, data, tiny(), run)
    before = {name: (run / name).read_bytes() for name in (MODEL_NAME, STATE_NAME, "metrics.csv")}
    poison(data, "train")
    with pytest.raises(
        ConfigError, match=r"NaN or infinite after step 4.*model\.safetensors is the best"
    ) as caught:
        train(data, tiny(), run)
    assert "\n" not in str(caught.value)
    assert "lower learning_rate" in str(caught.value)
    assert {name: (run / name).read_bytes() for name in before} == before
    load_tokenizer(run)


def test_a_learning_rate_far_too_high_stops_before_anything_is_saved(data, tmp_path):
    recipe = tiny("training.learning_rate=1e36", "training.warmup=0", "training.grad_clip_norm=0")
    with pytest.raises(ConfigError, match="no model was saved yet; train to another --out with a lower"):
        train(data, recipe, tmp_path / "run")
    assert not (tmp_path / "run" / MODEL_NAME).exists()


def test_a_validation_loss_of_nan_stops_before_anything_is_saved(tmp_path):
    data = prepared_folder(tmp_path / "data")
    poison(data, "validation")
    with pytest.raises(ConfigError, match="the loss is NaN or infinite after step"):
        train(data, tiny(), tmp_path / "run")
    assert not (tmp_path / "run" / STATE_NAME).exists()


@pytest.mark.fault("collapse alarm", "a visible warning that names the level and the setting")
def test_few_codes_in_use_raise_a_visible_warning(data, tmp_path, capsys):
    recipe = tiny("tokenizer.codebook_sizes=[4096, 4]", "training.epochs=1")
    with pytest.warns(UserWarning, match=r"level 0 uses \d+% of its 4096 codes.*codebook_sizes\[0\]"):
        train(data, recipe, tmp_path / "run", progress=True)
    assert rows_of(tmp_path / "run")[0]["usage_0"] < 0.25
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "4,096 codes" in line]
    assert "for 768 training tokens, fewer than 20 per code" in line
    assert "codebook_sizes[0]" in line


def test_a_training_prints_device_threads_loss_ssim_usage_and_speed(data, tmp_path, capsys):
    run = tmp_path / "a [bold] run"
    train(data, tiny("training.epochs=1"), run, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert f"{run}: device cpu, CPU threads: {torch.get_num_threads()}" in lines
    (line,) = [line for line in lines if line.startswith("epoch 1")]
    for word in ("train loss", "validation loss", "ssim", "codes in use", "images/s", "best so far"):
        assert word in line
    train(data, tiny("training.epochs=1"), run, progress=True)
    assert f"{run}: resuming at 100%" in capsys.readouterr().err


def test_data_that_are_not_prepared_are_refused_before_anything_is_written(tmp_path):
    (tmp_path / "raw").mkdir()
    with pytest.raises(DataError, match="slicebook prepare"):
        train(tmp_path / "raw", tiny(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_data_without_validation_patients_are_refused(tmp_path):
    data = prepared_folder(tmp_path / "data", patients=(2, 0, 1))
    with pytest.raises(DataError, match="'validation' holds no slice"):
        train(data, tiny(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- Schedule


@pytest.mark.parametrize(
    ("schedule", "fraction", "rate"),
    [
        *(("cosine", 0.05, 0.5), ("cosine", 0.1, 1.0), ("cosine", 0.55, 0.5), ("cosine", 1.0, 0.0)),
        *(("constant", 0.05, 0.5), ("constant", 0.1, 1.0), ("constant", 0.9, 1.0)),
    ],
)
def test_the_learning_rate_warms_up_and_follows_its_schedule(schedule, fraction, rate):
    config = TrainingConfig(learning_rate=1.0, warmup=0.1, schedule=schedule)
    assert trainer._learning_rate(config, fraction) == pytest.approx(rate, abs=1e-9)


def test_a_training_without_warm_up_begins_at_its_full_rate():
    assert trainer._learning_rate(TrainingConfig(learning_rate=0.5, warmup=0.0), 0.0) == 0.5


# --- Several processes


def test_two_processes_that_torchrun_starts_train_one_model(finished, data, tmp_path):
    run_processes(2, tmp_path / "ranks", train, data, tiny(), tmp_path / "run")
    assert [row["step"] for row in rows_of(tmp_path / "run")] == [3, 6]
    names = {item.name for item in finished[0].iterdir()}
    assert {item.name for item in (tmp_path / "run").iterdir()} == names
    assert load_tokenizer(tmp_path / "run").info.provenance.step in (3, 6)


def test_a_recipe_with_another_name_resumes_the_same_training(finished, data):
    recipe: Recipe = tiny().model_copy(update={"name": "renamed"})
    assert train(data, recipe, finished[0]) == replace(finished[1])


# --- Two trainings into one folder


def _hold(run, ready):
    with lock_run(run):
        ready.set()
        time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    """Another process that trains into `tmp_path`/run."""
    context = torch.multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "run", ready), daemon=True)
    process.start()
    assert ready.wait(60)
    yield process
    process.kill()
    process.join()


@pytest.mark.fault(
    "two trainings in one folder",
    "the second is refused by host and process of the first; choose another --out",
)
def test_a_second_training_into_a_folder_is_refused_by_the_name_of_the_first(data, tmp_path, holder):
    named = rf"another training writes here \(process {holder.pid} on {re.escape(socket.gethostname())}\)"
    with pytest.raises(ConfigError, match=f"run: {named}; .*another --out"):
        train(data, tiny("training.seed=43"), tmp_path / "run")
    assert [item.name for item in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_training_that_was_killed_holds_its_folder_no_longer(data, tmp_path, holder):
    holder.kill()
    holder.join()
    train(data, tiny("training.epochs=1"), tmp_path / "run")
    assert not (tmp_path / "run" / ".lock").exists()


def test_processes_that_train_together_share_the_folder(tmp_path, holder, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with lock_run(tmp_path / "run"):
        pass
    assert (tmp_path / "run" / ".lock").exists()


def test_a_folder_that_nothing_was_written_to_is_not_left_behind(tmp_path):
    with lock_run(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").exists()
    assert not (tmp_path / "run").exists()


# --- No slice is lost


@pytest.mark.fault("rare sizes", "every slice is trained on")
@pytest.mark.parametrize("architecture", ["ladder", "vqvae2"])
def test_every_slice_of_a_rare_size_is_trained_on(architecture, tmp_path):
    """One patient of four slices among batches of five; its coarsest grid is a single value."""
    shapes = ((32, 32), (32, 32), (16, 16))
    data = prepared_folder(tmp_path / "data", shapes=shapes, slices=4)
    settings = [f"tokenizer.architecture={architecture}", "tokenizer.scaling_rates=[4, 4]"]
    seen = watch_steps(
        lambda _, batch: batch.indices.tolist(),
        data,
        tiny("training.batch_size=5", "training.epochs=1", *settings),
        tmp_path / "run",
    )
    assert sorted(index for indices in seen for index in indices) == list(range(12))


def test_a_batch_of_one_slice_trains_batch_norm_of_a_single_value(tmp_path):
    data = prepared_folder(tmp_path / "data", shapes=((16, 16),))
    settings = ["tokenizer.architecture=vqvae2", "tokenizer.scaling_rates=[4, 4]", "training.batch_size=1"]
    assert train(data, tiny("training.epochs=1", *settings), tmp_path / "run").steps == 12


def test_the_picture_of_a_batch_shows_its_random_contrast(data):
    """The slices that are drawn are those of a training step, contrast included."""
    train_slices = PreparedData.open(data).split("train")
    plain, contrasted = (
        _first_batch(train_slices, tiny(*settings).training, ())
        for settings in ((), ("training.augment.contrast.probability=1",))
    )
    assert plain.shape == contrasted.shape
    assert (plain != contrasted).flatten(1).any(1).all()
