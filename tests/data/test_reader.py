"""Label maps are told from images, and forms of an affine that disagree are named."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from slicebook.data.check import check
from slicebook.data.findings import grouped, limited
from slicebook.data.layouts.sources import SourceOptions
from slicebook.data.prepare import prepare
from slicebook.data.reader import is_label_map
from slicebook.errors import DataError

SHAPE = (6, 48, 64)
PATIENT = SourceOptions(patient_regex=r"(p\d+)")


def image(seed: int = 0, top: int = 4000) -> np.ndarray:
    """A smooth blob with noise, in whole numbers, in air that is 0."""
    _, y, x = np.mgrid[-1:1:6j, -1:1:48j, -1:1:64j]
    clean = np.exp(-3 * (x**2 + y**2))
    noisy = clean + np.random.default_rng(seed).normal(0, 0.03, SHAPE)
    return np.where(x**2 + y**2 < 0.8, np.rint(top * noisy.clip(0, 1)), 0).astype(np.float32)


def regions(count: int) -> np.ndarray:
    """Labels, each constant over the points nearest to a centre."""
    centres = np.random.default_rng(0).uniform(0, 1, (count, 2)) * SHAPE[1:]
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2]]
    distances = (y[..., None] - centres[:, 0]) ** 2 + (x[..., None] - centres[:, 1]) ** 2
    return np.broadcast_to(distances.argmin(-1), SHAPE).astype(np.float32)


@pytest.mark.parametrize("count", [3, 9, 16, 32, 60, 100])
def test_regions_of_any_number_of_labels_are_a_label_map(count: int) -> None:
    assert is_label_map(regions(count), Path("p1.nii"))
    assert is_label_map(regions(count) * 37 + 1000, Path("p1.nii"))


@pytest.mark.parametrize("top", [100, 255, 4000, 30_000])
@pytest.mark.parametrize("clipped", [False, True])
def test_an_image_of_whole_numbers_is_no_label_map(top: int, clipped: bool) -> None:
    values = image(top=top)
    assert not is_label_map(values.clip(0, top // 2) if clipped else values, Path("p1.nii"))


def test_noisy_labels_are_told_by_few_values_and_by_name() -> None:
    coarse, fine = (
        np.digitize(image(), np.linspace(0, 4000, 16)),
        np.digitize(image(), np.linspace(0, 4000, 99)),
    )
    assert is_label_map(coarse.astype(np.float32), Path("p1.nii"))
    assert is_label_map(fine.astype(np.float32), Path("p1_seg.nii.gz"))
    assert is_label_map(fine.astype(np.float32), Path("labelsTr/p1.nii.gz"))
    assert not is_label_map(fine.astype(np.float32), Path("p1_t2.nii.gz"))


@pytest.mark.fault("pixels of a label map, given as an image", "refused: never trained on as an image")
@pytest.mark.parametrize("count", [16, 100])
def test_label_maps_are_never_prepared_as_images(tmp_path: Path, count: int) -> None:
    for patient in range(4):
        save(tmp_path / "in" / f"p{patient}.nii.gz", image(patient))
        save(tmp_path / "in" / f"p{patient}_seg.nii.gz", np.roll(regions(count), patient, 1))
    with pytest.raises(DataError, match=r"p0_seg\.nii\.gz: holds \d+ whole numbers only.*--mask"):
        prepare(tmp_path / "in", tmp_path / "out", PATIENT)
    assert len(check(tmp_path / "in", PATIENT).misfits) == 4
    paired = prepare(tmp_path / "in", tmp_path / "out", SourceOptions(patient_regex=r"(p\d+)", mask="_seg"))
    assert len(paired.info.label_values) == count


def save(
    path: Path, slices: np.ndarray, sform: np.ndarray | None = None, qform: np.ndarray | None = None
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-1.5, 1.5, 3.0, 1.0])
    nifti = nib.Nifti1Image(slices.transpose(2, 1, 0).astype(np.int16), affine)
    if sform is not None and qform is not None:
        nifti.set_sform(sform, 1)
        nifti.set_qform(qform, 1)
    nib.save(nifti, path)


@pytest.mark.fault("sform that disagrees with qform", "says which is used")
def test_forms_that_disagree_are_named_and_resampling_is_not_advised(tmp_path: Path) -> None:
    sform, qform = np.diag([-1.5, 1.5, 3.0, 1.0]), np.diag([-1.5, -1.5, 3.0, 1.0])
    save(tmp_path / "p1.nii", image(), sform, qform)
    save(tmp_path / "p1_seg.nii", regions(3), qform, qform)
    (reason,) = check(tmp_path, SourceOptions(patient_regex="(p1)", mask="_seg")).misfits
    assert "sform and qform of" in reason
    assert "its sform is used, but its qform would fit" in reason
    assert "resample the mask" not in reason
    (tmp_path / "p1_seg.nii").unlink()
    _, note = check(tmp_path, PATIENT).notes
    assert note.startswith("1 files whose sform and qform disagree; the sform is used")


def test_forms_that_agree_or_of_which_one_is_unknown_are_not_mentioned(tmp_path: Path) -> None:
    affine = np.diag([-1.5, 1.5, 3.0, 1.0])
    save(tmp_path / "p1.nii", image(), affine, affine)
    save(tmp_path / "p2.nii", image(1))
    assert len(check(tmp_path, PATIENT).notes) == 1  # what it was taken for


@pytest.mark.fault(
    "patient data in header text that check looks for",
    "looked for in every file that is read, NIfTI-2 among them",
)
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("name", ["p1.nii", "P1.NII", "p1.nii.gz"])
def test_private_text_is_looked_for_in_every_file_that_is_read(tmp_path: Path, kind: type, name: str) -> None:
    nifti = kind(image(), np.eye(4))
    nifti.header["descrip"] = "Jane Doe"
    (tmp_path / name).write_bytes(nifti.to_bytes())  # not compressed, whatever its name
    assert check(tmp_path).header_fields == {"descrip": 1}


def test_nothing_of_nibabel_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    nifti = nib.Nifti1Image(image().transpose(2, 1, 0), np.eye(4))
    nifti.header.set_sform(np.eye(4), 1)
    content = bytearray(nifti.to_bytes())
    content[80:92] = bytes(12)  # pixdim 1 to 3
    (tmp_path / "p1.nii").write_bytes(content)
    check(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_findings_of_one_kind_are_three_lines_and_a_count() -> None:
    lines = [f"/a/{n}.nii: ends after {n} bytes, wanted 9; copy it" for n in range(9)]
    first, other = grouped([*lines, "/a/x.nii: is not a NIfTI file"])
    assert first.startswith("9 files: ")
    assert first.endswith(" and 6 more)")
    assert lines[0].partition(": ")[2] in first
    assert other == "/a/x.nii: is not a NIfTI file"


def test_a_report_of_many_findings_fits_on_a_screen() -> None:
    rows = [("series", f"kind {number}") for number in range(40)]
    assert len(limited(rows)) == 13
    assert limited(rows)[-1] == ("series", "… and 28 more; --json lists all")
    assert limited(rows[:12]) == rows[:12]
    names = grouped([f"{folder}/1.nii: is cut off" for folder in "ab"])
    assert names == ["2 files: is cut off (a/1.nii, b/1.nii)"]
