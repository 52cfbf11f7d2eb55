"""`slicebook check`: it reports everything, and stops at nothing that a person should see."""

import hashlib
import json
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from helpers import dicom
from helpers.dicom import pixels_of, slice_of

from slicebook.data import reader
from slicebook.data.check import check
from slicebook.data.layouts.sources import SourceOptions
from slicebook.data.prepare import prepare
from slicebook.errors import DataError
from slicebook.io import dicom_file
from slicebook.io.limits import Limits

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


@pytest.mark.fault("patient data in header text that check looks for", "counted by field, never shown")
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


@pytest.mark.fault("image and mask that disagree", "check shows both shapes or affines")
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


def test_header_text_is_counted_in_dicom_without_a_preamble(tmp_path: Path) -> None:
    for k in range(3):
        dataset = slice_of(pixels_of(k), (0, 0, 3 * k), PatientComments="", InstitutionName="Secret Hospital")
        path = dicom.save(dataset, tmp_path / f"{k}.dcm")
        if k == 2:
            del dataset.file_meta
            dataset.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
    report = check(tmp_path)
    assert report.header_fields == {"PatientName": 3, "InstitutionName": 3}
    assert "Secret Hospital" not in report.to_json()


def test_each_dicom_header_is_read_twice_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    read = dicom_file._load_header

    def watched(path: Path, limits: Limits) -> Any:
        opened.append(path.name)
        return read(path, limits)

    monkeypatch.setattr(dicom_file, "_load_header", watched)
    monkeypatch.setattr("pydicom.dcmread", None)
    dicom.stack(tmp_path)
    check(tmp_path)
    assert Counter(opened) == {"0.dcm": 2, "1.dcm": 2, "2.dcm": 2}  # to find the series, and to read it


def test_a_mosaic_series_is_one_line_in_check_and_in_prepare(tmp_path: Path) -> None:
    for person in range(3):
        folder = tmp_path / "in" / f"s{person}"
        for k in range(3):
            dataset = slice_of(pixels_of(3 * person + k), (0, 0, 3 * k), series=f"1.2.{person}")
            dicom.save(dataset, folder / "t2" / f"{k}.dcm")
    dicom.stack(
        tmp_path / "in" / "s0" / "dwi", series="1.3", ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]
    )
    report = check(tmp_path / "in")
    assert len(report.unreadable) == len(report.problems) == 1
    assert "and 2 more of its series are mosaics" in report.unreadable[0]
    summary = prepare(tmp_path / "in", tmp_path / "out", SourceOptions(patient_regex="(s.)/"))
    assert [reason for _, reason in summary.quarantined] == list(report.unreadable)
    assert summary.info.quarantined == 1


def test_mosaics_count_as_series_among_series(tmp_path: Path) -> None:
    for person in range(3):
        folder = tmp_path / "in" / f"s{person}"
        dicom.stack(folder / "t2", range(0, 60, 3), series=f"1.2.{person}", PatientID=f"P{person}")
        dicom.stack(folder / "dwi", series=f"1.3.{person}", ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])
    with pytest.raises(DataError, match=r"3 of 3 series cannot be read.*dcm2niix"):
        prepare(tmp_path / "in", tmp_path / "out")


def test_series_of_one_slice_each_are_noted_where_they_may_be_one_volume(tmp_path: Path) -> None:
    for k, height in enumerate((0, 3, 11)):  # uneven: they cannot be joined
        dicom.save(slice_of(pixels_of(k), (0, 0, height), series=f"1.2.{k}"), tmp_path / "a" / f"{k}.dcm")
    dicom.save(slice_of(pixels_of(9), (0, 0, 0), series="1.9"), tmp_path / "b" / "single.dcm")
    report = check(tmp_path)
    (note,) = (note for note in report.notes if "one slice each" in note)
    assert note.startswith(
        "3 series of one slice each are beside others like them: a/0.dcm, a/1.dcm, a/2.dcm;"
    )


def test_reading_a_volume_needs_little_more_memory_than_the_volume() -> None:
    array = np.asfortranarray(np.random.default_rng(0).integers(0, 900, (128, 128, 96)).astype(np.float32))
    slices = array.transpose(2, 1, 0)
    tracemalloc.start()
    digest = reader._digest(array)
    is_labels = reader.is_label_map(slices, Path("a.nii"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < array.nbytes / 2
    assert not is_labels
    assert digest == hashlib.sha256(repr(array.shape).encode() + array.tobytes(order="C")).digest()
