"""Charts: what is drawn lies where its numbers say, and is told in words too."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from slicebook.errors import ShapeError
from slicebook.reporting.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, bars, lines

SVG = "{http://www.w3.org/2000/svg}"


def parsed(chart):
    """Return the picture as a tree, and what stands beside it."""
    picture, _, beside = chart.partition("</svg>")
    return ElementTree.fromstring(picture + "</svg>"), beside


def points_of(tree, kind):
    return [
        [tuple(map(float, pair.split(","))) for pair in one.get("points").split()]
        for one in tree.iter(f"{SVG}{kind}")
    ]


def test_the_ends_of_a_line_lie_at_the_ends_of_its_axis():
    tree, _ = parsed(lines({"one": [(4, 1), (0, 3), (2, 2)]}, x="bits", y="SSIM", what="a line"))
    ((first, middle, last),) = points_of(tree, "polyline")
    assert (first[0], last[0]) == (LEFT, WIDTH - RIGHT)
    assert middle == pytest.approx(((first[0] + last[0]) / 2, (first[1] + last[1]) / 2), abs=0.1)
    assert TOP < first[1] < last[1] < HEIGHT - BOTTOM  # 3 is higher than 1


def test_steps_of_a_logarithmic_axis_are_ratios():
    tree, _ = parsed(lines({"one": [(0, 9), (1, 1), (10, 1), (100, 1)]}, x="x", y="y", what="w", log_x=True))
    (places,) = points_of(tree, "polyline")
    assert len(places) == 3  # nothing can be drawn at 0
    assert places[1][0] - places[0][0] == pytest.approx(places[2][0] - places[1][0], abs=0.11)


def test_bars_rise_from_zero_each_over_its_share():
    tree, _ = parsed(bars({"one": [2, 1]}, x="codes", y="share", what="two bars"))
    (outline,) = points_of(tree, "polygon")
    floor = HEIGHT - BOTTOM
    assert outline[0] == (LEFT, floor)
    assert outline[-1] == (WIDTH - RIGHT, floor)
    heights = [floor - down for _, down in outline[1:-1]]
    assert heights[0] == heights[1] == pytest.approx(2 * heights[2], abs=0.2)
    assert outline[2][0] == outline[3][0] == (LEFT + WIDTH - RIGHT) / 2


def test_names_are_told_and_cannot_break_the_page():
    chart = lines({"<b>": [(0, 1)], "two": [(1, 2)]}, x="a & b", y="<i>", what='a "chart" <script>')
    tree, beside = parsed(chart)
    assert tree.find(f"{SVG}title").text == 'a "chart" <script>'
    assert {text.text for text in tree.iter(f"{SVG}text") if text.get("class").startswith("name")} == {
        "a & b",
        "<i>",
    }
    assert "&lt;b&gt;" in beside
    assert "<b>" not in chart
    assert re.findall(r'class="key (s\d)"', beside) == ["s0", "s1"]


def test_one_series_needs_no_legend():
    assert parsed(lines({"one": [(0, 1), (1, 2)]}, x="x", y="y", what="w"))[1] == ""


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0.61, 0.92, [0.7, 0.8, 0.9]), (-30, 120, [0, 50, 100])],
)
def test_ticks_are_round_and_within_the_axis(low, high, wanted):
    assert Axis("x", low, high).ticks() == pytest.approx(wanted)


def test_ticks_of_a_logarithmic_axis_are_round_too():
    assert Axis("x", 0.05, 2, log=True).ticks() == pytest.approx([0.05, 0.1, 0.2, 0.5, 1, 2])
    assert Axis("x", 1, 1e6, log=True).ticks() == pytest.approx([10.0**e for e in range(7)])
    assert Axis("x", 0.21, 0.45, log=True).ticks() == pytest.approx([0.25, 0.3, 0.35, 0.4, 0.45])


@pytest.mark.parametrize("points", [[(1, 2)], [(1, 2), (1, 2)], [(0, 0), (1, 0)], [(-1, 5), (-1, 6)]])
@pytest.mark.parametrize("log", [False, True])
def test_one_point_and_level_lines_are_drawn(points, log):
    if log and all(x <= 0 for x, _ in points):
        return
    tree, _ = parsed(lines({"one": points}, x="x", y="y", what="w", log_x=log, marks=True))
    for circle in tree.iter(f"{SVG}circle"):
        assert LEFT <= float(circle.get("cx")) <= WIDTH - RIGHT
        assert TOP <= float(circle.get("cy")) <= HEIGHT - BOTTOM


@pytest.mark.parametrize("series", [{}, {"one": []}, {"one": [(0, float("nan"))]}])
def test_nothing_and_no_numbers_are_refused(series):
    with pytest.raises(ShapeError, match="wanted some, all of them numbers"):
        lines(series, x="x", y="y", what="a chart")
    with pytest.raises(ShapeError, match="wanted some, all of them numbers"):
        bars({name: [y for _, y in points] for name, points in series.items()}, x="x", y="y", what="w")


def test_a_band_lies_between_its_edges_and_is_named():
    edges = ([(0, 1), (2, 1)], [(0, 3), (2, 3)])
    drawn = lines({"a": [(0, 2), (2, 2)]}, x="x", y="y", what="w", band=("the range", *edges))
    band = re.search(r'class="band" points="([^"]*)"', drawn).group(1)
    heights = [float(point.split(",")[1]) for point in band.split()]
    line = float(re.search(r'class="line s0" points="[^,]*,([\d.]+)', drawn).group(1))
    assert len(heights) == 4
    assert min(heights) < line < max(heights)
    assert "the range" in drawn
