"""Phantoms of random contrast, plane, position, resolution and artefacts, and random shapes.

Networks that learn from images of random contrast work on scans of contrasts that they never saw (SynthSeg,
Billot et al. 2023, https://doi.org/10.1016/j.media.2023.102789; random shapes: SynthMorph, Hoffmann et al.
2022, https://doi.org/10.1109/TMI.2021.3116879). Three of four patients show the pelvis of `anatomy.py`, the
fourth shows shapes that are no anatomy.

    scene (pelvis or shapes) ──▶ random window of it ──▶ field, resolution, artefacts, noise ──▶ stored slice
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from scipy.ndimage import affine_transform, gaussian_filter, zoom

from slicebook.phantom.anatomy import Anatomy, draw_anatomy, draw_slice
from slicebook.phantom.atlas import TISSUES
from slicebook.phantom.rasterizer import Canvas, Textures
from slicebook.phantom.simulator import (
    FIELD_MM,
    HIGHEST_MM,
    LOWEST_MM,
    PhantomVolume,
    check_volume,
    spin_echo,
)

SCENE_MM = 1.25  # pixel of a scene, in all directions
PIXEL_MM = (0.7, 2.5)  # of the stored slice
SLICE_MM = 3.0
TURN_DEGREES = 20.0
RANDOM_CONTRAST = 0.75  # share of the pelves whose tissues have random signals
PLANES = {"axial": 0.5, "sagittal": 0.25, "coronal": 0.25}  # shares
EXACT_AIR = 0.4  # share of volumes whose air is stored as 0, as after a removal of faces or background
NOISELESS = 0.2  # share of volumes without noise, as after denoising
SHAPES_EVERY = 4  # the last of so many patients shows shapes
WHITE = 1000.0  # stored value of the brightest signal, before noise

Image = Float32[np.ndarray, "_ _"]
Labels = UInt8[np.ndarray, "_ _"]
Effect = Callable[[Image, np.random.Generator], Image]


def random_volume(
    patient: int, week: int, *, seed: int = 42, slices: int = 60, shape: tuple[int, int] = (256, 128)
) -> PhantomVolume:
    """Simulate one volume of random contrast. Its labels are 0 where it shows shapes.

    The arguments are those of `simulator.patient_volume`, and the result depends on them alone.

    Raises:
        ConfigError: A number is negative, or the grid too coarse.
    """
    check_volume(patient, week, seed=seed, slices=slices, shape=shape)
    rng = np.random.default_rng([seed, patient, 9, week])
    if patient % SHAPES_EVERY == SHAPES_EVERY - 1:
        scenes = [_shapes(rng, shape) for _ in range(slices)]
    else:
        scenes = _pelvis(patient, week, seed, slices, rng)
    pixel_mm = float(np.exp(rng.uniform(*np.log(PIXEL_MM))))
    image = np.empty((*shape, slices), np.float32)
    labels = np.empty((*shape, slices), np.uint8)
    effects = _draw_effects(rng)
    exact_air = rng.random() < EXACT_AIR
    for index, (signal, classes) in enumerate(scenes):
        seen, labels[:, :, index] = _window(signal, classes, shape, pixel_mm / SCENE_MM, rng)
        air = seen == 0
        for effect in effects:
            seen = effect(seen, rng)
        image[:, :, index] = np.where(air, 0, seen) if exact_air else seen
    np.rint(WHITE * image, out=image)
    return PhantomVolume(image, labels, np.diag([pixel_mm, pixel_mm, SLICE_MM, 1.0]))


def _pelvis(
    patient: int, week: int, seed: int, slices: int, rng: np.random.Generator
) -> list[tuple[Image, Labels]]:
    """Return slices of a pelvis in a random plane, at `SCENE_MM`."""
    anatomy = draw_anatomy(patient, week, seed)
    echo = {name: spin_echo(tissue, anatomy.tr, anatomy.te) for name, tissue in TISSUES.items()}
    if rng.random() < RANDOM_CONTRAST:
        echo = {name: float(rng.random()) for name in TISSUES}
    plane = rng.choice(list(PLANES), p=list(PLANES.values()))
    if plane == "axial":
        heights = np.sort(rng.uniform(LOWEST_MM, HIGHEST_MM, slices))
        return list(_axial(patient, seed, anatomy, echo, heights))
    heights = np.arange(LOWEST_MM, HIGHEST_MM, SCENE_MM)
    stack = list(_axial(patient, seed, anatomy, echo, heights))
    signal, labels = (np.stack(part, 2) for part in zip(*stack, strict=True))  # x, y, z
    axis = 0 if plane == "sagittal" else 1
    inside = np.flatnonzero(labels.any((1 - axis, 2)))
    chosen = np.sort(rng.choice(inside, slices))
    return [(signal.take(index, axis), labels.take(index, axis)) for index in chosen]


def _axial(
    patient: int,
    seed: int,
    anatomy: Anatomy,
    echo: dict[str, float],
    heights: Float64[np.ndarray, " n"],
) -> list[tuple[Image, Labels]]:
    shape = (round(FIELD_MM[0] / SCENE_MM), round(FIELD_MM[1] / SCENE_MM))
    textures = Textures((seed, patient), anatomy.build, shape, np.array([SCENE_MM, SCENE_MM]))
    drawn = []
    for height in heights:
        canvas = Canvas(float(height), anatomy.build, textures, echo)
        draw_slice(canvas, anatomy)
        drawn.append((canvas.signal, canvas.labels))
    return drawn


def _shapes(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Image, Labels]:
    """Return random regions of random signal and texture, most of them inside a body with air around it."""
    count = int(rng.integers(4, 20))
    grain = rng.uniform(0.03, 0.25)  # of the regions, as a fraction of the side
    fields = np.stack([_smooth(rng, shape, grain) for _ in range(count)])
    regions = fields.argmax(0)
    signal = rng.random(count).astype(np.float32)[regions]
    texture = rng.uniform(0, 0.25, count).astype(np.float32)[regions]
    signal *= 1 + texture * _smooth(rng, shape, rng.uniform(0.005, 0.04))
    if rng.random() < 0.7:
        x, y = (np.linspace(-1, 1, side)[:, None] for side in shape)
        distance = np.hypot(x / rng.uniform(0.5, 1.1), y.T / rng.uniform(0.5, 1.1))
        signal[distance + 0.15 * _smooth(rng, shape, 0.2) > 1] = 0
    signal = gaussian_filter(np.maximum(signal, 0), rng.uniform(0.3, 0.8))
    return signal.astype(np.float32), np.zeros(shape, np.uint8)


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], grain: float) -> Image:
    """Return a smooth random field of about unit variance; `grain` is its scale relative to the side."""
    coarse = [max(2, min(side, round(1 / grain))) for side in shape]
    field = rng.standard_normal(coarse).astype(np.float32)
    scaled = zoom(field, np.array(shape) / coarse, order=3, mode="nearest", grid_mode=True)
    return np.asarray(scaled, np.float32)


def _window(
    signal: Image, labels: Labels, shape: tuple[int, int], scale: float, rng: np.random.Generator
) -> tuple[Image, Labels]:
    """Return a turned, scaled and shifted part of a scene on a grid of `shape`.

    Args:
        signal: The scene.
        labels: Its labels.
        shape: Of the result.
        scale: Scene pixels per pixel of the result.
        rng: Draws the angle and the place: near the middle of the scene, so that anatomy may be cut off.
    """
    angle = np.deg2rad(rng.uniform(-TURN_DEGREES, TURN_DEGREES))
    zooms = scale * rng.uniform(0.9, 1.1, 2)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * zooms
    if rng.random() < 0.5:
        matrix[:, 0] *= -1
    middle = (np.array(signal.shape) - 1) / 2 + rng.uniform(-0.2, 0.2, 2) * signal.shape
    offset = middle - matrix @ ((np.array(shape) - 1) / 2)
    # Beyond the scene lies its mirror image, or nothing, as in slices that were padded.
    beyond = "mirror" if rng.random() < 0.6 else "constant"
    if scale > 1:  # no aliasing
        signal = gaussian_filter(signal, 0.4 * scale)
    seen = affine_transform(signal, matrix, offset, shape, order=1, mode=beyond)
    classes = affine_transform(labels, matrix, offset, shape, order=0, mode=beyond)
    return np.asarray(seen, np.float32), np.asarray(classes, np.uint8)


def _draw_effects(rng: np.random.Generator) -> list[Effect]:
    """Draw what one scanner and examination do to every slice of a volume, in the order of the physics."""
    strength = float(rng.uniform(0, 0.6))
    sigma = rng.uniform(0, 1.0, 2)
    share = float(rng.uniform(0.5, 1.0)) if rng.random() < 0.5 else 1.0
    level = 0.0 if rng.random() < NOISELESS else float(rng.uniform(0, 1) ** 3 * 0.1)
    effects: list[Effect] = []
    if rng.random() < 0.05:
        effects.append(_metal)
    effects.append(lambda image, draw: image * np.exp(strength * _smooth(draw, image.shape, 0.4)))
    if rng.random() < 0.5:
        effects.append(lambda image, _: np.asarray(gaussian_filter(image, sigma), np.float32))
    if rng.random() < 0.1:
        effects.append(_ghosts)
    varying = rng.random() < 0.3
    effects.append(lambda image, draw: _acquired(image, level, varying, share, draw))
    return effects


def _metal(image: Image, rng: np.random.Generator) -> Image:
    """Put a signal void with a bright rim at a random place, as around an implant."""
    x, y = np.ogrid[: image.shape[0], : image.shape[1]]
    centre, radius = rng.uniform(0.1, 0.9, 2) * image.shape, rng.uniform(0.03, 0.12) * min(image.shape)
    distance = np.hypot(x - centre[0], (y - centre[1]) * rng.uniform(0.6, 1.6)) / radius
    rim = np.exp(-8 * (distance - 1) ** 2) * rng.uniform(0.3, 1.0)
    return np.asarray(np.where(distance < 0.95, 0.02, image + rim), np.float32)


def _ghosts(image: Image, rng: np.random.Generator) -> Image:
    """Add shifted copies along one axis, as periodic motion does along the phase encoding."""
    axis, copies = int(rng.integers(2)), int(rng.integers(2, 6))
    step = image.shape[axis] // copies
    weight = np.float32(rng.uniform(0.03, 0.2))
    ghosted: Image = image + weight * (np.roll(image, step, axis) + np.roll(image, -step, axis))
    return ghosted


def _acquired(image: Image, level: float, varying: bool, share: float, rng: np.random.Generator) -> Image:
    """Return the magnitude image of an acquisition.

    Args:
        image: Signal without noise.
        level: Standard deviation of the complex noise, whose magnitude is Rician.
        varying: Whether the level varies over the slice, as after parallel imaging.
        share: Of the spatial frequencies that are acquired along each axis; the others are 0. So edges ring,
            and below 1 neighbouring pixels have similar noise.
        rng: Draws the noise.
    """
    acquired = image.astype(np.complex64)
    if level > 0:
        sigma = np.float32(level) * (np.exp(0.5 * _smooth(rng, image.shape, 0.4)) if varying else 1)
        real, imaginary = rng.standard_normal((2, *image.shape), np.float32)
        acquired += sigma * (real + 1j * imaginary)
    if share < 1:
        spectrum = np.fft.fftshift(np.fft.fft2(acquired))
        for axis, side in enumerate(image.shape):
            distance = np.abs(np.arange(side) - side // 2)
            spectrum[(slice(None),) * axis + (distance > share * side / 2,)] = 0
        acquired = np.fft.ifft2(np.fft.ifftshift(spectrum)).astype(np.complex64)
    return np.abs(acquired)
