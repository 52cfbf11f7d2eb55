"""Simulate T2-weighted MR of a male pelvis: the synthetic data set of Slicebook.

A patient is the atlas of `atlas.py`, scaled and smoothly warped, with random organ parameters. Weeks of one
patient differ in bladder and rectal filling and in position. No voxel comes from a real person.

The signal is that of a spin echo, `S = PD (1 - exp(-TR / T1)) exp(-TE / T2)` (Bernstein, King and Zhou,
Handbook of MRI Pulse Sequences, 2004, ch. 14), with the tissue constants of `atlas.TISSUES`. Point spread and
slice profile (Gaussian), a smooth receive field, and Rician noise (Gudbjartsson and Patz 1995, Magn Reson
Med 34:910) are applied afterwards.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from scipy.ndimage import gaussian_filter

from slicebook.errors import ConfigError
from slicebook.io.nifti import write_nifti
from slicebook.phantom.anatomy import Anatomy, draw_anatomy, draw_slice
from slicebook.phantom.atlas import TISSUES, Tissue
from slicebook.phantom.rasterizer import Canvas, Textures

FIELD_MM = (430.0, 200.0)  # left-right, front-back: 256 x 128 pixels of 1.68 x 1.56 mm
LOWEST_MM, HIGHEST_MM = -55.0, 65.0  # bulb of the penis to dome of the bladder
FIRST_CASE = 4  # HipMRI starts at case 004
SPLITS = ("train", "validate", "test")  # folder names of HipMRI

Progress = Callable[[int, int], None]  # volumes written, volumes in all


@dataclass(frozen=True)
class PhantomVolume:
    """A volume and its labels on one grid.

    Attributes:
        image: magnitude signal; non-negative whole numbers, whose scale differs between volumes.
        labels: values of `phantom.labels`.
        affine: voxel index to RAS+ mm.
    """

    image: Float32[np.ndarray, "x y z"]
    labels: UInt8[np.ndarray, "x y z"]
    affine: Float64[np.ndarray, "4 4"]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """The size of a voxel in mm."""
        return float(self.affine[0, 0]), float(self.affine[1, 1]), float(self.affine[2, 2])


def patient_volume(
    patient: int, week: int, *, seed: int = 42, slices: int = 60, shape: tuple[int, int] = (256, 128)
) -> PhantomVolume:
    """Simulate one examination of one patient.

    The result depends on the arguments alone. The field of view is fixed, so that a smaller shape means
    larger pixels.

    Args:
        patient: number of the patient; build and texture are the same in every week.
        week: number of the examination; fillings, position, gain and noise differ between weeks.
        seed: seed of the whole data set.
        slices: number of axial slices, from the bulb of the penis (first) to the dome of the bladder (last).
        shape: pixels left-right and front-back of a slice.

    Raises:
        ConfigError: a number is negative, or the grid is too coarse for a pelvis.
    """
    check_volume(patient, week, seed=seed, slices=slices, shape=shape)
    anatomy = draw_anatomy(patient, week, seed)
    spacing = np.array([FIELD_MM[0] / shape[0], FIELD_MM[1] / shape[1], (HIGHEST_MM - LOWEST_MM) / slices])
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [*(-spacing[:2] * (np.array(shape) - 1) / 2), LOWEST_MM + spacing[2] / 2]
    textures = Textures((seed, patient), anatomy.build, shape, spacing[:2])
    echo = {name: spin_echo(tissue, anatomy.tr, anatomy.te) for name, tissue in TISSUES.items()}
    signal = np.empty((*shape, slices), np.float32)
    labels = np.empty((*shape, slices), np.uint8)
    for index in range(slices):
        canvas = Canvas(affine[2, 3] + index * spacing[2], anatomy.build, textures, echo)
        draw_slice(canvas, anatomy)
        signal[:, :, index], labels[:, :, index] = canvas.signal, canvas.labels
    noise = np.random.default_rng([seed, patient, 5, week])
    return PhantomVolume(acquire(signal, anatomy, float(spacing[2]), noise), labels, affine)


def spin_echo(tissue: Tissue, tr: float, te: float) -> float:
    """Return the relative signal of a tissue at repetition time `tr` and echo time `te` (ms)."""
    return float(tissue.density * (1 - np.exp(-tr / tissue.t1)) * np.exp(-te / tissue.t2))


def acquire(
    signal: Float32[np.ndarray, "x y z"], anatomy: Anatomy, slice_mm: float, rng: np.random.Generator
) -> Float32[np.ndarray, "x y z"]:
    """Turn ideal signal into a stored image: blur, receive field, gain, Rician noise, rounding."""
    image = gaussian_filter(signal, (0.5, 0.5, min(1.0 / slice_mm, 0.6)))
    x, y, z = (axis.astype(np.float32) for axis in np.ogrid[tuple(slice(-1, 1, n * 1j) for n in image.shape)])
    b = anatomy.bias.astype(np.float32)
    plane = 0.1 * (b[0] * x + b[1] * y) + 0.06 * (b[2] * x * y + b[3] * np.cos(2 * x + b[4]))
    plane = plane + 0.25 * (y**2 - 0.5) - 0.1 * x**2  # coils lie in front and behind
    image *= np.exp(plane) * np.exp(0.1 * b[5] * z + 0.06 * b[6] * z**2) * np.float32(anatomy.gain / 0.4)
    sigma = np.float32(anatomy.noise * anatomy.gain)
    image += sigma * rng.standard_normal(image.shape, np.float32)
    magnitude: Float32[np.ndarray, "x y z"] = np.hypot(
        image, sigma * rng.standard_normal(image.shape, np.float32)
    )
    np.rint(magnitude, out=magnitude)
    return magnitude


def write_hipmri(
    out: str | Path,
    *,
    patients: tuple[int, int, int] = (6, 2, 2),
    weeks: int = 1,
    slices: int = 60,
    seed: int = 42,
    shape: tuple[int, int] = (256, 128),
    simulate: Callable[..., PhantomVolume] = patient_volume,
    progress: Progress | None = None,
) -> None:
    """Write slices in the file layout of the HipMRI study, including its irregularities.

    `keras_slices_train/case_004_week_0_slice_0.nii.gz` belongs to
    `keras_slices_seg_train/seg_004_week_0_slice_0.nii.gz`; likewise for `validate` and `test`. The first
    week of one training patient has an eighth more rows (256x144), and some slices a third axis of 1.

    Args:
        out: folder, created if missing; files of the same name are replaced atomically.
        patients: number of training, validation and test patients.
        weeks: volumes per patient.
        slices: slices per volume.
        seed: seed of the whole data set.
        shape: pixels left-right and front-back of a slice.
        simulate: `patient_volume` or `randomized.random_volume`.
        progress: called after each volume.

    Raises:
        ConfigError: a count or size is too small.
        DataError: a file cannot be written.
    """
    out = Path(out)
    _check_counts(*patients, weeks=weeks)
    split_of = [split for split, count in zip(SPLITS, patients, strict=True) for _ in range(count)]
    odd = patients[0] // 2 if patients[0] > 1 else None
    for done, (index, week) in enumerate(product(range(len(split_of)), range(weeks)), start=1):
        case, split = FIRST_CASE + index, split_of[index]
        size = (shape[0], shape[1] * 9 // 8) if index == odd and week == 0 else shape
        volume = simulate(case, week, seed=seed, slices=slices, shape=size)
        images, masks = out / f"keras_slices_{split}", out / f"keras_slices_seg_{split}"
        for folder in (images, masks):
            folder.mkdir(parents=True, exist_ok=True)
        for at in range(slices):
            name = f"{case:03d}_week_{week}_slice_{at}.nii.gz"
            section = np.s_[:, :, at : at + 1] if at % 10 == 1 else np.s_[:, :, at]
            affine = volume.affine.copy()
            affine[2, 3] += at * volume.affine[2, 2]
            write_nifti(images / f"case_{name}", volume.image[section], affine=affine)
            write_nifti(masks / f"seg_{name}", volume.labels[section], affine=affine)
        if progress:
            progress(done, len(split_of) * weeks)


def write_volumes(
    out: str | Path,
    *,
    patients: int = 10,
    weeks: int = 1,
    slices: int = 60,
    seed: int = 42,
    shape: tuple[int, int] = (256, 128),
    simulate: Callable[..., PhantomVolume] = patient_volume,
    progress: Progress | None = None,
) -> None:
    """Write volumes and their labels under the names of the HipMRI study.

    `Case_004_Week0_LFOV.nii.gz` belongs to `Case_004_Week0_SEMANTIC_LFOV.nii.gz`. The arguments are those of
    `write_hipmri`; a patient number gives the same patient in both.

    Raises:
        ConfigError: a count or size is too small.
        DataError: a file cannot be written.
    """
    out = Path(out)
    _check_counts(patients, weeks=weeks)
    out.mkdir(parents=True, exist_ok=True)
    for done, (index, week) in enumerate(product(range(patients), range(weeks)), start=1):
        volume = simulate(FIRST_CASE + index, week, seed=seed, slices=slices, shape=shape)
        stem = f"Case_{FIRST_CASE + index:03d}_Week{week}"
        write_nifti(out / f"{stem}_LFOV.nii.gz", volume.image, affine=volume.affine)
        write_nifti(out / f"{stem}_SEMANTIC_LFOV.nii.gz", volume.labels, affine=volume.affine)
        if progress:
            progress(done, patients * weeks)


def check_volume(patient: int, week: int, *, seed: int, slices: int, shape: tuple[int, int]) -> None:
    """Refuse numbers that no volume has.

    Raises:
        ConfigError: a number is negative, or the grid too coarse to hold a pelvis.
    """
    if min(seed, patient, week) < 0:
        raise ConfigError(f"phantom: seed {seed}, patient {patient}, week {week}; give numbers of 0 or more")
    if slices < 4 or min(shape) < 16:
        raise ConfigError(
            f"phantom: {slices} slices of {shape[0]}x{shape[1]}; give at least 4 slices of 16x16"
        )


def _check_counts(*patients: int, weeks: int) -> None:
    if min(patients) < 0 or sum(patients) < 1 or weeks < 1:
        raise ConfigError(
            f"phantom: {patients} patients of {weeks} weeks; give at least one patient and one week"
        )
