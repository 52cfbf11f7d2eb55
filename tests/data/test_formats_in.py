"""Layouts of other studies and formats: what is paired, whose it is, what is left out and said."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from helpers.generated_set import NAMES, write_set
from PIL import Image

from slicebook.data.check import check
from slicebook.data.layouts.registry import find_sources, refuse_guesses
from slicebook.data.layouts.sources import SourceOptions, Unreadable
from slicebook.data.prepare import PrepareOptions, prepare
from slicebook.data.reader import Part, read_parts
from slicebook.errors import DataError
from slicebook.export.generated_set import SetFacts
from slicebook.export.set_formats import export_set
from slicebook.io.formats.dicom_seg import read_segmentation_header
from slicebook.io.formats.itk import read_itk
from slicebook.io.formats.pictures import read_picture
from slicebook.io.nifti import read_nifti, write_nifti

ALL_TEST = PrepareOptions(fractions=(0, 0, 1))


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def pairs(folder, options=None):
    sources = find_sources(folder, options or SourceOptions()).sources
    return {
        image.name: mask and mask.relative_to(folder).as_posix()
        for source in sources
        for image, mask in zip(source.images, source.labels, strict=True)
    }


def parts_of(source):
    """The parts of a source, all of which can be used."""
    parts = [part for part in read_parts(source, None) if isinstance(part, Part)]
    assert len(parts) == len(list(read_parts(source, None)))
    return parts


def only_part(folder, options=None):
    """The one part of a folder with one file."""
    (source,) = find_sources(folder, options or SourceOptions()).sources
    (part,) = read_parts(source, None)
    return part


# --- HipMRI 3D


def test_weeks_of_a_case_are_one_patient_with_masks_and_label_names(tmp_path):
    for week in (0, 1):
        touch(tmp_path, f"semantic_MRs_anon/Case_004_Week{week}_LFOV.nii.gz")
    touch(
        tmp_path, "semantic_MRs_anon/Case_005_Week0_LFOV.nii.gz", "semantic_MRs_anon/B006_Week0_LFOV.nii.gz"
    )
    touch(tmp_path, "semantic_labels_anon/Case_004_Week0_SEMANTIC_LFOV.nii.gz")
    touch(tmp_path, "semantic_labels_anon/B006_Week0_SEMANTIC.nii.gz")
    touch(tmp_path, "semantic_labels_anon/Case_009_Week0_SEMANTIC_LFOV.nii.gz")
    scan = find_sources(tmp_path)
    assert (scan.layout, scan.patients) == ("hipmri3d", ("B006", "CASE_004", "CASE_005"))
    assert pairs(tmp_path)["Case_004_Week0_LFOV.nii.gz"].endswith("Case_004_Week0_SEMANTIC_LFOV.nii.gz")
    assert pairs(tmp_path)["B006_Week0_LFOV.nii.gz"].endswith("B006_Week0_SEMANTIC.nii.gz")
    assert [path.name for path in scan.unmatched] == ["Case_009_Week0_SEMANTIC_LFOV.nii.gz"]
    assert scan.label_names[5] == "prostate"
    assert scan.notes[0] == (
        "taken for hipmri3d: 4 volumes of 3 patients, 2 with masks; the patient is the case in the file name"
    )
    assert "2 images have no mask and are used without" in scan.notes[1]


def test_weeks_of_another_study_are_not_taken_for_hipmri(tmp_path):
    touch(tmp_path, "P001_Week0.nii.gz", "P001_Week1.nii.gz", "Case_1_Week0_t2.nii.gz")
    assert find_sources(tmp_path).layout == "nifti"


def test_a_week_with_two_images_is_left_out_and_said(tmp_path):
    touch(
        tmp_path, "a/Case_004_Week0_LFOV.nii.gz", "b/Case_004_Week0_LFOV.nii.gz", "a/Case_005_Week0_LFOV.nii"
    )
    scan = find_sources(tmp_path)
    assert scan.patients == ("CASE_005",)
    assert len(scan.unmatched) == 2
    assert any("1 weeks have several images" in note for note in scan.notes)


def test_a_mask_rule_of_the_user_is_followed_instead_of_the_study(tmp_path):
    touch(tmp_path, "Case_004_Week0_LFOV.nii.gz", "Case_004_Week0_SEMANTIC_LFOV.nii.gz")
    options = SourceOptions(patient_regex=r"Case_(\d+)_", mask="_LFOV=_SEMANTIC_LFOV")
    assert find_sources(tmp_path, options).layout == "nifti"


# --- Pictures


def picture(path, seed=0, size=(6, 8), dtype=np.uint8, high=250):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, high, size).astype(dtype)
    Image.fromarray(pixels).save(path)
    return pixels


PICTURES = SourceOptions(patient_regex=r"(P\d+)_", pixel_mm=(0.5, 0.75))


def test_pictures_are_slices_in_the_order_of_their_numbers_with_masks_by_their_path(tmp_path):
    pixels = {n: picture(tmp_path / f"images/P1_{n}.png", n) for n in (2, 10, 1)}
    mask = picture(tmp_path / "masks/P1_2_mask.png", high=3)
    picture(tmp_path / "images/P2_1.png", 7)
    picture(tmp_path / "masks/P3_1.png", high=3)
    picture(tmp_path / "P4_overview.png")
    scan = find_sources(tmp_path, PICTURES)
    first, second = scan.sources
    assert [path.name for path in first.images] == ["P1_1.png", "P1_2.png", "P1_10.png"]
    assert [path.name for path in scan.unmatched] == ["P4_overview.png", "P3_1.png"]
    assert (second.patient, second.is_stack) == ("P2", False)
    parts = parts_of(first)
    np.testing.assert_array_equal(parts[1].images[0], pixels[2])
    np.testing.assert_array_equal(parts[1].labels[0], mask)
    assert parts[1].spacing[1:] == (0.5, 0.75)
    assert parts[0].labels is None


def test_masks_of_patient_folders_are_not_mixed_up(tmp_path):
    for patient in ("P1_", "P2_"):
        picture(tmp_path / patient / "image/1.png", high=200)
        picture(tmp_path / patient / "mask/1.png", high=3)
    scan = find_sources(tmp_path, PICTURES)
    assert [source.labels[0].parent.parent.name for source in scan.sources] == ["P1_", "P2_"]


def test_the_size_of_a_pixel_and_the_patient_of_pictures_are_not_guessed(tmp_path):
    for n in range(3):
        picture(tmp_path / f"P{n}_1.png", n)
    scan = find_sources(tmp_path, SourceOptions(patient_regex=r"(P\d+)_"))
    with pytest.raises(DataError, match="--pixel-mm ROW COLUMN"):
        refuse_guesses(tmp_path, scan)
    with pytest.raises(DataError, match="no --patient-regex for 3 of 3"):
        refuse_guesses(tmp_path, find_sources(tmp_path, SourceOptions(pixel_mm=(1, 1))))
    assert prepare(tmp_path, tmp_path / "out", PICTURES, ALL_TEST).info.counts["test"].patients == 3


def test_a_tiff_of_several_pages_is_a_volume(tmp_path):
    pages = np.random.default_rng(0).integers(0, 4000, (3, 6, 8)).astype(np.uint16)
    first, *rest = [Image.fromarray(page) for page in pages]
    (tmp_path / "images").mkdir()
    for name in ("P1_1.tif", "P1_2.tif"):
        first.save(tmp_path / "images" / name, save_all=True, append_images=rest)
    scan = find_sources(tmp_path, PICTURES)
    assert [len(source.images) for source in scan.sources] == [1, 1]
    (part,) = parts_of(scan.sources[0])
    np.testing.assert_array_equal(part.images, pages)


@pytest.mark.parametrize("fault", ["cut", "colour", "empty"])
def test_a_picture_that_is_damaged_or_in_colour_is_said(tmp_path, fault):
    path = tmp_path / "P1_1.png"
    picture(path, size=(40, 40))
    if fault == "colour":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 8, 3)).astype(np.uint8)).save(path)
    else:
        path.write_bytes(path.read_bytes()[: 300 if fault == "cut" else 0])
    with pytest.raises(DataError, match="convert it to grey" if fault == "colour" else "damaged"):
        read_picture(path, None)


def test_a_palette_holds_labels_and_a_grey_image_in_colour_channels_is_grey(tmp_path):
    labels = np.random.default_rng(0).integers(0, 3, (6, 8)).astype(np.uint8)
    palette = Image.fromarray(labels).convert("P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    palette.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(
        read_picture(tmp_path / "mask.png", None, as_labels=True).array[:, :, 0].T, labels
    )
    Image.fromarray(labels).convert("RGB").save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "grey.png", None).array[:, :, 0].T, labels)


# --- MetaImage, NRRD


def itk_image(path, shape=(6, 5, 4), dtype=np.int16, **options):
    """Save noise in an oblique frame; return it as (x, y, z)."""
    array = np.random.default_rng(0).integers(0, 900, shape).astype(dtype)
    image = SimpleITK.GetImageFromArray(array.T)
    image.SetSpacing((0.5, 0.7, 3.0))
    image.SetOrigin((1.0, -2.0, 3.0))
    image.SetDirection((0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0))
    SimpleITK.WriteImage(image, str(path), **options)
    return array


@pytest.mark.parametrize("ending", ["mha", "mhd", "nrrd"])
@pytest.mark.parametrize("packed", [False, True])
def test_itk_formats_have_the_geometry_that_nifti_has(tmp_path, ending, packed):
    array = itk_image(tmp_path / f"a.{ending}", useCompression=packed)
    itk_image(tmp_path / "a.nii.gz")
    volume, nifti = read_itk(tmp_path / f"a.{ending}"), read_nifti(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, nifti.affine, atol=1e-5)


@pytest.mark.parametrize("ending", ["mha", "mhd", "nrrd"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_is_cut_off_is_not_read_as_zeros(tmp_path, ending, packed):
    itk_image(tmp_path / f"a.{ending}", useCompression=packed)
    data = tmp_path / f"a.{ending}"
    if ending == "mhd":
        (data,) = (path for path in tmp_path.iterdir() if path.suffix in (".raw", ".zraw"))
    data.write_bytes(data.read_bytes()[:-60])
    with pytest.raises(DataError, match=r"its header wants 240|are missing or damaged"):
        read_itk(tmp_path / f"a.{ending}")


def test_itk_files_are_paired_like_nifti_files(tmp_path):
    for name in ("P1", "P2"):
        itk_image(tmp_path / f"{name}.mha")
        mask = SimpleITK.ReadImage(str(tmp_path / f"{name}.mha")) > 500
        SimpleITK.WriteImage(mask, str(tmp_path / f"{name}_seg.mha"))
    options = SourceOptions(patient_regex=r"(P\d)", mask="_seg")
    scan = find_sources(tmp_path, options)
    assert (scan.layout, pairs(tmp_path, options)["P2.mha"]) == ("itk", "P2_seg.mha")
    (part,) = parts_of(scan.sources[0])
    np.testing.assert_array_equal(part.labels, part.images > 500)


def test_nnunet_may_hold_nrrd_files(tmp_path):
    for side in ("imagesTr", "labelsTr"):
        (tmp_path / side).mkdir()
    itk_image(tmp_path / "imagesTr/a_0000.nrrd")
    itk_image(tmp_path / "labelsTr/a.nrrd")
    assert pairs(tmp_path) == {"a_0000.nrrd": "labelsTr/a.nrrd"}
    with pytest.raises(DataError, match="--patient-regex") as caught:
        refuse_guesses(tmp_path, find_sources(tmp_path))
    regex = str(caught.value).split("--patient-regex '")[1].rstrip("'")
    assert find_sources(tmp_path, SourceOptions(patient_regex=regex)).patients == ("a",)


# --- nnU-Net, the Decathlon, BIDS


def test_channels_along_the_fourth_axis_of_the_decathlon_are_images_of_their_own(tmp_path):
    array = np.random.default_rng(0).random((6, 5, 4, 2)).astype(np.float32)
    (tmp_path / "imagesTr").mkdir()
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1, 3, 1])), tmp_path / "imagesTr/prostate_00.nii.gz")
    write_nifti(
        tmp_path / "labelsTr/prostate_00.nii.gz", np.ones((6, 5, 4), np.uint8), affine=np.diag([1.0, 1, 3, 1])
    )
    described = {
        "tensorImageSize": "4D",
        "modality": {"0": "T2", "1": "ADC"},
        "labels": {"0": "background", "1": "PZ"},
    }
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    scan = find_sources(tmp_path, SourceOptions(patient_regex=r"images[^/]*/(.+?)\.nii"))
    assert [source.kind for source in scan.sources] == ["channel 0000 T2", "channel 0001 ADC"]
    (part,) = parts_of(scan.sources[1])
    np.testing.assert_array_equal(np.sort(part.images.ravel()), np.sort(array[..., 1].ravel()))
    assert scan.label_names == {0: "background", 1: "PZ"}
    assert len(find_sources(tmp_path, SourceOptions(series="t2")).sources) == 1


def test_label_names_of_nnunet_are_kept_in_the_prepared_folder(tmp_path):
    write_set(tmp_path / "set")
    export_set(tmp_path / "set", tmp_path / "Dataset501_A", "nnunet", SetFacts(label_names=NAMES))
    options = SourceOptions(patient_regex=r"images[^/]*/(.+?)_\d{4}\.nii")
    info = prepare(tmp_path / "Dataset501_A", tmp_path / "out", options).info
    assert info.label_names == {0: "background", **NAMES}


def test_participants_without_images_and_images_without_participants_are_said(tmp_path):
    touch(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz")
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-01\t40\nsub-03\t50\n")
    notes = find_sources(tmp_path).notes
    assert "the patient is the subject, sub-…" in notes[0]
    assert "1 participants of participants.tsv have no image here: sub-03" in notes
    assert "1 subjects are not in participants.tsv: sub-02" in notes


# --- DICOM SEG


@pytest.fixture(scope="module")
def dicom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seg")
    write_set(folder / "set", count=2)
    export_set(folder / "set", folder / "dicom", "dicom", SetFacts(label_names=NAMES))
    return folder / "dicom" / "dicom"


def test_segments_that_are_numbered_differently_are_labelled_by_name(dicom, tmp_path):
    shutil.copytree(dicom, tmp_path / "in")
    path = tmp_path / "in" / "sample-000001" / "segmentation.dcm"
    mask = pydicom.dcmread(path)
    one, two = mask.SegmentSequence
    one.SegmentLabel, two.SegmentLabel = two.SegmentLabel, one.SegmentLabel
    mask.save_as(path)
    scan = find_sources(tmp_path / "in")
    assert scan.label_names == {1: "body", 2: "prostate"}
    assert {tuple(source.segments.items()) for source in scan.sources} == {((1, 1), (2, 2)), ((1, 2), (2, 1))}
    assert any("labels are numbered by name: 1 = body, 2 = prostate" in note for note in scan.notes)


def test_a_label_with_the_name_of_the_patient_is_replaced_by_its_code(dicom, tmp_path):
    mask = pydicom.dcmread(dicom / "sample-000000" / "segmentation.dcm")
    mask.PatientName, mask.PatientID = "Doe^Jane", "ID-7"
    mask.SegmentSequence[1].SegmentLabel = "gland of jane"
    mask.SegmentSequence[0].SegmentLabel = "ID-7"
    mask.save_as(tmp_path / "mask.dcm")
    header = read_segmentation_header(tmp_path / "mask.dcm")
    assert header.segments == {1: "Entire body", 2: "Prostate"}


def test_two_segmentations_of_a_series_are_left_out_and_one_of_no_series_too(dicom, tmp_path):
    shutil.copytree(dicom, tmp_path / "in")
    shutil.copy(dicom / "sample-000000" / "segmentation.dcm", tmp_path / "in" / "again.dcm")
    shutil.rmtree(tmp_path / "in" / "sample-000001")
    shutil.copy(dicom / "sample-000001" / "segmentation.dcm", tmp_path / "in" / "alone.dcm")
    scan = find_sources(tmp_path / "in")
    assert {path.name for path in scan.unmatched} == {"again.dcm", "segmentation.dcm", "alone.dcm"}
    assert [source.labels for source in scan.sources] == [()]


def test_a_segmentation_elsewhere_in_the_patient_is_no_mask(dicom, tmp_path):
    shutil.copytree(dicom / "sample-000000", tmp_path / "in")
    path = tmp_path / "in" / "segmentation.dcm"
    mask = pydicom.dcmread(path)
    for item in mask.iterall():
        if item.keyword == "ImagePositionPatient":
            item.value = [item.value[0] + 0.5, *item.value[1:]]
    mask.save_as(path)
    part = only_part(tmp_path / "in")
    assert isinstance(part, Unreadable)
    assert "does not lie on the slices" in part.reason


def test_check_counts_the_masks_of_series(dicom):
    report = check(dicom)
    assert (report.masks, report.label_names) == (2, NAMES)
    assert set(report.label_values) == {0, 1, 2}


def test_pictures_beside_dicom_are_previews(dicom, tmp_path):
    shutil.copytree(dicom, tmp_path / "in")
    picture(tmp_path / "in" / "preview.png")
    assert find_sources(tmp_path / "in").layout == "dicom"


def test_without_highdicom_segmentations_are_passed_over_and_said(dicom, monkeypatch):
    from slicebook.data.layouts import dicom_masks

    monkeypatch.setattr(dicom_masks, "can_read_segmentations", lambda: False)
    scan = find_sources(dicom)
    assert [source.labels for source in scan.sources] == [(), ()]
    assert any("pip install 'slicebook[dicom]'" in note for note in scan.notes)
    assert isinstance(next(read_parts(scan.sources[0], None)), Part)
