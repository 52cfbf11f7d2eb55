"""A disk that fills, or becomes read-only, while a training runs: its states stay, and it can go on."""

import errno
import os
import shutil
import subprocess

import pytest
from helpers.training import prepared_folder, tiny, train
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from slicebook.errors import DataError
from slicebook.io import tensors
from slicebook.io.tensors import STATE_NAME, load_state
from slicebook.models.checkpoint import MODEL_NAME
from slicebook.training.resume import PREVIOUS_NAME
from slicebook.training.tokenizer import TokenizerObjective

RECIPE = tiny("training.epochs=4", "training.validate_every=4", "training.save_minutes=1e-9")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepared_folder(tmp_path_factory.mktemp("data") / "prepared")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A training that nothing interrupted."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    train(data, RECIPE, run)
    return run


def steps_of(run):
    return [load_state(run / name).progress["progress"]["step"] for name in (PREVIOUS_NAME, STATE_NAME)]


def assert_same_model(run, other):
    first, second = load_file(run / MODEL_NAME), load_file(other / MODEL_NAME)
    assert [name for name in first if not first[name].equal(second[name])] == []


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (
            errno.ENOSPC,
            r"No space left on device; [\d,]+ bytes wanted\); [\d,]+ bytes are free in .*run",
        ),
        (
            errno.EROFS,
            r"Read-only file system; [\d,]+ bytes wanted\); make .*run writable",
        ),
    ],
    ids=["full", "read-only"],
)
def test_a_state_that_cannot_be_written_leaves_the_two_before_it(number, remedy, data, whole, tmp_path):
    written: list[int] = []

    def fail(flat, path, **named):
        written.append(1)
        if len(written) == 6:
            path.write_bytes(b"half")
            text = f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})"
            raise SafetensorError(text)
        save_file(flat, path, **named)

    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensors, "save_file", fail)
        with pytest.raises(DataError, match=rf"run/state\.safetensors: cannot be written \({remedy}"):
            train(data, RECIPE, run)
    assert steps_of(run) == [4, 5]
    assert not list(run.glob(".*"))
    train(data, RECIPE, run)
    assert_same_model(run, whole)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 4 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if os.name != "posix" or os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def train_until(step, data, run):
    """Train, and stop as Ctrl-C would before a step."""
    whole = TokenizerObjective.training_step

    def interrupted(self, batch, number, fraction):
        if number == step:
            raise KeyboardInterrupt
        return whole(self, batch, number, fraction)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TokenizerObjective, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(data, RECIPE, run)


@pytest.mark.fault(
    "disk full", "refused: N bytes wanted, M free; both old states stay, and it goes on once space is free"
)
def test_a_training_on_a_full_disk_goes_on_once_space_is_freed(data, whole, small_disk):
    run, filler = small_disk / "run", small_disk / "filler"
    train_until(5, data, run)
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 40_000))
    wanted = r"run/state\.safetensors: cannot be written \(No space left on device; [\d,]+ bytes wanted\)"
    free = rf"3\d,\d\d\d bytes are free in {run}: free some there"
    with pytest.raises(DataError, match=f"{wanted}; {free}"):
        train(data, RECIPE, run)
    assert steps_of(run) == [4, 5]
    filler.unlink()
    train(data, RECIPE, run)
    assert_same_model(run, whole)


@pytest.mark.fault("read-only folder", "refused before the first step; make it writable")
def test_a_folder_that_became_read_only_is_refused_before_the_first_step(data, whole, small_disk):
    run = small_disk / "run"
    train_until(5, data, run)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(DataError, match="run: is read-only; make it writable, or choose another folder"):
        train(data, RECIPE, run)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    train(data, RECIPE, run)
    assert_same_model(run, whole)
