"""Whole volumes through a model: geometry and intensity come back, tokens make the same volume."""

import csv
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.dicom import CORONAL, pixels_of, save, slice_of
from helpers.inference import model_file, volume_file
from helpers.token_file import rewritten

from slicebook.data.transforms import IntensityMap
from slicebook.errors import CheckpointError, DataError, ShapeError
from slicebook.inference.reconstruct import decode, encode, reconstruct
from slicebook.inference.volumes import list_volumes
from slicebook.io.nifti import read_nifti
from slicebook.io.tokens import TokenFile
from slicebook.models.checkpoint import MODEL_NAME, load_tokenizer

CPU: dict[str, Any] = {"device": "cpu"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return model_file(tmp_path_factory.mktemp("model") / MODEL_NAME)


def geometry_bytes(path):
    header = nib.nifti1.load(path).header
    fields = ("srow_x", "srow_y", "srow_z", "qoffset_x", "quatern_b", "sform_code", "qform_code", "dim")
    return b"".join(header[name].tobytes() for name in fields) + header["pixdim"][:4].tobytes()


# --- Reconstruct


@pytest.mark.parametrize(
    ("shape", "name"),
    [((40, 24, 3), "a.nii.gz"), ((40, 24), "a.nii"), ((40, 24, 1), "a.nii.gz"), ((17, 13, 2), "a.nii")],
)
def test_a_nifti_keeps_its_geometry_bit_for_bit_and_its_shape(shape, name, model, tmp_path):
    source = volume_file(tmp_path / name, shape)
    summary = reconstruct(model, source, tmp_path / "out", pictures=False, **CPU)
    written = tmp_path / "out" / "a.nii.gz"
    assert summary.volumes[0].output == written
    assert geometry_bytes(written) == geometry_bytes(source)
    assert nib.nifti1.load(written).shape == shape
    assert b"Secret" not in nib.nifti1.load(written).header.binaryblock


def test_each_slice_goes_through_the_model_as_it_is_shown_and_comes_back_to_its_place(model, tmp_path):
    source = volume_file(tmp_path / "a.nii.gz", affine=np.diag([1.0, 1.0, 5.0, 1.0]))
    reconstruct(model, source, tmp_path / "out", pictures=False, **CPU)
    array = nib.nifti1.load(source).get_fdata(dtype=np.float32)
    mapping = IntensityMap.fit(array)
    shown = mapping.forward(array)[::-1, ::-1, 1].T  # rows A→P, columns R→L
    with torch.no_grad():
        drawn = load_tokenizer(model).tokenizer(torch.from_numpy(shown.copy())[None, None]).images
    wanted = mapping.inverse(drawn.clamp(-1, 1)[0, 0].numpy()).T[::-1, ::-1]
    found = nib.nifti1.load(tmp_path / "out" / "a.nii.gz").get_fdata(dtype=np.float32)
    np.testing.assert_allclose(found[:, :, 1], wanted, rtol=1e-4)


def test_the_original_intensity_comes_back(model, tmp_path):
    source = volume_file(tmp_path / "a.nii.gz", low=1000.0)
    reconstruct(model, source, tmp_path / "out", pictures=False, **CPU)
    array = read_nifti(source).array
    low, high = np.percentile(array, [0.5, 99.5])
    found = read_nifti(tmp_path / "out" / "a.nii.gz").array
    assert low - 1 <= found.min() < found.max() <= high + 1


def test_what_clipping_costs_is_told_apart(model, tmp_path):
    source = volume_file(tmp_path / "a.nii.gz")
    (scored,) = reconstruct(model, source, tmp_path / "out", pictures=False, **CPU).volumes
    array = read_nifti(source).array
    low, high = np.percentile(array, [0.5, 99.5])
    assert scored.clipped_share == pytest.approx(((array < low) | (array > high)).mean(), abs=1e-3)
    assert scored.clipping_mae == pytest.approx(np.abs(array - array.clip(low, high)).mean(), rel=0.05)


def test_bits_are_counted_over_native_pixels(model, tmp_path):
    source = volume_file(tmp_path / "a.nii.gz", (17, 13, 2))
    (scored,) = reconstruct(model, source, tmp_path / "out", pictures=False, **CPU).volumes
    assert scored.bits_per_pixel == pytest.approx((6 * 4 * 6 + 3 * 2 * 4) / (17 * 13))


def test_pairs_and_a_row_of_scores_are_written_for_each_slice(model, tmp_path):
    source = volume_file(tmp_path / "a.nii.gz")
    summary = reconstruct(model, source, tmp_path / "out", **CPU)
    pairs = sorted((tmp_path / "out" / "a").iterdir())
    assert [pair.name for pair in pairs] == ["slice-000.png", "slice-001.png", "slice-002.png"]
    assert all(pair.read_bytes()[:4] == b"\x89PNG" for pair in pairs)
    with (tmp_path / "out" / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["slice"] for row in rows] == ["0", "1", "2"]
    mean = np.mean([float(row["ssim_whole"]) for row in rows])
    assert summary.ssim_whole == pytest.approx(mean)
    assert summary.volumes[0].ssim_whole == pytest.approx(mean)


@pytest.mark.fault("constant slice or volume", "reconstructed within one intensity")
@pytest.mark.parametrize("blank", ["one slice", "all"])
def test_a_constant_slice_or_volume_is_no_error(blank, model, tmp_path):
    array = np.random.default_rng(0).gamma(2, 100, (24, 20, 3)).astype(np.float32)
    array[..., 1 if blank == "one slice" else slice(None)] = 7
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1, 3, 1])), tmp_path / "a.nii.gz")
    summary = reconstruct(model, tmp_path / "a.nii.gz", tmp_path / "out", **CPU)
    found = read_nifti(tmp_path / "out" / "a.nii.gz").array
    assert np.isfinite(found).all()
    assert np.isfinite(summary.ssim_whole)
    if blank == "all":
        assert summary.volumes[0].ssim_foreground is None
        assert (np.abs(found - 7) <= 1).all()


def test_a_folder_of_volumes_is_taken_whole_under_names_that_tell_where_each_lay(model, tmp_path):
    source = tmp_path / "in"
    (source / "deep").mkdir(parents=True)
    volume_file(source / "b.nii", seed=1)
    volume_file(source / "deep" / "a.nii.gz")
    summary = reconstruct(model, source, tmp_path / "out", pictures=False, **CPU)
    assert [scored.name for scored in summary.volumes] == ["b", "deep-a"]
    assert summary.ssim_whole == pytest.approx(np.mean([scored.ssim_whole for scored in summary.volumes]))


def dicom_folder(folder, shape=(16, 20), **tags):
    for number in range(3):
        save(
            slice_of(pixels_of(number, shape=shape), (1.0, 2.0, 3.0 * number), **tags),
            folder / f"{number}.dcm",
        )
    return folder


def test_a_dicom_folder_becomes_a_nifti_with_the_dicoms_own_geometry(model, tmp_path):
    reconstruct(model, dicom_folder(tmp_path / "in"), tmp_path / "out", pictures=False, **CPU)
    written = nib.nifti1.load(tmp_path / "out" / "series-01-axial.nii.gz")
    assert written.shape == (20, 16, 3)
    np.testing.assert_allclose(
        written.affine, [[-2, 0, 0, -1], [0, -4, 0, -2], [0, 0, 3, 0], [0, 0, 0, 1]], atol=1e-6
    )
    assert not any("Secret" in str(item) for item in (tmp_path / "out").rglob("*"))
    assert b"SECRET" not in written.header.binaryblock.upper()


def test_a_plane_chooses_among_dicom_series_and_slices_a_nifti_anew(model, tmp_path):
    dicom_folder(tmp_path / "in" / "axial")
    for number in range(3):
        at = slice_of(
            pixels_of(number, shape=(16, 20)), (1, 3 * number, 5), series="9.9", orientation=CORONAL
        )
        save(at, tmp_path / "in" / "coronal" / f"{number}.dcm")
    names = [listed.name for listed in list_volumes(tmp_path / "in", "coronal")]
    assert names == ["series-01-coronal"]
    source = volume_file(tmp_path / "a.nii.gz", (16, 12, 14), np.diag([1.0, 1, 1, 1]))
    summary = reconstruct(model, source, tmp_path / "out", pictures=False, plane="sagittal", **CPU)
    assert summary.volumes[0].slices == 16
    assert nib.nifti1.load(tmp_path / "out" / "a.nii.gz").shape == (16, 12, 14)


def test_originals_are_never_overwritten(model, tmp_path):
    source = volume_file(tmp_path / "a.nii.gz")
    before = source.read_bytes()
    for given in (source, tmp_path):
        with pytest.raises(
            DataError, match="the originals lie here, and none may be overwritten; choose a folder"
        ):
            reconstruct(model, given, tmp_path, **CPU)
    with pytest.raises(DataError, match="the originals lie here"):
        reconstruct(model, tmp_path, tmp_path / "out", **CPU)
    assert source.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["a.nii.gz"]


def test_slices_too_small_to_score_are_refused_by_name_before_anything_is_written(model, tmp_path):
    source = volume_file(tmp_path / "small.nii.gz", (40, 10, 3))
    with pytest.raises(
        ShapeError, match=r"small: its slices of 10×40 pixels are too small to score.*--plane"
    ):
        reconstruct(model, source, tmp_path / "out", **CPU)
    assert not (tmp_path / "out").exists()


# --- Encode and decode


@pytest.mark.parametrize("shape", [(40, 24, 3), (17, 13), (40, 24, 1)])
def test_decoding_the_tokens_is_the_reconstruction(shape, model, tmp_path):
    source = volume_file(tmp_path / "a.nii.gz", shape)
    encoded = encode(model, source, tmp_path / "a.safetensors", **CPU)
    decoded = decode(model, tmp_path / "a.safetensors", tmp_path / "new" / "decoded.nii.gz", **CPU)
    (scored,) = reconstruct(model, source, tmp_path / "out", pictures=False, **CPU).volumes
    first, second = nib.nifti1.load(tmp_path / "new" / "decoded.nii.gz"), nib.nifti1.load(scored.output)
    np.testing.assert_allclose(first.get_fdata(), second.get_fdata(), rtol=1e-4, atol=1e-2)
    assert geometry_bytes(tmp_path / "new" / "decoded.nii.gz") == geometry_bytes(source)
    assert encoded.bits_per_pixel == decoded.bits_per_pixel == scored.bits_per_pixel
    assert encoded.slices == decoded.slices == scored.slices
    assert encoded.grids == decoded.grids


def test_tokens_of_a_dicom_folder_come_back_with_its_geometry(model, tmp_path):
    encode(model, dicom_folder(tmp_path / "in"), tmp_path / "a.safetensors", **CPU)
    decode(model, tmp_path / "a.safetensors", tmp_path / "a.nii.gz", **CPU)
    reconstruct(model, tmp_path / "in", tmp_path / "out", pictures=False, **CPU)
    first, second = (
        nib.nifti1.load(tmp_path / "a.nii.gz"),
        nib.nifti1.load(tmp_path / "out" / "series-01-axial.nii.gz"),
    )
    np.testing.assert_array_equal(first.affine, second.affine)
    np.testing.assert_allclose(first.get_fdata(), second.get_fdata(), rtol=1e-4, atol=1e-2)


@pytest.mark.fault("patient data in NIfTI headers", "absent from token files")
def test_nothing_of_the_headers_text_is_in_the_tokens(model, tmp_path):
    encode(model, volume_file(tmp_path / "a.nii"), tmp_path / "a.safetensors", **CPU)
    assert b"Secret" not in (tmp_path / "a.safetensors").read_bytes()


def test_a_folder_of_several_volumes_is_refused_because_a_token_file_holds_one(model, tmp_path):
    for name in "ab":
        volume_file(tmp_path / f"{name}.nii")
    with pytest.raises(DataError, match="holds 2 volumes, wanted one; name one file"):
        encode(model, tmp_path, tmp_path / "a.safetensors", **CPU)
    assert not (tmp_path / "a.safetensors").exists()


@pytest.fixture
def tokens(model, tmp_path):
    volume_file(tmp_path / "a.nii")
    encode(model, tmp_path / "a.nii", tmp_path / "a.safetensors", **CPU)
    return tmp_path / "a.safetensors"


def refuse(kind, message, model, tokens):
    out = tokens.parent / "decoded.nii.gz"
    with pytest.raises(kind, match=message) as caught:
        decode(model, tokens, out, **CPU)
    assert str(tokens) in str(caught.value)
    assert not out.exists()


@pytest.mark.fault("tokens of another codebook", "refused; use the model that encoded them")
def test_another_model_is_refused(tokens, tmp_path):
    other = model_file(tmp_path / "other.safetensors", seed=1)
    refuse(CheckpointError, "written by model .* use the model that encoded them", other, tokens)


@pytest.mark.fault(
    "tokens out of range", "refused: tokens from A to B, wanted 0 to K-1; encode the volume again"
)
def test_a_token_outside_its_codebook_is_refused(model, tokens):
    grid = TokenFile.read(tokens).tokens[1]
    grid[0, 0, 0] = 16
    rewritten(tokens, tokens_1=torch.from_numpy(grid))
    refuse(ShapeError, "level 1: tokens from .* to 16, wanted 0 to 15", model, tokens)


def test_grids_that_do_not_fit_the_slices_are_refused(model, tokens):
    rewritten(tokens, tokens_0=torch.zeros((3, 2, 2), dtype=torch.uint16))
    refuse(ShapeError, "do not fit a slice of 24×40 pixels", model, tokens)
    grids = {
        f"tokens_{level}": torch.zeros((3, *size), dtype=torch.uint16)
        for level, size in enumerate([(6, 10), (3, 5), (1, 1)])
    }
    rewritten(tokens, **grids)
    refuse(ShapeError, "do not fit", model, tokens)


def test_a_damaged_token_file_is_refused(model, tokens):
    tokens.write_bytes(tokens.read_bytes()[:-50])
    refuse(DataError, "is not a complete token file", model, tokens)


@pytest.mark.parametrize("name", ["decoded.png", "decoded"])
def test_a_volume_is_decoded_to_nifti_alone(name, model, tokens):
    with pytest.raises(DataError, match=r"ends in \.nii or \.nii\.gz"):
        decode(model, tokens, tokens.parent / name, **CPU)
    assert not (tokens.parent / name).exists()


# --- What is there


@pytest.mark.parametrize("act", [reconstruct, encode])
def test_a_source_that_is_absent_empty_or_damaged_is_named_and_nothing_is_written(act, model, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn.nii.gz").write_bytes(volume_file(tmp_path / "a.nii.gz").read_bytes()[:-30])
    (tmp_path / "a.nii.gz").unlink()
    out = tmp_path / "out.safetensors"
    for name in ("absent.nii.gz", "empty", "torn.nii.gz"):
        with pytest.raises(DataError, match=name):
            act(model, tmp_path / name, out, **CPU)
        assert not out.exists()


@pytest.mark.parametrize("act", [reconstruct, encode, decode])
def test_before_any_training_each_says_what_to_run(act, tmp_path):
    with pytest.raises(CheckpointError, match="slicebook train tokenizer"):
        act(tmp_path, tmp_path / "in", tmp_path / "out", **CPU)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("names that collide", "refused before anything is written; rename one")
def test_volumes_with_the_same_output_are_refused_before_anything_is_written(model, tmp_path):
    (tmp_path / "in" / "a").mkdir(parents=True)
    volume_file(tmp_path / "in" / "a" / "b.nii")
    volume_file(tmp_path / "in" / "a-b.nii")
    with pytest.raises(DataError, match="its output would take the place of that of"):
        reconstruct(model, tmp_path / "in", tmp_path / "out", **CPU)
    assert not (tmp_path / "out").exists()
