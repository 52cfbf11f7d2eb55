"""Reconstructions as derived DICOM series: of the same study, marked as lossy, passed by the validators."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from helpers.generated_set import write_set
from helpers.inference import model_file

from slicebook.cli import main
from slicebook.data.layouts.registry import find_sources
from slicebook.export.set_formats import export_set
from slicebook.io.dicom_series import find_dicom_series, read_dicom_series
from slicebook.io.nifti import read_nifti


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A series of four slices, and its reconstruction by a model that was never trained."""
    folder = tmp_path_factory.mktemp("derived")
    affine = np.diag([1.2, 0.8, 3.0, 1.0])
    write_set(folder / "set", count=1, shape=(24, 20, 4), values=(), affine=affine)
    export_set(folder / "set", folder / "scan", "dicom")
    source = folder / "scan" / "dicom"
    for path in source.rglob("*.dcm"):  # what a scanner writes
        scan = pydicom.dcmread(path)
        scan.ImageType, scan.PatientName = ["ORIGINAL", "PRIMARY", "M"], "Doe^Jane"
        scan.add_new(0x00091001, "LO", "private")
        scan.add_new(0x00090010, "LO", "SOMEONE")
        del scan.SyntheticData
        scan.save_as(path)
    model = model_file(folder / "model.safetensors")
    command = ["reconstruct", str(model), str(source), "-o", str(folder / "out"), "--format", "dicom"]
    assert main.main([*command, "--no-pictures"]) == 0
    return folder


def program(name):
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else name


def derived_files(made):
    return sorted((made / "out" / "dicom").rglob("*.dcm"))


def test_the_validators_have_nothing_to_say(made):
    for path in derived_files(made)[:2]:
        done = subprocess.run([program("dciodvfy"), "-new", path], capture_output=True, text=True)
        assert (done.stdout + done.stderr).split() == ["MRImage"], done.stderr
    everything = [*derived_files(made), *sorted((made / "scan" / "dicom").rglob("*.dcm"))]
    done = subprocess.run([program("dcentvfy"), *everything], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_each_image_is_of_its_patient_and_study_lossy_and_names_its_source(made):
    (series,) = find_dicom_series(made / "scan" / "dicom")
    for path, origin in zip(derived_files(made), series.files, strict=True):
        image, source = pydicom.dcmread(path), pydicom.dcmread(origin)
        for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
            assert image[keyword].value == source[keyword].value
        assert image.SeriesInstanceUID != source.SeriesInstanceUID
        assert image.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert (image.LossyImageCompression, image.ImageType[0]) == ("01", "DERIVED")
        assert float(image.LossyImageCompressionRatio) > 1
        assert not any(element.tag.is_private for element in image.iterall())


def test_geometry_and_intensities_are_those_of_the_reconstruction(made):
    (scan,) = find_dicom_series(made / "scan" / "dicom")
    (derived,) = find_dicom_series(made / "out" / "dicom")
    volume = read_dicom_series(derived)
    np.testing.assert_allclose(volume.affine, read_dicom_series(scan).affine, atol=1e-6)
    nifti = read_nifti(made / "out" / "series-01-axial.nii.gz")
    np.testing.assert_allclose(volume.array, nifti.array, atol=0.51)
    assert find_sources(made / "out" / "dicom").layout == "dicom"


def test_a_nifti_file_has_no_study_to_derive_from(made, tmp_path, capsys):
    image = made / "out" / "series-01-axial.nii.gz"
    command = ["reconstruct", str(made / "model.safetensors"), str(image), "-o", str(tmp_path / "out")]
    assert main.main([*command, "--format", "dicom"]) == 1
    assert "needs a folder with DICOM series" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
