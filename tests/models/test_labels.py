"""Label masks: one-hot and back, their loss, their tokenizer and its training."""

import csv
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoint import resealed
from helpers.labels import VALUES, labelled_folder, masks
from helpers.training import OPTIONS, tiny

from slicebook.cli.main import main
from slicebook.config import (
    AugmentConfig,
    LabelsConfig,
    LossConfig,
    Recipe,
    TokenizerConfig,
    TrainingConfig,
    validate,
)
from slicebook.data.augment import augment, augment_labels, draw_augmentation
from slicebook.data.dataset import PreparedData
from slicebook.data.loader import SliceBatches
from slicebook.errors import CheckpointError, ConfigError, DataError, ShapeError
from slicebook.io.tensors import STATE_NAME, load_state, save_state
from slicebook.models.checkpoint import MODEL_NAME, load_tokenizer
from slicebook.models.losses import compare
from slicebook.models.masks import check_labels, labels_from, one_hot
from slicebook.models.networks.ladder import Ladder
from slicebook.models.tokenizer import Tokenizer
from slicebook.recipes import load_recipe
from slicebook.training.tokenizer import LabelObjective, train_labels, train_tokenizer


def small(*settings):
    """A recipe whose label tokenizer trains in a second."""
    return tiny(
        *("labels.tokenizer.scaling_rates=[8]", "labels.tokenizer.codebook_sizes=[16]"),
        *("labels.tokenizer.width=16", "labels.training.batch_size=4", "labels.training.epochs=2"),
        *("labels.training.validate_every=1", *settings),
    )


def rows_of(run):
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return labelled_folder(tmp_path_factory.mktemp("masks") / "prepared")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A finished training of two epochs."""
    folder = tmp_path_factory.mktemp("runs") / "labels"
    train_labels(data, small(), folder, options=OPTIONS)
    return folder


# --- One-hot and back


def test_masks_come_back_from_their_one_hot_form():
    drawn = masks(3, 8, 10)
    hot = one_hot(drawn, VALUES)
    assert hot.shape == (3, 3, 8, 10)
    assert hot.sum(1).eq(1).all()
    assert hot[:, 2].eq(drawn == 5).all()
    assert labels_from(hot, VALUES).equal(drawn)


def test_an_unknown_label_is_named_with_the_known_ones():
    with pytest.raises(DataError, match=r"label 7 in a mask; known are 0, 1, 5"):
        check_labels([0, 5, 7], VALUES)
    check_labels([5], VALUES)


def test_the_loss_by_hand():
    labels = torch.tensor([[[0, 1, 1, 5]]], dtype=torch.uint8)
    likely = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.6, 0.3], [0.5, 0.25, 0.25], [0.2, 0.2, 0.6]])
    scores = compare(likely.log().t()[None, :, None, :], labels, VALUES)
    assert float(scores.cross_entropy) == pytest.approx(-math.log(0.8 * 0.6 * 0.25 * 0.6) / 4)
    label_1 = 2 * (0.6 + 0.25) / ((0.1 + 0.6 + 0.25 + 0.2) + 2)
    label_5 = 2 * 0.6 / ((0.1 + 0.3 + 0.25 + 0.6) + 1)
    assert float(scores.soft_dice) == pytest.approx((label_1 + label_5) / 2)
    assert float(scores.dice) == pytest.approx((2 * 1 / (1 + 2) + 1) / 2)


def test_a_label_that_does_not_occur_has_no_dice():
    labels = torch.tensor([[[0, 1]]], dtype=torch.uint8)
    right = one_hot(labels, VALUES) * 20
    assert float(compare(right, labels, VALUES).dice) == 1
    empty = torch.zeros_like(labels)
    assert float(compare(right, empty, VALUES).dice) == 1


def test_both_parts_of_the_loss_have_gradients():
    for part in ("cross_entropy", "soft_dice"):
        logits = torch.zeros(1, 3, 32, 32, requires_grad=True)
        (gradient,) = torch.autograd.grad(getattr(compare(logits, masks(1), VALUES), part), logits)
        assert gradient.abs().amin() > 0


# --- The tokenizer


def label_tokenizer(**settings):
    defaults: dict[str, Any] = {
        "scaling_rates": (8, 2),
        "codebook_sizes": (16, 8),
        "code_dim": 4,
        "width": 16,
    }
    torch.manual_seed(0)
    return Tokenizer(TokenizerConfig(**(defaults | settings), label_values=VALUES))


def test_a_label_tokenizer_decodes_logits_of_each_value_at_any_size():
    tokenizer = label_tokenizer()
    hot = one_hot(masks(4, 30, 21), VALUES)
    tokenizer.init_from_kmeans(hot, torch.Generator().manual_seed(0))
    tokenizer.eval()
    tokens = tokenizer.encode(hot)
    assert [tuple(grid.shape) for grid in tokens] == [(4, 4, 4), (4, 2, 2)]
    logits = tokenizer.decode(tokens, (30, 21))
    assert logits.shape == (4, 3, 30, 21)
    assert logits.allclose(tokenizer(hot).images, atol=1e-5)


def test_every_weight_of_a_label_tokenizer_has_a_gradient():
    tokenizer = label_tokenizer()
    drawn = masks(4)
    for name, weight in tokenizer.named_parameters():  # residual blocks begin as the identity
        if name.endswith("body.5.weight"):
            torch.nn.init.normal_(weight, std=0.1)
    output = tokenizer(one_hot(drawn, VALUES))
    (compare(output.images, drawn, VALUES).cross_entropy + output.commitment).backward()
    without = [name for name, weight in tokenizer.named_parameters() if not weight.grad.abs().sum() > 0]
    assert without == []


def test_a_tokenizer_of_slices_is_as_it_was_before_masks():
    network = Ladder(load_recipe("compact").tokenizer)
    assert network.folds.get_parameter("0.1.weight").shape == (96, 64, 3, 3)
    assert network.unfolds[0].get_parameter(
        f"{len(list(network.unfolds[0].children())) - 1}.0.weight"
    ).shape == (16, 48, 3, 3)
    assert sum(weight.numel() for weight in network.parameters()) == 2_556_736


def test_a_tokenizer_refuses_slices_of_the_other_kind():
    with pytest.raises(ShapeError, match=r"found slices of 1 channels; .* one-hot label masks of 3"):
        label_tokenizer().encode(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ShapeError, match=r"found slices of 3 channels; .* grayscale slices of 1"):
        Tokenizer(tiny().tokenizer).encode(torch.zeros(1, 3, 32, 32))


# --- Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "vqvae2", "label_values": (0, 1)}, "for the architecture ladder"),
        ({"resize": (64, 64), "label_values": (0, 1)}, "without resize"),
        ({"label_values": (1, 0)}, "two or more, each once, in rising order"),
        ({"label_values": (3,)}, "two or more"),
        ({"label_values": (0, 256)}, "less than or equal to 255"),
    ],
)
def test_label_values_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        validate(TokenizerConfig, settings, "here")


def test_the_loss_of_masks_and_label_values_go_together():
    labels = TrainingConfig(loss=LossConfig(kind="ce_dice"))
    with pytest.raises(ConfigError, match="go together"):
        validate(Recipe, {"training": labels}, "here")
    with pytest.raises(ConfigError, match="go together"):
        validate(Recipe, {"tokenizer": {"label_values": (0, 1)}}, "here")
    with pytest.raises(ConfigError, match="wanted 'ce_dice' for masks"):
        validate(LabelsConfig, {"training": TrainingConfig()}, "here")


def test_a_setting_of_masks_leaves_the_others_at_their_defaults():
    chosen = load_recipe("compact", ["labels.training.epochs=7", "labels.training.augment.shift=0.1"]).labels
    usual = LabelsConfig()
    assert chosen.tokenizer == usual.tokenizer
    augment = usual.training.augment.model_copy(update={"shift": 0.1})
    assert chosen.training == usual.training.model_copy(update={"epochs": 7, "augment": augment})
    with pytest.raises(ConfigError, match=r"unknown setting 'labels\.training\.epoch'; did you mean"):
        load_recipe("compact", ["labels.training.epoch=7"])


def test_label_values_come_from_the_data_unless_the_recipe_has_them():
    assert small().for_labels(VALUES).tokenizer.label_values == VALUES
    given = small("labels.tokenizer.label_values=[0, 1, 2, 5]").for_labels(VALUES)
    assert given.tokenizer.label_values == (0, 1, 2, 5)


# --- Augmentation


def moves(count, **settings):
    still = {
        "flip_probability": 0,
        "rotate_degrees": 0,
        "scale": 0,
        "shift": 0,
        "gamma": 0,
        "intensity_scale": 0,
    }
    config = AugmentConfig(**(still | settings))
    return draw_augmentation(config, count, torch.Generator().manual_seed(1))


def test_masks_move_as_their_slices_do():
    inside = masks(6, 40, 24)[:, None]
    parameters = moves(
        6, flip_probability=0.5, rotate_degrees=20, scale=0.1, shift=0.1, gamma=0.5, intensity_scale=0.5
    )
    moved = augment_labels(inside, parameters)
    assert set(moved.unique().tolist()) <= set(VALUES)
    still = replace(parameters, gamma=torch.ones(6), gain=torch.ones(6))
    slices = augment((inside > 0).float() * 2 - 1, still)
    assert (slices > 0).eq(moved > 0).float().mean() > 0.98
    assert moved.ne(inside).any()


def test_masks_are_mirrored_exactly_and_their_edge_goes_on():
    inside = masks(2)[:, None]
    assert augment_labels(inside, moves(2)).equal(inside)
    assert augment_labels(inside, moves(2, flip_probability=1)).equal(inside.flip(-1))
    full = torch.full((8, 1, 16, 16), 5, dtype=torch.uint8)
    assert augment_labels(full, moves(8, shift=0.3, rotate_degrees=30)).equal(full)


# --- Batches and training


def test_batches_of_labels_hold_the_masks_of_their_slices(data):
    slices = PreparedData.open(data).split("train")
    for batch in SliceBatches(slices, 5, what="labels"):
        assert batch.images.dtype == torch.uint8
        for index, mask in zip(batch.indices.tolist(), batch.images, strict=True):
            assert mask[0].equal(slices.labels(index))


def test_training_makes_the_loss_fall_and_the_dice_rise(data, tmp_path):
    recipe = small("labels.training.epochs=16", "labels.training.validate_every=5")
    train_labels(data, recipe, tmp_path / "run", options=OPTIONS)
    rows = rows_of(tmp_path / "run")
    assert rows[-1]["train_loss"] < 0.9 * rows[0]["train_loss"]
    assert rows[-1]["train_cross_entropy"] < 0.9 * rows[0]["train_cross_entropy"]
    assert rows[-1]["validation_dice"] > rows[0]["validation_dice"] + 0.05


def test_the_model_of_the_best_dice_is_kept(data, tmp_path, monkeypatch):
    dice = iter([0.2, 0.6, 0.5])
    monkeypatch.setattr(
        LabelObjective,
        "validation_step",
        lambda self, images: {"loss": torch.tensor(0.0), "dice": torch.tensor(next(dice))},
    )
    summary = train_labels(data, small("labels.training.epochs=3"), tmp_path / "run", options=OPTIONS)
    assert summary.best_epoch == 2
    assert summary.scores["validation_dice"] == pytest.approx(0.6)


def test_a_run_of_masks_leaves_pictures_and_a_model_that_knows_its_labels(run):
    for picture in ("batch.png", "curves.png"):
        assert (run / picture).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    loaded = load_tokenizer(run, kind="label tokenizer")
    assert loaded.tokenizer.config.label_values == VALUES
    assert loaded.info.recipe == small().for_labels(VALUES)
    assert loaded.info.provenance.train_slices == 12


def test_a_training_of_masks_resumes_to_the_same_weights_and_trains_nothing_twice(
    data, run, tmp_path, monkeypatch
):
    before = (run / MODEL_NAME).read_bytes()
    monkeypatch.setattr(LabelObjective, "training_step", lambda *_: pytest.fail("a finished run was trained"))
    train_labels(data, small(), run, options=OPTIONS)
    assert (run / MODEL_NAME).read_bytes() == before


def test_slices_without_a_mask_are_left_out(tmp_path):
    data = labelled_folder(tmp_path / "data", without=(0, 5))
    train_labels(data, small("labels.training.epochs=1"), tmp_path / "run", options=OPTIONS)
    loaded = load_tokenizer(tmp_path / "run", kind="label tokenizer")
    assert loaded.info.provenance.train_slices == 10


def test_data_without_masks_are_refused(tmp_path):
    data = labelled_folder(tmp_path / "data", without=range(20))
    with pytest.raises(DataError, match=r"no slice of its split 'train' has a mask; prepare it again"):
        train_labels(data, small(), tmp_path / "run", options=OPTIONS)
    assert not (tmp_path / "run").exists()


def test_a_label_that_the_recipe_lacks_is_named(data, tmp_path):
    with pytest.raises(DataError, match=r"label 5 in a mask; known are 0, 1"):
        train_labels(data, small("labels.tokenizer.label_values=[0, 1]"), tmp_path / "run", options=OPTIONS)


# --- Beside tokenizers of slices


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "RUN", "DATA", "--out", "OUT"],
        ["reconstruct", "RUN", "DATA", "-o", "OUT"],
    ],
)
def test_a_label_tokenizer_is_refused_where_slices_are_wanted(command, data, run, tmp_path, capsys):
    places = {"RUN": str(run), "DATA": str(data), "OUT": str(tmp_path / "out")}
    assert main([places.get(word, word) for word in command]) == 1
    message = capsys.readouterr().err.strip()
    assert message.endswith(f"{run / MODEL_NAME}: holds a label tokenizer, wanted a tokenizer")
    assert "\n" not in message


@pytest.fixture
def slices_run(data, tmp_path_factory, tmp_path):
    """A copy of the finished training of a tokenizer of slices."""
    whole = tmp_path_factory.getbasetemp() / "slices"
    if not whole.exists():
        train_tokenizer(data, tiny("training.epochs=1"), whole, options=OPTIONS)
    return Path(shutil.copytree(whole, tmp_path / "run"))


def test_a_tokenizer_of_slices_is_refused_where_masks_are_wanted(slices_run):
    with pytest.raises(CheckpointError, match="holds a tokenizer, wanted a label tokenizer"):
        load_tokenizer(slices_run, kind="label tokenizer")


def test_a_training_started_before_masks_resumes_whatever_their_settings(data, slices_run):
    state = load_state(slices_run / STATE_NAME)
    assert "labels" not in state.progress["recipe"]  # no setting of another training is remembered
    del state.progress["recipe"]["tokenizer"]["label_values"]
    save_state(slices_run / STATE_NAME, state)
    recipe = tiny("training.epochs=1", "labels.training.epochs=7")
    assert train_tokenizer(data, recipe, slices_run, options=OPTIONS).steps == 3
    with pytest.raises(ConfigError, match=r"other settings \(training\.epochs: 1 then, 2 now\)"):
        train_tokenizer(data, tiny(), slices_run, options=OPTIONS)


def test_a_model_written_before_masks_is_read_as_one_of_slices(slices_run):
    recipe = load_tokenizer(slices_run).info.recipe.model_dump(mode="json")
    del recipe["labels"], recipe["tokenizer"]["label_values"]
    resealed(slices_run / MODEL_NAME, recipe=recipe)
    assert load_tokenizer(slices_run).tokenizer.config == tiny().tokenizer
