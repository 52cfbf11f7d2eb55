"""Counting tables: hand-worked, whole probabilities, and each good at what it knows."""

import math

import numpy as np
import pytest

from slicebook.baselines import free_baselines
from slicebook.errors import DataError


def grids(*rows):
    return np.array(rows, np.int64)[:, None, :]  # n × 1 × columns


def test_the_plain_table_by_hand():
    # Codes 0, 0, 1 of 4: 2 kinds. P(0) = (2 + 2/4) / 5, P(1) = (1 + 2/4) / 5, P(3) = (0 + 2/4) / 5.
    found = free_baselines(grids([0, 0, 1]), grids([0, 1, 3]), 4)
    assert found.plain == pytest.approx(-np.log([2.5 / 5, 1.5 / 5, 0.5 / 5]).mean())


def test_the_table_of_places_by_hand():
    # Place 0 held 0 twice (1 kind), so P(0) = (2 + P_plain(0)) / 3; of codes 0, 1, 0, 1 P_plain(0) = 3/6.
    found = free_baselines(grids([0, 1], [0, 1]), grids([0, 0]), 2)
    assert found.place == pytest.approx(-(math.log(2.5 / 3) + math.log(0.5 / 3)) / 2)


@pytest.mark.parametrize("table", ["plain", "place", "neighbours"])
def test_the_chances_of_all_codes_sum_to_one(table):
    size, learned = 5, np.random.default_rng(0).integers(0, 4, (20, 3, 3))
    base = np.random.default_rng(1).integers(0, 5, (1, 3, 3))

    def nats(code):
        changed = base.copy()
        changed[0, 2, 2] = code  # the last place: no other has it as a neighbour
        return getattr(free_baselines(learned, changed, size), table) * base.size

    costs = np.array([nats(code) for code in range(size)])
    # All but one token are the same in each: take them off.
    whole = np.log(np.exp(-(costs - costs.min())).sum()) - costs.min()
    before = free_baselines(learned, base, size)
    last = -nats(int(base[0, 2, 2])) - whole  # log-probability of the last token, if all sum to one
    assert last < 0
    rest = getattr(before, table) * base.size + last
    assert whole == pytest.approx(-rest)


def test_each_table_is_good_at_what_it_knows():
    draw = np.random.default_rng(0)
    by_place = np.tile(np.arange(16).reshape(1, 4, 4), (40, 1, 1))
    found = free_baselines(by_place[:20], by_place[20:], 16)
    assert found.place < 0.2 < found.plain
    stripes = np.repeat(draw.integers(0, 8, (400, 4, 1)), 4, axis=2)  # each equals its left neighbour
    found = free_baselines(stripes[:200], stripes[200:], 8)
    assert found.neighbours < 0.8 < 2 < min(found.place, found.plain)
    assert found.best == found.neighbours


def test_noise_cannot_be_counted():
    draw = np.random.default_rng(0)
    found = free_baselines(draw.integers(0, 8, (500, 4, 4)), draw.integers(0, 8, (500, 4, 4)), 8)
    assert found.best >= math.log(8) - 0.01


def test_neighbours_above_and_left_are_told_apart():
    draw = np.random.default_rng(0)
    columns = np.repeat(draw.integers(0, 8, (400, 1, 4)), 4, axis=1)  # each equals the one above
    rows = columns.transpose(0, 2, 1)
    same = free_baselines(columns[:200], columns[200:], 8).neighbours
    assert same < 0.8
    assert free_baselines(columns[:200], rows[200:], 8).neighbours > same + 1


def test_nothing_to_count_is_an_error():
    with pytest.raises(DataError, match="0 training and 1 held-out"):
        free_baselines(np.zeros((0, 1, 2), np.int64), grids([0, 1]), 2)
