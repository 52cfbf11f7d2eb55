"""DICOM to volumes. Every file is made here; none is of a patient."""

from pathlib import Path

import numpy as np
import pytest
from helpers.dicom import AXIAL, CORONAL, enhanced, pixels_of, save, slice_of, stack
from numpy.testing import assert_allclose, assert_array_equal
from openjpeg.utils import encode_array
from pydicom.encaps import encapsulate
from pydicom.uid import (
    BasicTextSRStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from slicebook.errors import DataError
from slicebook.io.dicom_series import find_dicom_series, read_dicom_series
from slicebook.io.nifti import read_nifti, write_nifti
from slicebook.io.volume import orientation_of, to_slices

SAGITTAL = [0.0, 1.0, 0.0, 0.0, 0.0, -1.0]


def test_the_affine_is_the_dicom_geometry_turned_from_lps_to_ras(tmp_path):
    files = stack(tmp_path, orientation=AXIAL)
    volume = read_dicom_series(files)
    assert volume.array.shape == (6, 4, 3)
    expected = [[-2, 0, 0, -10], [0, -4, 0, -20], [0, 0, 3, 0], [0, 0, 0, 1]]
    assert_allclose(volume.affine, expected, atol=1e-12)
    assert volume.spacing == (2, 4, 3)
    assert_array_equal(volume.array[:, :, 1], pixels_of(1).T)


def test_slices_are_sorted_along_the_normal_whatever_the_files_are_called(tmp_path):
    volume = read_dicom_series(stack(tmp_path, heights=(6, 0, 3)))
    assert volume.affine[2, 3] == 0
    assert_array_equal(volume.array[:, :, 0], pixels_of(1).T)
    assert_array_equal(volume.array[:, :, 2], pixels_of(0).T)
    names = [file.name for file in find_dicom_series(tmp_path)[0].files]
    assert names == ["1.dcm", "2.dcm", "0.dcm"]


def test_every_voxel_of_an_oblique_stack_lies_where_dicom_says(tmp_path):
    angle = np.deg2rad(20)
    row, column = np.array([1.0, 0, 0]), np.array([0, np.cos(angle), np.sin(angle)])
    normal = np.cross(row, column)
    for k in range(3):
        position = np.array([-30.0, 5.0, 40.0]) + 3.5 * k * normal
        dataset = slice_of(pixels_of(k), position.round(6), orientation=[*row, *column.round(9)])
        save(dataset, tmp_path / f"{k}.dcm")
    volume = read_dicom_series(sorted(tmp_path.iterdir()))
    # PS3.3 C.7.6.2.1.1: position + column index * row direction + row index * column direction.
    lps = np.array([-30.0, 5.0, 40.0]) + 3.5 * 2 * normal + 5 * 2 * row + 3 * 4 * column
    assert_allclose(volume.affine @ [5, 3, 2, 1], [*(lps * [-1, -1, 1]), 1], atol=1e-5)


@pytest.mark.parametrize(
    ("orientation", "plane", "move"),
    [(AXIAL, "axial", (0, 0, 3)), (CORONAL, "coronal", (0, 3, 0)), (SAGITTAL, "sagittal", (3, 0, 0))],
)
def test_a_slice_is_shown_as_the_scanner_shows_it(tmp_path, orientation, plane, move):
    for k in range(2):
        save(slice_of(pixels_of(k), np.multiply(move, k), orientation=orientation), tmp_path / f"{k}.dcm")
    (series,) = find_dicom_series(tmp_path)
    volume = read_dicom_series(series)
    slices = to_slices(volume.array, orientation_of(volume))
    assert series.plane == plane
    assert any(np.array_equal(image, pixels_of(0)) for image in slices)


@pytest.mark.fault("two series in one folder", "two volumes")
def test_series_are_split_by_uid_orientation_shape_and_patient(tmp_path):
    stack(tmp_path / "a", series="1.1")
    stack(tmp_path / "b", series="1.2")
    stack(tmp_path / "c", series="1.1", PatientID="OTHER")
    for name, orientation in (("axial", AXIAL), ("coronal", CORONAL)):
        save(
            slice_of(pixels_of(0), (0, 0, 0), series="1.3", orientation=orientation), tmp_path / f"{name}.dcm"
        )
    save(slice_of(pixels_of(0, shape=(6, 6)), (0, 0, 9), series="1.1"), tmp_path / "wide.dcm")
    all_series = find_dicom_series(tmp_path)
    assert sorted(series.frames for series in all_series) == [1, 1, 1, 3, 3, 3]
    assert {series.patient_id for series in all_series} == {"SECRET-ID", "OTHER"}


def test_repeated_acquisitions_of_a_series_are_volumes_of_their_own(tmp_path):
    stack(tmp_path / "first", AcquisitionNumber=1)
    stack(tmp_path / "again", AcquisitionNumber=2)
    all_series = find_dicom_series(tmp_path)
    assert [(series.acquisition, series.frames) for series in all_series] == [(1, 3), (2, 3)]
    with pytest.raises(DataError, match="2 stacks"):
        read_dicom_series([file for series in all_series for file in series.files])


def test_stations_that_overlap_are_volumes_of_their_own(tmp_path):
    stack(tmp_path / "low", heights=(0, 3, 6), AcquisitionNumber=1)
    stack(tmp_path / "high", heights=(7, 10, 13), AcquisitionNumber=2)
    assert [series.frames for series in find_dicom_series(tmp_path)] == [3, 3]


@pytest.mark.fault("one scan under two acquisition numbers", "one volume")
def test_a_scan_numbered_as_two_acquisitions_is_one_volume_where_it_is_seamless(tmp_path):
    stack(tmp_path / "low", heights=(0, 3, 6), AcquisitionNumber=1)
    stack(tmp_path / "high", heights=(9, 12, 15), AcquisitionNumber=2)
    (series,) = find_dicom_series(tmp_path)
    assert (series.acquisition, series.frames) == (None, 6)
    assert read_dicom_series(series).spacing[2] == 3


def test_interleaved_acquisitions_are_one_volume(tmp_path):
    stack(tmp_path / "odd", heights=(0, 6, 12), AcquisitionNumber=1)
    stack(tmp_path / "even", heights=(3, 9), AcquisitionNumber=2)
    (series,) = find_dicom_series(tmp_path)
    assert (series.acquisition, series.frames) == (None, 5)
    assert read_dicom_series(series).spacing[2] == 3


def test_intensities_are_rescaled_slice_by_slice(tmp_path):
    for k, slope in enumerate((2, 0.5)):
        dataset = slice_of(pixels_of(k), (0, 0, k), RescaleSlope=slope, RescaleIntercept=-7)
        save(dataset, tmp_path / f"{k}.dcm")
    volume = read_dicom_series(sorted(tmp_path.iterdir()))
    assert_allclose(volume.array[:, :, 1], pixels_of(1).T * 0.5 - 7)


@pytest.mark.fault("MONOCHROME1", "read, turned round")
def test_monochrome1_is_turned_round(tmp_path):
    dataset = slice_of(
        pixels_of(0), (0, 0, 0), PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11
    )
    volume = read_dicom_series([save(dataset, tmp_path / "a.dcm")])
    assert_array_equal(volume.array[:, :, 0], 4095 - pixels_of(0).T.astype(np.float32))


def test_signed_values_and_bits_above_the_stored_ones(tmp_path):
    signed = pixels_of(0).astype(np.int16) - 50
    dataset = slice_of(signed & 0x0FFF, (0, 0, 0), BitsStored=12, HighBit=11, PixelRepresentation=1)
    assert_array_equal(read_dicom_series([save(dataset, tmp_path / "a.dcm")]).array[:, :, 0], signed.T)
    overlaid = slice_of(pixels_of(0) | 0x8000, (0, 0, 0), BitsStored=12, HighBit=11)
    assert_array_equal(read_dicom_series([save(overlaid, tmp_path / "b.dcm")]).array[:, :, 0], pixels_of(0).T)


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
    ids=lambda uid: uid.name,
)
def test_other_ways_to_write_the_same_slice(tmp_path, syntax):
    dataset = slice_of(pixels_of(0), (0, 0, 0))
    dataset.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = pixels_of(0).astype(">u2").tobytes()
    assert_array_equal(read_dicom_series([save(dataset, tmp_path / "a.dcm")]).array[:, :, 0], pixels_of(0).T)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.name)
def test_losslessly_compressed_pixels_come_back_exactly(tmp_path, syntax, dtype):
    pixels = pixels_of(0, dtype, (40, 64)) - (50 if dtype == np.int16 else 0)
    dataset = slice_of(pixels.astype(dtype), (0, 0, 0))
    if syntax == JPEG2000Lossless:
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.PixelData = encapsulate([encode_array(pixels.astype(dtype))])
        dataset["PixelData"].is_undefined_length = True
    else:
        dataset.compress(syntax)
    assert_array_equal(read_dicom_series([save(dataset, tmp_path / "a.dcm")]).array[:, :, 0], pixels.T)


@pytest.mark.parametrize("compressed", [False, True])
def test_an_enhanced_file_is_sorted_and_rescaled_frame_by_frame(tmp_path, compressed):
    dataset = enhanced()
    if compressed:
        dataset.compress(RLELossless)
    save(dataset, tmp_path / "enhanced.dcm")
    (series,) = find_dicom_series(tmp_path)
    volume = read_dicom_series(series)
    assert (series.frames, len(series.files)) == (3, 1)
    assert volume.spacing == (2, 4, 3)
    assert_array_equal(volume.array[:, :, 0], 2 * pixels_of(1).T)
    assert_array_equal(volume.array[:, :, 2], 1 * pixels_of(0).T)


@pytest.mark.fault("missing slice", "refused with the slices named; copy the series again")
@pytest.mark.fault("two slices at one place", "refused with the slices named; remove copies")
@pytest.mark.parametrize(
    ("heights", "message"),
    [
        ((0, 3, 6, 12, 15), r"1 missing between 2\.dcm and 3\.dcm .* copy the series again"),
        ((0, 3, 3, 6), r"1\.dcm and 2\.dcm are at the same position"),
        ((0, 3, 6.8, 9), "2.200 to 3.800 mm apart, wanted even .* resample"),
    ],
)
def test_a_stack_that_is_not_even_is_refused_with_the_slices_named(tmp_path, heights, message):
    stack(tmp_path, heights)
    (series,) = find_dicom_series(tmp_path)
    with pytest.raises(DataError, match=message):
        read_dicom_series(series)


def test_positions_rounded_by_the_scanner_are_even_enough(tmp_path):
    volume = read_dicom_series(stack(tmp_path, (0, 3.01, 5.99, 9)))
    assert volume.spacing[2] == pytest.approx(3)


@pytest.mark.fault("gantry tilt", "read with its slant")
def test_a_tilted_gantry_keeps_its_slant(tmp_path):
    for k in range(3):
        save(slice_of(pixels_of(k), (0, 1.5 * k, 3 * k)), tmp_path / f"{k}.dcm")
    volume = read_dicom_series(sorted(tmp_path.iterdir()))
    assert_allclose(volume.affine[:3, 2], [0, -1.5, 3])
    save(slice_of(pixels_of(3), (0, 30, 9)), tmp_path / "3.dcm")
    with pytest.raises(DataError, match="one line"):
        read_dicom_series(sorted(tmp_path.iterdir()))


def test_a_single_slice_takes_its_thickness(tmp_path):
    assert read_dicom_series(stack(tmp_path, heights=(0,))).spacing == (2, 4, 3)


def test_other_files_are_passed_over_and_damaged_ones_reported(tmp_path):
    stack(tmp_path / "deep" / "er")
    (tmp_path / "notes.txt").write_text("nothing")
    report = slice_of(pixels_of(0), (0, 0, 0), Rows=None, SOPClassUID=BasicTextSRStorage)
    save(report, tmp_path / "report")
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(b"nothing")
    reported = []
    all_series = find_dicom_series(
        tmp_path, unreadable=lambda path, error: reported.append((path, str(error)))
    )
    assert len(all_series) == 1
    assert [path for path, _ in reported] == [broken]
    assert str(broken) in reported[0][1]
    with pytest.raises(DataError, match=r"broken\.dcm"):
        find_dicom_series(tmp_path)


@pytest.mark.fault("patient data in DICOM headers", "absent from what is written")
def test_nothing_of_the_patient_reaches_what_is_written(tmp_path):
    volume = read_dicom_series(stack(tmp_path / "in"))
    out = tmp_path / "out.nii"
    write_nifti(out, volume.array, volume)
    content = out.read_bytes().lower()
    assert b"secret" not in content
    assert_allclose(read_nifti(out).affine, volume.affine, atol=1e-5)


def test_a_path_may_be_text(tmp_path):
    stack(tmp_path)
    assert find_dicom_series(str(tmp_path))[0].files[0] == Path(tmp_path) / "0.dcm"


@pytest.mark.fault("UIDs shared by people after anonymising", "parted by patient before slices are stacked")
def test_files_are_parted_by_the_patient_that_the_caller_names_before_they_are_stacked(tmp_path):
    stack(tmp_path / "p1", heights=(0, 3, 6))
    stack(tmp_path / "p2", heights=(9, 12, 15))
    stack(tmp_path / "other", heights=(18,))
    skipped = []
    all_series = find_dicom_series(
        tmp_path,
        patient_of=lambda path: path.parent.name if path.parent.name != "other" else None,
        skipped=lambda path, reason: skipped.append((path.name, reason)),
    )
    assert [(series.patient_id, series.frames) for series in all_series] == [("p1", 3), ("p2", 3)]
    assert skipped == [("0.dcm", "no patient")]


@pytest.mark.fault("patient data in DICOM headers", "absent from the name of a series")
def test_the_label_of_a_series_tells_its_kind_and_no_identifier(tmp_path):
    stack(tmp_path, Modality="MR", ImageType=["ORIGINAL", "PRIMARY", "M"])
    (series,) = find_dicom_series(tmp_path)
    assert series.label == "MR axial, 3 slices of 4 × 6, 4 × 2 mm"
    assert (series.modality, series.image_type[2]) == ("MR", "M")
