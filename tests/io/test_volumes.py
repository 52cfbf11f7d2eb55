"""NIfTI in and out, and volumes as slices."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from slicebook.errors import DataError, ShapeError
from slicebook.io.nifti import read_labels, read_nifti, write_nifti
from slicebook.io.volume import Orientation, from_slices, orientation_of, plane_of, slice_spacing, to_slices

OBLIQUE = np.array(
    [
        [-0.49738, 0.04117, 0.31391, 91.7],
        [0.03982, 0.49213, 0.51234, -80.1],
        [-0.03210, 0.07671, -3.5389, 33.3],
        [0, 0, 0, 1],
    ]
)


def values(shape=(4, 5, 3), dtype=np.float32):
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


def save(path, array, affine=OBLIQUE, kind=nib.Nifti1Image, **fields):
    image = kind(array, affine)
    for name, value in fields.items():
        image.header[name] = value
    image.to_filename(path)
    return path


def geometry_bytes(path):
    header = nib.nifti1.load(path).header
    names = ["pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x"]
    names += ["qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "dim"]
    return {name: header[name].astype(header[name].dtype.newbyteorder("<")).tobytes() for name in names}


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3), (4, 5, 3, 1), (4, 5, 1, 1)])
def test_a_file_goes_in_and_out_with_its_shape_values_and_affine(tmp_path, name, shape):
    path = save(tmp_path / name, values(shape))
    volume = read_nifti(path)
    assert volume.array.shape == (4, 5, 3 if 3 in shape else 1)
    assert volume.shape_on_disk == shape
    write_nifti(tmp_path / f"out-{name}", volume.array, volume)
    again = nib.nifti1.load(tmp_path / f"out-{name}")
    assert again.shape == shape
    assert_array_equal(np.asanyarray(again.dataobj), values(shape))
    assert geometry_bytes(tmp_path / f"out-{name}") == geometry_bytes(path)


@pytest.mark.parametrize(("sform", "qform"), [(1, 0), (0, 1), (2, 1), (0, 0), (4, 3)])
def test_sform_and_qform_keep_their_bits_and_codes(tmp_path, sform, qform):
    path = save(tmp_path / "a.nii", values(), sform_code=sform, qform_code=qform)
    volume = read_nifti(path)
    assert_array_equal(volume.affine, nib.nifti1.load(path).affine)
    write_nifti(tmp_path / "b.nii", volume.array, volume)
    assert geometry_bytes(tmp_path / "b.nii") == geometry_bytes(path)
    assert_array_equal(read_nifti(tmp_path / "b.nii").affine, volume.affine)


def test_nifti_2_keeps_the_bits_of_its_double_affine(tmp_path):
    affine = OBLIQUE.copy()
    affine[:3] += 1e-12
    path = save(tmp_path / "a.nii.gz", values(), affine, nib.Nifti2Image)
    volume = read_nifti(path)
    write_nifti(tmp_path / "b.nii.gz", volume.array, volume)
    assert_array_equal(nib.nifti2.load(tmp_path / "b.nii.gz").affine, affine)


@pytest.mark.fault("big-endian", "read as the same volume")
def test_a_big_endian_file_reads_the_same(tmp_path):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    image = nib.Nifti1Image(values(dtype=np.int16), OBLIQUE, header)
    image.to_filename(tmp_path / "a.nii")
    assert (tmp_path / "a.nii").read_bytes()[:4] == (348).to_bytes(4, "big")
    volume = read_nifti(tmp_path / "a.nii")
    assert_array_equal(volume.array, values())
    write_nifti(tmp_path / "b.nii", volume.array, volume)
    assert_array_equal(read_nifti(tmp_path / "b.nii").affine, volume.affine)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_stored_values_are_scaled_by_slope_and_intercept(tmp_path, dtype):
    path = save(tmp_path / "a.nii", values(dtype=dtype))
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([0.5, -3], "<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(content)
    assert_allclose(read_nifti(path).array, values() * 0.5 - 3)


def test_units_of_metres_and_micrometres_become_millimetres(tmp_path):
    for units, factor in ((1, 1000), (2, 1), (3, 0.001)):
        path = save(tmp_path / "a.nii", values(), np.diag([1.0, 2, 3, 1]), xyzt_units=units)
        assert_allclose(read_nifti(path).spacing, np.multiply((1, 2, 3), factor))


@pytest.mark.fault("gzip named .nii, and the reverse", "read: the content decides")
def test_a_gzip_is_known_by_its_content(tmp_path):
    plain = save(tmp_path / "a.nii", values())
    (tmp_path / "plain.nii.gz").write_bytes(plain.read_bytes())
    (tmp_path / "packed.nii").write_bytes(gzip.compress(plain.read_bytes()))
    assert_array_equal(read_nifti(tmp_path / "plain.nii.gz").array, values())
    assert_array_equal(read_nifti(tmp_path / "packed.nii").array, values())


@pytest.mark.fault("constant slice or volume", "read")
def test_a_blank_slice_is_no_error(tmp_path):
    assert not read_nifti(save(tmp_path / "a.nii", np.zeros((4, 5, 3), np.float32))).array.any()


def test_labels_are_integers_up_to_255_and_stay_uint8_when_written(tmp_path):
    labels = read_labels(save(tmp_path / "a.nii.gz", values(dtype=np.float64)))
    write_nifti(tmp_path / "b.nii.gz", labels.array.astype(np.uint8), labels)
    assert nib.nifti1.load(tmp_path / "b.nii.gz").get_data_dtype() == np.uint8
    for wrong in (0.5, -1, 256):
        with pytest.raises(DataError, match=f"holds the value {wrong:g}, wanted integer labels"):
            read_labels(save(tmp_path / "c.nii.gz", np.full((2, 2, 2), wrong, np.float32)))


@pytest.mark.fault("patient data in NIfTI headers", "absent from every file that is written")
def test_free_text_of_the_source_does_not_travel(tmp_path):
    image = nib.Nifti1Image(values(), OBLIQUE)
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        image.header[field] = b"SECRET"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"SECRET name"))
    image.to_filename(tmp_path / "a.nii")
    assert (tmp_path / "a.nii").read_bytes().count(b"SECRET") == 5
    volume = read_nifti(tmp_path / "a.nii")
    write_nifti(tmp_path / "b.nii", volume.array, volume, description="slicebook")
    content = (tmp_path / "b.nii").read_bytes()
    assert b"SECRET" not in content
    assert b"slicebook" in content


@pytest.mark.fault("sheared affine", "kept, as sform alone")
def test_an_affine_is_written_as_sform_and_qform_where_a_qform_can_say_it(tmp_path):
    straight = np.diag([-0.5, 0.5, 3, 1])
    straight[:3, 3] = 10, -20, 30
    write_nifti(tmp_path / "a.nii", values(), affine=straight)
    header = nib.nifti1.load(tmp_path / "a.nii").header
    assert_array_equal(header.get_sform(), straight)
    assert_allclose(header.get_qform(), straight)
    sheared = straight.copy()
    sheared[1, 2] = 0.7
    write_nifti(tmp_path / "b.nii", values(), affine=sheared)
    header = nib.nifti1.load(tmp_path / "b.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 0)
    assert_allclose(read_nifti(tmp_path / "b.nii").affine, sheared, rtol=1e-6)


def test_equal_volumes_are_equal_files(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(tmp_path / name, values(), affine=OBLIQUE)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.nii"
    path.write_bytes(b"before")

    def full_disk(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("slicebook.io.atomic.os.replace", full_disk)
    with pytest.raises(DataError, match=r"a\.nii: cannot be written \(No space left"):
        write_nifti(path, values(), affine=OBLIQUE)
    assert [file.name for file in tmp_path.iterdir()] == ["a.nii"]
    assert path.read_bytes() == b"before"


def test_what_cannot_be_written_is_refused(tmp_path):
    volume = read_nifti(save(tmp_path / "a.nii", values()))
    with pytest.raises(ShapeError, match=r"\(5, 4, 3\)"):
        write_nifti(tmp_path / "b.nii", values((5, 4, 3)), volume)
    with pytest.raises(DataError, match="NaN"):
        write_nifti(tmp_path / "b.nii", np.full((2, 2, 2), np.nan), affine=OBLIQUE)
    with pytest.raises(DataError, match=r"ends in \.nii"):
        write_nifti(tmp_path / "b.png", values(), affine=OBLIQUE)
    with pytest.raises(DataError, match="either"):
        write_nifti(tmp_path / "b.nii", values())
    with pytest.raises(DataError, match="cannot be written"):
        write_nifti(tmp_path / "a.nii" / "b.nii", values(), affine=OBLIQUE)
    assert not (tmp_path / "b.nii").exists()


def every_orientation():
    """Yield an affine for each of the 48 ways to lay three axes along R, A and S."""
    for axes in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        for signs in np.ndindex(2, 2, 2):
            affine = np.eye(4)
            affine[:3, :3] = np.eye(3)[:, axes] * (1 - 2 * np.array(signs)) * (1, 1, 3)
            yield affine


@pytest.mark.fault("flipped affine", "all 48 orientations are shown alike and put back exactly")
@pytest.mark.parametrize("plane", [None, "axial", "sagittal", "coronal"])
def test_slices_of_every_orientation_are_shown_alike_and_put_back_exactly(tmp_path, plane):
    for affine in every_orientation():
        volume = read_nifti(save(tmp_path / "a.nii", values(), affine))
        orientation = orientation_of(volume, plane)
        slices = to_slices(volume.array, orientation)
        assert_array_equal(from_slices(slices, orientation), volume.array)
        assert slices.base is not None, "a view, not a copy"
        # Where a step along slice, row and column goes in R, A, S.
        steps = affine[:3, list(orientation.axes)] * np.where(orientation.flips, -1, 1)
        shown = plane_of(volume, orientation)
        expected = {
            "axial": [(0, 0, 1), (0, -1, 0), (-1, 0, 0)],
            "coronal": [(0, -1, 0), (0, 0, -1), (-1, 0, 0)],
            "sagittal": [(-1, 0, 0), (0, 0, -1), (0, -1, 0)],
        }[shown]
        assert_array_equal(np.sign(steps).T, expected)
        assert shown == plane or plane is None
        if plane is None:
            assert slice_spacing(volume, orientation) == (3, 1, 1)


@pytest.mark.fault("rotated affine", "read and put back on its own axes")
def test_an_oblique_volume_keeps_its_own_axes(tmp_path):
    volume = read_nifti(save(tmp_path / "a.nii", values()))
    orientation = orientation_of(volume)
    assert orientation == Orientation(axes=(2, 1, 0), flips=(True, True, False))
    assert plane_of(volume, orientation) == "axial"


def test_a_2d_file_is_one_slice_whatever_its_spacing(tmp_path):
    volume = read_nifti(save(tmp_path / "a.nii", values((256, 128)), np.diag([1.7, 1.6, 1, 1])))
    assert to_slices(volume.array, orientation_of(volume)).shape == (1, 128, 256)


def test_a_tie_of_spacings_is_cut_along_the_last_axis(tmp_path):
    volume = read_nifti(save(tmp_path / "a.nii", values(), np.diag([1.000001, 1, 1, 1])))
    assert orientation_of(volume).axes[0] == 2
