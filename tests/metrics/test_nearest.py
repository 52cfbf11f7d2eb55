"""The nearest training slice is found although it was moved and mirrored, and the patient counts."""

import tracemalloc

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from slicebook.errors import DataError, ShapeError
from slicebook.metrics import nearest as nearest_search
from slicebook.metrics.nearest import Nearest, describe, nearest_by_correlation

ROWS, COLUMNS = 68, 136  # moved by up to 4 and 8 pixels


def slices(n, seed=0, shape=(ROWS, COLUMNS)):
    """Smooth random images, a few of whose features span a window."""
    noise = np.random.default_rng(seed).normal(size=(n, *shape))
    return np.stack([20 * gaussian_filter(field, 6) for field in noise]).astype(np.float32)


def moved(image, down, right, mirror=False):
    """Mirror, then move; the edge goes on outside."""
    rows, columns = (
        np.clip(np.arange(side) - by, 0, side - 1)
        for side, by in zip(image.shape, (down, right), strict=True)
    )
    return (image[:, ::-1] if mirror else image)[rows][:, columns]


def names(*counts):
    return [f"patient-{i:04d}" for i, count in enumerate(counts) for _ in range(count)]


TRAIN = slices(12)
WHOSE = names(3, 3, 3, 3)


def search(images, patients=None, train=TRAIN, training_patients=WHOSE):
    return nearest_by_correlation(images, patients, describe(train), training_patients)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("shift", [(0, 0), (4, -8), (-3, 5), (1, 1)])
def test_a_moved_and_mirrored_copy_is_found_and_how_it_was_moved(shift, mirror):
    nearest = search(moved(TRAIN[7], shift[0], shift[1], mirror)[None])
    assert nearest.index.tolist() == [7]
    assert nearest.mirror.tolist() == [mirror]
    assert nearest.shift.tolist() == [list(shift)]
    assert nearest.distance[0] < 1e-3 < 0.3 < nearest.beyond[0]


def test_copies_in_noise_are_found():
    noise = np.random.default_rng(1).normal(size=TRAIN.shape).astype(np.float32)
    copies = np.stack([moved(image, 2, -5, i % 2 == 0) for i, image in enumerate(TRAIN)])
    nearest = search(copies + noise)
    assert nearest.index.tolist() == list(range(12))
    assert nearest.gap.min() > 0.7


def test_the_distance_is_that_of_the_best_window_of_all():
    image, train = slices(1, seed=5)[0].astype(np.float64), TRAIN[:2]
    cell, down, right = 2, 4, 8
    rows, columns = 28, 60  # cells of the middle: 60 and 120 pixels, whole cells of 8
    top, left = (ROWS - rows * cell) // 2, (COLUMNS - columns * cell) // 2

    def window(image, y, x):
        part = image[top + y : top + y + rows * cell, left + x : left + x + columns * cell]
        return part.reshape(rows, cell, columns, cell).mean(axis=(1, 3)).ravel()

    best = [
        max(
            np.corrcoef(window(training.astype(np.float64), 0, 0), window(view, y, x))[0, 1]
            for view in (image, image[:, ::-1])
            for y in range(-down, down + 1)
            for x in range(-right, right + 1)
        )
        for training in train
    ]
    nearest = search(image[None].astype(np.float32), train=train, training_patients=["a", "b"])
    assert nearest.index[0] == np.argmax(best)
    assert nearest.distance[0] == pytest.approx(np.sqrt(2 - 2 * max(best)), abs=1e-5)
    assert nearest.beyond[0] == pytest.approx(np.sqrt(2 - 2 * min(best)), abs=1e-5)


def test_brightness_and_contrast_change_nothing():
    image = slices(1, seed=5)
    plain, brighter = search(image), search(0.3 * image + 2)
    assert brighter.index == plain.index
    assert brighter.distance[0] == pytest.approx(plain.distance[0], abs=1e-4)


def test_slices_of_the_same_patient_are_no_neighbours():
    nearest = search(TRAIN, WHOSE)
    assert all(WHOSE[index] != WHOSE[i] for i, index in enumerate(nearest.index))
    assert nearest.distance.min() > 0.3


def test_the_next_patient_is_not_the_next_slice():
    train = TRAIN.copy()
    train[1] = train[0] + 0.01 * train[5]  # of the same patient
    nearest = search(train[:1], train=train)
    assert nearest.distance[0] < 1e-3
    assert nearest.beyond[0] > 0.3


def test_a_patient_of_near_duplicates_hides_no_other_patient():
    # More slices of one patient than the first search looks at.
    many = np.concatenate([TRAIN[:1] + 0.01 * slices(20, seed=9), TRAIN[3:4]])
    nearest = search(TRAIN[:1], train=many, training_patients=names(20, 1))
    assert nearest.index[0] < 20
    assert 0.3 < nearest.beyond[0] < np.inf


def test_a_blank_slice_is_no_copy():
    nearest = search(np.full((2, ROWS, COLUMNS), 0.7, np.float32))
    assert nearest.distance.tolist() == pytest.approx([2**0.5] * 2)
    assert nearest.gap.tolist() == [0, 0]


def test_a_blank_training_slice_is_nobodys_nearest():
    train = TRAIN.copy()
    train[4] = -1
    nearest = search(np.concatenate([moved(TRAIN[5], 1, 1)[None], train[4:5]]), train=train)
    assert nearest.index[0] == 5
    assert np.isfinite(nearest.gap).all()


def test_what_is_found_does_not_depend_on_the_chunk(monkeypatch):
    images = slices(5, seed=3)
    whole, described = search(images), describe(images)
    monkeypatch.setattr(nearest_search, "CHUNK", 2)
    parts = search(images)
    assert parts.index.tolist() == whole.index.tolist()
    assert parts.shift.tolist() == whole.shift.tolist()
    np.testing.assert_allclose(parts.distance, whole.distance, atol=1e-6)
    np.testing.assert_array_equal(describe(images), described)


def test_a_description_is_small():
    assert describe(slices(2, shape=(128, 256))).shape == (2, 28, 56)
    assert describe(slices(2, shape=(17, 17))).shape == (2, 12, 12)
    assert len(describe(TRAIN[:0])) == 0


def test_the_search_takes_less_memory_than_the_descriptions_of_the_training_slices():
    training = np.random.default_rng(0).normal(size=(6000, *describe(TRAIN).shape[1:])).astype(np.float32)
    tracemalloc.start()
    nearest_by_correlation(TRAIN[:2], None, training, names(3000, 3000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < training.nbytes


def test_no_slices_have_no_neighbours():
    assert len(search(TRAIN[:0])) == 0


def test_a_gap_is_the_log_of_how_many_times_farther_the_next_patient_is():
    distance, beyond = np.array([0.1, 0.0, 2.0]), np.array([4.1, 4.0, 2.0])
    zero = np.zeros(3, np.int64)
    nearest = Nearest(zero, distance, beyond, zero > 0, np.zeros((3, 2), np.int64))
    assert nearest.gap == pytest.approx([np.log(41), np.log(1e6), 0])


def test_two_patients_with_one_slice_have_no_gap():
    zero = np.zeros(1)
    assert Nearest(np.zeros(1, np.int64), zero, zero, zero > 0, np.zeros((1, 2), np.int64)).gap == [0]


def test_what_is_not_finite_is_refused_with_its_place():
    broken, windows = TRAIN.copy(), describe(TRAIN)
    broken[1, 0, 0], windows[1, 0, 0] = np.nan, np.inf
    for refused in (lambda: search(broken), lambda: describe(broken)):
        with pytest.raises(DataError, match=r"^slice 1 has values that are not finite"):
            refused()
    with pytest.raises(DataError, match=r"^training slice 1 has values"):
        nearest_by_correlation(TRAIN, None, windows, WHOSE)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match=r"68×100 make windows of 28×44 cells.*28×60"):
        search(slices(1, shape=(68, 100)))
    with pytest.raises(ShapeError, match="16×40, the search for copies needs sides of at least 17"):
        describe(slices(1, shape=(16, 40)))


def test_too_few_patients_are_refused():
    with pytest.raises(DataError, match="1 training patients besides"):
        search(TRAIN, training_patients=["one"] * 12)
    with pytest.raises(DataError, match="1 training patients besides"):
        search(TRAIN, names(6, 6), training_patients=names(6, 6))
    with pytest.raises(DataError, match="3 patients for 12 training slices"):
        search(TRAIN, training_patients=["a", "b", "c"])
    with pytest.raises(DataError, match="1 patients for 12 slices"):
        search(TRAIN, ["a"])
