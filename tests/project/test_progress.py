"""Progress lines: redrawn on a terminal, once a minute in a log, with the time left."""

import io
import itertools
import sys

import pytest

from slicebook.progress import ProgressLine


@pytest.fixture(params=[True])
def terminal(request):
    """Whether stderr is a terminal."""
    return request.param


@pytest.fixture
def show(terminal, monkeypatch):
    """Show steps (seconds since the one before, units done of 40), and return what was written."""
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)

    def shown(steps):
        monkeypatch.setattr(sys, "stderr", stream)
        times = itertools.accumulate([0, *(seconds for seconds, _ in steps)])
        line = ProgressLine("volume", lambda: float(next(times)))
        for _, done in steps:
            line(done, 40)
        return stream.getvalue()

    return shown


def test_a_terminal_shows_the_time_left_on_one_line(show):
    text = show([(0, 0), (10, 1), (10, 2), (380, 40)])
    assert text.split("\r") == [
        "",
        "volume 0 of 40",
        "volume 1 of 40, 6:30 left",
        "volume 2 of 40, 6:20 left",
        "volume 40 of 40".ljust(25) + "\n",
    ]


def test_units_that_an_interrupted_command_has_done_do_not_count_for_the_time(show):
    assert show([(0, 30), (60, 31)]).endswith("volume 31 of 40, 9:00 left")


def test_more_than_an_hour_has_three_numbers(show):
    assert show([(0, 0), (100, 1)]).endswith("volume 1 of 40, 1:05:00 left")


def test_a_terminal_is_not_redrawn_for_every_unit(show):
    assert show([(0, 0), *[(0.01, done) for done in range(1, 40)]]).count("\r") == 4


def test_the_next_round_starts_its_own_estimate(show):
    assert show([(0, 0), (10, 40), (5, 1), (2, 2)]).endswith("volume 2 of 40, 1:16 left")


@pytest.mark.parametrize("terminal", [False], indirect=True)
def test_a_log_has_a_line_a_minute(show):
    text = show([(0, 0), *[(15, done) for done in range(1, 11)]])
    assert text.splitlines() == ["volume 4 of 40, 9:00 left", "volume 8 of 40, 8:00 left"]


@pytest.mark.parametrize("terminal", [False], indirect=True)
def test_short_work_leaves_no_line_in_a_log(show):
    assert show([(0, 0), (20, 20), (20, 40)]) == ""
