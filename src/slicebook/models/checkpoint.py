"""Model files: weights with their settings, provenance and hash.

A damaged file, another kind of model or a newer format is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from jaxtyping import Float, Int64
from pydantic import Field, ValidationError
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from slicebook.config import Recipe
from slicebook.data.manifest import SliceKind
from slicebook.environment import Provenance
from slicebook.errors import CheckpointError, SlicebookError
from slicebook.io.tensors import SCHEMA_VERSION, hash_tensors, kind_of, read_tensors, write_tensors
from slicebook.models.flow_decoder import FlowDecoder
from slicebook.models.prior import Prior
from slicebook.models.refinement import encode_refined
from slicebook.models.sequence import JointTokenizer
from slicebook.models.tokenizer import Tokenizer
from slicebook.records import Record
from slicebook.starters import locate
from slicebook.version import __version__

MODEL_NAME = "model.safetensors"

Kind = Literal["tokenizer", "label tokenizer", "generation decoder"]
"""A generation decoder adds plausible detail to what a tokenizer decodes: not for reconstruction."""


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
        """SHA-256 of the weights; a token file can be decoded only with the same hash."""
        return hash_tensors(self.tokenizer.state_dict())

    def encode(self, images: Float[Tensor, "b c h w"], refine: int = 0) -> tuple[Int64[Tensor, "b _ _"], ...]:
        """Return the token grids of slices, finest first, after so many steps of refinement."""
        return encode_refined(self.tokenizer, images, self.info.recipe.training.loss, refine)


@dataclass(frozen=True)
class LoadedDecoder:
    """A generation decoder read from disk, in evaluation mode."""

    decoder: FlowDecoder
    info: ModelInfo
    path: Path


Info = TypeVar("Info", "ModelInfo", "PriorInfo")
Module = TypeVar("Module", bound=nn.Module)


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
    label_names: dict[int, str] = Field(default_factory=dict)
    """Names of the label values in the masks it was trained on, if the data set named them."""
    tokenizer_provenance: Provenance
    decoder_provenance: Provenance | None = None
    """Of the generation decoder; None where there is none."""
    provenance: Provenance
    weights_sha256: str


@dataclass(frozen=True)
class LoadedPrior:
    """A prior read from disk with its tokenizers, in evaluation mode.

    Attributes:
        prior: The prior.
        tokenizer: Its tokenizers.
        decoder: The generation decoder, if one was trained.
        info: Metadata.
        path: The file.
    """

    prior: Prior
    tokenizer: JointTokenizer
    decoder: FlowDecoder | None
    info: PriorInfo
    path: Path


def save_tokenizer(
    path: Path, tokenizer: Tokenizer, recipe: Recipe, provenance: Provenance, *, kind: Kind | None = None
) -> None:
    """Write a tokenizer's weights with its recipe and provenance."""
    tensors = tokenizer.state_dict()
    info = ModelInfo(
        schema_version=SCHEMA_VERSION,
        kind=kind or ("label tokenizer" if tokenizer.config.label_values else "tokenizer"),
        recipe=recipe,
        provenance=provenance,
        weights_sha256=hash_tensors(tensors),
    )
    write_tensors(path, tensors, info.model_dump(mode="json"))


def load_tokenizer(
    where: str | Path, device: str | torch.device = "cpu", *, kind: Kind = "tokenizer"
) -> LoadedTokenizer:
    """Read a tokenizer from a model file, the folder of a run, or the folder of a demo.

    Args:
        where: The file or folder. The file of a prior holds a tokenizer too.
        device: Device of the tokenizer.
        kind: The expected kind.

    Raises:
        CheckpointError: Nothing trained there yet, a damaged file, or a file of another kind.
    """
    path = find_model(Path(where))
    if kind == "tokenizer" and kind_of(path) == "prior":
        return tokenizer_of(load_prior(path, device))
    tensors, info = _load(path, kind, ModelInfo)
    tokenizer = _build(lambda: Tokenizer(info.recipe.tokenizer), tensors, path)
    return LoadedTokenizer(tokenizer.eval().to(device), info, path)


def tokenizer_of(prior: LoadedPrior) -> LoadedTokenizer:
    """Return the tokenizer of slices in a prior's file."""
    tokenizer = prior.tokenizer.images
    info = ModelInfo(
        schema_version=prior.info.schema_version,
        kind="tokenizer",
        recipe=prior.info.recipe,
        provenance=prior.info.tokenizer_provenance,
        weights_sha256=hash_tensors(tokenizer.state_dict()),
    )
    return LoadedTokenizer(tokenizer, info, prior.path)


def save_decoder(path: Path, decoder: FlowDecoder, recipe: Recipe, provenance: Provenance) -> None:
    """Write a generation decoder's weights with its recipe and provenance."""
    tensors = decoder.state_dict()
    info = ModelInfo(
        schema_version=SCHEMA_VERSION,
        kind="generation decoder",
        recipe=recipe,
        provenance=provenance,
        weights_sha256=hash_tensors(tensors),
    )
    write_tensors(path, tensors, info.model_dump(mode="json"))


def load_decoder(where: str | Path, tokenizer: LoadedTokenizer) -> LoadedDecoder:
    """Read the generation decoder of a tokenizer, onto the tokenizer's device.

    Raises:
        CheckpointError: Nothing trained there yet, a damaged file, or a file of another kind.
    """
    path = find_model(Path(where))
    tensors, info = _load(path, "generation decoder", ModelInfo)
    decoder = _build_decoder(info, tokenizer.tokenizer, tensors, path)
    return LoadedDecoder(decoder.eval().to(next(tokenizer.tokenizer.parameters()).device), info, path)


def read_info(where: str | Path) -> ModelInfo | PriorInfo:
    """Return the metadata of a model file of any kind, after verifying its weights.

    Raises:
        CheckpointError: Nothing trained there yet, a damaged file, or a file of another program.
    """
    path = find_model(Path(where))
    kind = kind_of(path)
    if kind == "prior":
        return _load(path, kind, PriorInfo)[1]
    return _load(path, kind if kind and kind in get_args(Kind) else "tokenizer", ModelInfo)[1]


def save_prior(
    path: Path,
    prior: Prior,
    joint_tokenizer: JointTokenizer,
    info: PriorInfo,
    decoder: FlowDecoder | None = None,
) -> None:
    """Write a prior with its tokenizers and decoder; the hash of the weights in `info` is filled in here."""
    parts: dict[str, nn.Module] = {"prior": prior, "images": joint_tokenizer.images}
    if decoder is not None:
        parts["decoder"] = decoder
    if joint_tokenizer.masks is not None:
        parts["masks"] = joint_tokenizer.masks
    tensors = {
        f"{part}.{name}": tensor
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }
    update: dict[str, Any] = {"weights_sha256": hash_tensors(tensors)}
    if decoder is None:
        update["decoder_provenance"] = None
    info = info.model_copy(update=update)
    write_tensors(path, tensors, info.model_dump(mode="json"))


def load_prior(where: str | Path, device: str | torch.device = "cpu") -> LoadedPrior:
    """Read a prior from its file, its folder, or the folder of the run or demo that holds it.

    Raises:
        CheckpointError: Nothing trained there yet, a damaged file, or a file of another kind.
    """
    path = find_prior(Path(where))
    tensors, info = _load(path, "prior", PriorInfo)
    parts: dict[str, dict[str, Tensor]] = {"prior": {}, "images": {}, "masks": {}, "decoder": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts.get(part, {})[rest] = tensor
    images = _build(lambda: Tokenizer(info.recipe.tokenizer), parts["images"], path)
    masks = None
    if (settings := info.masks) is not None:
        masks = _build(lambda: Tokenizer(settings.tokenizer), parts["masks"], path).eval().to(device)
    joint_tokenizer = JointTokenizer(images.eval().to(device), masks)
    codebooks, strides = joint_tokenizer.codebooks, joint_tokenizer.strides
    prior = _build(
        lambda: Prior(info.recipe.prior, codebooks, strides, len(info.classes)), parts["prior"], path
    )
    decoder = None
    if info.decoder_provenance is not None:
        decoder = _build_decoder(info, images, parts["decoder"], path).eval().to(device)
    return LoadedPrior(prior.eval().to(device), joint_tokenizer, decoder, info, path)


def _load(path: Path, kind: str, record: type[Info]) -> tuple[dict[str, Tensor], Info]:
    """Read a file of a kind, its weights verified."""
    tensors, raw = read_tensors(path)
    version = raw.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path}: written in format {version} by Slicebook {_writer(raw)}, this is Slicebook "
            f"{__version__}, which reads format {SCHEMA_VERSION}; use the version that wrote it, or train "
            "it again"
        )
    if raw.get("kind") != kind:
        actual = raw.get("kind", "file of another program")
        # A run without a prior holds only the tokenizer's file.
        early = (actual, kind) == ("tokenizer", "prior")
        first = f"; train one first: slicebook train generator {path.parent}" if early else ""
        raise CheckpointError(f"{path}: holds a {actual}, wanted a {kind}{first}")
    try:
        info = record.model_validate(raw)
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: its settings cannot be read ({_first_fault(error)}); it was written by Slicebook "
            f"{_writer(raw)}, this is {__version__}: use the version that wrote it, or train it again"
        ) from error
    if hash_tensors(tensors) != info.weights_sha256:
        raise CheckpointError(
            f"{path}: the weights do not match their hash, so the file is damaged; copy it again"
        )
    return tensors, info


def _writer(raw: Mapping[str, Any]) -> str:
    """Return the version of Slicebook that wrote a file, from its metadata."""
    provenance = raw.get("provenance")
    versions = provenance.get("versions") if isinstance(provenance, dict) else None
    return str(versions.get("slicebook", "unknown")) if isinstance(versions, dict) else "unknown"


def _first_fault(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _build(make: Callable[[], Module], tensors: Mapping[str, Tensor], path: Path) -> Module:
    """Return a module with the weights of a file.

    It is made without memory first, so that settings cannot claim more than the file holds.
    """
    misfit = CheckpointError(f"{path}: its weights do not fit its settings; train it again")
    parameters = 0

    def count(*_: object) -> None:
        nonlocal parameters
        parameters += 1
        if parameters > len(tensors):  # settings may ask for a billion layers
            raise misfit

    handle = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            outline = make()
    except SlicebookError:
        raise
    except (RuntimeError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise misfit from error  # such as sizes beyond what a tensor can have
    finally:
        handle.remove()
    if {n: t.shape for n, t in outline.state_dict().items()} != {n: t.shape for n, t in tensors.items()}:
        raise misfit
    module = make()
    module.load_state_dict(dict(tensors))
    return module


def _build_decoder(
    info: ModelInfo | PriorInfo, tokenizer: Tokenizer, tensors: Mapping[str, Tensor], path: Path
) -> FlowDecoder:
    config = info.recipe.decoder
    if config is None:
        raise CheckpointError(f"{path}: has no settings of its decoder; train it again")
    return _build(lambda: FlowDecoder(config, tokenizer), tensors, path)


def find_model(where: Path) -> Path:
    """Return the model file of a path or starter.

    Raises:
        CheckpointError: There is none; the message names the command to run first.
    """
    where = locate(where)
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
    """Return the prior's file of a path.

    Raises:
        CheckpointError: There is none; the message names the command to run first.
    """
    path = _prior_in(where)
    if path is not None:
        return path
    find_model(where)  # the message for a missing tokenizer comes first
    raise CheckpointError(
        f"{where}: holds no prior yet; train one first: slicebook train generator {where} (or slicebook demo)"
    )


def has_prior(where: Path) -> bool:
    """Return whether a path is a prior, or a folder of a run or demo that holds one."""
    path = _prior_in(where)
    return path is not None and kind_of(path) == "prior"


def _prior_in(where: Path) -> Path | None:
    where = locate(where)
    if where.is_file():
        return where
    candidates = (where / folder / MODEL_NAME for folder in ("prior", "run/prior", "."))
    return next((path for path in candidates if path.is_file()), None)
