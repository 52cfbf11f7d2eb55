"""Pictures show what they are given: every slice, in its shape, whole or not at all."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from slicebook.errors import DataError
from slicebook.visualization import figures

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


def as_batch(*slices):
    return torch.stack([torch.as_tensor(image)[None] for image in slices])


def draw_pairs(originals, copies, path, aspect=None):
    names = ["a"] * len(originals)
    ratios = [1.0] * len(originals) if aspect is None else aspect
    figures.pairs(originals, copies, path, names=names, titles=names, aspect=ratios, caption="Pairs")


def test_a_pixel_twice_as_high_as_wide_is_drawn_so(tmp_path):
    figures.batch(as_batch(disc(64, 64, 20)), tmp_path / "square.png")
    figures.batch(as_batch(disc(64, 64, 20)), tmp_path / "tall.png", aspect=2.0)
    ratios = []
    for name in ("square.png", "tall.png"):
        rows, columns = bright(tmp_path / name)
        ratios.append(np.ptp(rows) / np.ptp(columns))
    assert ratios == pytest.approx([1.0, 2.0], rel=0.05)


def test_minus_one_is_black_and_one_is_white(tmp_path):
    figures.batch(as_batch(np.array([[-1.0, 1.0]], np.float32)), tmp_path / "grey.png")
    image = imread(tmp_path / "grey.png")[..., :3]
    assert (image == 0).all(-1).any()
    assert (image == 1).all(-1).any()


def test_a_batch_shows_at_most_sixteen_slices(tmp_path):
    sizes = []
    for count in (16, 20):
        figures.batch(torch.rand(count, 1, 32, 24) * 2 - 1, tmp_path / f"{count}.png")
        sizes.append(imread(tmp_path / f"{count}.png").shape)
    assert sizes[0] == sizes[1]


def test_slices_of_different_shapes_share_a_picture(tmp_path):
    slices = [disc(64, 32, 10), disc(64, 36, 10), torch.zeros(16, 48)]
    draw_pairs(slices, slices, tmp_path / "pairs.png", aspect=[1.0, 1.0, 0.5])
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.png"]


def test_an_exact_pair_has_a_dark_difference(tmp_path):
    flat = np.full((32, 32), 0.5, np.float32)
    draw_pairs([flat], [flat], tmp_path / "same.png")
    draw_pairs([flat], [flat - 1], tmp_path / "other.png")
    right = [imread(tmp_path / name)[..., :3][:, -60:-20].mean() for name in ("same.png", "other.png")]
    assert right[0] < 0.15
    assert right[1] > right[0] + 0.3


def test_levels_have_a_column_each_beside_the_original(tmp_path):
    slices = [disc(32, 32, 8)]
    for count in (1, 3):
        figures.levels(slices, [slices] * count, tmp_path / f"{count}.png")
    narrow, wide = (imread(tmp_path / f"{count}.png").shape[1] for count in (1, 3))
    assert wide / narrow == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: draw_pairs([disc(16, 16, 4)], [], path),
        lambda path: draw_pairs([disc(16, 16, 4)] * 2, [disc(16, 16, 4)] * 2, path, aspect=[1.0]),
        lambda path: figures.levels([disc(16, 16, 4)], [[]], path),
        lambda path: figures.levels([disc(16, 16, 4)], [[disc(16, 16, 4)]], path, aspect=[1.0, 1.0]),
    ],
)
def test_numbers_that_do_not_match_are_refused_and_nothing_is_written(tmp_path, draw):
    with pytest.raises(ValueError, match=r"shorter|longer|broadcast"):
        draw(tmp_path / "none.png")
    assert list(tmp_path.iterdir()) == []


def test_curves_of_a_run_are_drawn_also_where_a_cell_is_empty(tmp_path):
    table = tmp_path / "metrics.csv"
    rows = ["0,10,1.0,0.9,0.1,0.8,0.2,50,1e-3,0.5,0.9,40,90", "1,20,2.0,0.7,0.3,,,50,1e-3,0.7,0.9,60,90"]
    table.write_text("\n".join([f"{COLUMNS},usage_0,usage_1,perplexity_0,perplexity_1", *rows]) + "\n")
    figures.curves(table, tmp_path / "curves.png")
    image = imread(tmp_path / "curves.png")
    assert image.shape[0] > 400
    assert image[..., :3].std() > 0.02


@pytest.mark.parametrize(
    ("names", "rows", "fewer"),
    [
        (
            "step,train_loss,validation_loss,validation_explained",
            "10,0.5,0.6,0.1\n20,0.4,0.5,0.3",
            "10,0.5,0.6,\n20,0.4,0.5,",
        ),
        (
            "step,train_loss,train_nats_image_0,validation_nats_image_0,validation_log_score",
            "10,2,3,3,-3\n20,1,2,2,-2",
            "10,2,3,3,\n20,1,2,2,",
        ),
    ],
    ids=["decoder", "prior"],
)
def test_curves_of_the_models_of_generation_show_their_validation(names, rows, fewer, tmp_path):
    table = tmp_path / "metrics.csv"
    for name, values in (("with", rows), ("without", fewer)):
        table.write_text(f"{names}\n{values}\n")
        figures.curves(table, tmp_path / f"{name}.png")
    first, second = (imread(tmp_path / f"{name}.png") for name in ("with", "without"))
    assert first.shape == second.shape
    assert (first != second).any()


def test_curves_of_a_run_without_a_row_say_what_to_do(tmp_path):
    table = tmp_path / "metrics.csv"
    table.write_text(COLUMNS + "\n")
    with pytest.raises(DataError, match=r"metrics\.csv: no rows.*train"):
        figures.curves(table, tmp_path / "curves.png")


def test_a_picture_replaces_the_one_before_and_leaves_nothing_else(tmp_path):
    for _ in range(2):
        figures.batch(as_batch(disc(16, 16, 4)), tmp_path / "batch.png")
    assert [path.name for path in tmp_path.iterdir()] == ["batch.png"]


# --- Charts

SVG = "{http://www.w3.org/2000/svg}"
LINES = {"first": [(1, 1), (2, 3), (4, 2)], "second": [(1, 2), (4, 1)]}


def chart(series=LINES, **how):
    return figures.line_chart(series, **({"x": "bits", "y": "SSIM", "title": "A chart"} | how))


def path_of(svg, variable):
    """The points of the line that is drawn in a colour of the page."""
    for path in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        if f"stroke: var({variable})" in path.get("style", "") and "fill: none" in path.get("style"):
            return [tuple(map(float, point)) for point in re.findall(r"([\d.]+) ([\d.]+)", path.get("d"))]
    return None


def test_the_same_chart_is_the_same_text_without_date_or_file_header():
    assert chart() == chart()
    assert chart().startswith("<svg")
    assert "<metadata" not in chart()


def test_a_chart_takes_all_its_colours_and_its_font_size_from_the_page():
    band = ("range", [(1, 0), (4, 0)], [(1, 4), (4, 4)])
    assert re.findall("#[0-9a-f]{6}", chart(band=band)) == []
    assert 'width="' not in chart(band=band).partition(">")[0]


def test_charts_of_one_page_share_no_id_and_no_style():
    ids = [re.findall(r' id="([^"]*)"', chart(title=title)) for title in ("one", "two")]
    assert ids[0]
    assert not set(ids[0]) & set(ids[1])
    assert "<style" not in chart()
    assert "url(" not in chart()


def test_a_line_rises_where_its_values_do_and_spans_the_axis():
    first = path_of(chart(), "--s0")
    assert [x for x, _ in first] == sorted(x for x, _ in first)
    assert first[1][1] < first[2][1] < first[0][1]  # SVG counts downwards
    assert (first[1][0] - first[0][0]) * 2 == pytest.approx(first[2][0] - first[1][0], abs=0.01)


def test_steps_of_a_logarithmic_axis_are_ratios():
    first = path_of(chart(log_x=True), "--s0")
    assert first[1][0] - first[0][0] == pytest.approx(first[2][0] - first[1][0], abs=0.01)


@pytest.mark.parametrize(("low", "high"), [(0.05, 2), (0.21, 0.45), (1, 1e6), (3, 3)])
def test_a_logarithmic_axis_has_plain_numbers(low, high):
    svg = chart({"one": [(low, 1), (high, 2)]}, log_x=True)
    labels = [text.text for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert len([label for label in labels if re.fullmatch(r"[\d.e+]+", label)]) >= 4


def test_names_are_text_and_cannot_break_the_page():
    svg = chart({"<b>": [(0, 1)], "$two$": [(1, 2)]}, x="a & b", y="<i>", title='a "chart" <script>')
    tree = ElementTree.fromstring(svg)
    assert tree.find(f"{SVG}title").text == 'a "chart" <script>'
    assert "$two$" in tree.find(f"{SVG}desc").text
    assert {"<b>", "$two$", "a & b", "<i>"} <= {text.text for text in tree.iter(f"{SVG}text")}
    assert "<b>" not in svg


def test_one_line_needs_no_legend_and_a_range_has_one():
    assert ">only<" not in chart({"only": [(0, 1), (1, 2)]})
    assert ">range<" in chart({"only": [(0, 1), (1, 2)]}, band=("range", [(0, 0)] * 2, [(1, 3)] * 2))
