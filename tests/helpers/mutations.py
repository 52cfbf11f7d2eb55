"""Hostile files by the number: each is a valid file, damaged or changed by what a generator draws.

A number always gives the same file, so that a failure of the fuzzer can be repeated.
"""

import gzip
import hashlib
import json
import struct
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import torch
from helpers.dicom import enhanced, pixels_of, save, slice_of
from helpers.hostile_files import nifti_bytes
from helpers.inference import model_file, volume_file
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)
from safetensors.torch import load_file, save_file

from slicebook.data.manifest import SliceKind
from slicebook.inference.reconstruct import encode
from slicebook.io.tensors import hash_tensors, read_tensors
from slicebook.models.checkpoint import PriorInfo, load_tokenizer, save_prior
from slicebook.models.prior import Prior
from slicebook.models.sequence import JointTokenizer
from slicebook.recipes import load_recipe

NUMBERS = (0, 1, -1, 2, 3, 7, 8, 16, 127, 128, 255, 256, 32767, -32768, 65535, 2**31 - 1, -(2**31), 2**63 - 1)
FLOATS = (0.0, -0.0, 1e-45, -1.0, 0.5, 3e38, 1e300, float("inf"), float("-inf"), float("nan"))
VALUES: tuple[Any, ...] = (
    *NUMBERS,
    10**9,
    2**40,
    *FLOATS,
    None,
    True,
    "",
    "x",
    "x" * 3000,
    "../../x",
    "\0",
    [],
    {},
    [[]],
    [1, 2, 3],
)


# --- Bytes


def mutate_bytes(content: bytes, draw: np.random.Generator) -> bytes:
    """Damage one to four places of a file, more often in its first 600 bytes than elsewhere."""
    damaged = bytearray(content)
    for _ in range(draw.integers(1, 5)):
        if not damaged:
            break
        reach = min(len(damaged), 600) if draw.random() < 0.6 else len(damaged)
        at = int(draw.integers(reach))
        _OPERATIONS[draw.integers(len(_OPERATIONS))](damaged, at, draw)
    return bytes(damaged)


def _flip(content, at, draw):
    content[at] ^= 1 << draw.integers(8)


def _set_byte(content, at, draw):
    content[at] = draw.choice([0, 1, 0x20, 0x7F, 0x80, 0xFE, 0xFF])


def _set_number(content, at, draw):
    order, (form, size) = draw.choice(["<", ">"]), [("H", 2), ("I", 4), ("Q", 8)][draw.integers(3)]
    value = int(NUMBERS[draw.integers(len(NUMBERS))]) & (256**size - 1)
    content[at : at + size] = struct.pack(order + form, value)


def _set_float(content, at, draw):
    value, form = FLOATS[draw.integers(len(FLOATS))], draw.choice(["<f", "<d", ">f", ">d"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content[at : at + int(form[1] == "d") * 4 + 4] = np.array(value, form).tobytes()


def _cut(content, at, draw):
    del content[at:]


def _drop(content, at, draw):
    del content[at : at + int(draw.integers(1, 64))]


def _repeat(content, at, draw):
    part = content[at : at + int(draw.integers(1, 64))]
    content[at:at] = part * int(draw.integers(1, 9))


def _insert(content, at, draw):
    content[at:at] = draw.bytes(int(draw.integers(1, 32)))


def _blank(content, at, draw):
    size = min(int(draw.integers(1, 200)), len(content) - at)
    content[at : at + size] = bytes(size)


def _append(content, at, draw):
    content += draw.bytes(int(draw.integers(1, 2000)))


_OPERATIONS: list[Callable[..., None]] = [
    *(_flip, _flip, _set_byte, _set_byte, _set_number, _set_number, _set_float),
    *(_cut, _drop, _repeat, _insert, _blank, _append),
]


# --- NIfTI


@cache
def nifti_seeds() -> tuple[bytes, ...]:
    noise = np.random.default_rng(0).uniform(0, 100, (16, 12, 3)).astype(np.float32)
    big = nib.Nifti1Image(noise.astype(">i2"), np.diag([1.0, 1, 3, 1]), nib.Nifti1Header(endianness=">"))
    return (
        nifti_bytes(noise),
        nifti_bytes(noise.astype(np.int16), scl_slope=0.5, scl_inter=3),
        nifti_bytes(noise.astype(np.uint8), sform_code=0, qform_code=1),
        nifti_bytes(noise[..., 0]),
        nib.Nifti2Image(noise, np.eye(4)).to_bytes(),
        big.to_bytes(),
    )


def nifti(draw: np.random.Generator) -> dict[str, bytes]:
    """A NIfTI file: bytes or a field of its header changed; a third of them packed, before or after."""
    seeds = nifti_seeds()
    content = seeds[draw.integers(len(seeds))]
    if draw.random() < 0.4:
        content = _other_field(content, draw)
        if draw.random() < 0.5:
            content = _other_field(content, draw)
    else:
        content = mutate_bytes(content, draw)
    if draw.random() < 0.67:
        return {"a.nii": content}
    packed = gzip.compress(content, mtime=0)
    return {"a.nii.gz": mutate_bytes(packed, draw) if draw.random() < 0.5 else packed}


def _other_field(content, draw):
    kind, size = (
        (nib.Nifti1Header, 348) if content[:1] != b"\x1c" and len(content) else (nib.Nifti2Header, 540)
    )
    order = "<" if content[0] else ">"
    if order == ">":
        kind, size = nib.Nifti1Header, 348
    header = kind(content[:size], endianness=order, check=False)
    names = [name for name in header.keys() if name not in ("magic", "sizeof_hdr")]  # noqa: SIM118 (not a dict)
    name = names[draw.integers(len(names))]
    field = np.atleast_1d(header.structarr[name]).copy()
    if field.dtype.kind == "S":
        return content
    choices = NUMBERS if field.dtype.kind in "iu" else FLOATS
    with np.errstate(over="ignore", invalid="ignore"):
        value = np.array(choices[draw.integers(len(choices))], np.float64).astype(field.dtype)
    field[draw.integers(field.size)] = value
    header.structarr[name] = field if header.structarr[name].ndim else field[0]
    return header.structarr.tobytes() + content[size:]


# --- DICOM

_SYNTAXES = (None, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
SIDES = (40, 32)  # JPEG 2000 needs 32 pixels for its levels
_PACKED = (RLELossless, JPEGLSLossless, JPEG2000Lossless)


def _datasets() -> list[pydicom.Dataset]:
    made = []
    for syntax in (*_SYNTAXES, *_PACKED):
        dataset = slice_of(pixels_of(0, shape=SIDES), (0, 0, 3), RescaleSlope=2, RescaleIntercept=-5)
        if syntax in _PACKED:
            dataset.compress(syntax)
        elif syntax:
            dataset.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = pixels_of(0, shape=SIDES).byteswap().tobytes()
        made.append(dataset)
    return [*made, enhanced(), slice_of(pixels_of(0), (0, 0, 3), PhotometricInterpretation="MONOCHROME1")]


@cache
def dicom_seeds(folder: Path) -> tuple[bytes, ...]:
    return tuple(save(dataset, folder / "seed.dcm").read_bytes() for dataset in _datasets())


def dicom(draw: np.random.Generator, folder: Path) -> dict[str, bytes]:
    """A DICOM file: bytes or elements changed; half of them in a stack with two good files."""
    seeds = dicom_seeds(folder)
    content = seeds[draw.integers(len(seeds))]
    by_element = draw.random() < 0.4
    content = _other_elements(content, draw, folder) if by_element else mutate_bytes(content, draw)
    if draw.random() < 0.5:
        return {"1.dcm": content}
    around = [
        save(slice_of(pixels_of(i, shape=SIDES), (0, 0, z)), folder / "good.dcm").read_bytes()
        for i, z in enumerate((0, 6))
    ]
    return {"0.dcm": around[0], "1.dcm": content, "2.dcm": around[1]}


def _other_elements(content, draw, folder):
    path = folder / "changed.dcm"
    path.write_bytes(content)
    dataset = pydicom.dcmread(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(draw.integers(1, 4)):
                _change_element(dataset, draw)
            dataset.save_as(path, enforce_file_format=False)
    except Exception:  # pydicom cannot read or write every value: change bytes instead
        return mutate_bytes(content, draw)
    return path.read_bytes()


def _change_element(owner, draw):
    elements = list(owner)
    element = elements[draw.integers(len(elements))]
    while element.VR == "SQ" and element.value and draw.random() < 0.8:
        owner = element.value[draw.integers(len(element.value))]
        elements = list(owner)
        element = elements[draw.integers(len(elements))]
    if draw.random() < 0.2:
        del owner[element.tag]
    else:
        owner[element.tag] = _other_value(element, draw)


def _other_value(element, draw):
    text = [str(value) for value in (*NUMBERS, *FLOATS)] + ["", " ", "x", "1\\2", "x" * 64, "../x", "é"]
    raw = text[draw.integers(len(text))].encode("latin-1")
    count = int(draw.integers(0, 7))
    if element.VR in ("US", "SS", "UL", "SL"):
        raw = b"".join(
            (NUMBERS[draw.integers(len(NUMBERS))] & 0xFFFF).to_bytes(2, "little") for _ in range(count)
        )
    elif element.VR in ("OW", "OB", "UN", "SQ"):
        raw = draw.bytes(int(draw.integers(0, 50)) * 2)
    elif count > 1 and draw.random() < 0.5:
        raw = b"\\".join([raw] * count)
    return pydicom.dataelem.RawDataElement(element.tag, element.VR, len(raw), raw, 0, False, True)


# --- Files of tensors


def mutate_json(value, draw: np.random.Generator):
    """Return JSON with one value replaced, left out, repeated or added somewhere inside."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = list(value)[draw.integers(len(value))]
        choice = draw.random()
        if choice < 0.1:
            return {name: inner for name, inner in value.items() if name != key}
        if choice < 0.15:
            return value | {"added": VALUES[draw.integers(len(VALUES))]}
        return value | {key: mutate_json(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.9:
        at, choice = int(draw.integers(len(value))), draw.random()
        if choice < 0.1:
            return value[:at] + value[at + 1 :]
        if choice < 0.2:
            return value[: at + 1] + value[at:]
        return [*value[:at], mutate_json(value[at], draw), *value[at + 1 :]]
    return VALUES[draw.integers(len(VALUES))]


def resealed(path: Path, draw: np.random.Generator, hash_name: str, *, tensors_too: bool) -> bytes:
    """Return a file of tensors with settings or tensors changed, all hashes made to fit again."""
    tensors, info = read_tensors(path)
    for _ in range(draw.integers(1, 3)):
        recipe = info.get("recipe") if isinstance(info, dict) else None
        if isinstance(recipe, dict) and {"tokenizer", "prior"} <= set(recipe) and draw.random() < 0.3:
            part = ["tokenizer", "prior"][draw.integers(2)]
            info = info | {"recipe": recipe | {part: mutate_json(recipe[part], draw)}}
        elif tensors_too and draw.random() < 0.3:
            name = list(tensors)[draw.integers(len(tensors))]
            tensors = _other_tensors(tensors, name, draw)
        else:
            info = mutate_json(info, draw)
    if isinstance(info, dict) and hash_name in info and draw.random() < 0.95:
        info[hash_name] = hash_tensors(tensors)
    other = path.with_name("resealed.safetensors")
    text = json.dumps(info)
    seal = hashlib.sha256(text.encode()).hexdigest()
    save_file(tensors, other, metadata={"slicebook": text, "sha256": seal})
    return other.read_bytes()


def _other_tensors(tensors, name, draw):
    tensor = tensors[name]
    change = draw.integers(6)
    if change == 0:
        return {other: value for other, value in tensors.items() if other != name}
    if change == 1:
        return tensors | {"tokens_7": tensor.clone()}
    if change == 2:
        return tensors | {name: tensor.to(torch.float32)}
    if change == 3:
        return tensors | {name: tensor.reshape(-1)[: int(draw.integers(tensor.numel() + 1))].clone()}
    if change == 4:
        return tensors | {
            name: torch.from_numpy(np.frombuffer(draw.bytes(tensor.nbytes), np.uint8).copy())
            .view(tensor.dtype)
            .reshape(tensor.shape)
        }
    return tensors | {name: torch.cat([tensor, tensor])}


@cache
def model_seed(folder: Path) -> Path:
    """A tokenizer of two levels."""
    path = folder / "model.safetensors"
    model_file(path)
    return path


@cache
def prior_seed(folder: Path) -> Path:
    """A prior over the tokens of `model_seed`, never trained."""
    small = ["prior.widths=[32]", "prior.blocks=1", "prior.embedding=16"]
    loaded = load_tokenizer(model_seed(folder))
    joint = JointTokenizer(loaded.tokenizer)
    recipe = load_recipe("compact", small)
    recipe = recipe.model_copy(update={"tokenizer": loaded.info.recipe.tokenizer})
    kind = SliceKind(rows=24, columns=16, row_mm=1, column_mm=1, low=0, high=9, slices=8)
    info = PriorInfo(
        schema_version=loaded.info.schema_version,
        kind="prior",
        recipe=recipe,
        masks=None,
        slices=(kind,),
        classes=(),
        tokenizer_provenance=loaded.info.provenance,
        provenance=loaded.info.provenance,
        weights_sha256="",
    )
    save_prior(
        folder / "prior.safetensors", Prior(recipe.prior, joint.codebooks, joint.strides, 0), joint, info
    )
    return folder / "prior.safetensors"


@cache
def token_seed(folder: Path) -> Path:
    """The tokens of a volume, written by `model_seed`."""
    volume = volume_file(folder / "volume.nii.gz", (24, 16, 3))
    return encode(model_seed(folder), volume, folder / "tokens.safetensors", device="cpu").output


def tokens(draw: np.random.Generator, folder: Path) -> dict[str, bytes]:
    """A token file: bytes changed, or settings and grids with hashes that fit."""
    seed = token_seed(folder)
    if draw.random() < 0.5:
        return {"tokens.safetensors": mutate_bytes(seed.read_bytes(), draw)}
    return {"tokens.safetensors": resealed(seed, draw, "tensors_sha256", tensors_too=True)}


def model(draw: np.random.Generator, folder: Path) -> dict[str, bytes]:
    """A model: bytes changed, the JSON header of safetensors changed, or settings with hashes that fit."""
    seed = model_seed(folder) if draw.random() < 0.5 else prior_seed(folder)
    choice = draw.random()
    if choice < 0.35:
        return {"model.safetensors": mutate_bytes(seed.read_bytes(), draw)}
    if choice < 0.5:
        content = seed.read_bytes()
        (size,) = struct.unpack_from("<Q", content)
        text = json.dumps(mutate_json(json.loads(content[8 : 8 + size]), draw)).encode()
        return {"model.safetensors": struct.pack("<Q", len(text)) + text + content[8 + size :]}
    return {"model.safetensors": resealed(seed, draw, "weights_sha256", tensors_too=True)}


def same_weights(path: Path, other: Path) -> bool:
    """Return whether two files hold the same tensors."""
    first, second = load_file(path), load_file(other)
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


# --- By number

KINDS = {"NIfTI": 3000, "DICOM": 3000, "token file": 2000, "model": 2000}
"""How many files of each kind the slow test reads."""


def mutant(kind: str, number: int, folder: Path) -> dict[str, bytes]:
    """Return the files, by name, of a kind and number; `folder` is for files that it needs on the way."""
    draw = np.random.default_rng([sorted(KINDS).index(kind), number])
    if kind == "NIfTI":
        return nifti(draw)
    return {"DICOM": dicom, "token file": tokens, "model": model}[kind](draw, folder)
