"""A generated set in the formats of other programs, read back by ours and by theirs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from helpers.generated_set import AFFINE, NAMES, write_set
from PIL import Image

from slicebook.data.layouts.registry import find_sources
from slicebook.data.layouts.sources import SourceOptions
from slicebook.data.reader import Part, read_parts
from slicebook.errors import ConfigError, DataError
from slicebook.export.generated_set import SetFacts
from slicebook.export.label_tables import itk_snap_table, slicer_table
from slicebook.export.set_formats import check_format, export_set
from slicebook.io.nifti import read_labels, read_nifti
from slicebook.io.volume import orientation_of, to_slices

FACTS = SetFacts(label_names=NAMES)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("generated") / "set")


def read_back(out, options=None):
    """The slices of every volume, by our own layouts."""
    scan = find_sources(out, options or SourceOptions())
    parts = [part for source in scan.sources for part in read_parts(source, None)]
    assert all(isinstance(part, Part) for part in parts), parts
    return scan, parts


def assert_same_as_set(made, parts, *, scaled=False):
    """Masks and geometry are those of the set; images too, or up to a linear scale."""
    assert len(parts) == 5
    for seed, part in enumerate(parts):
        image = read_nifti(made / "images" / f"sample-{seed:06}.nii.gz").array
        mask = read_labels(made / "images" / f"sample-{seed:06}_mask.nii.gz").array
        shown = np.flip(image[:, :, 0].T, (0, 1))  # rows A→P, columns R→L
        np.testing.assert_array_equal(part.labels[0], np.flip(mask[:, :, 0].T, (0, 1)))
        np.testing.assert_allclose(part.spacing[1:], (0.8, 1.2), rtol=1e-4)
        if scaled:
            assert np.corrcoef(part.images[0].ravel(), shown.ravel())[0, 1] > 0.99999
        else:
            np.testing.assert_array_equal(part.images[0], shown)


# --- nnU-Net


@pytest.fixture(scope="module")
def nnunet(made, tmp_path_factory):
    out = tmp_path_factory.mktemp("raw") / "Dataset501_Synthetic"
    summary = export_set(made, out, "nnunet", FACTS)
    assert summary.images == 5
    assert "-d 501 --verify_dataset_integrity" in summary.next_command
    return out


def test_nnunet_is_read_back_with_its_label_names(made, nnunet):
    scan, parts = read_back(nnunet, SourceOptions(patient_regex=r"images[^/]*/(.+?)_\d{4}\.nii"))
    assert (scan.layout, len(scan.patients)) == ("nnunet", 5)
    assert_same_as_set(made, parts)


def test_nnunet_keeps_the_rules_of_its_integrity_check(nnunet):
    described = json.loads((nnunet / "dataset.json").read_text())
    assert described["labels"] == {"background": 0, "body": 1, "prostate": 2}
    assert described["channel_names"] == {"0": "T2w"}
    assert described["numTraining"] == len(list((nnunet / "imagesTr").iterdir())) == 5
    for label in (nnunet / "labelsTr").iterdir():
        image, mask = (
            SimpleITK.ReadImage(str(path))
            for path in (nnunet / "imagesTr" / label.name.replace(".nii.gz", "_0000.nii.gz"), label)
        )
        assert image.GetDimension() == 2  # else the widest spacing would be taken for that between slices
        assert image.GetSpacing() == mask.GetSpacing()
        assert image.GetOrigin() == mask.GetOrigin()
        assert image.GetDirection() == mask.GetDirection()
        assert set(np.unique(SimpleITK.GetArrayFromImage(mask))) <= set(described["labels"].values())


def test_nnunet_itself_accepts_the_set(nnunet):
    pytest.importorskip("nnunetv2", reason="its dependencies include torchvision")
    check = (
        "import sys; from nnunetv2.experiment_planning.verify_dataset_integrity import *; "
        "verify_dataset_integrity(sys.argv[1], 1)"
    )
    done = subprocess.run([sys.executable, "-c", check, str(nnunet)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_labels_that_skip_values_are_renumbered_for_nnunet(tmp_path):
    folder = write_set(tmp_path / "set", values=(0, 3, 255))
    export_set(folder, tmp_path / "Dataset502_X", "nnunet", SetFacts(label_names={3: "bladder"}))
    described = json.loads((tmp_path / "Dataset502_X" / "dataset.json").read_text())
    assert described["labels"] == {"background": 0, "bladder": 1, "label 255": 2}
    mask = read_labels(tmp_path / "Dataset502_X" / "labelsTr" / "sample-000000.nii.gz")
    assert set(np.unique(mask.array)) == {0, 1, 2}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("synthetic", {"with_masks": True}, "Dataset501_Synthetic"),
        ("Dataset501_A", {"with_masks": False}, "needs masks"),
        ("Dataset501_A", {"with_masks": True, "count": 4}, "needs 5 or more"),
    ],
)
def test_what_nnunet_would_refuse_is_refused_before_it_is_drawn(tmp_path, name, options, message):
    with pytest.raises(ConfigError, match=message):
        check_format("nnunet", tmp_path / name, **options)


# --- BIDS, PNG


def test_bids_is_read_back(made, tmp_path):
    export_set(made, tmp_path / "bids", "bids", FACTS)
    scan, parts = read_back(tmp_path / "bids")
    assert (scan.layout, len(scan.patients)) == ("bids", 5)
    assert_same_as_set(made, parts)
    assert (
        json.loads((tmp_path / "bids" / "dataset_description.json").read_text())["DatasetType"]
        == "derivative"
    )
    assert json.loads((tmp_path / "bids" / "desc-synthetic_T2w.json").read_text())["SkullStripped"] is False
    table = (tmp_path / "bids" / "desc-synthetic_dseg.tsv").read_text().splitlines()
    assert [line.split("\t")[:2] for line in table[1:]] == [
        ["0", "background"],
        ["1", "body"],
        ["2", "prostate"],
    ]
    assert (tmp_path / "bids" / "participants.tsv").read_text().splitlines()[
        1
    ] == "sub-0001\tsample-000000\t0"


def test_png_holds_all_intensities_and_the_labels(made, tmp_path):
    export_set(made, tmp_path / "png", "png", FACTS)
    image = Image.open(tmp_path / "png" / "images" / "sample-000000.png")
    original = read_nifti(made / "images" / "sample-000000.nii.gz").array[:, :, 0]
    shown = np.flip(original.T, (0, 1))
    scaled = np.asarray(image, dtype=float) / 65535 * np.ptp(original) + original.min()
    np.testing.assert_allclose(scaled, shown, atol=0.01)
    np.testing.assert_allclose(image.info["dpi"], (25.4 / 1.2, 25.4 / 0.8), rtol=0.01)
    options = SourceOptions(patient_regex=r"images/(sample-\d+)", pixel_mm=(0.8, 1.2))
    scan, parts = read_back(tmp_path / "png", options)
    assert (scan.layout, len(scan.patients)) == ("pictures", 5)
    assert_same_as_set(made, parts, scaled=True)


# --- DICOM


@pytest.fixture(scope="module")
def dicom(made, tmp_path_factory):
    out = tmp_path_factory.mktemp("dicom") / "set"
    export_set(made, out, "dicom", FACTS)
    return out


def files_of(dicom):
    return sorted((dicom / "dicom").rglob("*.dcm"))


def program(name):
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else name


def test_the_validators_have_nothing_to_say(dicom):
    for path in files_of(dicom)[:4]:
        done = subprocess.run([program("dciodvfy"), "-new", path], capture_output=True, text=True)
        said = (done.stdout + done.stderr).split()
        assert said in (["MRImage"], ["Segmentation"]), done.stderr
    done = subprocess.run([program("dcentvfy"), *files_of(dicom)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_object_says_that_it_is_synthetic_and_none_has_a_patient_or_a_private_tag(dicom):
    patients = set()
    for path in files_of(dicom):
        header = pydicom.dcmread(path)
        assert header.SyntheticData == "YES"
        assert header.PatientID.startswith("SYNTHETIC-")
        assert not any(element.tag.is_private for element in header.iterall())
        patients.add(header.PatientID)
    assert len(patients) == 5


def test_simpleitk_sees_the_geometry_of_the_set(made, dicom):
    image = SimpleITK.ReadImage(str(dicom / "dicom" / "sample-000000" / "slice-0001.dcm"))
    np.testing.assert_allclose(image.GetSpacing(), (1.2, 0.8, 1.0))
    last = np.array([11, 9, 0, 1])
    wanted = {tuple(np.round((AFFINE @ corner)[:3], 4)) for corner in (np.array([0, 0, 0, 1]), last)}
    corners = [image.TransformIndexToPhysicalPoint(index) for index in ((0, 0, 0), (11, 9, 0))]
    assert {tuple(np.round((-x, -y, z), 4)) for x, y, z in corners} == wanted


def test_dicom_is_read_back_with_its_masks_and_label_names(made, dicom):
    scan, parts = read_back(dicom)
    assert (scan.layout, len(scan.patients), scan.label_names) == ("dicom", 5, NAMES)
    in_order = [
        next(part for part in parts if f"sample-{seed:06}" in part.path.as_posix()) for seed in range(5)
    ]
    assert_same_as_set(made, in_order, scaled=True)


def test_a_volume_in_any_orientation_is_read_back(tmp_path):
    turn, _ = np.linalg.qr(np.array([[0.1, 0.1, 1.0], [-1.0, 0.2, 0.0], [0.0, 1.0, -0.2]]))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * (0.8, 1.2, 3.0), (4, 5, 6)
    folder = write_set(tmp_path / "set", count=1, shape=(12, 10, 4), affine=affine)
    export_set(folder, tmp_path / "out", "dicom", FACTS)
    _, (part,) = read_back(tmp_path / "out")
    image = read_nifti(folder / "images" / "sample-000000.nii.gz")
    mask = read_labels(folder / "images" / "sample-000000_mask.nii.gz")
    orientation = orientation_of(image)
    assert part.plane == "sagittal"
    np.testing.assert_array_equal(part.labels, to_slices(mask.array, orientation))
    assert np.corrcoef(part.images.ravel(), to_slices(image.array, orientation).ravel())[0, 1] > 0.99999
    for path in files_of(tmp_path / "out"):
        done = subprocess.run([program("dciodvfy"), "-new", path], capture_output=True, text=True)
        assert (done.stdout + done.stderr).split() in (["MRImage"], ["Segmentation"])


def test_the_same_set_gives_the_same_dicom_files(made, dicom, tmp_path):
    export_set(made, tmp_path / "again", "dicom", FACTS)
    for one, other in zip(files_of(dicom), files_of(tmp_path / "again"), strict=True):
        assert one.read_bytes() == other.read_bytes()


# --- What all formats share


def test_label_tables_name_and_colour_every_label():
    table = itk_snap_table({1: "body", 2: 'the "gland"'}).splitlines()
    assert table[-1].split(maxsplit=7)[0] == "2"
    assert table[-1].endswith("\"the 'gland'\"")
    lines = slicer_table({1: "body", 2: "the gland"}).splitlines()
    assert lines[2:] == ["0 background 0 0 0 0", "1 body 86 180 233 255", "2 the_gland 240 228 66 255"]


def test_a_card_stands_beside_every_set(dicom):
    card = (dicom / "README.md").read_text()
    assert "5 synthetic medical images with label masks" in card
    assert "Not audited" in card
    described = json.loads((dicom / "croissant.json").read_text())
    columns = [field["name"] for field in described["recordSet"][0]["field"]]
    assert columns == ["name", "seed", "position", "group"]
    assert {path.name for path in dicom.iterdir()} >= {"labels.txt", "labels.ctbl", "manifest.csv"}


def test_a_folder_that_is_no_set_and_a_folder_with_content_are_refused(made, tmp_path):
    with pytest.raises(DataError, match="slicebook generate"):
        export_set(tmp_path, tmp_path / "out", "png")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(DataError, match="is not empty"):
        export_set(made, tmp_path / "full", "png")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]
