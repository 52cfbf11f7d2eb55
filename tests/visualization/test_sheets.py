"""Contact sheets, pixel by pixel."""

import numpy as np
import pytest
from helpers.sheets import pixels_of

from slicebook.visualization.contact_sheet import COLOURS, GAP, OPACITY, gray, hot, tinted, write_sheet

RAMP = np.array([[-1.0, 0.0], [1.0, 5.0]], dtype=np.float32)


def picture(level, rows=2, columns=3):
    return np.full((rows, columns, 3), level, dtype=np.uint8)


def test_gray_runs_from_black_at_minus_one_to_white_at_one():
    assert gray(RAMP)[..., 0].tolist() == [[0, 128], [255, 255]]


def test_gray_has_three_equal_channels():
    pixels = gray(RAMP)
    assert (pixels == pixels[..., :1]).all()


def test_high_pixels_are_drawn_high():
    pixels = gray(RAMP, aspect=2.0)
    assert pixels.shape == (4, 2, 3)
    assert pixels[0].tolist() == gray(RAMP)[0].tolist()
    assert pixels[3].tolist() == gray(RAMP)[1].tolist()


def test_the_background_of_a_mask_stays_gray():
    assert (tinted(RAMP, np.zeros((2, 2), np.uint8)) == gray(RAMP)).all()


@pytest.mark.parametrize(("label", "colour"), [(1, 0), (2, 1), (6, 5), (7, 0)])
def test_each_label_has_its_colour_over_the_slice(label, colour):
    pixels = tinted(RAMP, np.full((2, 2), label, np.uint8))
    expected = (1 - OPACITY) * gray(RAMP) + OPACITY * np.array(COLOURS[colour])
    assert np.abs(pixels - expected).max() <= 0.5 + 1e-3


def test_a_mask_grows_with_its_slice():
    mask = np.array([[1, 1], [0, 0]], dtype=np.uint8)
    pixels = tinted(np.zeros((2, 2), np.float32), mask, aspect=1.5)
    coloured = (pixels != pixels[..., :1]).any(-1)[:, 0]
    assert coloured.tolist() == [True, True, False]


def test_no_heat_leaves_the_slice_as_it_is():
    assert (hot(RAMP, np.zeros((2, 2))) == gray(RAMP)).all()


def test_full_heat_is_red():
    red = hot(RAMP, np.ones((2, 2)))
    assert (red[..., 0] >= 204).all()
    assert red[0, 0].tolist() == [204, 48, 0]


def test_more_heat_is_redder():
    levels = [int(hot(-np.ones((1, 1)), np.full((1, 1), heat))[0, 0, 0]) for heat in (0.0, 0.25, 0.5, 1.0)]
    assert levels == sorted(set(levels))


def test_a_sheet_puts_pictures_row_by_row_with_dark_gaps(tmp_path):
    write_sheet([picture(10), picture(20), picture(30)], tmp_path / "sheet.png", columns=2)
    pixels = pixels_of(tmp_path / "sheet.png")
    assert pixels.shape == (4 + GAP, 6 + GAP, 3)
    assert (pixels[:2, :3] == 10).all()
    assert (pixels[:2, 3 + GAP :] == 20).all()
    assert (pixels[2 + GAP :, :3] == 30).all()
    assert (
        pixels[2 : 2 + GAP].max() == pixels[:, 3 : 3 + GAP].max() == pixels[2 + GAP :, 3 + GAP :].max() == 0
    )


def test_a_sheet_is_square_unless_told(tmp_path):
    write_sheet([picture(1)] * 5, tmp_path / "sheet.png")
    assert pixels_of(tmp_path / "sheet.png").shape == (2 * 2 + GAP, 3 * 3 + 2 * GAP, 3)


def test_pictures_of_other_sizes_share_a_sheet(tmp_path):
    write_sheet([picture(10, 1, 1), picture(20, 4, 2)], tmp_path / "deep" / "sheet.png", columns=2)
    pixels = pixels_of(tmp_path / "deep" / "sheet.png")
    assert pixels.shape == (4, 4 + GAP, 3)
    assert (pixels[:, 2 + GAP :] == 20).all()
    assert pixels[0, 0, 0] == 10


def test_a_label_as_wide_as_a_body_is_an_outline():
    mask = np.zeros((12, 12), np.uint8)
    mask[1:11, 1:11] = 1
    mask[5:7, 5:7] = 2
    pixels = tinted(np.zeros((12, 12), np.float32), mask)
    coloured = (pixels != pixels[..., :1]).any(-1)
    assert coloured[1, 1:11].all()
    assert coloured[5:7, 5:7].all()
    assert not coloured[2:5, 2:10].any()
