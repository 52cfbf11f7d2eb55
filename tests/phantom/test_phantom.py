"""The phantom: a pelvis by the rules of anatomy, the same whoever else is made, in HipMRI's files."""

from functools import lru_cache

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from slicebook.errors import ConfigError
from slicebook.phantom import simulator
from slicebook.phantom.atlas import TISSUES
from slicebook.phantom.labels import BACKGROUND, BLADDER, BODY, BONE, PROSTATE, RECTUM
from slicebook.phantom.rasterizer import coverage, ellipse, inset, spline

PATIENTS = range(4, 8)


@lru_cache
def volume(patient=4, week=0, slices=8, shape=(128, 64)):
    return simulator.patient_volume(patient, week, slices=slices, shape=shape)


def centre(labels, label):
    """Mean voxel of a label: right, anterior, superior grow with the index."""
    return np.argwhere(labels == label).mean(0)


@pytest.mark.parametrize("patient", PATIENTS)
def test_bladder_rectum_and_prostate_are_one_piece_each_and_inside_the_body(patient):
    labels = volume(patient).labels
    outside = ndimage.binary_dilation(labels == BACKGROUND)
    for organ in (BLADDER, RECTUM, PROSTATE):
        assert ndimage.label(labels == organ)[1] == 1
        assert not (outside & (labels == organ)).any()
    assert ndimage.label(labels > BACKGROUND)[1] == 1


@pytest.mark.parametrize("patient", PATIENTS)
def test_organs_lie_where_anatomy_has_them(patient):
    labels = volume(patient).labels
    bladder, rectum, prostate = (centre(labels, organ) for organ in (BLADDER, RECTUM, PROSTATE))
    assert bladder[1] > prostate[1] > rectum[1]  # front to back
    assert bladder[2] > prostate[2]
    assert abs(prostate[0] - bladder[0]) < 4  # all near the middle
    bones = np.argwhere(labels == BONE)[:, 0]
    assert (bones < prostate[0]).mean() == pytest.approx(0.5, abs=0.06)  # a hip on each side


@pytest.mark.parametrize("patient", PATIENTS)
def test_the_body_is_wider_than_deep_and_fits_the_field(patient):
    labels = volume(patient).labels
    across, deep, _ = (axis.max() - axis.min() for axis in np.nonzero(labels))
    assert across * 430 / 128 > 1.6 * deep * 200 / 64
    assert (labels[[0, -1]] == BACKGROUND).all()
    assert (labels[:, [0, -1]] == BACKGROUND).all()


def test_the_same_arguments_make_the_same_volume():
    again = simulator.patient_volume(4, 0, slices=8, shape=(128, 64))
    np.testing.assert_array_equal(again.image, volume().image)
    np.testing.assert_array_equal(again.labels, volume().labels)


@pytest.mark.parametrize("other", [{"patient": 5}, {"week": 1}])
def test_another_patient_or_week_differs(other):
    assert (volume(**other).labels != volume().labels).any()


def test_a_patient_resembles_himself_more_from_week_to_week_than_another():
    def difference(a, b):
        return (a.labels != b.labels).mean()

    weeks = np.mean([difference(volume(p), volume(p, week=1)) for p in (4, 5, 6)])
    patients = np.mean([difference(volume(p), volume(p + 1)) for p in (4, 5, 6)])
    assert weeks < 0.8 * patients


def test_another_seed_is_another_data_set():
    other = simulator.patient_volume(4, 0, seed=43, slices=8, shape=(128, 64))
    assert (other.labels != volume().labels).any()


def test_neighbouring_slices_change_smoothly():
    labels = volume(slices=24, shape=(64, 32)).labels
    near = (labels[:, :, 1:] != labels[:, :, :-1]).mean()
    far = (labels[:, :, 5:] != labels[:, :, :-5]).mean()
    assert near < 0.5 * far


def test_the_image_is_float32_whole_numbers_of_zero_or_more_whose_maxima_vary():
    maxima = [volume(patient).image.max() for patient in PATIENTS]
    assert volume().image.dtype == np.float32
    assert volume().image.min() >= 0
    np.testing.assert_array_equal(volume().image, np.rint(volume().image))
    assert max(maxima) > 2 * min(maxima)


def test_t2_contrast_orders_the_tissues():
    echo = {name: simulator.spin_echo(tissue, 5000.0, 104.0) for name, tissue in TISSUES.items()}
    dark_to_bright = ("cortex", "muscle", "transition zone", "peripheral zone", "urine")
    assert sorted(dark_to_bright, key=echo.__getitem__) == list(dark_to_bright)
    assert echo["muscle"] < echo["marrow"] < echo["fat"]


def test_the_spin_echo_is_the_equation():
    half = 0.8 * (1 - 0.5) * 0.25  # TR = ln 2 T1, TE = 2 ln 2 T2
    tissue = TISSUES["muscle"]
    assert simulator.spin_echo(tissue, np.log(2) * tissue.t1, 2 * np.log(2) * tissue.t2) == pytest.approx(
        half
    )


def test_air_holds_rician_noise():
    air = volume(slices=8, shape=(256, 128)).image[:25, :25].astype(float)
    assert air.mean() / air.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.08)  # Rayleigh


@pytest.mark.parametrize("shape", [(64, 32), (128, 64), (256, 144)])
def test_the_pelvis_fills_any_grid_alike(shape):
    small, full = volume(slices=8, shape=shape), volume(slices=8, shape=(256, 128))
    assert small.image.shape == (*shape, 8)
    assert (small.labels > 0).mean() == pytest.approx((full.labels > 0).mean(), abs=0.02)
    assert small.spacing[0] * shape[0] == pytest.approx(430)
    assert set(np.unique(small.labels)) == {BACKGROUND, BODY, BONE, BLADDER, RECTUM, PROSTATE}


def test_the_affine_puts_the_middle_of_the_field_at_the_origin():
    made = volume(shape=(256, 128))
    low, high = (made.affine @ [*index, 1] for index in ((0, 0, 0), (255, 127, 7)))
    np.testing.assert_allclose(low[:2], -high[:2])
    assert low[2] + high[2] == pytest.approx(simulator.LOWEST_MM + simulator.HIGHEST_MM)
    np.testing.assert_allclose(made.spacing, (430 / 256, 200 / 128, 120 / 8))


def test_coverage_of_a_circle_is_its_area_and_stays_in_the_image():
    circle = spline(24, 480) @ ellipse(20.0, 15.0, 9.3, 9.3)
    covered = coverage(circle, (40, 32))
    assert covered is not None
    window, cover = covered
    assert cover.sum() == pytest.approx(np.pi * 9.3**2, rel=2e-3)
    assert cover[9, 9] == 1
    whole = np.zeros((40, 32), np.float32)
    whole[window] = cover
    for cut in (np.s_[15:, :], np.s_[:, 12:], np.s_[:18, :14]):
        start = [part.start or 0 for part in cut]
        part_found = coverage(circle - start, whole[cut].shape)
        assert part_found is not None
        part = np.zeros_like(whole[cut])
        part[part_found[0]] = part_found[1]
        np.testing.assert_allclose(part, whole[cut], atol=0.02)
    assert coverage(circle + 100, (40, 32)) is None


def test_inset_moves_a_contour_inwards_whichever_way_it_turns():
    circle = spline(24, 480) @ ellipse(0.0, 0.0, 10.0, 10.0)
    for contour in (circle, circle[::-1].copy()):
        np.testing.assert_allclose(np.hypot(*inset(contour, 2.0).T), 8, atol=0.05)


@pytest.mark.parametrize("numbers", [(-1, 0, 42), (4, -1, 42), (4, 0, -1)])
def test_negative_numbers_are_refused(numbers):
    patient, week, seed = numbers
    with pytest.raises(ConfigError, match="0 or more"):
        simulator.patient_volume(patient, week, seed=seed)


def test_too_coarse_a_grid_is_refused():
    with pytest.raises(ConfigError, match="at least 4 slices of 16x16"):
        simulator.patient_volume(4, 0, slices=3)


def test_no_patients_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least one patient"):
        simulator.write_hipmri(tmp_path, patients=(0, 0, 0))


def test_hipmri_files_have_the_names_pairs_and_oddities_of_the_study(tmp_path):
    seen = []
    simulator.write_hipmri(
        tmp_path, patients=(2, 1, 1), weeks=2, slices=4, shape=(64, 32), progress=lambda *at: seen.append(at)
    )
    assert seen == [(done, 8) for done in range(1, 9)]
    assert not list(tmp_path.rglob("*.partial"))
    shapes = {}
    for split, cases in (("train", (4, 5)), ("validate", (6,)), ("test", (7,))):
        images = sorted((tmp_path / f"keras_slices_{split}").iterdir())
        expected = [
            f"case_{c:03d}_week_{w}_slice_{i}.nii.gz" for c in cases for w in (0, 1) for i in range(4)
        ]
        assert [path.name for path in images] == sorted(expected)
        for path in images:
            mask = tmp_path / f"keras_slices_seg_{split}" / path.name.replace("case", "seg")
            image, labels = nib.nifti1.load(path), nib.nifti1.load(mask)
            assert image.shape == labels.shape
            assert labels.get_data_dtype() == np.uint8
            shapes[path.name] = image.shape
    assert shapes["case_005_week_0_slice_0.nii.gz"][:2] == (64, 36)
    assert {shape[:2] for name, shape in shapes.items() if "case_005_week_0" not in name} == {(64, 32)}
    assert {shape[2:] for shape in shapes.values()} == {(), (1,)}


def test_a_hipmri_slice_is_that_of_the_volume_whatever_else_is_written(tmp_path):
    simulator.write_hipmri(tmp_path, patients=(0, 0, 1), slices=4, shape=(64, 32))
    made = simulator.patient_volume(4, 0, slices=4, shape=(64, 32))
    image = nib.nifti1.load(tmp_path / "keras_slices_test" / "case_004_week_0_slice_2.nii.gz")
    np.testing.assert_array_equal(image.get_fdata(), made.image[:, :, 2])
    np.testing.assert_allclose(image.affine @ [0, 0, 0, 1], made.affine @ [0, 0, 2, 1], rtol=1e-6)


def test_volumes_have_the_names_of_the_study_and_their_geometry(tmp_path):
    simulator.write_volumes(tmp_path, patients=1, weeks=2, slices=4, shape=(64, 32))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "Case_004_Week0_LFOV.nii.gz",
        "Case_004_Week0_SEMANTIC_LFOV.nii.gz",
        "Case_004_Week1_LFOV.nii.gz",
        "Case_004_Week1_SEMANTIC_LFOV.nii.gz",
    ]
    made = simulator.patient_volume(4, 1, slices=4, shape=(64, 32))
    image = nib.nifti1.load(tmp_path / "Case_004_Week1_LFOV.nii.gz")
    labels = nib.nifti1.load(tmp_path / "Case_004_Week1_SEMANTIC_LFOV.nii.gz")
    np.testing.assert_array_equal(image.get_fdata(), made.image)
    np.testing.assert_array_equal(np.asarray(labels.dataobj), made.labels)
    np.testing.assert_allclose(image.affine, made.affine, rtol=1e-6)
