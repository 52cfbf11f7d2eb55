"""What tests of sheets and others share."""

import numpy as np
from matplotlib.image import imread


def pixels_of(path):
    return (imread(path)[..., :3] * 255).round().astype(np.uint8)
