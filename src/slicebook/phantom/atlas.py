"""Atlas of a male pelvis: tissues with their relaxation times, and outlines of muscles, bones and vessels.

The outlines were drawn by hand from axial anatomy at a few levels and follow no individual; they are
interpolated between levels. Coordinates are RAS+ in mm, relative to the centre of the prostate: x to the
patient's right, y to the front, z to the head.

Relaxation times at 3 T are near those of de Bazelaire et al. 2004 (Radiology 230:652: prostate), Stanisz et
al. 2005 (Magn Reson Med 54:507: muscle, nerve), Gold et al. 2004 (AJR 183:343: fat, cartilage) and Simpkin et
al. 2013 (Br J Radiol 86:20120469: peripheral zone). Proton densities, and values of tissues that these papers
do not cover, were chosen by visual comparison.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from slicebook.phantom.labels import BODY, BONE

Number = int | float


class Tissue(NamedTuple):
    """Properties of a tissue: relative proton density, T1 and T2 in ms, and its texture.

    `fine` and `coarse` are the relative amplitudes of texture at 2 mm and 6 mm; `streaks` is the fraction of
    fat in the lines between muscle fibres; `septa` is how much thin septa darken fat.
    """

    density: float
    t1: Number
    t2: Number
    fine: float = 0.04
    coarse: float = 0.04
    streaks: float = 0.0
    septa: float = 0.0


TISSUES: Mapping[str, Tissue] = {
    "skin": Tissue(0.6, 900, 40),
    "fat": Tissue(0.9, 371, 133, fine=0.025, coarse=0.015, septa=0.28),
    "muscle": Tissue(0.8, 1412, 50, fine=0.10, coarse=0.08, streaks=0.12),
    "fibrous muscle": Tissue(0.8, 1412, 50, fine=0.10, coarse=0.08, streaks=0.5),
    "smooth muscle": Tissue(0.8, 1412, 55, fine=0.05, coarse=0.05),
    "marrow": Tissue(0.65, 450, 115, fine=0.10, coarse=0.12),
    "yellow marrow": Tissue(0.78, 371, 128, fine=0.04, coarse=0.05),
    "cortex": Tissue(0.1, 500, 5),
    "cartilage": Tissue(0.8, 1240, 60),
    "joint fluid": Tissue(0.8, 1240, 95),
    "urine": Tissue(0.9, 4300, 900, fine=0.005, coarse=0.01),
    "peripheral zone": Tissue(0.85, 1597, 149, fine=0.12, coarse=0.10),
    "transition zone": Tissue(0.85, 1597, 74, fine=0.22, coarse=0.20),
    "nodule": Tissue(0.85, 1597, 110, fine=0.18, coarse=0.1),
    "stroma": Tissue(0.8, 1500, 55, fine=0.08, coarse=0.05),
    "secretion": Tissue(0.9, 2500, 200, fine=0.1, coarse=0.1),
    "mucosa": Tissue(0.8, 1400, 85, fine=0.12),
    "stool": Tissue(0.45, 900, 60, fine=0.75, coarse=0.2),
    "gas": Tissue(0.02, 1000, 50),
    "blood": Tissue(0.05, 1650, 150),  # a flow void
    "slow blood": Tissue(0.7, 1650, 110),
    "nerve": Tissue(0.8, 1083, 78, fine=0.15),
    "cord": Tissue(0.8, 1200, 80, fine=0.3),
    "cavernous": Tissue(0.85, 1900, 140, fine=0.06),
}


@dataclass(frozen=True, eq=False)
class Part:
    """One structure, given by its outline at a few levels z (mm); it fades out just beyond the last level.

    An outline is an ellipse (x, y, two radii, degrees) or a string of points "x y  x y ...". A paired part
    is mirrored; for an unpaired part the string gives the right half from front to back. `grow` dilates the
    outline (mm).
    """

    name: str
    tissue: str
    levels: Mapping[Number, tuple[Number, ...] | str]
    rim: tuple[str, float] | None = None  # tissue and thickness (mm) of the wall
    label: int = BODY
    paired: bool = True
    grow: float = 0.0


CORTICAL_WALL = ("cortex", 1.9)
TUNICA = ("cortex", 1.2)

_MUSCLES = (
    Part(
        "gluteus maximus",
        "fibrous muscle",
        {
            65: "34 -66  75 -62  115 -42  140 -14  149 -20  133 -56  95 -82  50 -88",
            25: "13 -72  45 -62  85 -50  120 -40  148 -24  153 -36  128 -67  85 -87  40 -90  14 -84",
            0: "15 -68  45 -60  85 -54  120 -48  150 -32  152 -44  126 -71  85 -89  42 -91  17 -82",
            -25: "27 -72  50 -60  85 -57  115 -52  142 -38  144 -49  118 -74  85 -90  48 -91  29 -83",
            -62: "42 -76  60 -65  88 -62  112 -54  134 -42  135 -53  112 -74  86 -88  58 -90  44 -84",
        },
    ),
    Part(
        "gluteus medius",
        "fibrous muscle",
        {
            68: "104 40  122 40  146 18  152 -8  138 -32  122 -30  112 -10  106 16",
            30: "120 34  138 30  154 8  153 -16  140 -30  131 -20  129 2  122 18",
            2: "140 20  150 18  158 4  158 -10  153 -15  152 -4  149 6  142 13",
        },
    ),
    Part(
        "gluteus minimus",
        "muscle",
        {68: (104, 0, 8, 25, 8), 28: (118, 6, 8, 20, 10), 14: (126, 8, 5, 12, 10)},
    ),
    Part(
        "tensor fasciae latae",
        "muscle",
        {68: (132, 50, 8, 15, 40), 0: (143, 45, 8, 19, 28), -62: (150, 30, 7, 20, 14)},
    ),
    Part(
        "sartorius",
        "muscle",
        {68: (118, 60, 11, 7, -30), 0: (112, 67, 14, 7, -22), -62: (88, 74, 15, 7, -12)},
    ),
    Part(
        "rectus femoris",
        "muscle",
        {32: (112, 40, 5, 5, 0), 12: (118, 42, 9, 11, 0), -62: (118, 46, 16, 13, 0)},
    ),
    Part(
        "iliopsoas",
        "muscle",
        {
            68: (88, 47, 22, 15, -25),
            25: (88, 50, 20, 12, -22),
            0: (94, 47, 17, 13, -20),
            -25: (104, 28, 13, 13, -20),
            -52: (108, 10, 9, 11, -20),
        },
    ),
    Part(
        "pectineus",
        "muscle",
        {
            12: (54, 65, 15, 5, -18),
            -12: (60, 58, 22, 8, -25),
            -35: (70, 47, 23, 10, -36),
            -62: (80, 34, 20, 9, -40),
        },
    ),
    Part(
        "adductor longus",
        "fibrous muscle",
        {-18: (42, 60, 18, 5, -38), -35: (44, 52, 26, 9, -42), -62: (50, 50, 32, 12, -42)},
    ),
    Part(
        "adductors brevis and magnus",
        "fibrous muscle",
        {-36: (52, 24, 20, 8, -42), -62: (60, 18, 34, 15, -46)},
    ),
    Part("gracilis", "muscle", {-34: (20, 38, 3, 10, -15), -62: (27, 38, 4, 20, -20)}),
    Part(
        "obturator externus",
        "fibrous muscle",
        {
            2: (58, 32, 14, 5, -35),
            -14: (64, 24, 28, 8, -38),
            -35: (68, 12, 32, 9, -32),
            -50: (78, 4, 22, 7, -20),
        },
    ),
    Part(
        "quadratus femoris",
        "muscle",
        {-8: (98, -28, 14, 5, 8), -22: (98, -24, 16, 9, 5), -46: (94, -22, 22, 9, 5)},
    ),
    Part(
        "obturator internus",
        "muscle",
        {
            50: "57 26  62 26  64 0  70 -20  64 -24  58 -4",
            25: "50 37  56 37  59 5  66 -20  84 -38  80 -44  60 -28  50 2",
            0: "41 36  50 37  54 6  61 -22  86 -40  82 -48  60 -43  47 -15  41 10",
            -15: "27 37  37 36  45 8  50 -20  58 -44  51 -46  41 -28  32 -2  26 20",
            -38: "22 20  28 18  39 -4  46 -22  48 -34  44 -34  36 -18  26 2",
        },
    ),
    Part(
        "piriformis",
        "muscle",
        {68: (66, -52, 36, 9, 18), 42: (84, -42, 34, 7, 16), 26: (106, -30, 20, 5, 14)},
    ),
    Part(
        "rectus abdominis",
        "muscle",
        {70: (24, 84, 22, 5, -4), 20: (19, 86, 17, 4.5, -3), 2: (15, 78, 12, 4, -3)},
    ),
    Part("abdominal wall", "muscle", {72: (86, 75, 34, 5, -28), 36: (84, 74, 24, 3, -28)}),
    Part(
        "vastus lateralis",
        "fibrous muscle",
        {-12: (150, 0, 5, 14, 5), -30: (146, 8, 10, 22, 5), -62: (142, 12, 12, 28, 5)},
    ),
    Part("hamstring tendons", "cortex", {-18: (68, -50, 8, 2.5, -15), -55: (66, -46, 11, 4, -15)}),
)
PELVIC_BONES = (
    Part(
        "ilium and acetabulum",
        "marrow",
        {
            70: "76 28  88 40  98 30  98 4  94 -24  84 -40  77 -34  74 -5",
            48: "67 37  84 44  102 36  106 10  98 -18  84 -33  70 -22  65 8",
            25: "60 38  74 46  92 42  92 12  107 -12  102 -25  84 -37  68 -22  61 5",
            5: "54 41  66 42  78 36  78 8  94 -12  90 -24  80 -38  67 -28  58 -4  54 18",
            -6: "62 6  68 10  74 6  78 0  86 -12  86 -24  76 -38  66 -30  60 -12",
        },
        CORTICAL_WALL,
        BONE,
    ),
    Part(
        "ischium",
        "marrow",
        {
            -4: "62 0  72 3  86 -12  86 -26  76 -39  65 -30  60 -14",
            -18: "54 -8  70 -4  85 -16  83 -36  67 -46  56 -36  51 -20",
            -32: "50 -18  66 -11  82 -20  80 -38  66 -46  53 -37",
            -62: "44 -6  56 -9  68 -22  64 -36  54 -36  46 -20",
        },
        CORTICAL_WALL,
        BONE,
    ),
    Part(
        "superior pubic ramus",
        "marrow",
        {
            14: "50 52  60 51  74 42  72 32  60 38  50 44",
            4: "22 62  44 60  72 43  66 33  45 43  24 49",
            -6: "6 63  30 63  56 53  50 44  32 43  8 41",
        },
        CORTICAL_WALL,
        BONE,
    ),
    Part(
        "pubic body and inferior ramus",
        "marrow",
        {
            -6: "3 62  22 64  40 58  44 49  32 43  14 40  3 42",
            -14: "3 63  18 65  35 60  34 45  20 34  9 30  3 36",
            -27: "4 58  14 59  24 46  25 30  16 18  8 22  4 34",
            -38: "8 42  15 42  29 22  32 8  26 6  13 26",
            -50: "20 24  26 24  42 2  48 -14  41 -15  25 6",
            -62: "30 12  34 12  48 -4  52 -16  46 -17  34 0",
        },
        CORTICAL_WALL,
        BONE,
    ),
)
SACRUM = Part(
    "sacrum and coccyx",
    "marrow",
    {
        70: "0 -50  20 -53  45 -57  48 -66  24 -78  0 -82",
        45: "0 -60  14 -61  31 -64  31 -70  16 -77  0 -80",
        26: "0 -66  9 -67  14 -71  8 -76  0 -78",
        10: "0 -65  5 -66  7 -69  4 -73  0 -74",
    },
    CORTICAL_WALL,
    BONE,
    paired=False,
)
FEMUR = (
    Part(
        "femoral neck",
        "yellow marrow",
        {
            10: "90 26  108 17  128 7  141 -2  138 -18  118 -12  100 -6  90 -2",
            -12: "84 18  110 14  134 4  142 -12  132 -22  112 -16  88 -2",
        },
        CORTICAL_WALL,
        BONE,
    ),
    Part(
        "greater trochanter",
        "yellow marrow",
        {
            26: (141, -16, 5, 8, 20),
            8: (140, -10, 9, 15, 25),
            -15: (131, -4, 15, 17, 10),
            -34: (125, 0, 17, 15, 0),
        },
        CORTICAL_WALL,
        BONE,
    ),
    Part(
        "femoral shaft",
        "yellow marrow",
        {-30: (125, 1, 16, 15, 0), -62: (124, 6, 14, 14, 0)},
        ("cortex", 4.5),
        BONE,
    ),
)
FEMORAL_HEAD = (87.0, 12.0, 15.0, 24.0)  # x, y, z of the centre, and the radius
VESSELS = (
    Part(
        "femoral artery",
        "blood",
        {70: (62, 34, 5, 5, 0), 25: (61, 65, 5, 5, 0), 0: (74, 71, 5, 5, 0), -62: (86, 62, 4.5, 4.5, 0)},
    ),
    Part(
        "femoral vein",
        "blood",
        {70: (59, 20, 6, 6, 0), 25: (49, 61, 6.5, 5.5, 0), 0: (61, 71, 6, 5.5, 0), -62: (77, 61, 6, 5.5, 0)},
        ("slow blood", 1.0),
    ),
    Part("great saphenous vein", "blood", {10: (56, 82, 2.5, 2.5, 0), -62: (62, 80, 2.5, 2.5, 0)}),
    Part("sciatic nerve", "nerve", {40: (88, -37, 7, 3, 10), -62: (94, -39, 7, 4, 0)}),
    Part(
        "spermatic cord",
        "cord",
        {28: (46, 80, 6, 4, -20), -10: (28, 83, 7, 6, 0), -62: (22, 82, 9, 7, 0)},
        TUNICA,
    ),
)
PERINEUM = (
    Part(
        "membranous urethra",
        "secretion",
        {-17: (0, 5, 5, 5, 0), -40: (0, 8, 7, 6, 0)},
        ("stroma", 3.2),
        paired=False,
    ),
    Part("crus of penis", "cavernous", {-34: (14, 20, 3, 9, -25), -62: (23, 2, 5, 14, -32)}, TUNICA),
    Part(
        "corpus cavernosum", "cavernous", {-34: (7, 68, 7, 7, 0), -62: (8, 76, 8.5, 10, 0)}, ("cortex", 1.8)
    ),
    Part(
        "bulb of penis", "cavernous", {-37: (0, 10, 9, 7, 0), -62: (0, 18, 13, 12, 0)}, TUNICA, paired=False
    ),
)
BODY_OUTLINE = Part(
    "body",
    "fat",
    {
        70: "0 97  50 96  105 84  152 54  174 10  172 -35  144 -73  88 -95  30 -97  0 -92",
        0: "0 96  50 95  105 86  157 57  183 10  182 -35  152 -75  92 -98  30 -99  0 -90",
        -62: "0 93  50 97  105 91  157 62  181 12  179 -35  150 -75  92 -98  28 -99  0 -84",
    },
    ("skin", 2.0),
    paired=False,
)
LEVATOR = Part(
    "levator ani",
    "fat",
    {
        14: "0 34  22 30  37 8  34 -20  17 -48  0 -57",
        0: "0 32  19 28  31 8  27 -18  12 -42  0 -51",
        -15: "0 28  16 24  23 4  20 -18  9 -38  0 -45",
        -30: "0 18  9 15  12 2  13 -16  8 -34  0 -39",
        -46: "0 4  8 2  13 -6  13 -20  7 -32  0 -35",
    },
    ("muscle", 2.8),
    paired=False,
)
CLEFT = Part(
    "cleft",
    "skin",
    {34: (0, -90, 1.2, 3, 0), 5: (0, -82, 1.8, 15, 0), -62: (0, -78, 2.2, 19, 0)},
    paired=False,
)
SYMPHYSIS = Part(
    "symphysis",
    "cartilage",
    {-2: (0, 51, 2.6, 12, 0), -30: (0, 40, 2.8, 17, 0)},
    ("cortex", 1.0),
    paired=False,
)
# Muscles are adjacent: each is dilated until it meets its neighbour; a fascia of fat separates them.
MUSCLES = tuple(
    part
    if part.tissue == "cortex"
    else replace(part, grow=1.5 if part.name == "obturator internus" else 4.5, rim=("fat", 0.9))
    for part in _MUSCLES
)
