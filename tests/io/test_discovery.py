"""Which files of a folder every command sees."""

import os
from pathlib import Path

import pytest

from slicebook.errors import DataError
from slicebook.io.discovery import find_files, is_nifti_name, nifti_stem


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def relative(folder: Path, paths: tuple[Path, ...]) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths]


def test_files_are_listed_in_the_order_of_their_paths_and_nifti_names_in_any_case(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.NII.GZ", "b/1.nii", "a.Nii.gz", "c.dcm", "nii.gz.txt")
    (tmp_path / "folder.nii.gz").mkdir()
    discovered = find_files(tmp_path)
    assert relative(tmp_path, discovered.nifti) == ["a.Nii.gz", "b/1.nii", "b/2.NII.GZ"]
    assert relative(tmp_path, discovered.others) == ["c.dcm", "nii.gz.txt"]
    assert discovered.passed_over() == ()


@pytest.mark.fault("hidden files beside the data", "passed over and counted")
def test_hidden_files_and_folders_are_passed_over_and_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "._a.nii", ".git/b.nii", "__MACOSX/._a.nii", "p/.DS_Store")
    discovered = find_files(tmp_path)
    assert relative(tmp_path, discovered.files) == ["a.nii"]
    assert len(discovered.hidden) == 4
    (line,) = discovered.passed_over()
    assert line.startswith("4 hidden files or folders were passed over: ._a.nii, .git")
    assert line.endswith("and 1 more")


def test_a_folder_below_a_hidden_one_can_be_given(tmp_path: Path) -> None:
    touch(tmp_path, ".cache/data/a.nii")
    assert len(find_files(tmp_path / ".cache" / "data").files) == 1


def test_links_to_nothing_are_counted_and_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii")
    for number in range(4):
        (tmp_path / f"b{number}.nii").symlink_to(f"../.git/annex/objects/{number}")
    (tmp_path / "circle.nii").symlink_to("circle.nii")
    (line,) = find_files(tmp_path).passed_over()
    assert line.startswith("5 of 6 files are links to nothing: b0.nii, b1.nii, b2.nii and 2 more; fetch")


def test_a_link_to_a_file_is_a_file(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/a.nii", "here/b.nii")
    (tmp_path / "here" / "a.nii").symlink_to(tmp_path / "elsewhere" / "a.nii")
    assert relative(tmp_path / "here", find_files(tmp_path / "here").files) == ["a.nii", "b.nii"]


@pytest.mark.fault("linked folder, or a link out of the root", "not entered; counted and named")
def test_linked_folders_are_named_and_a_folder_linked_into_itself_ends(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/a.nii", "here/b.nii")
    (tmp_path / "here" / "patient").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "here" / "loop").symlink_to(tmp_path / "here")
    discovered = find_files(tmp_path / "here")
    assert relative(tmp_path / "here", discovered.files) == ["b.nii"]
    (line,) = discovered.passed_over()
    assert line.startswith("2 linked folders were not entered: loop, patient;")


def test_a_linked_folder_can_itself_be_given(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/a.nii")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert relative(tmp_path / "link", find_files(tmp_path / "link").files) == ["a.nii"]


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.nii")
    assert find_files(tmp_path).files == ()


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="absent: not a folder"):
        find_files(tmp_path / "absent")

    def refused(_: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(DataError, match=r"cannot be listed .Permission denied"):
        find_files(tmp_path)


def test_the_stem_of_a_nifti_name_is_without_its_endings() -> None:
    names = ("a.b.NII.GZ", "a.b.nii", "a.b.nii.gz")
    assert [nifti_stem(Path(name)) for name in names] == ["a.b"] * 3
    assert is_nifti_name("A.NII")
    assert not is_nifti_name("a.nii.gz.part")
