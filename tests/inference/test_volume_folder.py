"""Commands on a folder of volumes: what is done is not done again, and a kill changes no byte."""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from helpers.dicom import pixels_of, save, slice_of
from helpers.inference import model_file, volume_file
from helpers.kills import ended_by, files_of, forked, kill_within

from slicebook.cli import main
from slicebook.errors import DataError
from slicebook.inference import anomaly as anomalies
from slicebook.inference import reconstruct as reconstruction
from slicebook.inference import volume_folder
from slicebook.inference.anomaly import anomaly
from slicebook.inference.reconstruct import encode, encode_folder, reconstruct
from slicebook.inference.volumes import ListedVolume
from slicebook.io import resumable
from slicebook.io.resumable import Journal

CPU: dict[str, Any] = {"device": "cpu"}
NAMES = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return model_file(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture
def source(tmp_path):
    """Four volumes of two or three slices."""
    folder = tmp_path / "in"
    folder.mkdir()
    for seed, name in enumerate(NAMES):
        volume_file(folder / f"{name}.nii.gz", (32, 24, 2 + seed % 2), seed=seed)
    return folder


@pytest.fixture
def worked(monkeypatch):
    """The sizes of the stacks that go through a model."""
    calls = []
    for owner, name in (
        (reconstruction, "reconstruct_slices"),
        (reconstruction, "encode_stack"),
        (anomalies, "anomaly_scores"),
    ):
        whole = getattr(owner, name)

        def spy(*given, _whole=whole, **named):
            calls.append(given)
            return _whole(*given, **named)

        monkeypatch.setattr(owner, name, spy)
    return calls


@pytest.fixture(params=["reconstruct", "encode", "anomaly"])
def command(request, model, trained):
    """A command, as a function of source and folder."""
    return {
        "reconstruct": partial(reconstruct, model, **CPU),
        "encode": partial(encode_folder, model, **CPU),
        "anomaly": partial(anomaly, trained.run, draws=1, **CPU),
    }[request.param]


STEPS = [
    (volume_folder, "move_files", 3),  # all written, nothing in its place
    (Journal, "add", 3),  # all in its place, and not recorded
    (ListedVolume, "digest", 3),  # between two volumes
]


@pytest.mark.parametrize(("owner", "step", "time"), STEPS, ids=[step for _, step, _ in STEPS])
def test_an_interrupted_command_goes_on_to_the_same_bytes(
    owner, step, time, command, source, worked, tmp_path, monkeypatch
):
    whole = command(source, tmp_path / "whole")
    function, calls = getattr(owner, step), []

    def fail(*given, **named):
        calls.append(step)
        if len(calls) == time:
            raise KeyboardInterrupt
        return function(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, fail)
        with pytest.raises(KeyboardInterrupt):
            command(source, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.partial"))
    before = len(worked)
    told = []
    resumed = command(source, tmp_path / "out", progress=lambda *count: told.append(count))
    assert len(worked) - before == len(told) - 1 < 4  # one call more than volumes left
    assert told[0][0] >= 1
    assert told[-1] == (4, 4)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert str(resumed).replace("/out", "/whole") == str(whole)


def outputs_of(folder):
    """The files of a folder without the journal, which has a line more for a volume that is done again."""
    return {name: content for name, content in files_of(folder).items() if not name.endswith(".jsonl")}


def killed(model, source, out, owner, name, before, count):
    def work():
        kill_within(owner, name, before=before, count=count)
        reconstruct(model, source, out, **CPU)

    return ended_by(forked(work)) == signal.SIGKILL


@pytest.mark.fault(
    "SIGKILL in a folder of volumes", "the same command goes on after the last volume, to the same bytes"
)
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_a_reconstruction_that_is_killed_again_and_again_ends_like_one_that_is_not(model, source, tmp_path):
    reconstruct(model, source, tmp_path / "whole", **CPU)
    moments = [
        (Path, "write_bytes", False, 3),  # a file is written and has not got its name
        (os, "replace", True, 5),  # some files of the second volume are written
        (volume_folder, "move_files", True, 2),
        (os, "replace", False, 6),  # some files have moved
        (Journal, "add", True, 1),
        (Journal, "add", False, 1),
        (resumable, "append_lines", True, 1),
    ]
    for owner, name, before, count in moments:
        assert killed(model, source, tmp_path / "out", owner, name, before, count), (name, before)
    reconstruct(model, source, tmp_path / "out", **CPU)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == set(NAMES)


def test_a_finished_folder_is_left_as_it_is(command, source, worked, tmp_path):
    first = command(source, tmp_path / "out")
    before = files_of(tmp_path / "out")
    worked.clear()
    assert command(source, tmp_path / "out") == first
    assert worked == []
    assert files_of(tmp_path / "out") == before


def test_a_volume_that_changed_is_done_again(command, source, worked, tmp_path):
    command(source, tmp_path / "out")
    worked.clear()
    volume_file(source / "b.nii.gz", (32, 24, 1), seed=9)  # it had three slices
    command(source, tmp_path / "out")
    assert len(worked) == 1
    command(source, tmp_path / "new")
    assert outputs_of(tmp_path / "out") == outputs_of(tmp_path / "new")


def test_an_output_that_is_lost_or_damaged_is_made_again(command, source, worked, tmp_path):
    command(source, tmp_path / "out")
    before = outputs_of(tmp_path / "out")
    written = sorted(path for path in (tmp_path / "out").iterdir() if path.name.startswith(("a.", "b.")))
    written[0].unlink()
    written[-1].write_bytes(written[-1].read_bytes()[:-1])
    worked.clear()
    command(source, tmp_path / "out")
    assert len(worked) == 2
    assert outputs_of(tmp_path / "out") == before


def test_another_model_or_option_makes_all_again(source, model, worked, tmp_path):
    other = model_file(tmp_path / "other.safetensors", seed=1)
    reconstruct(model, source, tmp_path / "out", **CPU)
    for options in ({"pictures": False}, {"plane": "axial"}):
        worked.clear()
        reconstruct(model, source, tmp_path / "out", **options, **CPU)
        assert len(worked) == 4
    worked.clear()
    reconstruct(other, source, tmp_path / "out", **CPU)
    assert len(worked) == 4
    reconstruct(other, source, tmp_path / "new", **CPU)
    assert outputs_of(tmp_path / "out") == outputs_of(tmp_path / "new")


def test_a_damaged_volume_keeps_those_before_it(model, source, worked, tmp_path):
    content = (source / "c.nii.gz").read_bytes()
    (source / "c.nii.gz").write_bytes(content[:-40])
    with pytest.raises(DataError, match=r"c\.nii\.gz"):
        reconstruct(model, source, tmp_path / "out", **CPU)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["a.nii.gz", "b.nii.gz"]
    (source / "c.nii.gz").write_bytes(content)
    worked.clear()
    reconstruct(model, source, tmp_path / "out", **CPU)
    assert len(worked) == 2


def test_two_commands_may_write_into_one_folder(model, source, worked, tmp_path):
    for _ in range(2):
        reconstruct(model, source, tmp_path / "out", **CPU)
        encode_folder(model, source, tmp_path / "out", **CPU)
    assert len(worked) == 8
    assert len([*(tmp_path / "out").glob("?.nii.gz"), *(tmp_path / "out").glob("?.safetensors")]) == 8


def test_other_files_in_the_folder_stay(model, source, tmp_path):
    (tmp_path / "out" / "a").mkdir(parents=True)
    (tmp_path / "out" / "a" / "notes.txt").write_text("mine")
    reconstruct(model, source, tmp_path / "out", **CPU)
    assert (tmp_path / "out" / "a" / "notes.txt").read_text() == "mine"


def test_a_dicom_series_is_known_by_its_files(model, worked, tmp_path):
    for number in range(2):
        save(
            slice_of(pixels_of(number, shape=(24, 20)), (0, 0, 5.0 * number)),
            tmp_path / "in" / f"{number}.dcm",
        )
    reconstruct(model, tmp_path / "in", tmp_path / "out", **CPU)
    worked.clear()
    reconstruct(model, tmp_path / "in", tmp_path / "out", **CPU)
    assert worked == []
    save(slice_of(pixels_of(7, shape=(24, 20)), (0, 0, 5.0)), tmp_path / "in" / "1.dcm")
    reconstruct(model, tmp_path / "in", tmp_path / "out", **CPU)
    assert len(worked) == 1


def test_the_journal_names_no_place_and_no_patient(model, source, tmp_path):
    reconstruct(model, source, tmp_path / "out", **CPU)
    (journal,) = (tmp_path / "out").glob(".*.jsonl")
    assert str(tmp_path) not in journal.read_text()
    assert "Secret" not in journal.read_text()


def test_a_folder_is_encoded_into_a_folder_by_the_command(model, source, tmp_path, capsys):
    out = tmp_path / "tokens"
    assert main.main(["encode", str(model), str(source), "-o", str(out), "--device", "cpu"]) == 0
    assert "tokens/a.safetensors" in capsys.readouterr().out
    encode(model, source / "b.nii.gz", tmp_path / "b.safetensors", **CPU)
    assert (out / "b.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert main.main(["decode", str(model), str(out / "b.safetensors"), "-o", str(tmp_path / "b.nii")]) == 0
    assert nib.nifti1.load(tmp_path / "b.nii").shape == nib.nifti1.load(source / "b.nii.gz").shape
    assert np.isfinite(nib.nifti1.load(tmp_path / "b.nii").get_fdata()).all()
