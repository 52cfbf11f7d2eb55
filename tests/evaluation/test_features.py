"""Descriptions of slices: each is made once, and what is kept on disk is what would be made anew."""

import shutil

import numpy as np
import pytest
import torch

from slicebook.data.dataset import PreparedData
from slicebook.errors import DataError
from slicebook.evaluation import memorization as descriptions
from slicebook.evaluation.features import Descriptor, descriptors
from slicebook.evaluation.memorization import describe_training
from slicebook.evaluation.slices import of_size, read_slices, unit
from slicebook.metrics.nearest import describe

SIZE = (32, 64)


@pytest.fixture
def batch_sizes():
    """How many slices were described, a number a call."""
    return []


@pytest.fixture
def kind(batch_sizes):
    """Features that are two numbers of a slice."""

    def compute(images):
        batch_sizes.append(len(images))
        return np.stack([images.mean(axis=(1, 2)), images.std(axis=(1, 2))], axis=1).astype(np.float64)

    return Descriptor("two numbers", "mean and deviation", False, compute)


@pytest.fixture
def data(trained, tmp_path):
    """A copy of the prepared folder: descriptions are kept in it."""
    shutil.copytree(trained.data, tmp_path / "prepared", ignore=shutil.ignore_patterns("descriptions"))
    return PreparedData.open(tmp_path / "prepared")


def test_a_slice_is_described_once_wherever_it_stands(kind, batch_sizes):
    images = np.random.default_rng(0).random((4, 8, 8), dtype=np.float32)
    first, again = kind(images), kind(images[[3, 1, 1]].copy())
    assert sum(batch_sizes) == 4
    np.testing.assert_array_equal(again, first[[3, 1, 1]])


@pytest.fixture
def described(monkeypatch):
    """How many slices were described for the search, a number a call."""
    counts = []

    def count(images):
        counts.append(len(images))
        return describe(images)

    monkeypatch.setattr(descriptions, "describe", count)
    return counts


def test_kept_windows_are_those_that_would_be_made(data, described):
    made, kept = describe_training(data, SIZE), describe_training(data, SIZE)
    assert sum(described) == len(made.slices) == len(of_size(data, "train", SIZE, masked=False))
    np.testing.assert_array_equal(made.windows, kept.windows)
    np.testing.assert_array_equal(
        made.windows, describe(unit(torch.stack([made.slices[index] for index in range(len(made.slices))])))
    )


def test_a_damaged_file_is_made_again(data, described):
    describe_training(data, SIZE)
    (path,) = (data.folder / "descriptions").glob("windows-*")
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    again = describe_training(data, SIZE)
    assert sum(described) == 2 * len(again.slices)


@pytest.mark.parametrize("changed", ["convention", "slices"])
def test_what_was_kept_of_something_else_is_not_used(data, described, changed, monkeypatch):
    count = len(describe_training(data, SIZE).slices)
    if changed == "convention":
        monkeypatch.setattr(descriptions, "CORRELATION", "the same, but otherwise")
    else:
        (first, *_) = (record for record in data.records if record.split == "train")
        data = PreparedData(
            data.folder, data.info, tuple(record for record in data.records if record != first)
        )
    again = describe_training(data, SIZE)
    assert sum(described) == count + len(again.slices)


def test_a_folder_that_cannot_be_written_to_is_no_reason_to_stop(data, monkeypatch):
    def full(*_):
        raise DataError("descriptions: cannot be written (No space left on device)")

    monkeypatch.setattr(descriptions, "save_state", full)
    lines: list[str] = []
    training = describe_training(data, SIZE, say=lines.append)
    assert len(training.windows) == len(training.slices)
    assert any("not cached" in line and "No space left" in line for line in lines)


def test_the_work_is_announced(data):
    lines: list[str] = []
    count = len(describe_training(data, SIZE, say=lines.append).slices)
    assert lines == [f"windows of {count} training slices"]


def test_all_kinds_of_features_are_known_where_the_weights_are(monkeypatch):
    assert [kind.name for kind in descriptors()] == ["texture", "structure", "efficientnet-lite0"]
    monkeypatch.setattr("slicebook.metrics.features.deep.installed", lambda: False)
    assert [kind.name for kind in descriptors()] == ["texture", "structure"]


def test_no_more_slices_are_read_than_asked_for(data):
    few, all_of_them = read_slices(data, "train", SIZE, limit=4, seed=1), read_slices(data, "train", SIZE)
    assert (len(few), len(few.patients), len(few.masks)) == (4, 4, 4)
    assert len(read_slices(data, "train", SIZE, limit=1000)) == len(all_of_them)


def test_a_size_that_no_slice_has_is_refused(data):
    with pytest.raises(DataError, match=r"has no slice of 16×16.*--size"):
        read_slices(data, "train", (16, 16))
