"""Tensors with metadata on disk: written atomically, verified by hashes, without pickle.

Models and training states share one format: a safetensors file whose metadata hold their own hash and that of
the tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from slicebook.errors import CheckpointError
from slicebook.io.atomic import replacing

SCHEMA_VERSION = 2
STATE_NAME = "state.safetensors"


@dataclass(frozen=True)
class State:
    """Everything needed to resume a training."""

    tensors: dict[str, Tensor]
    progress: dict[str, Any]
    """Counters, history and settings, as plain JSON values."""


def save_state(path: Path, state: State, *, previous: Path | None = None) -> None:
    """Write everything needed to resume a training; a file to be replaced may get the name `previous`."""
    header = {"schema_version": SCHEMA_VERSION, "kind": "state", "progress": state.progress}
    info = {**header, "weights_sha256": hash_tensors(state.tensors)}
    write_tensors(path, state.tensors, info, previous=previous)


def load_state(path: Path) -> State:
    """Read what `save_state` wrote.

    Raises:
        CheckpointError: A damaged file, or a file of another kind or format.
    """
    tensors, raw = read_tensors(path)
    if raw.get("kind") != "state" or raw.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path}: is not a training state of format {SCHEMA_VERSION}; train to another --out"
        )
    if hash_tensors(tensors) != raw.get("weights_sha256"):
        raise CheckpointError(
            f"{path}: does not match its hash, so the file is damaged; train to another --out"
        )
    return State(tensors, raw["progress"])


def load_kept(path: Path, made_from: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """Return cached tensors, if they are still valid.

    Args:
        path: Where `save_state` wrote them.
        made_from: What they must have been computed from, as recorded in `progress`.

    Returns:
        None if the file is missing or damaged, or was computed from something else.
    """
    try:
        state = load_state(path)
    except CheckpointError:
        return None
    return state.tensors if state.progress == made_from else None


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], info: Mapping[str, Any], *, previous: Path | None = None
) -> None:
    """Write tensors and metadata (JSON values) to a file, completely or not at all.

    A file to be replaced gets the name `previous`, if one is given.

    Raises:
        DataError: The file cannot be written.
    """
    flat = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(info, sort_keys=True)
    size = sum(tensor.nbytes for tensor in flat.values()) + len(text)
    with replacing(path, size=size, previous=previous) as partial:
        try:
            save_file(flat, partial, metadata={"slicebook": text, "sha256": _seal(text)})
            _order_metadata(partial)
        except SafetensorError as error:  # raised for a full disk
            number = re.search(r"\(os error (\d+)\)", str(error)) if os.name == "posix" else None
            given = (int(number[1]), os.strerror(int(number[1]))) if number else (str(error),)
            raise OSError(*given) from error


def _order_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file, which come in random order: equal content gets equal bytes."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        if len(text) == length:
            file.seek(8)
            file.write(text)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and metadata that `write_tensors` wrote.

    The metadata are verified here; the caller compares `hash_tensors` with the hash that it stored.

    Raises:
        CheckpointError: The file cannot be read, or its metadata do not match their hash.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            names = file.keys()
            # Copies: the tensors of the file are a memory map. A process that reads a map whose file became
            # shorter, or is on a network file system that fails, ends by SIGBUS.
            tensors = {name: file.get_tensor(name).clone() for name in names}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {_describe_other_file(path, error)}") from error
    text = header.get("slicebook", "{}")
    # The tensors have their own hash; this one detects changed metadata.
    if "slicebook" in header and header.get("sha256") != _seal(text):
        raise CheckpointError(
            f"{path}: its settings do not match their hash, so the file is damaged; copy it again"
        )
    return tensors, _settings_of(text)


def kind_of(path: Path) -> str | None:
    """Return the `kind` in a file's metadata, unverified; None if it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except (OSError, SafetensorError):
        return None
    kind = _settings_of(header.get("slicebook", "{}")).get("kind")
    return None if kind is None else str(kind)


def _settings_of(text: str) -> dict[str, Any]:
    """Return the metadata as a dict; empty if Slicebook did not write them."""
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _describe_other_file(path: Path, error: Exception) -> str:
    """Return what a file is that is not safetensors, and what to do."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as fault:
        return f"cannot be read ({fault.strerror or fault}); check path and permissions"
    is_zip, is_pickle = start == b"PK\x03\x04", start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05"
    if is_pickle or path.suffix.lower() in {".pth", ".pt", ".ckpt"}:
        return (
            "is a PyTorch pickle; Slicebook reads safetensors alone, as a pickle can run code; give the "
            "model.safetensors of a run"
        )
    if is_zip:
        return (
            "is a zip archive, perhaps a PyTorch pickle; Slicebook reads safetensors alone; give the "
            "model.safetensors of a run"
        )
    return f"is not a complete safetensors file ({error}); copy it again or train anew"


def _seal(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
