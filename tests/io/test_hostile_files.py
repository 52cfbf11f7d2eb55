"""Files that lie: each is a `DataError` of one line that names the file and the way out."""

import gzip
import io
import struct
import sys
import tracemalloc
import zlib
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers.dicom import enhanced, pixels_of, save, slice_of
from helpers.hostile_files import nifti_bytes
from openjpeg.utils import encode_array
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from slicebook.errors import DataError
from slicebook.io.dicom_file import read_fields
from slicebook.io.dicom_series import find_dicom_series, read_dicom_series
from slicebook.io.limits import Limits
from slicebook.io.nifti import read_nifti


def refuse(path: Path, message: str, **options):
    """Assert that reading fails in one line that names the file, and says `message`."""
    read = read_nifti if ".nii" in path.name else lambda file, **kw: read_dicom_series([file], **kw)
    with pytest.raises(DataError, match=message) as caught:
        read(path, **options)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# --- NIfTI

FLOATS = np.ones((4, 5, 3), np.float32)


@pytest.mark.fault("spacing 0", "refused: the affine does not span space")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a NIfTI file"),
        (b"\x5c\x01\x00\x00", "is not a NIfTI file"),
        (b"PK\x03\x04" * 200, "is not a NIfTI file"),
        (nifti_bytes(magic=b"ni1"), r"header half of a \.hdr/\.img pair"),
        (nifti_bytes(magic=b"abc"), "is not a NIfTI file"),
        (nifti_bytes()[:-1], "ends after 471 bytes, its header wants 472"),
        (nifti_bytes()[:360], "ends after 360 bytes"),
        (nifti_bytes() + b"\0", "is longer than"),
        (nifti_bytes(dim=[3, 4, 0, 3, 1, 1, 1, 1]), r"has the shape \(4, 0, 3\)"),
        (nifti_bytes(dim=[3, 4, -5, 3, 1, 1, 1, 1]), r"has the shape \(4, -5, 3\)"),
        (nifti_bytes(dim=[1, 60, 1, 1, 1, 1, 1, 1]), r"has the shape \(60,\), wanted 2D or 3D"),
        (nifti_bytes(dim=[0, 4, 5, 3, 1, 1, 1, 1]), r"has the shape \(\)"),
        (nifti_bytes(dim=[99, 4, 5, 3, 1, 1, 1, 1]), r"has the shape \(\)"),
        (nifti_bytes(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]), "wanted at most 2,147,483,648"),
        (nifti_bytes(np.ones((4, 5, 3, 2), np.int16)), r"is 4D .* image\.slicer"),
        (nifti_bytes(FLOATS.astype(np.complex64)), "holds complex values"),
        (nifti_bytes(np.zeros((4, 5, 3), [(c, "u1") for c in "RGB"])), "holds RGB colour values"),
        (nifti_bytes(np.zeros((4, 5, 3), [(c, "u1") for c in "RGBA"])), "holds RGBA colour values"),
        (nifti_bytes(datatype=1), r"unsupported values \(NIfTI type 1\)"),
        (nifti_bytes(datatype=7777), "unsupported values"),
        (nifti_bytes(scl_slope=3e38, scl_inter=0), r"beyond float32, .* slope|slope 3e\+38 .*beyond float32"),
        (nifti_bytes(scl_slope=np.inf, scl_inter=0), "slope inf"),
        (nifti_bytes(scl_slope=1, scl_inter=np.nan), "intercept nan"),
        (nifti_bytes(np.where(np.arange(3) == 1, np.nan, FLOATS)), "20 of 60 values are NaN"),
        (nifti_bytes(FLOATS * np.inf), "60 of 60 values are NaN, infinite"),
        (nifti_bytes(FLOATS.astype(np.float64) * 1e300), "beyond float32"),
        (nifti_bytes(vox_offset=np.nan), "voxels start at byte nan"),
        (nifti_bytes(vox_offset=-352), "voxels start at byte -352"),
        (nifti_bytes(vox_offset=0), "voxels start at byte 0"),
        (nifti_bytes(vox_offset=352.5), r"voxels start at byte 352\.5"),
        (nifti_bytes(vox_offset=1e30), "voxels start at byte 1e"),
        (nifti_bytes(vox_offset=1e12), "wanted at most"),
        (nifti_bytes(srow_x=[np.nan, 0, 0, 0]), "affine"),
        (nifti_bytes(srow_y=[0, 0, 0, 0]), "parallel or empty axes"),
        (nifti_bytes(sform_code=0, qform_code=1, quatern_b=5), "qform is not a rotation"),
        (
            nifti_bytes(sform_code=0, qform_code=1, pixdim=[1, -1, 1, 1, 0, 0, 0, 0]),
            "qform is not a rotation",
        ),
        (nifti_bytes(sform_code=0, qform_code=0, pixdim=[1, 0, 1, 1, 0, 0, 0, 0]), "affine"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_nifti_that_lies_is_refused(tmp_path, content, message, packed):
    path = tmp_path / ("a.nii.gz" if packed else "a.nii")
    path.write_bytes(gzip.compress(content) if packed else content)
    refuse(path, message)


def test_absent_and_unreadable_paths_are_named(tmp_path):
    refuse(tmp_path / "absent.nii", "No such file")
    (tmp_path / "folder.nii").mkdir()
    refuse(tmp_path / "folder.nii", "Is a directory")


def test_the_real_4d_volume_of_nibabel_is_refused():
    path = Path(nib.__file__).parent / "tests" / "data" / "example4d.nii.gz"
    refuse(path, r"is 4D with the shape \(128, 96, 24, 2\)")


@pytest.mark.fault("bit-flipped gzip", "every flip that changes a voxel is refused")
def test_every_flip_that_means_something_is_seen_in_a_gzip(tmp_path):
    noise = np.random.default_rng(0).integers(0, 9999, (4, 5, 3)).astype(np.int16)
    content = nifti_bytes(noise)
    whole = gzip.compress(content, mtime=0)
    path = tmp_path / "a.nii.gz"
    for at in range(10, len(whole)):  # before it lie the time stamp and the name of the system
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        if _gunzip(path.read_bytes()) != content:  # a few bits that pad the deflate stream mean nothing
            refuse(path, ".")


def _gunzip(packed):
    try:
        return gzip.decompress(packed)
    except (EOFError, OSError, zlib.error):
        return None


@pytest.mark.fault("truncated gzip", "every length is refused")
def test_every_cut_of_a_gzip_is_seen(tmp_path):
    whole = gzip.compress(nifti_bytes())
    path = tmp_path / "a.nii.gz"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refuse(path, ".")


@pytest.mark.fault("gzip bomb", "less than 8 MiB of memory is taken")
def test_a_gzip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "bomb.nii.gz"
    header = nifti_bytes(dim=[3, 1024, 1024, 256, 1, 1, 1, 1], datatype=2, bitpix=8)[:352]
    path.write_bytes(gzip.compress(header + bytes(1024**2)))
    tracemalloc.start()
    refuse(path, "claim to unpack to 1,073,741,824, wanted at most 250 times; .* gunzip")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 1024**2


def test_a_gzip_that_holds_more_than_its_header_says_is_not_read_on(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(nifti_bytes() + bytes(32 * 1024**2)))
    tracemalloc.start()
    refuse(path, "is longer than")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 1024**2


def test_the_caps_can_be_set(tmp_path):
    path = tmp_path / "a.nii"
    path.write_bytes(nifti_bytes())
    refuse(path, "needs 472 bytes, wanted at most 471", limits=Limits(max_bytes=471))
    assert read_nifti(path, limits=Limits(max_bytes=472)).array.shape == (4, 5, 3)


def test_an_empty_mask_may_compress_well(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(nifti_bytes(np.zeros((256, 256, 40), np.uint8))))
    assert not read_nifti(path).array.any()


# --- DICOM


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"ImageOrientationPatient": None}, "ImageOrientationPatient is absent, .* geometry"),
        ({"ImagePositionPatient": None}, "ImagePositionPatient is absent"),
        ({"PixelSpacing": None}, "PixelSpacing is absent"),
        ({"PixelSpacing": [0, 1]}, "pixels have no size"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "not at right angles"),
        ({"ImageOrientationPatient": [0] * 6}, "not at right angles"),
        ({"SeriesInstanceUID": None}, "has no SeriesInstanceUID"),
        ({"PixelData": None}, "has no pixel data"),
        ({"PixelData": bytes(46)}, "holds 46 bytes of pixels, its header wants 48"),
        ({"Rows": 60000, "Columns": 60000}, "wanted at most"),
        ({"Rows": 0}, "damaged|wanted"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "is RGB, wanted MONOCHROME"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "is PALETTE COLOR"),
        ({"BitsStored": 17}, "stores 17 of 16 bits"),
        ({"BitsAllocated": 1}, "stores 16 of 1 bits"),
        ({"HighBit": 3}, "stores 16 of 16 bits, wanted the low ones"),
        ({"RescaleSlope": "1e39", "RescaleIntercept": 0}, r"slope 1e\+39"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "mosaic"),
        ({"NumberOfFrames": 2}, "2 frames without places"),
    ],
)
def test_a_dicom_that_lies_is_refused(tmp_path, tags, message):
    refuse(save(slice_of(pixels_of(0), (0, 0, 0), **tags), tmp_path / "a.dcm"), message)


@pytest.mark.fault("truncated DICOM", "every length is refused")
def test_every_cut_of_a_dicom_is_seen(tmp_path):
    whole = save(slice_of(pixels_of(0), (0, 0, 0)), tmp_path / "whole.dcm").read_bytes()
    path = tmp_path / "a.dcm"
    for length in range(0, len(whole), 5):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a\.dcm|wanted DICOM images"):
            read_dicom_series([path])


@pytest.mark.fault("bit-flipped DICOM", "refused, or read where the bits mean nothing")
def test_flipped_bytes_of_a_dicom_never_raise_anything_else(tmp_path):
    whole = save(slice_of(pixels_of(0), (0, 0, 0)), tmp_path / "whole.dcm").read_bytes()
    path = tmp_path / "in" / "a.dcm"
    path.parent.mkdir()
    for at in range(132, len(whole), 9):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with suppress(DataError):
            for series in find_dicom_series(tmp_path / "in"):
                read_dicom_series(series)


def test_a_field_of_an_unknown_kind_is_a_damaged_file_for_those_who_read_fields_alone(tmp_path):
    """Found by the fuzzer: pydicom converts a value when it is first used."""
    whole = save(slice_of(pixels_of(0), (0, 0, 0)), tmp_path / "a.dcm")
    content = bytearray(whole.read_bytes())
    at = content.index(b"\x20\x00\x0e\x00UI")  # Series Instance UID
    content[at + 4 : at + 6] = b"U\xff"
    whole.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.dcm: is damaged or unreadable DICOM"):
        read_fields(whole, Limits(), ["SeriesInstanceUID"])


def test_an_enhanced_file_that_counts_wrong_is_refused(tmp_path):
    dataset = enhanced()
    dataset.NumberOfFrames = 4
    refuse(save(dataset, tmp_path / "a.dcm"), "says 4 frames and describes 3")
    dataset = enhanced()
    dataset.PixelData = dataset.PixelData[:-2]
    refuse(save(dataset, tmp_path / "a.dcm"), "its header wants 144")


@pytest.mark.fault("deflate bomb", "refused after the allowed bytes; export it uncompressed")
def test_a_deflated_bomb_is_not_unpacked(tmp_path):
    dataset = slice_of(pixels_of(0), (0, 0, 0))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    whole = save(dataset, tmp_path / "a.dcm").read_bytes()
    meta = whole[: 144 + struct.unpack_from("<I", whole, 140)[0]]
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = io.BytesIO(meta)
    bomb.seek(0, io.SEEK_END)
    for _ in range(80):
        bomb.write(deflater.compress(bytes(1024**2)))
    bomb.write(deflater.flush())
    (tmp_path / "a.dcm").write_bytes(bomb.getvalue())
    refuse(tmp_path / "a.dcm", "wanted at most 250 times; .* export it uncompressed")
    (tmp_path / "b.dcm").write_bytes(whole[:-6])
    refuse(tmp_path / "b.dcm", "cut off|damaged")


@pytest.mark.fault("codestream larger than its header", "refused before decoding; export it again")
def test_a_codestream_larger_than_its_header_is_refused_before_decoding(tmp_path):
    dataset = slice_of(pixels_of(0, shape=(40, 64)), (0, 0, 0))
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    frame = bytearray(encode_array(pixels_of(0, shape=(40, 64))))
    struct.pack_into(">2I", frame, frame.index(b"\xff\x4f\xff\x51") + 8, 60000, 60000)
    dataset.PixelData = encapsulate([bytes(frame)])
    dataset["PixelData"].is_undefined_length = True
    refuse(save(dataset, tmp_path / "a.dcm"), r"a frame is \(60000, 60000\), its header says \(40, 64\)")


def test_a_compressed_frame_that_is_cut_off_is_refused(tmp_path):
    for syntax in (JPEGLSLossless, RLELossless):
        dataset = slice_of(pixels_of(0, shape=(40, 64)), (0, 0, 0))
        dataset.compress(syntax)
        path = save(dataset, tmp_path / "a.dcm")
        path.write_bytes(path.read_bytes()[:-400])
        refuse(path, "damaged|cut off")


@pytest.mark.fault("no decoder for a compression", "refused; names the extra that decodes it, or gdcmconv")
def test_a_compression_without_decoder_is_named_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    dataset = slice_of(pixels_of(0), (0, 0, 0))
    dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    dataset.PixelData = encapsulate([b"\xff\xd8" + bytes(40)])
    dataset["PixelData"].is_undefined_length = True
    refuse(save(dataset, tmp_path / "a.dcm"), r"install slicebook\[codecs\].* decompress it .* gdcmconv")
