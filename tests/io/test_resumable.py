"""What a long work keeps: the units that are done, of its own request alone; a folder whole or not at all."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from helpers.kills import ended_by, files_of, forked

from slicebook.errors import ConfigError, DataError
from slicebook.io import atomic
from slicebook.io.resumable import (
    Journal,
    hash_files,
    locked,
    partial_path,
    resuming_files,
    resuming_folder,
    unfinished_request,
)

REQUEST = {"model": "abc", "size": (64, 32), "seed": 3}
NAMES = ("a", "b", "c", "d")


def build(out, request=REQUEST, *, stop_at=None, error=KeyboardInterrupt, **options):
    """Write four files; return the names of those that were written by this call."""
    written = []
    with resuming_folder(out, request, what="files", **options) as work:
        for name in NAMES:
            if name in work.journal:
                continue
            atomic.write_text(work.content / name, f"{name}, seed {request['seed']}")
            if name == stop_at:
                raise error
            work.journal.add(name, {"length": len(name)})
            written.append(name)
    return written


def interrupt(out, **options):
    with pytest.raises(options.get("error", KeyboardInterrupt)):
        build(out, **{"stop_at": "c"} | options)


def test_units_are_read_back_as_they_were_added(tmp_path):
    journal = Journal(tmp_path / "j", REQUEST)
    journal.add("b", {"scores": (0.1, 1e-300), "name": "\udcff ü\n"})
    journal.add("a")
    again = Journal(tmp_path / "j", REQUEST)
    assert list(again.units.items()) == [("b", {"scores": [0.1, 1e-300], "name": "\udcff ü\n"}), ("a", None)]
    assert again.differences == []


def test_a_later_record_of_a_unit_replaces_an_earlier_one(tmp_path):
    journal = Journal(tmp_path / "j", REQUEST)
    for unit, result in (("a", 1), ("b", 2), ("a", 3)):
        journal.add(unit, result)
    assert Journal(tmp_path / "j", REQUEST).units == {"a": 3, "b": 2}


def test_units_of_another_request_are_not_read(tmp_path):
    Journal(tmp_path / "j", REQUEST).add("a")
    other = Journal(tmp_path / "j", REQUEST | {"seed": 4})
    assert other.units == {}
    assert other.differences == ["seed 3 then, 4 now"]
    other.add("b")
    assert list(Journal(tmp_path / "j", REQUEST | {"seed": 4}).units) == ["b"]


@pytest.mark.fault("kill within a line of a journal", "the units before it are kept; the line is left out")
def test_a_journal_cut_anywhere_has_the_units_before_the_cut(tmp_path):
    path = tmp_path / "j"
    whole = Journal(path, REQUEST)
    for name in NAMES:
        whole.add(name, {"value": name * 9})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        kept = Journal(path, REQUEST)
        assert list(kept.units) == list(NAMES)[: max(0, content[:length].count(b"\n") - 1)]
        kept.add("e")
        assert list(Journal(path, REQUEST).units) == [*kept.units]  # nothing is appended to half a line


def test_a_line_that_no_disk_takes_leaves_the_journal_as_it_was(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "j", REQUEST)
    journal.add("a")
    before = (tmp_path / "j").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"j: cannot be written .*No space left"):
        journal.add("b")
    assert (tmp_path / "j").read_bytes() == before
    assert "b" not in journal


def test_an_interrupted_folder_goes_on_after_the_last_unit(tmp_path):
    assert build(tmp_path / "whole") == list(NAMES)
    interrupt(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert unfinished_request(tmp_path / "out") == REQUEST | {"size": [64, 32]}
    assert build(tmp_path / "out") == ["c", "d"]
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "out"}
    assert unfinished_request(tmp_path / "out") == {}


def test_another_request_is_refused_or_starts_anew(tmp_path):
    interrupt(tmp_path / "out")
    other = REQUEST | {"seed": 4}
    with pytest.raises(ConfigError, match=r"out\.partial: holds unfinished files .*seed 3 then, 4 now.*rem"):
        build(tmp_path / "out", other)
    assert build(tmp_path / "out", other, restart=True) == list(NAMES)
    assert (tmp_path / "out" / "a").read_text() == "a, seed 4"


def test_files_of_a_first_unit_that_was_begun_are_not_taken_over(tmp_path):
    begun = partial_path(tmp_path / "out") / "set" / "begun"  # as a kill leaves it
    begun.parent.mkdir(parents=True)
    begun.write_text("of another request")
    assert build(tmp_path / "out") == list(NAMES)
    assert sorted(files_of(tmp_path / "out")) == list(NAMES)


def test_nothing_is_left_where_no_unit_was_done(tmp_path):
    interrupt(tmp_path / "out", stop_at="a")
    assert list(tmp_path.iterdir()) == []


def test_a_kill_between_the_last_rename_and_the_end_does_not_make_an_empty_folder(tmp_path):
    interrupt(tmp_path / "out", stop_at="d")
    (partial_path(tmp_path / "out") / "set").rename(tmp_path / "moved away")
    assert build(tmp_path / "out") == list(NAMES)


def test_a_folder_with_content_is_replaced_only_where_that_is_wanted(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match=r"out: cannot be written .*not empty"):
        build(tmp_path / "out")
    assert files_of(tmp_path / "out") == {"thesis.txt": b"years of work"}
    assert build(tmp_path / "out", replace_content=True) == []  # all four are kept from before
    assert sorted(files_of(tmp_path / "out")) == list(NAMES)


def write_report(folder, request=REQUEST, *, stop=False):
    """Write a table and a report beside other files, after two units; return how many were kept."""
    options: dict[str, Any] = {
        "names": ("report", "table", "figure"),
        "last": "report",
        "partial": ".unfinished",
    }
    with resuming_files(folder, request, **options) as work:
        kept = len(work.journal.units)
        for unit in ("table", "report"):
            atomic.write_text(work.content / unit, f"seed {request['seed']}")
            work.journal.add(unit)
            if stop:
                raise KeyboardInterrupt
    return kept


def test_files_of_an_interrupted_command_replace_others_at_the_end(tmp_path):
    for name in ("report", "figure", "notes"):
        atomic.write_text(tmp_path / "out" / name, "old")
    with pytest.raises(KeyboardInterrupt):
        write_report(tmp_path / "out", stop=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "report",
        "figure",
        "notes",
        ".unfinished",
    }
    assert (tmp_path / "out" / "report").read_text() == "old"
    assert write_report(tmp_path / "out") == 1
    assert files_of(tmp_path / "out") == {"report": b"seed 3", "table": b"seed 3", "notes": b"old"}


def test_files_of_another_request_are_made_anew(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write_report(tmp_path / "out", stop=True)
    assert write_report(tmp_path / "out", REQUEST | {"seed": 5}) == 0
    assert files_of(tmp_path / "out") == {"report": b"seed 5", "table": b"seed 5"}


def test_something_else_under_the_name_of_the_partial_folder_stays(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match=r"out\.partial: is not empty, and is needed for unfinished files"):
        build(tmp_path / "out")
    assert files_of(tmp_path) == {"out.partial/thesis.txt": b"years of work"}


def test_a_name_of_255_bytes_has_a_partial_folder(tmp_path):
    out = tmp_path / ("ü" * 127)
    interrupt(out)
    assert build(out) == ["c", "d"]


def test_a_second_command_is_refused_with_the_process_of_the_first(tmp_path):
    with (
        resuming_folder(tmp_path / "out", REQUEST, what="files"),
        pytest.raises(ConfigError, match=rf"another command writes here \(process {os.getpid()} on .+\); wa"),
    ):
        build(tmp_path / "out")


def killed_in_a_write(out):
    write = Path.write_bytes

    def half(path, content):
        if path.name.startswith(".c."):
            write(path, content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(path, content)

    pytest.MonkeyPatch().setattr(Path, "write_bytes", half)
    build(out)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot fork")
def test_a_command_killed_in_the_middle_of_a_file_leaves_nothing_that_is_taken_over(tmp_path):
    assert ended_by(forked(lambda: killed_in_a_write(tmp_path / "out"))) == signal.SIGKILL
    content = partial_path(tmp_path / "out") / "set"
    assert any(path.name.startswith(".c.") for path in content.iterdir())
    assert build(tmp_path / "out") == ["c", "d"]  # nor does the lock of the dead process hold
    assert sorted(files_of(tmp_path / "out")) == list(NAMES)


def test_only_temporary_files_are_removed(tmp_path):
    for name in (".a.nii.0123456789ab.partial", ".mine.partial", "b.0123456789ab.partial", "c"):
        (tmp_path / name).write_text("text")
    atomic.remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".mine.partial",
        "b.0123456789ab.partial",
        "c",
    ]


def test_the_hash_of_files_depends_on_content_and_order_alone(tmp_path):
    for name, content in (("a", b"12"), ("b", b"3"), ("c", b"1"), ("d", b"23"), ("e", b"12")):
        (tmp_path / name).write_bytes(content)

    def of(*names):
        return hash_files([tmp_path / name for name in names])

    assert of("a", "b") == of("e", "b")
    assert len({of("a", "b"), of("b", "a"), of("c", "d"), of("a")}) == 4
    with pytest.raises(DataError, match="f: cannot be read"):
        of("f")


def test_a_lock_is_free_after_the_block(tmp_path):
    for _ in range(2):
        with locked(tmp_path / "new" / ".lock", "another command") as held:
            assert held
    assert list((tmp_path / "new").iterdir()) == []
