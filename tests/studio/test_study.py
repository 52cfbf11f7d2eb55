"""Uploads: opened without their names, within limits, and gone with their page."""

import io
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from helpers.dicom import pixels_of, save, slice_of

from slicebook.errors import DataError
from slicebook.inference.volumes import Stack, read_single
from slicebook.io.nifti import read_labels, read_nifti, write_nifti
from slicebook.studio import study as studying
from slicebook.studio.study import open_upload, reopen

SHAPE = (10, 8, 4)


@pytest.fixture
def nifti(tmp_path):
    path = tmp_path / "uploads" / "DOE-JANE.nii.gz"
    affine = np.diag([1.0, 2.0, 5.0, 1.0])
    write_nifti(path, np.random.default_rng(0).normal(size=SHAPE).astype(np.float32), affine=affine)
    return path


def zipped(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def series(folder, uid, *, echo=10.0, count=3):
    """Bytes of the files of a series by name."""
    files = {}
    for number in range(count):
        dataset = slice_of(pixels_of(number), (0, 0, 3 * number), series=uid, EchoTime=echo)
        path = save(dataset, folder / uid / f"{number}.dcm")
        files[f"Doe^Jane/{uid}/{number}.dcm"] = path.read_bytes()
    return files


def test_a_nifti_file_is_taken_and_loses_its_name(nifti, tmp_path):
    wanted = Stack.of(read_nifti(nifti))
    study = open_upload(nifti, tmp_path / "session" / "volume-1")
    assert np.array_equal(study.slices, wanted.slices)
    assert study.title == "4 axial slices of 8 × 10, voxels of 1 × 2 × 5 mm"
    assert (study.size, study.aspect, study.others, study.is_nifti) == ((8, 10), 2.0, (), True)
    assert "DOE" not in "".join(str(path) for path in (tmp_path / "session").rglob("*"))


def test_a_volume_can_be_sliced_in_another_plane(nifti, tmp_path):
    study = open_upload(nifti, tmp_path / "session")
    again = reopen(study.upload, tmp_path / "session", plane="sagittal")
    assert again.slices.shape == (10, 4, 8)
    assert len(list((tmp_path / "session").glob("slices-*.npy"))) == 1


def test_a_region_is_written_where_the_slice_lies(nifti, tmp_path):
    study = open_upload(nifti, tmp_path / "session")
    region = np.zeros(study.size, dtype=bool)
    region[2, 3] = True
    study.write_region(tmp_path / "mask.nii.gz", 1, region)
    mask, volume = read_labels(tmp_path / "mask.nii.gz"), read_nifti(study.source)
    assert np.array_equal(mask.affine, volume.affine)
    assert mask.array.sum() == 1
    assert np.argwhere(Stack.of(replace(volume, array=mask.array)).slices > 0).tolist() == [[1, 2, 3]]


def test_a_zip_of_dicom_is_read_as_the_command_reads_the_folder(tmp_path):
    files = {**series(tmp_path / "in", "1.2.3"), "__MACOSX/x.dcm": b"x", "a/.hidden": b"x"}
    study = open_upload(zipped(tmp_path / "jane.zip", files), tmp_path / "session")
    assert sorted(path.name for path in study.source.iterdir()) == ["0000.dcm", "0001.dcm", "0002.dcm"]
    assert np.array_equal(study.slices, Stack.of(read_single(tmp_path / "in")).slices)
    assert "Jane" not in study.title


def test_a_zip_of_two_series_names_both_without_free_text(tmp_path):
    files = series(tmp_path / "in", "1.2.3") | series(tmp_path / "in", "1.2.4", echo=20.0, count=2)
    study = open_upload(zipped(tmp_path / "two.zip", files), tmp_path / "session")
    assert len(study.others) == 2
    assert len(study.slices) == 3
    assert "Secret" not in "".join((*study.others, study.title))
    other = reopen(study.upload, tmp_path / "session", series=1)
    assert len(other.slices) == 2
    assert np.array_equal(other.slices, Stack.of(read_single(other.source)).slices)


def test_a_zip_with_one_nifti_file_is_that_file(nifti, tmp_path):
    path = zipped(tmp_path / "one.zip", {"a/b.nii.gz": nifti.read_bytes()})
    assert open_upload(path, tmp_path / "session").is_nifti


@pytest.mark.parametrize("name", ["../../evil", "/evil", "C:\\evil"])
def test_no_name_in_a_zip_chooses_where_a_file_goes(tmp_path, name):
    with pytest.raises(DataError, match="no DICOM slices"):
        open_upload(zipped(tmp_path / "x.zip", {name: b"not DICOM"}), tmp_path / "session")
    assert not list(tmp_path.rglob("*evil*"))


def test_a_zip_that_unpacks_to_too_much_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(studying, "LIMITS", replace(studying.LIMITS, max_bytes=3 * 1024**2))
    path = zipped(tmp_path / "bomb.zip", {"a.dcm": bytes(2 * 1024**2), "b.dcm": bytes(2 * 1024**2)})
    with pytest.raises(DataError, match="unpacks to more"):
        open_upload(path, tmp_path / "session")


def test_a_zip_of_too_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(studying, "MAX_ENTRIES", 2)
    with pytest.raises(DataError, match="holds 3 files, wanted at most 2"):
        open_upload(zipped(tmp_path / "x.zip", dict.fromkeys("abc", b"x")), tmp_path / "session")


def test_a_zip_that_is_damaged_is_refused(nifti, tmp_path):
    content = bytearray(zipped(tmp_path / "x.zip", {"a.nii.gz": nifti.read_bytes()}).read_bytes())
    content[60] ^= 255
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(DataError, match="damaged or encrypted"):
        open_upload(tmp_path / "x.zip", tmp_path / "session")


def test_two_nifti_files_in_a_zip_are_one_too_many(nifti, tmp_path):
    files = dict.fromkeys(("a.nii.gz", "b.nii.gz"), nifti.read_bytes())
    with pytest.raises(DataError, match="2 NIfTI files, wanted one"):
        open_upload(zipped(tmp_path / "x.zip", files), tmp_path / "session")


def test_a_volume_beyond_the_limit_is_refused(nifti, tmp_path, monkeypatch):
    monkeypatch.setattr(studying, "LIMITS", replace(studying.LIMITS, max_bytes=1000))
    with pytest.raises(DataError, match="wanted at most 1,000"):
        open_upload(nifti, tmp_path / "session")


def test_what_is_neither_is_refused(tmp_path):
    (tmp_path / "x.nii.gz").write_bytes(io.BytesIO(b"no volume").read())
    with pytest.raises(DataError, match="not a NIfTI file"):
        open_upload(tmp_path / "x.nii.gz", tmp_path / "session")
