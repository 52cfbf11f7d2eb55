"""nnU-Net, BIDS and trees of DICOM: what is paired, chosen, left out and said."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from slicebook.data.check import check
from slicebook.data.layouts.registry import find_sources, refuse_guesses
from slicebook.data.layouts.sources import SourceOptions
from slicebook.data.prepare import PrepareOptions, prepare
from slicebook.data.splits import assign_splits
from slicebook.errors import ConfigError, DataError


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def pairs(folder: Path, options: SourceOptions) -> dict[str, str | None]:
    sources = find_sources(folder, options).sources
    return {
        s.images[0].name: s.labels[0].relative_to(folder).as_posix() if s.labels[0] else None for s in sources
    }


CASE = SourceOptions(patient_regex=r"images[^/]*/(.+?)(?:_\d{4})?\.nii")


@pytest.mark.fault("masks that no rule pairs", "nnU-Net folders are paired by a layout of their own")
def test_nnunet_pairs_every_channel_with_the_mask_of_its_case(tmp_path: Path) -> None:
    touch(
        tmp_path,
        *[f"imagesTr/P_{n:03}_{c:04}.nii.gz" for n in (1, 2) for c in (0, 1)],
        "labelsTr/P_001.NII.GZ",
    )
    (tmp_path / "dataset.json").write_text('{"channel_names": {"0": "T2", "1": "ADC"}}')
    mask = "labelsTr/P_001.NII.GZ"
    assert pairs(tmp_path, CASE) == {
        "P_001_0000.nii.gz": mask,
        "P_001_0001.nii.gz": mask,
        "P_002_0000.nii.gz": None,
        "P_002_0001.nii.gz": None,
    }
    assert find_sources(tmp_path, CASE).patients == ("P_001", "P_002")
    chosen = SourceOptions(patient_regex=CASE.patient_regex, series="adc")
    assert list(pairs(tmp_path, chosen)) == ["P_001_0001.nii.gz", "P_002_0001.nii.gz"]


def test_the_decathlon_has_no_channels_and_four_digits_of_a_case_are_none(tmp_path: Path) -> None:
    names = [f"amos_{n:04}.nii.gz" for n in (1, 2)]
    touch(
        tmp_path,
        *[f"{side}/{name}" for side in ("imagesTr", "labelsTr") for name in names],
        "imagesTr/._x.nii.gz",
    )
    with pytest.raises(DataError, match="--patient-regex") as caught:
        refuse_guesses(tmp_path, find_sources(tmp_path))
    (regex,) = re.findall(r"--patient-regex '(.*?)'", str(caught.value))
    case = SourceOptions(patient_regex=regex)
    assert pairs(tmp_path, case) == {name: f"labelsTr/{name}" for name in names}
    assert find_sources(tmp_path, case).patients == ("amos_0001", "amos_0002")


def test_test_cases_of_nnunet_are_the_test_split_and_the_others_are_drawn(tmp_path: Path) -> None:
    touch(tmp_path, *[f"imagesTr/P{n}_0000.nii" for n in range(6)], "imagesTs/P9_0000.nii")
    cases = find_sources(tmp_path, CASE)
    splits = assign_splits(cases.patients, cases.given_splits, None, 42)
    assert splits.pop("P9") == "test"
    assert sorted(splits.values()) == ["train"] * 5 + ["validation"]


def test_a_case_of_nnunet_is_not_taken_for_a_patient_and_the_advice_works(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/patient001_frame01_0000.nii.gz")
    with pytest.raises(DataError, match="--patient-regex") as caught:
        refuse_guesses(tmp_path, find_sources(tmp_path))
    (regex,) = re.findall(r"--patient-regex '(.*?)'", str(caught.value))
    assert find_sources(tmp_path, SourceOptions(patient_regex=regex)).patients == ("patient001_frame01",)


def test_a_rule_for_masks_of_mine_overrides_the_layout(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/P1.nii.gz", "labelsTr/P1.nii.gz")
    mine = SourceOptions(patient_regex=r"(P\d)", mask="imagesTr=labelsTr")
    assert find_sources(tmp_path, mine).layout == "nifti"


@pytest.mark.fault("masks that no rule pairs", "BIDS derivatives are paired by a layout of their own")
def test_bids_pairs_masks_of_derivatives_and_knows_the_subject(tmp_path: Path) -> None:
    image, derived = "sub-{0}/ses-1/anat/sub-{0}_ses-1_T2w.nii.gz", "derivatives/manual/sub-{0}/ses-1/anat/"
    for subject in ("01", "02"):
        touch(
            tmp_path,
            image.format(subject),
            (derived + "sub-{0}_ses-1_desc-tumour_dseg.nii.gz").format(subject),
        )
        touch(tmp_path, (derived + "sub-{0}_ses-1_space-MNI152_dseg.nii.gz").format(subject))
        touch(tmp_path, (derived + "sub-{0}_ses-1_desc-preproc_T2w.nii.gz").format(subject))
        touch(tmp_path, f"sub-{subject}/ses-1/func/sub-{subject}_ses-1_task-rest_bold.nii.gz")
    scan = find_sources(tmp_path)
    assert (scan.layout, scan.patients) == ("bids", ("01", "02"))
    assert {s.labels[0].name for s in scan.sources if s.labels[0]} == {
        "sub-01_ses-1_desc-tumour_dseg.nii.gz",
        "sub-02_ses-1_desc-tumour_dseg.nii.gz",
    }
    assert len(scan.sources) == 2
    assert any("2 bold: images over time" in note for note in scan.notes)


def test_a_mask_that_fits_two_images_is_paired_once_the_series_is_chosen(tmp_path: Path) -> None:
    touch(tmp_path, *[f"sub-1/anat/sub-1_{kind}.nii" for kind in ("T1w", "T2w", "mask")])
    assert set(pairs(tmp_path, SourceOptions()).values()) == {None}
    assert any("masks fit no image" in note for note in find_sources(tmp_path).notes)
    assert pairs(tmp_path, SourceOptions(series="T2w")) == {"sub-1_T2w.nii": "sub-1/anat/sub-1_mask.nii"}


def test_upper_case_names_and_endings_that_differ_pair_too(tmp_path: Path) -> None:
    touch(tmp_path, "P1.NII.GZ", "P1_seg.nii", "P2.nii", "P2_seg.Nii.Gz")
    rule = SourceOptions(patient_regex=r"(P\d)", mask="_seg")
    assert pairs(tmp_path, rule) == {"P1.NII.GZ": "P1_seg.nii", "P2.nii": "P2_seg.Nii.Gz"}


@pytest.mark.fault("a folder above or below the data set", "refused; names the right folder")
@pytest.mark.parametrize("around", ["HipMRI", "a/b"])
def test_a_folder_around_hipmri_or_inside_of_it_names_the_right_one(tmp_path: Path, around: str) -> None:
    touch(tmp_path, f"{around}/keras_slices_train/case_004_week_0_slice_0.nii.gz")
    for wrong in (tmp_path, tmp_path / around / "keras_slices_train"):
        with pytest.raises(DataError, match=rf"{around}; give that folder"):
            find_sources(wrong)


@pytest.mark.fault("link to nothing", "counted and named; fetch them first (datalad get)")
def test_links_to_nothing_are_said_even_where_nothing_else_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.nii").symlink_to("gone")
    with pytest.raises(DataError, match=r"1 of 1 files are links to nothing: a\.nii"):
        find_sources(tmp_path)


def series(folder: Path, patient: str, uid: str = "", start: float = 0, **tags: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    uid = uid or generate_uid()
    for number in range(3):
        ds = pydicom.Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = MRImageStorage
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
        ds.PatientID, ds.SeriesInstanceUID, ds.Modality = patient, uid, "MR"
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, start + 3 * number], [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing, ds.Rows, ds.Columns = [0.5, 0.5], 4, 6
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.PixelData = np.random.default_rng().integers(0, 999, (4, 6)).astype("<u2").tobytes()
        for name, value in tags.items():
            setattr(ds, name, value)
        ds.save_as(folder / f"{number}.dcm", enforce_file_format=True)


FOLDER = SourceOptions(patient_regex="^([^/]+)/")


@pytest.mark.fault("UIDs shared by people after anonymising", "prepare parts them by --patient-regex")
def test_people_whose_anonymised_uids_coincide_are_parted_before_slices_are_stacked(tmp_path: Path) -> None:
    for person in range(6):
        series(tmp_path / f"s{person}", "ANON", f"1.2.{person // 2}", start=9 * (person % 2))
    scan = find_sources(tmp_path, FOLDER)
    assert scan.patients == tuple(f"s{person}" for person in range(6))
    assert all(path.parent.name == source.patient for source in scan.sources for path in source.images)


@pytest.mark.fault(
    "one PatientID for all folders", "refused: N folders share it; gives the --patient-regex that parts them"
)
def test_one_patient_id_in_all_folders_is_said_with_advice_that_works(tmp_path: Path) -> None:
    for person in range(4):
        series(tmp_path / "in" / "study" / f"s{person}", "SECRET")
    with pytest.raises(DataError, match="4 folders share one PatientID") as caught:
        prepare(tmp_path / "in", tmp_path / "out")
    assert "SECRET" not in str(caught.value)
    (regex,) = re.findall(r"--patient-regex '(.*?)'", str(caught.value))
    assert (
        prepare(tmp_path / "in", tmp_path / "out", SourceOptions(patient_regex=regex))
        .info.counts["train"]
        .patients
    )
    assert any("share one PatientID" in note for note in check(tmp_path / "in").notes)


def test_patients_named_alike_are_noted_without_their_names(tmp_path: Path) -> None:
    for name in ("p-07", "P_7", "p8"):
        series(tmp_path / f"visit{len(name)}{name[0]}", name)
    _, note = check(tmp_path).notes
    assert note.startswith("1 patients are named alike but for case")
    assert "p-07" not in note


@pytest.mark.fault("localizer", "left out and listed")
@pytest.mark.fault("T1, T2 and ADC in one folder", "listed by check, chosen with --series")
def test_series_are_listed_chosen_by_regex_and_localizers_left_out(tmp_path: Path) -> None:
    for person in range(3):
        for kind in ("t1_tra", "T2_tse_tra"):
            series(tmp_path / "in" / f"s{person}" / kind, f"P{person}", SeriesDescription=kind)
        series(tmp_path / "in" / f"s{person}/l", f"P{person}", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    report = check(tmp_path / "in")
    assert report.series["T2_tse_tra, MR, axial"] == 3
    assert any("9 localizer (first: s0/l/0.dcm)" in note for note in report.notes)
    assert report.volumes == 6
    chosen = prepare(tmp_path / "in", tmp_path / "out", SourceOptions(series="t2.*tra")).info
    assert sum(count.volumes for count in chosen.counts.values()) == 3
    with pytest.raises(
        DataError, match=r"--series 'flair' is found in no description or UID of 6 series"
    ) as caught:
        find_sources(tmp_path / "in", SourceOptions(series="flair"))
    assert "tse" not in str(caught.value)
    with pytest.raises(ConfigError, match="--series"):
        find_sources(tmp_path / "in", SourceOptions(series="("))


@pytest.mark.fault("more than 5 % of files unreadable", "counted among what was asked for")
def test_files_that_cannot_be_read_count_only_in_the_plane_that_is_asked_for(tmp_path: Path) -> None:
    for person in range(3):
        series(tmp_path / "in" / f"s{person}", f"P{person}")
        bad: dict[str, Any] = {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1], "PixelSpacing": [0, 0]}
        series(tmp_path / "in" / f"bad{person}", f"P{person}", **bad)
    with pytest.raises(DataError, match="9 of 18 files cannot be read"):
        prepare(tmp_path / "in", tmp_path / "out")
    assert prepare(tmp_path / "in", tmp_path / "out", SourceOptions(plane="axial")).info.quarantined == 0


@pytest.mark.fault("same voxels under two PatientIDs", "refused; prints no identifier")
def test_the_same_voxels_of_two_patients_print_no_identifier(tmp_path: Path) -> None:
    pixels = np.arange(24, dtype="<u2").tobytes()
    for person in range(3):
        series(tmp_path / "in" / f"s{person}", f"SECRET{person}", PixelData=pixels)
    with pytest.raises(DataError, match="the same voxels as") as caught:
        prepare(tmp_path / "in", tmp_path / "out")
    assert "SECRET" not in str(caught.value)


@pytest.mark.fault("advice on fractions", "the advice works")
def test_the_advice_on_fractions_fills_the_splits_it_names(tmp_path: Path) -> None:
    for person in range(2):
        series(tmp_path / "in" / f"s{person}", f"P{person}")
    with pytest.raises(DataError, match="2 patients cannot fill 3 splits") as caught:
        prepare(tmp_path / "in", tmp_path / "out")
    advised = re.findall(r"--fractions ([\d.]+) ([\d.]+) ([\d.]+)", str(caught.value))
    assert [tuple(map(float, shares)) for shares in advised] == [(0.5, 0.5, 0), (0, 0, 1)]
    for train, validation, test in advised:
        shares = (float(train), float(validation), float(test))
        counts = prepare(
            tmp_path / "in", tmp_path / "out", options=PrepareOptions(fractions=shares)
        ).info.counts
        assert [counts[name].patients > 0 for name in ("train", "validation", "test")] == [
            s > 0 for s in shares
        ]
