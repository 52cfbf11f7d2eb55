"""Models on disk: `model.safetensors` to share, `state.safetensors` to go on. Atomic, verified, no pickle.

A file carries its own settings, provenance and the hash of its weights in its metadata, so it is whole by
itself: a flipped bit, another kind of model or a newer format is an error, never a wrong answer.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypeVar

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from slicebook.book import Book
from slicebook.config import Recipe, Record
from slicebook.errors import CheckpointError, DataError
from slicebook.grain import Grain
from slicebook.manifest import SliceRecord
from slicebook.prior import Prior
from slicebook.tokenizer import Tokenizer

SCHEMA_VERSION = 1
MODEL_NAME = "model.safetensors"
STATE_NAME = "state.safetensors"


Kind = Literal["tokenizer", "label tokenizer", "decoder of generation"]
"""The last is a tokenizer whose last decoder invents what tokens leave open: not for reconstruction."""


class Provenance(Record):
    """Where a model comes from: enough to make it again."""

    versions: dict[str, str]
    """Of Slicebook, Python and the libraries that shape the numbers."""
    commit: str | None
    """Of the source tree, when Slicebook runs from one; ends in `+` when it held changes."""
    device: str
    split_hash: str
    """Of the data set and its split; says whether patients were trained on."""
    train_patients: int
    train_slices: int
    spacing: float | None
    """In-plane, in mm, when the training slices were resampled."""
    epoch: int
    step: int
    seconds: float
    """Of training, validation included."""
    validation: dict[str, float]
    """Scores on validation patients when the model was kept."""


class ModelInfo(Record):
    """The metadata of a model file."""

    schema_version: int
    kind: Kind
    recipe: Recipe
    provenance: Provenance
    weights_sha256: str


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer read from disk, in evaluation mode."""

    tokenizer: Tokenizer
    info: ModelInfo
    path: Path

    @property
    def codebook_hash(self) -> str:
        """SHA-256 of the codebooks and of what decodes them: token files are read by no other."""
        return hash_tensors(self.tokenizer.state_dict())


Info = TypeVar("Info", "ModelInfo", "PriorInfo")


class SliceKind(Record):
    """Slices of one size that a prior was trained on: what it draws is written like them."""

    rows: int
    columns: int
    row_mm: float
    """Distance between rows; the median over slices."""
    column_mm: float
    low: float
    """Source intensity that -1 stands for; the median over slices."""
    high: float
    slices: int


def slice_kinds(records: Sequence[SliceRecord]) -> tuple[SliceKind, ...]:
    """Return the sizes of slices, the most frequent first, with their usual spacing and intensity."""
    sizes: dict[tuple[int, int], list[SliceRecord]] = defaultdict(list)
    for record in records:
        sizes[record.rows, record.columns].append(record)
    kinds = [
        SliceKind(
            rows=rows,
            columns=columns,
            row_mm=median(record.row_mm for record in some),
            column_mm=median(record.column_mm for record in some),
            low=median(record.low for record in some),
            high=median(record.high for record in some),
            slices=len(some),
        )
        for (rows, columns), some in sizes.items()
    ]
    return tuple(sorted(kinds, key=lambda kind: -kind.slices))


class PriorInfo(Record):
    """The metadata of a prior's file, which holds its tokenizers too."""

    schema_version: int
    kind: Literal["prior"]
    recipe: Recipe
    masks: Recipe | None
    """Of the tokenizer of label masks."""
    slices: tuple[SliceKind, ...]
    """Most frequent first."""
    classes: tuple[str, ...]
    """Names of the classes that the manifest gave its slices."""
    grain: Grain | None
    """The noise that its tokenizer was taught to leave out; generation puts its like back."""
    tokenizer_provenance: Provenance
    decoder_provenance: Provenance | None = None
    """Of the decoder that was trained for generation; None where it is the tokenizer's own."""
    provenance: Provenance
    weights_sha256: str


@dataclass(frozen=True)
class LoadedPrior:
    """A prior read from disk with its tokenizers, in evaluation mode."""

    prior: Prior
    book: Book
    info: PriorInfo
    path: Path


@dataclass(frozen=True)
class State:
    """Everything a training needs to go on."""

    tensors: dict[str, Tensor]
    progress: dict[str, Any]
    """Counters, history and settings, as plain JSON values."""


def save_tokenizer(
    path: Path, tokenizer: Tokenizer, recipe: Recipe, provenance: Provenance, *, kind: Kind | None = None
) -> None:
    """Write a tokenizer's weights with all that is needed to use and to explain them."""
    tensors = tokenizer.state_dict()
    info = ModelInfo(
        schema_version=SCHEMA_VERSION,
        kind=kind or ("label tokenizer" if tokenizer.config.label_values else "tokenizer"),
        recipe=recipe,
        provenance=provenance,
        weights_sha256=hash_tensors(tensors),
    )
    _write(path, tensors, info.model_dump(mode="json"))


def load_tokenizer(
    where: str | Path, device: str | torch.device = "cpu", *, kind: Kind = "tokenizer"
) -> LoadedTokenizer:
    """Read a tokenizer from a model file, the folder of a run, or the folder of a demo.

    Args:
        where: The file or folder.
        device: Where it shall compute.
        kind: What is wanted: a tokenizer of slices, of label masks, or one for generation alone.

    Raises:
        CheckpointError: Nothing trained there yet, a damaged file, or a file of another kind.
    """
    path = find_model(Path(where))
    tensors, info = _load(path, kind, ModelInfo)
    tokenizer = Tokenizer(info.recipe.tokenizer)
    _fill(tokenizer, tensors, path)
    return LoadedTokenizer(tokenizer.eval().to(device), info, path)


def save_prior(path: Path, prior: Prior, book: Book, info: PriorInfo) -> None:
    """Write a prior with its tokenizers; the hash of the weights in `info` is filled in here."""
    parts: dict[str, nn.Module] = {"prior": prior, "images": book.images}
    if book.masks is not None:
        parts["masks"] = book.masks
    tensors = {
        f"{part}.{name}": tensor
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }
    info = info.model_copy(update={"weights_sha256": hash_tensors(tensors)})
    _write(path, tensors, info.model_dump(mode="json"))


def load_prior(where: str | Path, device: str | torch.device = "cpu") -> LoadedPrior:
    """Read a prior from its file, its folder, or the folder of the run or demo that holds it.

    Raises:
        CheckpointError: Nothing trained there yet, a damaged file, or a file of another kind.
    """
    path = find_prior(Path(where))
    tensors, info = _load(path, "prior", PriorInfo)
    parts: dict[str, dict[str, Tensor]] = {"prior": {}, "images": {}, "masks": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts.get(part, {})[rest] = tensor
    images = Tokenizer(info.recipe.tokenizer)
    _fill(images, parts["images"], path)
    masks = None
    if info.masks is not None:
        masks = Tokenizer(info.masks.tokenizer)
        _fill(masks, parts["masks"], path)
        masks = masks.eval().to(device)
    book = Book(images.eval().to(device), masks)
    prior = Prior(info.recipe.prior, book.codebooks, len(info.classes))
    _fill(prior, parts["prior"], path)
    return LoadedPrior(prior.eval().to(device), book, info, path)


def _load(path: Path, kind: str, record: type[Info]) -> tuple[dict[str, Tensor], Info]:
    """Read a file of a kind, its weights verified."""
    tensors, raw = _read(path)
    if raw.get("kind") != kind:
        found = raw.get("kind", "file of another program")
        # In the folder of a tokenizer's run, its own file is what is found until there is a prior.
        early = (found, kind) == ("tokenizer", "prior")
        first = f"; train one first: slicebook train prior {path.parent}" if early else ""
        raise CheckpointError(f"{path}: holds a {found}, wanted a {kind}{first}")
    if raw.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path}: written in format {raw.get('schema_version')}, this Slicebook reads {SCHEMA_VERSION}; "
            "use the version of Slicebook that wrote it, or train it again"
        )
    try:
        info = record.model_validate(raw)
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: its settings cannot be read ({error.error_count()} faults); train it again"
        ) from error
    if hash_tensors(tensors) != info.weights_sha256:
        raise CheckpointError(
            f"{path}: the weights do not match their hash, so the file is damaged; copy it again"
        )
    return tensors, info


def _fill(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its weights do not fit its settings; train it again") from error


def find_model(where: Path) -> Path:
    """Return the model file that a path stands for.

    Raises:
        CheckpointError: There is none; the message says what to run first.
    """
    if where.is_file():
        return where
    for candidate in (where / MODEL_NAME, where / "run" / MODEL_NAME):
        if candidate.is_file():
            return candidate
    state = "holds no trained model yet" if where.is_dir() else "does not exist"
    raise CheckpointError(
        f"{where}: {state}; train one first: slicebook train tokenizer DATA --recipe compact --out {where}"
        " (or slicebook demo)"
    )


def find_prior(where: Path) -> Path:
    """Return the prior's file that a path stands for.

    Raises:
        CheckpointError: There is none; the message says what to run first.
    """
    found = _prior_in(where)
    if found is not None:
        return found
    find_model(where)  # without a tokenizer, that comes first
    raise CheckpointError(
        f"{where}: holds no prior yet; train one first: slicebook train prior {where} (or slicebook demo)"
    )


def has_prior(where: Path) -> bool:
    """Return whether a folder of a run or demo holds a prior beside its tokenizer."""
    found = _prior_in(where)
    return found is not None and found != find_model(where)


def is_prior(where: Path) -> bool:
    """Return whether a path stands for a prior alone: its own file or folder, not a run that holds one."""
    try:
        with safe_open(find_model(where), framework="pt") as file:
            header = file.metadata() or {}
    except (OSError, SafetensorError):
        return False
    return bool(json.loads(header.get("slicebook", "{}")).get("kind") == "prior")


def _prior_in(where: Path) -> Path | None:
    if where.is_file():
        return where
    candidates = (where / folder / MODEL_NAME for folder in ("prior", "run/prior", "."))
    return next((path for path in candidates if path.is_file()), None)


def save_state(path: Path, state: State) -> None:
    """Write all that a training needs to go on."""
    header = {"schema_version": SCHEMA_VERSION, "kind": "state", "progress": state.progress}
    _write(path, state.tensors, {**header, "weights_sha256": hash_tensors(state.tensors)})


def load_state(path: Path) -> State:
    """Read what `save_state` wrote.

    Raises:
        CheckpointError: A damaged file, or a file of another kind or format.
    """
    tensors, raw = _read(path)
    if raw.get("kind") != "state" or raw.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path}: is no state of a training in format {SCHEMA_VERSION}; train to another --out"
        )
    if hash_tensors(tensors) != raw.get("weights_sha256"):
        raise CheckpointError(
            f"{path}: does not match its hash, so the file is damaged; train to another --out"
        )
    return State(tensors, raw["progress"])


def load_kept(path: Path, made_from: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """Return tensors that were kept from before, to save making them again.

    Args:
        path: Where `save_state` wrote them.
        made_from: What they must have been made from, as their `progress` says.

    Returns:
        None where there are none, they are damaged, or were made from something else.
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


def versions() -> dict[str, str]:
    """Versions of Slicebook, Python and the libraries that shape the numbers."""
    names = ("slicebook", "torch", "lightning-fabric", "numpy", "scipy", "scikit-image")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def commit() -> str | None:
    """Commit of the source tree that runs, with `+` when it holds changes; None outside one."""
    source = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(source), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != source.parents[1]:
            return None  # installed inside somebody else's repository
        return git("rev-parse", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None


def _write(path: Path, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
    # The only good file is never written onto: a kill halfway leaves it as it was.
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        text = json.dumps(info, sort_keys=True)
        save_file(flat, partial, metadata={"slicebook": text, "sha256": _seal(text)})
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); free some space or choose another folder"
        ) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: is no whole safetensors file ({error}); copy it again or train anew"
        ) from error
    text = header.get("slicebook", "{}")
    # The weights have their own hash; this one keeps a flipped bit out of the settings.
    if "slicebook" in header and header.get("sha256") != _seal(text):
        raise CheckpointError(
            f"{path}: its settings do not match their hash, so the file is damaged; copy it again"
        )
    return tensors, json.loads(text)


def _seal(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
