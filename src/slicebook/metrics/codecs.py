"""JPEG 2000 and JPEG XL at a given number of bits per slice: the baselines of a tokenizer.

Choices favour the codecs. Slices are encoded with 8 bits: at these rates JPEG 2000 loses nothing, and JPEG
XL, which interprets 8-bit input as sRGB, compresses them better than 16-bit input. Headers are not counted:
the size of the stream of a blank slice of the same shape is subtracted from each stream.

Needs the extra `codecs`.
"""

import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType, ModuleType

import numpy as np
from jaxtyping import Float, UInt8

from slicebook.errors import ConfigError

# The size of a stream changes in steps of a few per cent at these rates.
LIMIT = 1.01  # largest number of bits, as a share of the budget
_CLOSE = 0.99  # the search ends at this share of the budget or more
_TRIALS = 12


@dataclass(frozen=True)
class Codec:
    """An image codec and its settings.

    Attributes:
        title: Display name.
        settings: Encoder settings in words.
        encode: Encodes 8-bit pixels at a quality in [0, 1]; a higher quality gives a larger stream.
        decode: Decodes a stream into 8-bit pixels.
    """

    title: str
    settings: str
    encode: Callable[[UInt8[np.ndarray, "h w"], float], bytes]
    decode: Callable[[bytes], UInt8[np.ndarray, "h w"]]


@dataclass(frozen=True)
class Coded:
    """A slice encoded and decoded by a codec.

    Attributes:
        image: The decoded slice, in [0, 1].
        bits: Size of the stream without its header.
        header_bits: Size of the header.
        quality: Quality chosen by the search, in [0, 1]; a good start for the next slice.
        within_budget: Whether `bits` is within the budget; False if the codec's smallest stream exceeds it.
    """

    image: Float[np.ndarray, "h w"]
    bits: int
    header_bits: int
    quality: float
    within_budget: bool


def code(codec: Codec, image: Float[np.ndarray, "h w"], budget: float, *, start: float = 0.4) -> Coded:
    """Encode a slice at the highest quality whose stream has at most 1.01 times the budget.

    The search ends at 99 % of the budget, or when the bracket of qualities is narrower than 0.001. If the
    smallest stream exceeds the budget, it is returned with `within_budget` False.

    Args:
        codec: One of `CODECS`.
        image: The slice in [0, 1].
        budget: Number of bits.
        start: First quality to try, such as that of the previous slice.

    Raises:
        ConfigError: imagecodecs is not installed.
    """
    pixels = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    header = _header_bytes(codec, pixels.shape)
    smaller, larger = (0.0, -math.inf), (1.0, math.inf)  # bracket of (quality, log of bits)
    trials: list[tuple[bool, int, float, bytes]] = []
    quality, step = start, 0.05
    for _ in range(_TRIALS):
        stream = codec.encode(pixels, quality)
        bits = 8 * max(0, len(stream) - header)
        within = bits <= LIMIT * budget
        trials.append((within, bits, quality, stream))
        if (within and (bits >= _CLOSE * budget or quality == 1)) or (not within and quality == 0):
            break
        if within:
            smaller = (quality, math.log(max(bits, 1)))
        else:
            larger = (quality, math.log(bits))
        if larger[0] - smaller[0] < 1e-3:
            break
        quality, step = _next_quality(smaller, larger, math.log(max(budget, 1)), step)
    # The largest stream within the budget, or else the smallest stream.
    within, bits, quality, stream = max(
        trials, key=lambda trial: (trial[0], trial[1] if trial[0] else -trial[1])
    )
    decoded = codec.decode(stream).astype(np.float32) / 255
    return Coded(decoded, bits, 8 * header, quality, within)


def _next_quality(
    smaller: tuple[float, float], larger: tuple[float, float], target: float, step: float
) -> tuple[float, float]:
    """Return the next quality and step: doubling steps until the target is bracketed, then interpolation.

    `smaller` and `larger` are (quality, log of bits) below and above the target, the log of the budget.
    """
    if math.isinf(larger[1]):
        return min(1.0, smaller[0] + step), 2 * step
    if math.isinf(smaller[1]):
        return max(0.0, larger[0] - step), 2 * step
    share = (target - smaller[1]) / max(larger[1] - smaller[1], 1e-9)
    return smaller[0] + min(0.85, max(0.15, share)) * (larger[0] - smaller[0]), step


@lru_cache(maxsize=64)
def _header_bytes(codec: Codec, shape: tuple[int, int]) -> int:
    return len(codec.encode(np.zeros(shape, np.uint8), 0.4))


def _imagecodecs() -> ModuleType:
    try:
        return importlib.import_module("imagecodecs")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "codecs: imagecodecs is not installed, needed for JPEG 2000 and JPEG XL; "
            "run: pip install 'slicebook[codecs]', or evaluate without codecs"
        ) from error


def _encode_jpeg2000(pixels: UInt8[np.ndarray, "h w"], quality: float) -> bytes:
    psnr = 8 + 62 * quality  # dB
    return bytes(_imagecodecs().jpeg2k_encode(pixels, level=psnr, codecformat="j2k", reversible=False))


def _decode_jpeg2000(stream: bytes) -> UInt8[np.ndarray, "h w"]:
    return np.asarray(_imagecodecs().jpeg2k_decode(stream))


def _encode_jpegxl(pixels: UInt8[np.ndarray, "h w"], quality: float) -> bytes:
    distance = 25 * (0.05 / 25) ** quality  # libjxl's Butteraugli distance; 25 is its maximum
    return bytes(
        _imagecodecs().jpegxl_encode(pixels, distance=distance, effort=8, usecontainer=False, numthreads=1)
    )


def _decode_jpegxl(stream: bytes) -> UInt8[np.ndarray, "h w"]:
    return np.asarray(_imagecodecs().jpegxl_decode(stream, numthreads=1))


CODECS: Mapping[str, Codec] = MappingProxyType(
    {
        "jpeg2000": Codec(
            title="JPEG 2000",
            settings="OpenJPEG, irreversible 9/7 wavelet, one tile and layer, raw codestream, 8-bit input",
            encode=_encode_jpeg2000,
            decode=_decode_jpeg2000,
        ),
        "jpegxl": Codec(
            title="JPEG XL",
            settings="libjxl, lossy (VarDCT), effort 8, raw codestream, 8-bit input",
            encode=_encode_jpegxl,
            decode=_decode_jpegxl,
        ),
    }
)


def installed() -> bool:
    """Return whether the extra `codecs` is installed."""
    return importlib.util.find_spec("imagecodecs") is not None


def versions() -> dict[str, str]:
    """Return the versions of the codecs' libraries."""
    codecs = _imagecodecs()
    return {"jpeg2000": str(codecs.jpeg2k_version()), "jpegxl": str(codecs.jpegxl_version())}
