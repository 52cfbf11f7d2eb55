"""The area under the ROC curve, beside what its definition says."""

import numpy as np
import pytest

from slicebook.metrics.statistics import auroc


def test_every_pair_counts_once_and_ties_by_half():
    scores, marked = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    assert auroc(scores, marked) == pytest.approx((1 + 0.5 + 1 + 1) / 4)


def test_it_is_the_share_of_pairs_in_the_right_order():
    draw = np.random.default_rng(0)
    scores, marked = draw.integers(0, 9, 80).astype(float), draw.random(80) < 0.3
    pairs = np.sign(scores[marked][:, None] - scores[~marked][None])
    assert auroc(scores, marked) == pytest.approx(((pairs + 1) / 2).mean())


def test_it_hangs_on_the_order_alone():
    draw = np.random.default_rng(1)
    scores, marked = draw.normal(size=50), draw.random(50) < 0.5
    assert auroc(np.exp(scores), marked) == auroc(scores, marked)
    assert auroc(-scores, marked) == pytest.approx(1 - auroc(scores, marked))


@pytest.mark.parametrize("marked", [True, False])
def test_one_group_alone_has_none(marked):
    assert auroc(np.arange(3.0), np.full(3, marked)) is None
