"""The anatomy of one phantom examination: its random parameters, and the drawing of its slices."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from slicebook.phantom import atlas
from slicebook.phantom.atlas import Part
from slicebook.phantom.labels import BLADDER, BONE, PROSTATE, RECTUM
from slicebook.phantom.rasterizer import Build, Canvas


@dataclass(frozen=True)
class Anatomy:
    """The random parameters of one examination, except texture and noise. Lengths are in mm of the atlas.

    Attributes:
        build: how the atlas is deformed.
        prostate: radii left-right, front-back, up-down.
        transition: relative size of the transition zone, about 0.7 to 1 (enlarged).
        nodules: of the transition zone; rows of x, y, z in -1..1, then size and kind in 0..1.
        vesicles: lobules of the seminal vesicles; rows of x, y, z, radius.
        vessels: rows of x, y, slant in x and y, radius, lowest z, highest z, kind in 0..1.
        bowel: loops above the bladder; rows of x, y, z, radius.
        bladder: radii left-right and front-back, height.
        distension, gas: of the rectum.
        sway: sideways amplitude of the rectum, and its phase.
        tr, te: repetition and echo time in ms.
        bias: coefficients of the receive field.
        gain: signal of fat in the stored image.
        noise: standard deviation, relative to fat.
    """

    build: Build
    prostate: Float64[np.ndarray, "3"]
    transition: float
    nodules: Float64[np.ndarray, "n 5"]
    vesicles: Float64[np.ndarray, "v 4"]
    vessels: Float64[np.ndarray, "w 8"]
    bowel: Float64[np.ndarray, "l 4"]
    bladder: Float64[np.ndarray, "3"]
    distension: float
    gas: float
    sway: tuple[float, float]
    tr: float
    te: float
    bias: Float64[np.ndarray, "7"]
    gain: float
    noise: float


def draw_anatomy(patient: int, week: int, seed: int) -> Anatomy:
    """Draw parameters of the patient from `(seed, patient)`, of the visit from `(seed, patient, week)`."""
    person = np.random.default_rng([seed, patient, 1, 0])
    visit = np.random.default_rng([seed, patient, 2, week])
    skin = np.array([person.uniform(0.94, 1.02), 0.915])
    build = Build(
        skin_scale=skin,
        inner_scale=skin * person.uniform(0.92, 0.99),
        height_scale=person.uniform(0.95, 1.05),
        shift=visit.uniform((-4.0, -1.2, -2.5), (4.0, 1.2, 2.5)),
        waves=np.concatenate([_waves(person, 5, 1.6), _waves(visit, 3, 0.6)]),
    )
    enlarged = person.beta(2, 3)
    filling = np.clip(person.uniform(0.15, 0.75) + visit.normal(0, 0.2), 0, 1)
    nodules = int(person.integers(14, 22))
    return Anatomy(
        build=build,
        prostate=(21.5, 14.5, 20.0) + np.array([6.5, 6.0, 6.0]) * enlarged + person.normal(0, 0.5, 3),
        transition=0.72 + 0.3 * enlarged,
        nodules=np.concatenate(
            [person.uniform(-0.8, 0.8, (nodules, 3)), person.uniform(0, 1, (nodules, 2))], 1
        ),
        vesicles=_vesicles(person),
        vessels=_vessels(person),
        bowel=visit.uniform((-36, 22, 50, 8), (36, 58, 72, 14), (9, 4)),
        bladder=(29.0, 19.0, 48.0) + np.array([15.0, 15.0, 24.0]) * filling,
        distension=visit.uniform(0.75, 1.3),
        gas=visit.uniform(-0.5, 1.0),
        sway=(visit.uniform(-8, 8), person.uniform(0, 2 * np.pi)),
        tr=person.uniform(4000, 6200),
        te=person.uniform(96, 110),
        bias=visit.normal(0, 1, 7),
        gain=float(np.exp(visit.uniform(np.log(120), np.log(900)))),
        noise=visit.uniform(0.02, 0.04),
    )


def _waves(rng: np.random.Generator, count: int, mm: float) -> Float64[np.ndarray, "n 6"]:
    directions = rng.normal(0, 1, (count, 3))
    vectors = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    vectors *= 2 * np.pi / rng.uniform(110, 320, (count, 1))
    return np.concatenate(
        [vectors, rng.uniform(0, 2 * np.pi, (count, 1)), rng.uniform(-mm, mm, (count, 2))], 1
    )


def _vesicles(rng: np.random.Generator, pairs: int = 9) -> Float64[np.ndarray, "v 4"]:
    """Place the lobules behind the bladder, rising laterally."""
    out = np.repeat(5 + 4.2 * np.arange(pairs), 2)
    x = out * np.tile((1, -1), pairs)
    places = np.stack([x, -10 + 0.1 * out, 15 + 0.2 * out], 1) + rng.normal(
        0, (0.8, 2.2, 2.5), (2 * pairs, 3)
    )
    return np.concatenate([places, rng.uniform(3.0, 5.4, (2 * pairs, 1))], 1)


def _vessels(rng: np.random.Generator, count: int = 46) -> Float64[np.ndarray, "w 8"]:
    """Place small vessels in the fat: under the skin, around bladder and rectum, beside the prostate."""
    regions = np.array([(0, 88, 90, 3), (0, -74, 70, 8), (0, -15, 42, 26), (0, 8, 33, 9), (0, 45, 35, 20)])
    x, y, wide, deep = regions[rng.choice(len(regions), count, p=[0.25, 0.1, 0.3, 0.25, 0.1])].T
    x = x + wide * rng.choice((-1, 1), count) * rng.uniform(0.45, 1.0, count)
    y = y + deep * rng.uniform(-1, 1, count)
    slants = rng.normal(0, 0.2, (2, count))
    radius, kind = rng.uniform(0.8, 1.8, count), rng.uniform(0, 1, count)
    low = rng.uniform(-75, 65, count)
    return np.stack([x, y, *slants, radius, low, low + rng.uniform(15, 50, count), kind], 1)


def draw_slice(canvas: Canvas, anatomy: Anatomy) -> None:
    """Draw all structures at one height, from the skin inwards."""
    for part in (atlas.BODY_OUTLINE, atlas.CLEFT):
        canvas.parts(part, scale=anatomy.build.skin_scale)
    _draw_vessels(canvas, anatomy)
    for muscle in atlas.MUSCLES:
        canvas.parts(muscle)
    canvas.parts(atlas.LEVATOR, scale=anatomy.build.inner_scale * (anatomy.prostate[0] / 24, 1))
    canvas.parts(*atlas.PELVIC_BONES)
    canvas.parts(atlas.SYMPHYSIS)
    canvas.parts(atlas.SACRUM)
    _draw_femur(canvas)
    canvas.parts(*atlas.VESSELS)
    canvas.parts(*atlas.PERINEUM)
    _draw_bowel(canvas, anatomy)
    _draw_vesicles(canvas, anatomy)
    _draw_bladder(canvas, anatomy)
    _draw_rectum(canvas, anatomy)
    _draw_prostate(canvas, anatomy)


def _ball(radius: float, away: float) -> float:
    """Return the radius of a sphere's section at a distance from its centre; 0 outside."""
    return float(np.sqrt(max(radius**2 - away**2, 0)))


def _draw_vessels(canvas: Canvas, anatomy: Anatomy) -> None:
    for x, y, slant_x, slant_y, radius, low, high, kind in anatomy.vessels:
        if low < canvas.z < high:
            up = canvas.z - low
            tissue = "blood" if kind < 0.6 else "slow blood"
            canvas.ellipse(x + slant_x * up, y + 0.3 * slant_y * up, radius, radius, tissue)


def _draw_femur(canvas: Canvas) -> None:
    x, y, z, radius = atlas.FEMORAL_HEAD
    joint, head = (_ball(r, canvas.z - z) for r in (radius + 2.2, radius))
    for side in (1, -1) if joint > 2 else ():
        canvas.ellipse(side * x, y, joint, joint, "joint fluid")
    ball = Part(
        "femoral head", "yellow marrow", {canvas.z: (x, y, head, head, 0.0)}, atlas.CORTICAL_WALL, BONE
    )
    canvas.parts(*((ball,) if head > 3 else ()), *atlas.FEMUR)


def _draw_bowel(canvas: Canvas, anatomy: Anatomy) -> None:
    for x, y, z, radius in anatomy.bowel:
        r = _ball(radius, canvas.z - z)
        if r > 3:
            canvas.ellipse(x, y, 1.3 * r, r, "mucosa", None, ("smooth muscle", 2.0))
            canvas.ellipse(x, y + 0.2 * r, 0.7 * r, 0.4 * r, "stool" if z > 60 else "gas")


def _draw_vesicles(canvas: Canvas, anatomy: Anatomy) -> None:
    for x, y, z, radius in anatomy.vesicles:
        r = radius * _ball(1.0, (canvas.z - z) / 8)
        if r > 1:
            canvas.ellipse(x, y, 1.2 * r, r, "secretion", None, ("smooth muscle", 0.8))


def _draw_bladder(canvas: Canvas, anatomy: Anatomy) -> None:
    """Draw a rounded box; its neck is in front of the prostate's base, and its dome tilts backwards."""
    rx, ry, height = anatomy.bladder
    up = (canvas.z + 1) / height
    if not 0.01 < up < 0.99:
        return
    size = np.sqrt(1 - abs(2 * up - 1) ** 2.5)
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    across, along = (np.sign(f(turn)) * abs(f(turn)) ** 0.8 for f in (np.cos, np.sin))
    y = 27 + 13 * np.exp(-(canvas.z + 1) / 16)
    points = np.stack([rx * size * across * (1 - 0.12 * along), y + ry * size * along], 1)
    canvas.blob(points, "urine", BLADDER, ("smooth muscle", 4.2 - 0.03 * height))


def _draw_rectum(canvas: Canvas, anatomy: Anatomy) -> None:
    """Draw along the curve of the sacrum; the back wall is fixed, the front wall moves with the filling."""
    z, (sway, phase) = canvas.z, anatomy.sway
    back = np.interp(z, [-58, -35, -20, -8, 8, 25, 45, 68], [-42, -35, -37, -45, -56, -60, -54, -44])
    filled = np.clip((z + 28) / 20, 0, 1)  # 0 in the anal canal
    ry = np.interp(z, [-58, -25, 0, 22, 45, 68], [10, 11, 14, 18, 17, 15])
    ry = min(
        ry * (1 + (anatomy.distension - 1) * filled), (-10.5 - back) / 2
    )  # the prostate's back is at -10
    rx = ry * (0.95 + 0.15 * filled)
    x = sway * np.clip((z - 5) / 30, 0, 1) * np.sin(z / 28 + phase)
    wall = 5.0 - 2.2 * filled
    canvas.ellipse(x, back + ry, rx, ry, "mucosa", RECTUM, ("smooth muscle", wall))
    if filled < 0.3:
        canvas.ellipse(x, back + ry, 0.9, 0.3 * ry, "stroma")
        return
    rx, deep = rx - wall - 1.2, ry - wall - 1.2
    canvas.ellipse(x, back + ry, rx, deep, "stool")
    gas = deep * np.clip(anatomy.gas + 0.3 * np.sin(z / 16 + phase), 0, 1)
    if gas > 1.5:  # gas rises to the front of a supine patient
        canvas.ellipse(x, back + ry + deep - gas, rx * min(1, gas / deep + 0.25), gas, "gas")


def _draw_prostate(canvas: Canvas, anatomy: Anatomy) -> None:
    """Draw a bright peripheral zone, a nodular transition zone, dark anterior stroma, and the urethra."""
    rx, ry, height = anatomy.prostate
    up = canvas.z / height
    if abs(up) > 0.97:
        return
    size = np.sqrt(1 - abs(up) ** (2.0 if up < 0 else 2.8))
    y, rx, ry = ry - 9.5, rx * size, ry * size
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    depth = np.sin(turn) * np.where(turn > np.pi, 0.86, 1.0)
    depth += 0.12 * np.exp(-((np.cos(turn) / 0.45) ** 2)) * (turn > np.pi)  # hollowed by the rectum
    canvas.blob(
        np.stack([rx * np.cos(turn), y + ry * depth], 1), "peripheral zone", PROSTATE, ("stroma", 1.1)
    )
    canvas.ellipse(0.0, y + 0.70 * ry, 0.5 * rx, 0.25 * ry, "stroma")
    if up > 0.45:
        canvas.ellipse(0.0, y - 0.4 * ry, 0.55 * rx, 0.28 * ry, "stroma")  # central zone
    lobe = anatomy.transition * float(np.clip((up + 0.75) / 0.5, 0, 1))
    if lobe > 0.15:
        _draw_transition_zone(canvas, anatomy, up, (y + 0.16 * ry, rx * lobe, ry * lobe))
    if up < 0.5:
        canvas.ellipse(0.0, y - 0.05 * ry, 3.0, 3.4, "secretion", None, ("stroma", 1.5))  # urethra


def _draw_transition_zone(
    canvas: Canvas, anatomy: Anatomy, up: float, zone: tuple[float, float, float]
) -> None:
    y, rx, ry = zone
    for side in (1, -1):
        canvas.ellipse(side * 0.37 * rx, y, 0.44 * rx, 0.6 * ry, "transition zone", None, ("stroma", 1.0))
    for across, along, at, size, kind in anatomy.nodules:
        r = (1.5 + 4 * size) * rx / 24 * _ball(1.0, (up - at) / 0.35)
        if r > 1 and across**2 + along**2 < 0.7:
            x = np.sign(across) * 0.37 * rx + 0.31 * rx * across
            tissue = "nodule" if kind < 0.6 else "stroma"
            canvas.ellipse(x, y + 0.48 * ry * along, r, r, tissue)
