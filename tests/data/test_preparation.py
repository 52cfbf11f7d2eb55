"""`slicebook prepare`: what is written, what is refused, and that nothing is left half-written."""

import csv
import errno
import io
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from helpers.training import tiny, train
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from slicebook.cli.main import main
from slicebook.data import prepare as preparation
from slicebook.data.dataset import PreparedData
from slicebook.data.layouts.sources import SourceOptions
from slicebook.data.prepare import PrepareOptions, prepare
from slicebook.data.splits import assign_splits
from slicebook.data.transforms import IntensityMap, crop_or_pad, resample
from slicebook.errors import ConfigError, DataError

WHOSE = SourceOptions(patient_regex=r"(p\d+)")
WITH_MASKS = SourceOptions(patient_regex=r"(p\d+)", mask="_seg")
AFFINE = np.diag([0.5, 0.5, 3.0, 1.0])


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def noise(seed: int, shape: tuple[int, ...] = (8, 6, 3)) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 100, shape).astype(np.float32)


def volumes(folder: Path, count: int, shape: tuple[int, ...] = (8, 6, 3)) -> Path:
    for patient in range(count):
        save(folder / f"p{patient}.nii.gz", noise(patient, shape))
    return folder


def test_the_intensity_map_is_a_line_through_two_percentiles_and_inverts() -> None:
    values = np.arange(201, dtype=np.float32)
    mapping = IntensityMap.fit(values)
    assert (mapping.low, mapping.high) == (1, 199)
    np.testing.assert_allclose(
        mapping.forward(np.array([0, 1, 100, 199, 200], np.float32)), [-1, -1, 0, 1, 1]
    )
    inside = values[1:200]
    np.testing.assert_allclose(mapping.inverse(mapping.forward(inside)), inside, atol=1e-4)


def test_a_volume_of_almost_one_intensity_still_has_an_intensity_map() -> None:
    sparse = np.zeros(1000, np.float32)
    sparse[0] = 50
    assert IntensityMap.fit(sparse) == IntensityMap(0.0, 50.0)
    assert IntensityMap.fit(np.full(4, 7, np.float32)).forward(np.full(4, 7, np.float32)).tolist() == [-1] * 4


def test_cropping_and_padding_are_central() -> None:
    row = np.arange(5, dtype=np.float32)[None]
    assert crop_or_pad(row, (1, 3), fill=-1).tolist() == [[1, 2, 3]]
    assert crop_or_pad(row, (1, 8), fill=-1).tolist() == [[-1, 0, 1, 2, 3, 4, -1, -1]]


def test_a_pattern_finer_than_the_new_pixels_becomes_grey_and_not_a_false_pattern() -> None:
    stripes = np.tile(np.array([0, 1], np.float32), (16, 24))
    assert np.ptp(stripes[::3, ::3]) == 1
    assert np.ptp(resample(stripes, (5, 16))[:, 2:-2]) < 0.1


def test_resampling_keeps_the_field_of_view_and_invents_no_label() -> None:
    image = np.zeros((8, 8), np.float32)
    image[:4] = 1
    assert resample(image, (16, 16))[[2, 13], 8] == pytest.approx([1, 0], abs=0.05)
    mask = np.repeat(np.array([0, 5], np.uint8), 4)[None].repeat(8, axis=0)
    larger = resample(mask, (12, 12))
    assert larger.dtype == np.uint8
    assert set(np.unique(larger).tolist()) == {0, 5}


def test_native_pixels_are_kept_and_masks_lie_on_them(tmp_path: Path) -> None:
    volumes(tmp_path / "in", 3)
    for patient in range(3):
        save(tmp_path / f"in/p{patient}_seg.nii.gz", (noise(patient) > 50).astype(np.uint8))
    info = prepare(tmp_path / "in", tmp_path / "out", WITH_MASKS).info
    assert info.label_values == (0, 1)
    train = PreparedData.open(tmp_path / "out").split("train")
    record = train.records[0]
    assert (record.rows, record.columns, record.row_mm, record.column_mm) == (6, 8, 0.5, 0.5)
    intensity = IntensityMap(record.low, record.high).inverse(train[0][0].numpy())
    inside = (intensity > record.low + 0.1) & (intensity < record.high - 0.1) & (abs(intensity - 50) > 0.1)
    np.testing.assert_array_equal(train.labels(0).numpy()[inside], intensity[inside] > 50)


def test_spacing_and_size_say_what_a_pixel_is(tmp_path: Path) -> None:
    data = volumes(tmp_path / "in", 3, (20, 10, 2))
    prepare(data, tmp_path / "out", WHOSE, PrepareOptions(spacing=1.0, size=(8, 8)))
    prepared = PreparedData.open(tmp_path / "out")
    record = prepared.records[0]
    assert (record.rows, record.columns, record.row_mm, record.column_mm) == (8, 8, 1.0, 1.0)
    padded = prepared.split("train")[0][0]
    assert (padded[0] == -1).all()  # 5 rows were padded to 8, 10 columns cropped to 8
    assert (padded[2] != -1).any()


def test_slices_of_a_hipmri_volume_share_one_intensity_map_and_may_differ_in_shape(tmp_path: Path) -> None:
    sides = ("train", "validate", "test")
    for case, side in enumerate(sides):
        for number, shape in enumerate([(16, 8), (16, 9), (16, 8, 1)]):
            image = noise(10 * case + number, shape) * (number + 1)
            name = f"{case:03}_week_0_slice_{number}.nii.gz"
            save(tmp_path / f"in/keras_slices_{side}/case_{name}", image)
            save(tmp_path / f"in/keras_slices_seg_{side}/seg_{name}", (image > 50).astype(np.uint8))
    info = prepare(tmp_path / "in", tmp_path / "out").info
    records = PreparedData.open(tmp_path / "out").records
    assert info.fractions is None
    assert [r.split for r in records[::3]] == ["train", "validation", "test"]
    assert [(r.rows, r.columns, r.position) for r in records[:3]] == [(8, 16, 0), (9, 16, 0.5), (8, 16, 1)]
    assert len({(r.low, r.high) for r in records[:3]}) == 1
    assert records[0].high > 200  # the third slice reaches 300


def test_blank_slices_are_counted_and_left_out_of_training(tmp_path: Path) -> None:
    data = volumes(tmp_path / "in", 3)
    for patient in range(3):
        array = noise(patient)
        array[:, :, 0] = 3
        save(data / f"p{patient}.nii.gz", array)
    counts = prepare(data, tmp_path / "out", WHOSE).info.counts["train"]
    prepared = PreparedData.open(tmp_path / "out")
    assert (counts.slices, counts.blank) == (3, 1)
    assert (len(prepared.split("train")), len(prepared.split("train", blank=True))) == (2, 3)


ORIENTATION = {"axial": [1, 0, 0, 0, 1, 0], "sagittal": [0, 1, 0, 0, 0, -1]}


def save_series(folder: Path, patient: str, plane: str) -> None:
    """Write a series of three slices of 4 rows and 6 columns, 3 mm apart."""
    folder.mkdir(parents=True, exist_ok=True)
    row, column = np.reshape(ORIENTATION[plane], (2, 3))
    series = generate_uid()
    for number in range(3):
        ds = pydicom.Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = MRImageStorage
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
        ds.PatientID, ds.PatientName, ds.SeriesInstanceUID = patient, "Doe^Jane", series
        ds.ImagePositionPatient = (np.cross(row, column) * 3 * number).tolist()
        ds.ImageOrientationPatient, ds.PixelSpacing = ORIENTATION[plane], [0.5, 0.5]
        ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 4, 6, 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.PixelData = np.random.default_rng().integers(0, 999, (4, 6)).astype("<u2").tobytes()
        ds.save_as(folder / f"{plane}{number}.dcm", enforce_file_format=True)


def test_dicom_series_are_chosen_by_plane_and_not_guessed(tmp_path: Path) -> None:
    for patient in ("anna", "bob", "carl"):
        for plane in ("axial", "sagittal"):
            save_series(tmp_path / "in" / patient, patient, plane)
    save_series(tmp_path / "in/bob/again", "bob", "axial")
    with pytest.raises(DataError, match=r"4 axial, 3 sagittal.*--plane"):
        prepare(tmp_path / "in", tmp_path / "out")
    info = prepare(tmp_path / "in", tmp_path / "out", SourceOptions(plane="axial")).info
    volumes = {record.volume for record in PreparedData.open(tmp_path / "out").records}
    assert (info.layout, info.plane) == ("dicom", "axial")
    assert sorted(volumes) == [
        "patient-0001/volume-01",
        "patient-0002/volume-01",
        "patient-0002/volume-02",
        "patient-0003/volume-01",
    ]


def test_a_dicom_series_without_a_patient_needs_a_regex_on_its_path(tmp_path: Path) -> None:
    for patient in ("anna", "bob", "carl"):
        save_series(tmp_path / "in" / patient, "", "axial")
    with pytest.raises(DataError, match=r"no PatientID in 3 of 3 volumes.*--patient-regex"):
        prepare(tmp_path / "in", tmp_path / "out")
    info = prepare(tmp_path / "in", tmp_path / "out", SourceOptions(patient_regex="^([^/]+)/")).info
    assert info.counts["train"].patients == 1


def test_one_unreadable_file_is_quarantined_and_listed(tmp_path: Path) -> None:
    data = volumes(tmp_path / "in", 4)
    (data / "p9.nii.gz").write_bytes(b"broken")
    summary = prepare(data, tmp_path / "out", WHOSE, PrepareOptions(fractions=(1.0, 0.0, 0.0)))
    assert summary.info.quarantined == 1
    with (tmp_path / "out/quarantine.csv").open(newline="") as file:
        ((name, reason),) = list(csv.reader(file))[1:]
    assert name.endswith("p9.nii.gz")
    assert reason


@pytest.mark.fault(
    "more than 5 % of files unreadable", "refused with their number; fewer are listed in quarantine.csv"
)
def test_two_unreadable_files_of_few_are_an_error_and_of_many_are_not(tmp_path: Path) -> None:
    data = volumes(tmp_path / "in", 30, (4, 4, 1))
    for name in ("p97.nii.gz", "p98.nii.gz"):
        (data / name).write_bytes(b"broken")
    with pytest.raises(DataError, match=r"2 of 32 files cannot be read, more than 5%: .*p97"):
        prepare(data, tmp_path / "out", WHOSE)
    for patient in range(30, 40):
        save(data / f"p{patient}.nii.gz", noise(patient, (4, 4, 1)))
    assert prepare(data, tmp_path / "out", WHOSE).info.quarantined == 2


def test_a_split_that_lost_all_its_files_is_an_error(tmp_path: Path) -> None:
    data = volumes(tmp_path / "in", 2)
    (data / "p2.nii.gz").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"no readable slice is left in .*p2\.nii\.gz"):
        prepare(data, tmp_path / "out", WHOSE)


@pytest.mark.fault("image and mask that disagree", "refused; names both")
def test_a_mask_that_does_not_lie_on_its_image_stops_the_preparation(tmp_path: Path) -> None:
    data = volumes(tmp_path / "in", 3)
    save(data / "p1_seg.nii.gz", np.ones((8, 5, 3), np.uint8))
    with pytest.raises(DataError, match=r"does not lie on its image.*\(8, 6, 3\).*\(8, 5, 3\)"):
        prepare(data, tmp_path / "out", WITH_MASKS)


def test_a_full_disk_leaves_the_older_folder_whole_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = volumes(tmp_path / "in", 3), tmp_path / "out"
    prepare(data, out, WHOSE)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "write_manifest", full_disk)
        with pytest.raises(DataError, match="No space left on device"):
            prepare(data, out, WHOSE)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    monkeypatch.setattr(preparation, "convert", None)  # nothing is read again
    prepare(data, out, WHOSE)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}


def test_an_error_of_the_data_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "KEEP_SECONDS", 0.0)
    data = volumes(tmp_path / "in", 3)
    save(data / "p3.nii.gz", noise(0))  # after three volumes were converted
    with pytest.raises(DataError, match="of another patient"):
        prepare(data, tmp_path / "out", WHOSE)
    assert {path.name for path in tmp_path.iterdir()} == {"in"}


def test_a_prepared_folder_is_replaced_and_a_folder_of_other_files_is_not(tmp_path: Path) -> None:
    data, out = volumes(tmp_path / "in", 3), tmp_path / "out"
    prepare(data, out, WHOSE)
    prepare(data, out, WHOSE, PrepareOptions(size=(4, 4)))
    assert PreparedData.open(out).info.size == (4, 4)
    (out / "dataset.json").unlink()
    with pytest.raises(DataError, match="is not a prepared folder"):
        prepare(data, out, WHOSE)


def test_preparing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    data = volumes(tmp_path / "in", 4)
    first, second = prepare(data, tmp_path / "a", WHOSE), prepare(data, tmp_path / "b", WHOSE)
    assert first.info == second.info
    for name in ("manifest.csv", "images.f32"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    "wrong",
    [{"spacing": 0.0}, {"size": (0, 4)}, {"percentiles": (99.0, 1.0)}, {"fractions": (0.5, 0.1, 0.1)}],
)
def test_a_setting_that_cannot_be_is_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        PrepareOptions(**wrong)  # type: ignore[arg-type]  # wrong on purpose


def test_a_class_is_read_from_the_path_and_stands_in_the_manifest_only_where_there_is_one(
    tmp_path: Path,
) -> None:
    for patient in range(4):
        save(tmp_path / "data" / f"p{patient}_week{patient % 2}.nii.gz", noise(patient))
    cases = ((None, {""}), (r"week(\d)", {"0", "1"}), ("week(1)", {"", "1"}))
    for number, (regex, wanted) in enumerate(cases):
        out = tmp_path / f"out-{number}"
        prepare(tmp_path / "data", out, WHOSE, PrepareOptions(class_regex=regex))
        assert {record.group for record in PreparedData.open(out).records} == wanted
        header = (out / "manifest.csv").read_text(encoding="utf-8").splitlines()[0]
        assert header.endswith(",class") == (regex is not None)


def test_a_class_regex_without_a_group_is_refused() -> None:
    with pytest.raises(ConfigError, match="--class-regex"):
        PrepareOptions(class_regex="Week")


def test_a_full_disk_names_the_file_and_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.FileIO):
        def write(self, content: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    def opened(path: Path, *how: Any, **more: Any) -> Any:
        return (
            io.BufferedWriter(Full(path, "wb")) if path.name == "images.f32" else as_ever(path, *how, **more)
        )

    data, as_ever = volumes(tmp_path / "in", 3), Path.open
    monkeypatch.setattr(Path, "open", opened)
    wanted = r"out/images\.f32: cannot be written \(No space left on device; 576 bytes wanted\)"
    with pytest.raises(DataError, match=wanted):
        prepare(data, tmp_path / "out", WHOSE)
    assert {path.name for path in tmp_path.iterdir()} == {"in"}


@pytest.mark.fault("advice on fractions", "works in prepare and in training")
def test_the_advice_on_fractions_works_in_prepare_and_in_training(tmp_path: Path) -> None:
    data, out = volumes(tmp_path / "in", 2, (32, 32, 4)), tmp_path / "out"
    with pytest.raises(DataError, match="2 patients cannot fill 3 splits") as caught:
        prepare(data, out, WHOSE)
    (advised,) = re.findall(r"--fractions ([\d. ]+) to train with these", str(caught.value))
    command = ["prepare", str(data), "-o", str(out), "--patient-regex", r"(p\d+)"]
    assert main([*command, "--fractions", *advised.split()]) == 0
    train(out, tiny("training.epochs=1"), tmp_path / "run")


def test_a_layout_with_its_own_split_is_not_told_to_give_fractions() -> None:
    with pytest.raises(
        DataError, match=r"1 patient cannot fill 2 splits.*two patients outside the test"
    ) as caught:
        assign_splits(["a", "b"], {"b": "test"}, None, 42)
    assert "--fractions" not in str(caught.value)
