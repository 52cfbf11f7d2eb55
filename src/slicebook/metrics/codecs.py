"""What JPEG 2000 and JPEG XL make of a slice at a given number of bits: the measure a tokenizer must beat.

The comparison leans to the codecs. Slices go in as 8 bits: at these rates JPEG 2000 loses nothing by it,
and JPEG XL, which takes 8 bits for sRGB, codes them better than 16. Headers are not counted: what the
stream of a blank slice of the same shape weighs is subtracted from each stream.

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

# Both codecs move in steps of some per cent at these rates; the search takes the best step up to the limit.
LIMIT = 1.01  # most bits, as a share of the budget
_CLOSE = 0.99  # a payload of this share of the budget, or more, ends the search
_TRIALS = 12


@dataclass(frozen=True)
class Codec:
    """A codec as used here.

    Attributes:
        title: Its name for people.
        settings: How it is driven.
        encode: Turns 8-bit pixels and a quality in [0, 1] into a codestream, larger for a higher quality.
        decode: The way back.
    """

    title: str
    settings: str
    encode: Callable[[UInt8[np.ndarray, "h w"], float], bytes]
    decode: Callable[[bytes], UInt8[np.ndarray, "h w"]]


@dataclass(frozen=True)
class Coded:
    """A slice after a passage through a codec.

    Attributes:
        image: What was decoded, in [0, 1].
        bits: Bits spent on this slice, header not counted.
        header_bits: Bits of the header, which were subtracted.
        quality: Where the search ended, in [0, 1]; a good start for the next slice.
        within_budget: False where even the codec's smallest stream is above the budget.
    """

    image: Float[np.ndarray, "h w"]
    bits: int
    header_bits: int
    quality: float
    within_budget: bool


def code(codec: Codec, image: Float[np.ndarray, "h w"], budget: float, *, start: float = 0.4) -> Coded:
    """Code a slice in [0, 1] with the most bits that stay within the budget, or 1 % over it.

    The search ends at 99 % of the budget or where a finer quality changes nothing. Where even the smallest
    stream is larger than the budget, that one is returned, marked by `within_budget`.

    Args:
        codec: One of `CODECS`.
        image: The slice in [0, 1].
        budget: Bits it may spend.
        start: First quality tried, such as that of a slice coded before.

    Raises:
        ConfigError: imagecodecs is not installed.
    """
    pixels = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    header = _header_bytes(codec, pixels.shape)
    smaller, larger = (0.0, -math.inf), (1.0, math.inf)  # bracket of (quality, log of bits)
    found: list[tuple[bool, int, float, bytes]] = []
    quality, step = start, 0.05
    for _ in range(_TRIALS):
        stream = codec.encode(pixels, quality)
        bits = 8 * max(0, len(stream) - header)
        within = bits <= LIMIT * budget
        found.append((within, bits, quality, stream))
        if (within and (bits >= _CLOSE * budget or quality == 1)) or (not within and quality == 0):
            break
        if within:
            smaller = (quality, math.log(max(bits, 1)))
        else:
            larger = (quality, math.log(bits))
        if larger[0] - smaller[0] < 1e-3:
            break
        quality, step = _next_quality(smaller, larger, math.log(max(budget, 1)), step)
    # The largest within the budget, else the smallest of all.
    within, bits, quality, stream = max(
        found, key=lambda trial: (trial[0], trial[1] if trial[0] else -trial[1])
    )
    decoded = codec.decode(stream).astype(np.float32) / 255
    return Coded(decoded, bits, 8 * header, quality, within)


def _next_quality(
    smaller: tuple[float, float], larger: tuple[float, float], wanted: float, step: float
) -> tuple[float, float]:
    """Return the next quality to try: doubling steps until the budget is bracketed, then interpolation."""
    if math.isinf(larger[1]):
        return min(1.0, smaller[0] + step), 2 * step
    if math.isinf(smaller[1]):
        return max(0.0, larger[0] - step), 2 * step
    share = (wanted - smaller[1]) / max(larger[1] - smaller[1], 1e-9)
    return smaller[0] + min(0.85, max(0.15, share)) * (larger[0] - smaller[0]), step


@lru_cache(maxsize=64)
def _header_bytes(codec: Codec, shape: tuple[int, int]) -> int:
    return len(codec.encode(np.zeros(shape, np.uint8), 0.4))


def _imagecodecs() -> ModuleType:
    try:
        return importlib.import_module("imagecodecs")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "codecs: imagecodecs is not installed, wanted for JPEG 2000 and JPEG XL; "
            "run: pip install 'slicebook[codecs]', or evaluate without codecs"
        ) from error


def _encode_jpeg2000(pixels: UInt8[np.ndarray, "h w"], quality: float) -> bytes:
    psnr = 8 + 62 * quality  # dB
    return bytes(_imagecodecs().jpeg2k_encode(pixels, level=psnr, codecformat="j2k", reversible=False))


def _decode_jpeg2000(stream: bytes) -> UInt8[np.ndarray, "h w"]:
    return np.asarray(_imagecodecs().jpeg2k_decode(stream))


def _encode_jpegxl(pixels: UInt8[np.ndarray, "h w"], quality: float) -> bytes:
    distance = 25 * (0.05 / 25) ** quality  # libjxl's Butteraugli distance, 25 the coarsest it takes
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
    """Return whether the extra `codecs` is."""
    return importlib.util.find_spec("imagecodecs") is not None


def versions() -> dict[str, str]:
    """Return the versions of the codecs' libraries."""
    codecs = _imagecodecs()
    return {"jpeg2000": str(codecs.jpeg2k_version()), "jpegxl": str(codecs.jpegxl_version())}
