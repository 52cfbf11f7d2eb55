"""DICOM files that are no slices, or are written in other ways: passed over, read, or refused in one line."""

import sys

import numpy as np
import pytest
from helpers.dicom import enhanced, pixels_of, save, slice_of, stack
from numpy.testing import assert_array_equal
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    SecondaryCaptureImageStorage,
)

from slicebook.errors import DataError
from slicebook.io.dicom_series import find_dicom_series, read_dicom_series

NOWHERE = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"))
STORAGE = "1.2.840.10008.5.1.4.1.1."


def search(folder):
    """Return the series, the reasons of files passed over, and the unreadable files' reasons."""
    skipped, unreadable = {}, {}
    all_series = find_dicom_series(
        folder,
        unreadable=lambda path, error: unreadable.update({path.name: str(error)}),
        skipped=lambda path, reason: skipped.update({path.name: reason}),
    )
    return all_series, skipped, unreadable


def directory():
    """Return a DICOMDIR, which tells what it is in its file meta alone."""
    dataset = slice_of(pixels_of(0), (0, 0, 0))
    plain = Dataset()
    plain.file_meta = dataset.file_meta
    plain.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.1.3.10")
    plain.FileSetID, plain.DirectoryRecordSequence = "CD", []
    return plain


@pytest.mark.fault("screenshot", "passed over, counted with the reason")
@pytest.mark.fault("segmentation, dose or presentation state", "passed over, counted with the reason")
@pytest.mark.fault("raw data without an image", "passed over, counted with the reason")
@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"SOPClassUID": STORAGE + "7", **NOWHERE}, "screen capture"),
        ({"SOPClassUID": STORAGE + "7.2", **NOWHERE}, "screen capture"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"], **NOWHERE}, "screen capture"),
        ({"SOPClassUID": STORAGE + "66.4"}, "segmentation"),
        ({"SOPClassUID": STORAGE + "66.7"}, "segmentation"),
        ({"SOPClassUID": STORAGE + "481.2"}, "radiotherapy"),
        ({"SOPClassUID": STORAGE + "481.3", "Rows": None, "PixelData": None}, "radiotherapy"),
        ({"SOPClassUID": STORAGE + "11.1", "Rows": None, "PixelData": None}, "presentation state"),
        ({"SOPClassUID": STORAGE + "66", "Rows": None, "PixelData": None}, "raw data"),
        ({"SOPClassUID": STORAGE + "88.22", "Rows": None, "PixelData": None}, "report"),
        ({"SOPClassUID": "1.3.46.670589.11.0.0.12.1", "PixelData": None, **NOWHERE}, "no pixels"),
        ({"PixelData": None, **NOWHERE}, "no pixels"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "colour"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "SCOUT"]}, "localizer"),
    ],
)
def test_a_file_that_is_no_slice_is_passed_over_with_its_reason(tmp_path, tags, reason):
    stack(tmp_path)
    save(slice_of(pixels_of(9), (0, 0, 0), series="9.9", **tags), tmp_path / "other")
    all_series, skipped, unreadable = search(tmp_path)
    assert [series.frames for series in all_series] == [3]
    assert (skipped, unreadable) == ({"other": reason}, {})


@pytest.mark.fault("DICOMDIR", "passed over")
@pytest.mark.fault("AppleDouble twin", "passed over")
@pytest.mark.fault("link to nothing", "passed over and named")
def test_a_directory_a_twin_of_a_mac_and_a_broken_link_are_passed_over(tmp_path):
    stack(tmp_path)
    save(directory(), tmp_path / "DICOMDIR")
    (tmp_path / "._0.dcm").write_bytes(bytes.fromhex("00051607000200004d6163204f532058") + bytes(200))
    (tmp_path / "7.dcm").symlink_to(tmp_path / "absent.dcm")
    all_series, skipped, unreadable = search(tmp_path)
    assert len(all_series) == 1
    assert skipped == {"DICOMDIR": "DICOMDIR", "._0.dcm": "AppleDouble", "7.dcm": "broken link"}
    assert not unreadable


def test_a_linked_folder_is_searched_once(tmp_path):
    stack(tmp_path / "real")
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "real")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    assert [series.frames for series in find_dicom_series(tmp_path / "in")] == [3]


def test_a_capture_with_a_place_in_the_patient_is_a_slice(tmp_path):
    stack(tmp_path, SOPClassUID=SecondaryCaptureImageStorage)
    assert [series.frames for series in find_dicom_series(tmp_path)] == [3]


@pytest.mark.fault("without pixels", "counts as damaged, is not passed over")
@pytest.mark.parametrize("tags", [{"Rows": None}, {"PixelData": None}])
def test_an_image_without_rows_or_pixels_is_damaged_and_not_passed_over(tmp_path, tags):
    save(slice_of(pixels_of(0), (0, 0, 0), **tags), tmp_path / "a.dcm")
    all_series, skipped, unreadable = search(tmp_path)
    assert (all_series, skipped, list(unreadable)) == ([], {}, ["a.dcm"])


@pytest.mark.fault("no preamble", "read")
@pytest.mark.parametrize("suffix", ["", ".dcm"])
@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_files_without_preamble_are_read(tmp_path, syntax, suffix):
    for k in range(3):
        path = tmp_path / f"{k}{suffix}"
        if syntax is None:  # with file meta
            whole = save(slice_of(pixels_of(k), (0, 0, 3 * k)), path).read_bytes()
            path.write_bytes(whole[132:])
            continue
        dataset = slice_of(pixels_of(k), (0, 0, 3 * k))
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = pixels_of(k).astype(">u2").tobytes()
        del dataset.file_meta
        is_little = syntax != ExplicitVRBigEndian
        dataset.save_as(path, implicit_vr=is_little, little_endian=is_little, enforce_file_format=False)
    (tmp_path / "notes").write_text("8 patients, nothing else")
    (tmp_path / "numbers").write_bytes(np.arange(8, 400, dtype="<u2").tobytes())
    (series,) = find_dicom_series(tmp_path)
    assert_array_equal(read_dicom_series(series).array[:, :, 2], pixels_of(2).T)


@pytest.mark.fault(
    "Siemens or UIH mosaic", "refused in one line for the series; turn it into NIfTI with dcm2niix"
)
@pytest.mark.parametrize("kind", ["MOSAIC", "VFRAME"])
def test_mosaics_are_one_line_for_a_series(tmp_path, kind):
    stack(tmp_path, ImageType=["ORIGINAL", "PRIMARY", "M", kind])
    _, _, unreadable = search(tmp_path)
    assert list(unreadable) == ["0.dcm"]
    assert "2 more" in unreadable["0.dcm"]
    assert "dcm2niix" in unreadable["0.dcm"]


@pytest.mark.fault("RescaleSlope 0", "read unscaled")
def test_a_slope_of_zero_means_unscaled(tmp_path):
    path = save(slice_of(pixels_of(0), (0, 0, 0), RescaleSlope=0, RescaleIntercept=5), tmp_path / "a.dcm")
    assert_array_equal(read_dicom_series([path]).array[:, :, 0], pixels_of(0).T)


@pytest.mark.fault("JPEG Lossless SV1", "read exactly, with slicebook[codecs]")
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_jpeg_lossless_comes_back_exactly(tmp_path, dtype):
    imagecodecs = pytest.importorskip("imagecodecs")
    pixels = (pixels_of(0, np.int64, (40, 64)) - (50 if dtype == np.int16 else 0)).astype(dtype)
    dataset = slice_of(pixels, (0, 0, 0))
    dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    stored = pixels if dtype == np.uint8 else pixels.view(np.uint16)
    dataset.PixelData = encapsulate([imagecodecs.ljpeg_encode(stored)])
    dataset["PixelData"].is_undefined_length = True
    path = save(dataset, tmp_path / "a.dcm")
    assert_array_equal(read_dicom_series([path]).array[:, :, 0], pixels.T)


def test_jpeg_lossless_without_its_decoder_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    dataset = slice_of(pixels_of(0), (0, 0, 0))
    dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    dataset.PixelData = encapsulate([b"\xff\xd8" + bytes(40)])
    dataset["PixelData"].is_undefined_length = True
    with pytest.raises(DataError, match=r"slicebook\[codecs\]"):
        read_dicom_series([save(dataset, tmp_path / "a.dcm")])


def test_what_pydicom_says_of_a_header_is_not_repeated(tmp_path):
    whole = save(slice_of(pixels_of(0), (0, 0, 0), SliceThickness=33), tmp_path / "a.dcm").read_bytes()
    at = whole.index(b"\x18\x00\x50\x00DS")
    (tmp_path / "a.dcm").write_bytes(whole[: at + 8] + b"MN" + whole[at + 10 :])
    with pytest.raises(DataError) as caught:
        read_dicom_series([tmp_path / "a.dcm"])
    assert "MN" not in str(caught.value)


def test_headers_end_before_the_private_groups_and_enhanced_ones_do_not(tmp_path, monkeypatch):
    private = slice_of(pixels_of(0), (0, 0, 0))
    private.private_block(0x0029, "TEST", create=True).add_new(1, "LO", "x")
    stops = []
    import slicebook.io.dicom_file as module

    read = module._read

    def watched(file, syntax, meta, stop, *rest):
        stops.append(stop)
        return read(file, syntax, meta, stop, *rest)

    monkeypatch.setattr(module, "_read", watched)
    save(private, tmp_path / "a.dcm")
    find_dicom_series(tmp_path)
    assert stops == [0x0029]
    (tmp_path / "a.dcm").unlink()
    save(enhanced(), tmp_path / "b.dcm")
    assert find_dicom_series(tmp_path)[0].frames == 3
    assert stops == [0x0029, 0x0029, 0x7FE0]
