"""`slicebook check`: it reports everything, and stops at nothing that a person should see."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from slicebook.data.check import check
from slicebook.data.layouts.sources import SourceOptions
from slicebook.errors import DataError

WHOSE = SourceOptions(patient_regex=r"(p\d+)", mask="_seg")
AFFINE = np.diag([0.5, 0.5, 3.0, 1.0])


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE, **text: str) -> None:
    image = nib.Nifti1Image(array, affine)
    for field, content in text.items():
        image.header[field] = content
    nib.save(image, path)


def noise(seed: int, shape: tuple[int, ...] = (8, 6, 3)) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 100, shape).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    blank = noise(1)
    blank[:, :, 1] = 0
    save(tmp_path / "p1.nii.gz", blank)
    save(tmp_path / "p2.nii.gz", noise(2), descrip="Jane Doe")
    save(tmp_path / "p2_seg.nii.gz", np.full((8, 6, 3), 5, np.uint8))
    return tmp_path


def test_the_report_counts_what_is_there(folder: Path) -> None:
    report = check(folder, WHOSE)
    assert (report.patients, report.volumes, report.files, report.masks) == (2, 2, 3, 1)
    assert (report.slices, report.blank_slices) == (6, 1)
    assert report.shapes == {"6 × 8": 6}
    assert report.spacings == {"3 × 0.5 × 0.5": 2}
    assert report.label_values == {5: 144}
    assert not report.problems


def test_header_text_is_counted_and_never_shown(folder: Path) -> None:
    report = check(folder, WHOSE)
    assert report.header_fields == {"descrip": 1}
    assert "Jane" not in report.to_json() + str(report.rows())


def test_the_report_is_json(folder: Path) -> None:
    assert json.loads(check(folder, WHOSE).to_json())["label_values"] == {"5": 144}


def test_it_works_without_knowing_the_patients(folder: Path) -> None:
    report = check(folder)
    assert report.patients is None
    assert ("patients", "unknown: give --patient-regex") in report.rows()


def test_a_copy_under_another_name_and_compression_is_a_duplicate(folder: Path) -> None:
    save(folder / "p3.nii", noise(2), descrip="other text")
    (group,) = check(folder, WHOSE).duplicates
    assert [Path(path).name for path in group] == ["p2.nii.gz", "p3.nii"]


def test_blank_files_are_no_duplicates(tmp_path: Path) -> None:
    for name in ("p1.nii", "p2.nii"):
        save(tmp_path / name, np.zeros((4, 4, 2), np.float32))
    assert not check(tmp_path).duplicates


def test_an_unreadable_file_is_listed_with_its_reason(folder: Path) -> None:
    (folder / "p4.nii.gz").write_bytes(b"not an image")
    (reason,) = check(folder, WHOSE).unreadable
    assert "p4.nii.gz" in reason


def test_a_mask_taken_for_an_image_is_noticed(folder: Path) -> None:
    save(folder / "p5_label.nii.gz", np.random.default_rng(0).integers(0, 2, (8, 6, 3)).astype(np.uint8))
    (reason,) = check(folder, WHOSE).misfits
    assert "p5_label.nii.gz" in reason
    assert "--mask" in reason


@pytest.mark.parametrize("what", ["shape", "affine"])
def test_a_mask_that_does_not_lie_on_its_image_is_shown_with_both(tmp_path: Path, what: str) -> None:
    save(tmp_path / "p1.nii.gz", noise(1))
    shape, affine = ((8, 5, 3), AFFINE) if what == "shape" else ((8, 6, 3), np.diag([0.7, 0.5, 3.0, 1.0]))
    save(tmp_path / "p1_seg.nii.gz", np.ones(shape, np.uint8), affine)
    (reason,) = check(tmp_path, WHOSE).misfits
    assert "(8, 6, 3)" in reason
    assert "[0.5, 0.0, 0.0, 0.0]" in reason
    assert ("(8, 5, 3)" if what == "shape" else "[0.7, 0.0, 0.0, 0.0]") in reason


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        check(tmp_path)
