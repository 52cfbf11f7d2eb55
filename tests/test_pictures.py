"""Pictures show what they are given: every slice, in its shape, whole or not at all."""

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from slicebook import pictures
from slicebook.errors import DataError, ShapeError

COLUMNS = (
    "epoch,step,seconds,train_loss,train_ssim,validation_loss,validation_ssim,images_per_second,learning_rate"
)


def disc(rows, columns, radius):
    y, x = np.mgrid[:rows, :columns]
    inside = np.hypot(y - rows / 2, x - columns / 2) < radius
    return np.where(inside, 1.0, -1.0).astype(np.float32)


def bright(path):
    """The picture's pixels that are white, as rows and columns."""
    image = imread(path)[..., :3]
    return np.nonzero((image > 0.99).all(-1))


def test_a_pixel_twice_as_high_as_wide_is_drawn_so(tmp_path):
    pictures.grid([disc(64, 64, 20)], tmp_path / "square.png")
    pictures.grid([disc(64, 64, 20)], tmp_path / "tall.png", aspect=2.0)
    ratios = []
    for name in ("square.png", "tall.png"):
        rows, columns = bright(tmp_path / name)
        ratios.append(np.ptp(rows) / np.ptp(columns))
    assert ratios == pytest.approx([1.0, 2.0], rel=0.05)


def test_minus_one_is_black_and_one_is_white(tmp_path):
    pictures.grid([np.array([[-1.0, 1.0]], np.float32)], tmp_path / "grey.png")
    image = imread(tmp_path / "grey.png")[..., :3]
    assert (image == 0).all(-1).any()
    assert (image == 1).all(-1).any()


def test_a_batch_shows_at_most_sixteen_slices_of_any_size(tmp_path):
    pictures.batch(torch.rand(20, 1, 32, 24) * 2 - 1, tmp_path / "batch.png")
    assert imread(tmp_path / "batch.png").size > 0


def test_slices_of_different_shapes_share_a_picture(tmp_path):
    slices = [disc(64, 32, 10), disc(64, 36, 10), torch.zeros(16, 48)]
    pictures.grid(slices, tmp_path / "grid.png", titles=["a", "b", "c"], aspect=[1.0, 1.0, 0.5])
    pictures.pairs(slices, slices, tmp_path / "pairs.png", aspect=[1.0, 1.0, 0.5])
    assert {path.name for path in tmp_path.iterdir()} == {"grid.png", "pairs.png"}


def test_an_exact_pair_has_a_dark_difference(tmp_path):
    flat = np.full((32, 32), 0.5, np.float32)
    pictures.pairs([flat], [flat], tmp_path / "same.png")
    pictures.pairs([flat], [flat - 1], tmp_path / "other.png")
    right = [imread(tmp_path / name)[..., :3][:, -60:-20].mean() for name in ("same.png", "other.png")]
    assert right[0] < 0.15
    assert right[1] > right[0] + 0.3


def test_levels_have_a_column_each_beside_the_original(tmp_path):
    slices = [disc(32, 32, 8)]
    for count in (1, 3):
        pictures.levels(slices, [slices] * count, tmp_path / f"{count}.png")
    narrow, wide = (imread(tmp_path / f"{count}.png").shape[1] for count in (1, 3))
    assert wide / narrow == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: pictures.grid([], path),
        lambda path: pictures.grid([disc(16, 16, 4)], path, titles=["a", "b"]),
        lambda path: pictures.grid([disc(16, 16, 4)], path, aspect=[1.0, 1.0]),
        lambda path: pictures.pairs([disc(16, 16, 4)], [], path),
        lambda path: pictures.levels([disc(16, 16, 4)], [[]], path),
    ],
)
def test_numbers_that_do_not_match_are_refused_and_nothing_is_written(tmp_path, draw):
    with pytest.raises(ShapeError, match="wanted"):
        draw(tmp_path / "none.png")
    assert list(tmp_path.iterdir()) == []


def test_curves_of_a_run_are_drawn_also_where_a_cell_is_empty(tmp_path):
    table = tmp_path / "metrics.csv"
    rows = ["0,10,1.0,0.9,0.1,0.8,0.2,50,1e-3,0.5,0.9,40,90", "1,20,2.0,0.7,0.3,,,50,1e-3,0.7,0.9,60,90"]
    table.write_text("\n".join([f"{COLUMNS},usage_0,usage_1,perplexity_0,perplexity_1", *rows]) + "\n")
    pictures.curves(table, tmp_path / "curves.png")
    image = imread(tmp_path / "curves.png")
    assert image.shape[0] > 400
    assert image[..., :3].std() > 0.02


def test_curves_of_a_decoder_show_its_sharpness(tmp_path):
    table = tmp_path / "metrics.csv"
    names = "step,train_fidelity,train_ssim,train_sharpness,train_discriminator,validation_sharpness"
    table.write_text(f"{names}\n10,0.5,0.6,0.7,2.0,0.7\n20,0.4,0.6,0.9,1.8,0.8\n")
    pictures.curves(table, tmp_path / "with.png")
    table.write_text(f"{names}\n10,0.5,0.6,0.7,2.0,\n20,0.4,0.6,0.9,1.8,\n")
    pictures.curves(table, tmp_path / "without.png")
    assert (imread(tmp_path / "with.png") != imread(tmp_path / "without.png")).any()


def test_curves_of_a_run_without_a_row_say_what_to_do(tmp_path):
    table = tmp_path / "metrics.csv"
    table.write_text(COLUMNS + "\n")
    with pytest.raises(DataError, match=r"metrics\.csv: no rows.*train"):
        pictures.curves(table, tmp_path / "curves.png")


def test_a_picture_replaces_the_one_before_and_leaves_nothing_else(tmp_path):
    for _ in range(2):
        pictures.grid([disc(16, 16, 4)], tmp_path / "grid.png")
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]
