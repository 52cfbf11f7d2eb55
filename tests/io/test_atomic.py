"""Whole or not at all: what a full disk, a kill and a second command leave."""

import errno
import os
from pathlib import Path

import pytest
import torch

from slicebook.errors import DataError
from slicebook.io import atomic
from slicebook.io.tensors import write_tensors


def full_disk(monkeypatch, owner, name):
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(owner, name, fail)


@pytest.mark.fault("disk full", "refused with path and bytes; an older file stays")
def test_a_full_disk_is_told_with_the_path_and_the_bytes(tmp_path, monkeypatch):
    path = tmp_path / "scores.csv"
    path.write_text("old")
    full_disk(monkeypatch, Path, "write_bytes")
    with pytest.raises(DataError, match=r"scores\.csv: cannot be written \(No space left .*; 5 bytes wanted"):
        atomic.write_text(path, "12üx")
    assert [(item.name, item.read_text()) for item in tmp_path.iterdir()] == [("scores.csv", "old")]


def test_a_full_disk_while_tensors_are_written_is_told(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"a": torch.zeros(3)}, {"kind": "old"})
    old = path.read_bytes()

    def fail(tensors: object, filename: Path, **_: object) -> None:
        from safetensors import SafetensorError

        filename.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("slicebook.io.tensors.save_file", fail)
    with pytest.raises(
        DataError, match=r"model\.safetensors: cannot be written .*No space left.* bytes wanted"
    ):
        write_tensors(path, {"a": torch.zeros(1000)}, {"kind": "new"})
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fills_at_the_last_moment_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("old")
    full_disk(monkeypatch, os, "fsync")
    with pytest.raises(DataError, match=r"a\.txt: cannot be written"):
        atomic.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_that_is_too_long_is_told_and_leaves_nothing(tmp_path):
    with pytest.raises(DataError, match="File name too long"):
        atomic.write_text(tmp_path / ("a" * 300), "text")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("paths with spaces, Unicode and 255 bytes", "written")
@pytest.mark.parametrize("name", ["a" * 255, "ü" * 127])
def test_the_longest_name_that_a_disk_takes_can_be_written(name, tmp_path):
    atomic.write_text(tmp_path / name, "text")
    assert (tmp_path / name).read_text() == "text"


def test_a_missing_folder_is_made(tmp_path):
    atomic.write_csv(tmp_path / "new" / "a.csv", [{"a": 1, "b": "x,y"}, {"a": 2}])
    assert (tmp_path / "new" / "a.csv").read_text() == 'a,b\n1,"x,y"\n2,\n'


def test_a_file_has_the_rights_that_the_user_gives_new_files(tmp_path):
    before = os.umask(0o027)
    try:
        atomic.write_text(tmp_path / "a.txt", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def test_a_folder_that_fails_is_as_it_was(tmp_path):
    old = tmp_path / "out"
    old.mkdir()
    (old / "a").write_text("old")

    def fill() -> None:
        with atomic.replacing_folder(old, replace_content=True) as partial:
            (partial / "b").write_text("new")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(partial / "c"))

    with pytest.raises(DataError, match=r"out: cannot be written \(No space left on device\)"):
        fill()
    assert [item.name for item in old.iterdir()] == ["a"]
    assert list(tmp_path.iterdir()) == [old]


def test_a_whole_folder_takes_the_place_of_the_old_one(tmp_path):
    atomic.write_text(tmp_path / "out" / "a", "old")
    with atomic.replacing_folder(tmp_path / "out", replace_content=True) as partial:
        (partial / "b").write_text("new")
    assert [item.name for item in (tmp_path / "out").iterdir()] == ["b"]
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


def test_what_was_put_into_an_empty_folder_meanwhile_stays(tmp_path):
    with (
        pytest.raises(DataError, match=r"out: cannot be written \(Directory not empty"),
        atomic.replacing_folder(tmp_path / "out"),
    ):
        atomic.write_text(tmp_path / "out" / "thesis.txt", "years of work")
    assert [item.name for item in (tmp_path / "out").iterdir()] == ["thesis.txt"]
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


@pytest.mark.fault(
    "two commands that write one folder", "the first notices and is refused; run one after the other"
)
def test_of_two_commands_that_make_one_folder_the_first_notices(tmp_path):
    def write_twice() -> None:
        with atomic.replacing_folder(tmp_path / "out"), atomic.replacing_folder(tmp_path / "out") as second:
            (second / "a").write_text("second")

    with pytest.raises(DataError, match="another command writes there"):
        write_twice()
    assert (tmp_path / "out" / "a").read_text() == "second"


def test_files_that_replace_others_leave_strangers_alone(tmp_path):
    for name in ("report.json", "old.csv", "notes.txt", "partial/report.json", "partial/new.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("new" if "/" in name else "old")
    names = ("report.json", "old.csv", "new.csv")
    atomic.replace_files(tmp_path / "partial", tmp_path, names, last="report.json")
    (tmp_path / "partial").rmdir()
    assert {item.name: item.read_text() for item in tmp_path.iterdir()} == {
        "report.json": "new",
        "new.csv": "new",
        "notes.txt": "old",
    }
