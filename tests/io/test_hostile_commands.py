"""Hostile files through every command that reads one: one line, exit 1, nothing written, no traceback."""

import gzip
import re
from typing import Any

import numpy as np
import pytest
from helpers.dicom import pixels_of, save, slice_of
from helpers.hostile_files import nifti_bytes
from helpers.inference import model_file

from slicebook.cli import main

FLOATS = np.ones((16, 16, 3), np.float32)
HALF_NAN = np.where(np.arange(3) == 1, np.nan, FLOATS).astype(np.float32)
FLIPPED = bytearray(gzip.compress(nifti_bytes(FLOATS), mtime=0))
FLIPPED[-6] ^= 0x10  # in the checksum
BOMB = nifti_bytes(dim=[3, 1024, 1024, 256, 1, 1, 1, 1], datatype=2, bitpix=8)[:352] + bytes(1024**2)


def dims(*sizes):
    return nifti_bytes(FLOATS, dim=[*sizes, *[1] * (8 - len(sizes))])


NIFTI = {
    "truncated.nii": nifti_bytes(FLOATS)[:-7],
    "truncated.nii.gz": gzip.compress(nifti_bytes(FLOATS))[:-9],
    "flipped.nii.gz": bytes(FLIPPED),
    "header-only.nii": nifti_bytes(FLOATS)[:352],
    "empty.nii": b"",
    "text.nii": b"this is a text\n" * 50,
    "bomb.nii.gz": gzip.compress(BOMB),
    "32000.nii": dims(3, 32000, 32000, 32000),
    "negative.nii": dims(3, 16, -16, 3),
    "zero.nii": dims(3, 16, 0, 3),
    "nine.nii": dims(9, 16, 16, 3),
    "some-nan.nii": nifti_bytes(HALF_NAN),
    "all-inf.nii": nifti_bytes(FLOATS * np.inf),
    "4d.nii": nifti_bytes(np.ones((16, 16, 3, 2), np.int16)),
    "rgb.nii": nifti_bytes(np.zeros((16, 16, 3), [(c, "u1") for c in "RGB"])),
    "complex.nii": nifti_bytes(FLOATS.astype(np.complex64)),
    "slope.nii": nifti_bytes(FLOATS * 99, scl_slope=3e38, scl_inter=0),
    "spacing.nii": nifti_bytes(FLOATS, sform_code=0, qform_code=0, pixdim=[1, 0, 1, 1, 0, 0, 0, 0]),
    "flat.nii": nifti_bytes(FLOATS, srow_y=[0, 0, 0, 0]),
    "zip.nii.gz": b"PK\x03\x04" + b"../../etc/passwd" * 40,
}
DICOM: dict[str, dict[str, Any]] = {
    "without pixels": {"PixelData": None},
    "cut": {"PixelData": bytes(46)},
    "huge": {"Rows": 60000, "Columns": 60000},
    "no geometry": {"ImagePositionPatient": None},
    "slope": {"RescaleSlope": "1e39", "RescaleIntercept": 0},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return model_file(tmp_path_factory.mktemp("model") / "model.safetensors")


def refuse(line, capfd, named):
    """Assert that a command ends with 1 and one line that names the file, what is wrong, and what to do."""
    assert main.main(line) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(rf"slicebook: [^\n]*{re.escape(named)}[^\n]*[;,] [^\n]+\n", err), err


@pytest.mark.fault(
    "truncated NIfTI", "refused: ends after N bytes, its header wants M; copy or download it again"
)
@pytest.mark.fault("truncated gzip", "refused: the gzip stream is damaged; copy or download it again")
@pytest.mark.fault("bit-flipped gzip", "refused by its checksum; copy or download it again")
@pytest.mark.fault("header without voxels", "refused: ends after 352 bytes; copy or download it again")
@pytest.mark.fault("0 bytes", "refused: is not a NIfTI file; wanted .nii or .nii.gz")
@pytest.mark.fault("text named .nii", "refused: is not a NIfTI file; wanted .nii or .nii.gz")
@pytest.mark.fault("gzip bomb", "refused before it is unpacked; if you trust it, unpack it with gunzip")
@pytest.mark.fault(
    "dimensions of 32,000³",
    "refused before memory is taken: needs N bytes, wanted at most 2 GiB; crop or split it",
)
@pytest.mark.fault("negative dimension", "refused: has the shape …; export it again")
@pytest.mark.fault("dimension of zero", "refused: has the shape …; export it again")
@pytest.mark.fault("nine dimensions", "refused: has no shape of 2D or 3D; export it again")
@pytest.mark.fault(
    "NaN or infinity in some or all voxels",
    "refused with their number; replace them (numpy.nan_to_num) and save again",
)
@pytest.mark.fault("4D", "refused; save one volume of it (nibabel: image.slicer[..., 0])")
@pytest.mark.fault("RGB", "refused: holds colour values; convert it to float32")
@pytest.mark.fault(
    "complex", "refused: holds complex values; convert it to float32 (a magnitude or grey image)"
)
@pytest.mark.fault("slope 3e38", "refused: values beyond float32; replace them and save again")
@pytest.mark.fault("spacing 0", "refused: its affine has parallel or empty axes")
@pytest.mark.fault("zip-slip", "refused: no archive is ever unpacked")
@pytest.mark.parametrize("name", NIFTI)
def test_a_hostile_nifti_is_refused_by_every_command(name, model, tmp_path, capfd):
    path = tmp_path / "in" / name
    path.parent.mkdir()
    path.write_bytes(NIFTI[name])
    out = tmp_path / "out"
    refuse(["reconstruct", str(model), str(path), "-o", str(out), "--device", "cpu"], capfd, name)
    refuse(["encode", str(model), str(path.parent), "-o", str(out / "t.safetensors")], capfd, name)
    (path.parent / f"2{name}").write_bytes(NIFTI[name])  # one file alone may be left out
    line = [
        "prepare",
        str(path.parent),
        "-o",
        str(out),
        "--patient-regex",
        "(.)",
        "--fractions",
        "0",
        "0",
        "1",
    ]
    refuse(line, capfd, name)
    assert not out.exists()
    assert main.main(["check", str(path.parent)]) == 1
    printed = "".join(capfd.readouterr())
    assert name in printed
    assert "Traceback" not in printed


@pytest.mark.fault("without pixels", "refused: the image is damaged; copy or export it again")
@pytest.mark.fault("huge rows", "refused before memory is taken")
@pytest.mark.fault(
    "truncated DICOM", "refused: holds N bytes of pixels, its header wants M; copy or download it again"
)
@pytest.mark.parametrize("name", DICOM)
def test_a_hostile_dicom_is_refused_by_every_command(name, model, tmp_path, capfd):
    save(slice_of(pixels_of(0, shape=(16, 16)), (0, 0, 0), **DICOM[name]), tmp_path / "in" / "0.dcm")
    out = tmp_path / "out"
    refuse(["reconstruct", str(model), str(tmp_path / "in"), "-o", str(out), "--device", "cpu"], capfd, "in")
    refuse(["encode", str(model), str(tmp_path / "in"), "-o", str(out / "t.safetensors")], capfd, "in")
    save(
        slice_of(pixels_of(0, shape=(16, 16)), (0, 0, 0), series="1.2.9", **DICOM[name]),
        tmp_path / "in/1.dcm",
    )
    line = ["prepare", str(tmp_path / "in"), "-o", str(out), "--fractions", "0", "0", "1"]
    refuse(line, capfd, "in")
    assert not out.exists()
    assert main.main(["check", str(tmp_path / "in")]) == 1
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.fault("`..` in a list of files", "no path from inside a file is ever opened")
def test_a_list_of_files_that_points_out_of_its_folder_leads_nowhere(model, tmp_path, capfd):
    """Only nnU-Net's dataset.json lists files, and Slicebook does not open what it lists."""
    outside = tmp_path / "outside.nii"
    outside.write_bytes(nifti_bytes(FLOATS))
    folder = tmp_path / "in"
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    listed = (
        '{"training": [{"image": "../outside.nii", "label": "../outside.nii"}], "file_ending": "/../../x"}'
    )
    (folder / "dataset.json").write_text(listed)
    assert main.main(["prepare", str(folder), "-o", str(tmp_path / "out"), "--patient-regex", "(.)"]) == 1
    assert "Traceback" not in capfd.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "outside.nii"]
