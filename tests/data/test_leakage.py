"""No patient on two sides, and no name in what is written."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from slicebook.data.dataset import PreparedData
from slicebook.data.layouts.sources import SourceOptions
from slicebook.data.prepare import PrepareOptions, prepare
from slicebook.errors import DataError

WHOSE = SourceOptions(patient_regex=r"^([a-z]+)")
NAMES = ("olsson", "meyer", "tanaka", "okafor", "dubois")


def save(path: Path, seed: int, shape: tuple[int, ...] = (6, 5, 2)) -> None:
    image = nib.Nifti1Image(
        np.random.default_rng(seed).uniform(0, 9, shape).astype(np.float32), np.diag([1, 1, 3, 1])
    )
    image.header["descrip"] = "Doe^Jane"
    nib.save(image, path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for seed, name in enumerate(NAMES):
        save(tmp_path / f"in/{name}_1.nii.gz", seed)
        save(tmp_path / f"in/{name}_2.nii.gz", 100 + seed)
    return tmp_path / "in"


def test_all_volumes_of_a_patient_are_on_one_side(data: Path, tmp_path: Path) -> None:
    prepare(data, tmp_path / "out", WHOSE)
    prepared = PreparedData.open(tmp_path / "out")
    sides = [set(prepared.split(name).patients) for name in ("train", "validation", "test")]
    assert sum(len(side) for side in sides) == len(set().union(*sides)) == len(NAMES)
    assert {record.volume for record in prepared.records} == {
        f"patient-{patient:04}/volume-{volume:02}" for patient in range(1, 6) for volume in (1, 2)
    }


def test_pseudonyms_are_serial_in_the_order_of_the_raw_names(data: Path, tmp_path: Path) -> None:
    prepare(data, tmp_path / "all", WHOSE, PrepareOptions(fractions=(1.0, 0.0, 0.0)))
    first = PreparedData.open(tmp_path / "all").records[0]
    dubois = nib.nifti1.load(data / "dubois_1.nii.gz").get_fdata()
    assert first.patient == "patient-0001"
    assert first.low == pytest.approx(np.percentile(dubois, 0.5), rel=1e-5)


@pytest.mark.fault("patient data in file names", "absent from the prepared folder")
def test_no_raw_name_header_text_or_path_is_written(data: Path, tmp_path: Path) -> None:
    out = prepare(data, tmp_path / "out", WHOSE).folder
    written = b"".join(path.read_bytes() for path in out.iterdir())
    for private in (*NAMES, "Jane", str(tmp_path), ".nii"):
        assert private.encode() not in written


@pytest.mark.fault("one slice under two names", "refused where the patients differ")
def test_the_same_voxels_under_two_patients_are_refused_by_name(data: Path, tmp_path: Path) -> None:
    save(data / "svensson_1.nii", 0)
    with pytest.raises(DataError, match=r"svensson_1.*same voxels as .*olsson_1"):
        prepare(data, tmp_path / "out", WHOSE)


def test_blank_volumes_of_two_patients_are_no_copies(data: Path, tmp_path: Path) -> None:
    for name in ("olsson_3.nii", "meyer_3.nii"):
        nib.save(nib.Nifti1Image(np.zeros((6, 5, 2), np.float32), np.eye(4)), data / name)
    info = prepare(data, tmp_path / "out", WHOSE).info
    assert (info.duplicates, sum(count.blank for count in info.counts.values())) == (0, 4)


@pytest.mark.fault("one slice under two names", "left out and counted")
def test_a_copy_within_a_patient_is_left_out_and_counted(data: Path, tmp_path: Path) -> None:
    save(data / "olsson_copy.nii", 0)
    info = prepare(data, tmp_path / "out", WHOSE).info
    assert info.duplicates == 1
    assert sum(count.volumes for count in info.counts.values()) == 10


def test_the_split_hash_follows_the_split_and_not_the_pixels_asked_for(data: Path, tmp_path: Path) -> None:
    native = prepare(data, tmp_path / "a", WHOSE).info
    small = prepare(data, tmp_path / "b", WHOSE, PrepareOptions(size=(4, 4), spacing=2.0)).info
    other = prepare(data, tmp_path / "c", WHOSE, PrepareOptions(seed=7)).info
    assert native.split_hash == small.split_hash
    assert native.split_hash != other.split_hash
