"""Finding files: whose each is, which mask belongs to it, and the split by patient."""

from pathlib import Path, PurePosixPath

import pytest

from slicebook.data.layouts.registry import find_sources, refuse_guesses
from slicebook.data.layouts.sources import FolderScan, Source, SourceOptions
from slicebook.data.splits import assign_splits
from slicebook.errors import ConfigError, DataError


def touch(folder: Path, *names: str) -> Path:
    """Make empty files: a layout opens none."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def patients(count: int) -> tuple[str, ...]:
    return FolderScan(
        "nifti", tuple(Source(f"p{n}", "v", (Path("x"),), (None,)) for n in range(count))
    ).patients


def test_the_slices_of_one_case_and_week_are_one_volume_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = [f"keras_slices_train/case_004_week_0_slice_{n}.nii.gz" for n in (10, 2, 0)]
    touch(tmp_path, *names, "keras_slices_train/case_004_week_1_slice_0.nii.gz")
    touch(tmp_path, "keras_slices_seg_train/seg_004_week_0_slice_2.nii.gz")
    touch(tmp_path, "keras_slices_validate/case_005_week_0_slice_0.nii.gz")
    first, second, third = find_sources(tmp_path).sources
    assert [path.name[-10:] for path in first.images] == ["e_0.nii.gz", "e_2.nii.gz", "_10.nii.gz"]
    assert [mask.name if mask else None for mask in first.labels] == [
        None,
        "seg_004_week_0_slice_2.nii.gz",
        None,
    ]
    assert (first.patient, second.patient, third.patient) == ("004", "004", "005")
    assert (first.split, third.split) == ("train", "validation")


@pytest.mark.fault("one patient in two splits", "refused; names the patients, move them")
def test_a_patient_in_two_splits_is_refused_and_listed(tmp_path: Path) -> None:
    touch(tmp_path, "keras_slices_train/case_004_week_0_slice_0.nii.gz")
    touch(tmp_path, "keras_slices_test/case_004_week_1_slice_0.nii.gz")
    with pytest.raises(DataError, match=r"case_004\S+ \(test, train\)"):
        find_sources(tmp_path)


def test_what_fits_no_name_is_listed_and_not_passed_over_in_silence(tmp_path: Path) -> None:
    touch(tmp_path, "Case00_t2.nii.gz", "Case00_prostate.nii.gz", "Case01_prostate.nii.gz", "atlas.nii")
    scan = find_sources(tmp_path, SourceOptions(patient_regex=r"(Case\d+)_t2", mask="_t2=_prostate"))
    assert [source.patient for source in scan.sources] == ["Case00"]
    assert [path.name for path in scan.unmatched] == ["Case01_prostate.nii.gz", "atlas.nii"]


@pytest.mark.fault("mask without an image", "listed and left out")
@pytest.mark.parametrize(
    ("rule", "regex", "orphan"),
    [
        ("_t2=_prostate", r"(Case\d+)_", "Case02_prostate.nii.gz"),
        ("_t2=_t2_prostate", r"(Case\d+)_", "Case02_t2_prostate.nii.gz"),
        ("_seg", r"(Case\d+)_", "Case02_t2_seg.nii.gz"),
        ("images/=labels/", r"(Case\d+)", "labels/Case02.nii.gz"),
    ],
)
def test_a_mask_without_an_image_is_listed_and_left_out(
    tmp_path: Path, rule: str, regex: str, orphan: str
) -> None:
    mask = orphan.replace("Case02", "Case01")
    image = mask.replace("_t2_prostate", "_t2").replace("_prostate", "_t2").replace("_seg", "")
    touch(tmp_path, orphan, mask, image.replace("labels/", "images/"), "images/Case03.nii.gz")
    options = SourceOptions(patient_regex=regex, mask=rule)
    scan = find_sources(tmp_path, options)
    images = [path.name for source in scan.sources for path in source.images]
    assert PurePosixPath(orphan).name not in images or "labels/" in rule
    assert tmp_path / orphan in scan.unmatched
    assert all(tmp_path / orphan not in source.images for source in scan.sources)
    assert any(note.startswith(f"1 masks by --mask '{rule}' have no image: {orphan}") for note in scan.notes)
    unknown = find_sources(tmp_path, SourceOptions(mask=rule))
    assert all(tmp_path / orphan not in source.images for source in unknown.sources)


def test_an_image_is_not_taken_for_a_mask_because_of_its_folder_or_another_text(tmp_path: Path) -> None:
    touch(
        tmp_path, "seg_study/P1_img.nii", "seg_study/P1_seg.nii", "seg_study/P2_img.nii", "seg_study/P3.nii"
    )
    scan = find_sources(tmp_path, SourceOptions(patient_regex=r"(P\d)", mask="img=seg"))
    assert [source.images[0].name for source in scan.sources] == ["P1_img.nii", "P2_img.nii", "P3.nii"]
    assert scan.unmatched == ()


def test_masks_alone_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "P1_seg.nii", "P2_seg.nii")
    with pytest.raises(DataError, match=r"2 masks by --mask '_seg' have no image: P1_seg\.nii, P2_seg\.nii"):
        find_sources(tmp_path, SourceOptions(patient_regex=r"(P\d)", mask="_seg"))


def test_a_hipmri_mask_without_a_slice_is_unmatched_and_one_with_a_slice_is_not(tmp_path: Path) -> None:
    touch(tmp_path, "keras_slices_train/case_004_week_0_slice_0.nii.gz")
    touch(tmp_path, *[f"keras_slices_seg_train/seg_004_week_0_slice_{n}.nii.gz" for n in (0, 1)])
    assert [path.name for path in find_sources(tmp_path).unmatched] == ["seg_004_week_0_slice_1.nii.gz"]


def test_a_mask_is_found_by_replacement_or_by_suffix_and_is_no_image(tmp_path: Path) -> None:
    touch(tmp_path, "a/P1_LFOV.nii.gz", "a/P1_SEMANTIC_LFOV.nii.gz", "P2.nii", "P2_seg.nii")
    replaced = find_sources(tmp_path / "a", SourceOptions(patient_regex="(P1)", mask="_LFOV=_SEMANTIC_LFOV"))
    assert replaced.sources[0].labels == (tmp_path / "a/P1_SEMANTIC_LFOV.nii.gz",)
    added = find_sources(tmp_path, SourceOptions(patient_regex=r"(P2)", mask="_seg"))
    assert [(s.images[0].name, s.labels) for s in added.sources] == [("P2.nii", (tmp_path / "P2_seg.nii",))]


def test_a_mask_rule_that_finds_nothing_says_what_it_looked_for(tmp_path: Path) -> None:
    touch(tmp_path, "P1_t2.nii")
    with pytest.raises(DataError, match=r"P1_seg\.nii"):
        find_sources(tmp_path, SourceOptions(patient_regex="(P1)", mask="_t2=_seg"))


def test_the_patient_may_be_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "anna/t2.nii.gz", "bob/t2.nii.gz")
    assert find_sources(tmp_path, SourceOptions(patient_regex="^([^/]+)/")).patients == ("anna", "bob")


def test_without_a_regex_the_patient_is_not_guessed_and_the_error_shows_names_and_an_example(
    tmp_path: Path,
) -> None:
    scan = find_sources(touch(tmp_path, "Case00_t2.nii.gz", "Case01_t2.nii.gz"))
    with pytest.raises(DataError, match=r"Case00_t2\.nii\.gz.*--patient-regex '\(Case"):
        refuse_guesses(tmp_path, scan)


@pytest.mark.parametrize("pattern", ["Case", "(C)(a)", "(C"])
def test_a_regex_without_exactly_one_group_is_refused(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"--patient-regex.*example"):
        find_sources(touch(tmp_path, "Case00.nii"), SourceOptions(patient_regex=pattern))


def test_a_regex_that_fits_no_file_shows_file_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"matches no file.*Case00\.nii"):
        find_sources(touch(tmp_path, "Case00.nii"), SourceOptions(patient_regex="(subject)"))


def test_a_folder_of_other_files_names_what_it_holds_and_what_is_read(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"2 \.mat.*hipmri2d, nnunet, bids, hipmri3d, nifti, itk, pictures, dicom"
    ):
        find_sources(touch(tmp_path, "a.mat", "b.mat"))


def test_a_missing_folder_and_an_unknown_layout_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        find_sources(tmp_path / "absent")
    with pytest.raises(ConfigError, match="available: hipmri2d"):
        find_sources(tmp_path, SourceOptions(layout="tiff"))


@pytest.mark.parametrize(
    ("count", "wanted"), [(3, (1, 1, 1)), (8, (6, 1, 1)), (20, (14, 3, 3)), (46, (32, 7, 7))]
)
def test_every_split_gets_its_share_of_the_patients_and_at_least_one(
    count: int, wanted: tuple[int, int, int]
) -> None:
    splits = list(assign_splits(patients(count), {}, None, 42).values())
    assert tuple(splits.count(name) for name in ("train", "validation", "test")) == wanted


def test_the_draw_depends_on_the_seed_alone() -> None:
    assert assign_splits(patients(20), {}, None, 1) == assign_splits(patients(20), {}, None, 1)
    assert assign_splits(patients(20), {}, None, 1) != assign_splits(patients(20), {}, None, 2)


def test_two_patients_cannot_fill_three_splits_but_can_be_all_test() -> None:
    with pytest.raises(DataError, match=r"2 patients cannot fill 3 splits.*--fractions"):
        assign_splits(patients(2), {}, None, 42)
    assert set(assign_splits(patients(2), {}, (0.0, 0.0, 1.0), 42).values()) == {"test"}


def test_fractions_do_not_override_the_split_of_a_layout() -> None:
    own = FolderScan("hipmri2d", (Source("p", "v", (Path("x"),), (None,), "test"),)).given_splits
    assert assign_splits(["p"], own, None, 42) == {"p": "test"}
    with pytest.raises(ConfigError, match="its own split"):
        assign_splits(["p"], own, (1.0, 0.0, 0.0), 42)
