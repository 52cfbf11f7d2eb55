"""Volumes of a file or folder: listed first under names of their own, read one at a time."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from helpers.dicom import pixels_of, save, slice_of

from slicebook.errors import DataError
from slicebook.inference.volumes import list_volumes, read_single, spare_originals
from slicebook.io.nifti import write_nifti


def nifti(path):
    write_nifti(path, np.arange(24, dtype=np.float32).reshape(2, 3, 4), affine=np.eye(4))
    return path


@pytest.mark.fault("names that collide", "refused from the listing; rename one, or give each alone")
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a/b.nii", "a-b.nii"),
        ("x.nii", "x.nii.gz"),
        ("scan.nii", "SCAN.nii"),
        (f"{unicodedata.normalize('NFC', 'ü')}.nii", f"{unicodedata.normalize('NFD', 'ü')}.nii"),
        ("x.nii", "x.csv.nii"),
        ("x.nii", "x.nii.gz.nii"),
        ("a/b/c.nii", "a/b-c.nii"),
    ],
)
def test_two_volumes_with_the_same_output_are_refused_from_the_listing(first, second, tmp_path):
    for name in (first, second):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"never read")
    with pytest.raises(DataError, match="its output would take the place of that of"):
        list_volumes(tmp_path)


def test_an_output_with_too_long_a_name_is_refused_from_the_listing(tmp_path):
    folder = tmp_path / ("a" * 130)
    folder.mkdir()
    nifti(tmp_path / "first.nii")
    (folder / ("b" * 130 + ".nii")).write_bytes(b"never read")
    with pytest.raises(DataError, match="a name of more than 255 bytes; shorten"):
        list_volumes(tmp_path)


@pytest.mark.fault("hidden files beside the data", "passed over; endings may be upper case")
def test_hidden_files_are_passed_over_and_endings_may_be_upper_case(tmp_path):
    nifti(tmp_path / "b.nii.gz").rename(tmp_path / "B.NII.GZ")
    nifti(tmp_path / "a.nii")
    (tmp_path / "._a.nii").write_bytes(b"AppleDouble")
    listed = list_volumes(tmp_path)
    assert sorted(volume.name for volume in listed) == ["B", "a"]
    assert {volume.read().array.shape for volume in listed} == {(2, 3, 4)}


def test_links_to_nothing_are_told(tmp_path):
    nifti(tmp_path / "a.nii")
    (tmp_path / "b.nii").symlink_to(tmp_path / "absent.nii")
    with pytest.warns(UserWarning, match="1 of 2 files are links to nothing"):
        assert len(list_volumes(tmp_path)) == 1


@pytest.mark.fault("patient data in file names", "outputs of DICOM are numbered")
def test_a_dicom_file_is_numbered_because_its_name_may_name_a_patient(tmp_path):
    path = save(slice_of(pixels_of(0), (0, 0, 0)), tmp_path / "Doe_Jane.dcm")
    assert [listed.name for listed in list_volumes(path)] == ["series-01"]


def test_a_folder_of_several_volumes_is_refused_before_any_is_read(tmp_path):
    for name in ("a.nii", "b.nii"):
        (tmp_path / name).write_bytes(b"never read")
    with pytest.raises(DataError, match="holds 2 volumes, wanted one"):
        read_single(tmp_path)


def test_an_original_is_spared_where_only_the_case_of_its_name_differs(tmp_path):
    path = nifti(tmp_path / "a.nii.gz").rename(tmp_path / "A.NII.GZ")
    with pytest.raises(DataError, match="originals lie here"):
        spare_originals(path, tmp_path)


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (
            ["imagesTr/P1_0000.nii.gz", "imagesTs/P2_0000.nii.gz"],
            ["labelsTr/P1.nii.gz", "labelsTs/P2.nii.gz"],
        ),
        (
            ["sub-1/anat/sub-1_T2w.nii"],
            ["derivatives/m/sub-1/anat/sub-1_dseg.nii", "sub-1/func/sub-1_bold.nii"],
        ),
        (
            ["keras_slices_train/case_004_week_0_slice_0.nii.gz"],
            ["keras_slices_seg_train/seg_004_week_0_slice_0.nii.gz"],
        ),
        (["a/P1.nii.gz", "P2.NII", "P3_seg.nii"], ["a/P1_seg.nii", "P2_Mask.nii"]),
    ],
)
def test_masks_are_passed_over_by_the_rules_of_the_layout(images, masks, tmp_path):
    for name in (*images, *masks, *(f"{Path(name).parent}/._{Path(name).name}" for name in images)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"never read")
    with pytest.warns(UserWarning, match=f"{len(masks)} NIfTI files were passed over, which are masks"):
        listed = list_volumes(tmp_path)
    assert sorted(volume.name for volume in listed) == sorted(
        name.replace("/", "-").split(".")[0] for name in images
    )


@pytest.mark.fault("paths with spaces, Unicode and 255 bytes", "listed")
def test_names_with_spaces_marks_dots_and_the_longest_are_listed(tmp_path):
    names = [
        "Patient 01 (T2) scan",
        "P\u00e4tient_02",
        "Pa\u0308tient_03",
        "P04.v1.2.final",
        "P5" + "x" * 239,
        "[P06]&$'q",
    ]
    for name in names:
        (tmp_path / f"{name}.nii.gz").write_bytes(b"never read")
    assert sorted(volume.name for volume in list_volumes(tmp_path)) == sorted(names)
