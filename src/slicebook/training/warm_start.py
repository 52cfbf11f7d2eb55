"""Start a training from the weights of another model (`--from`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from slicebook.environment import InitialModel
from slicebook.errors import ConfigError
from slicebook.io.tensors import State, kind_of
from slicebook.models.checkpoint import LoadedPrior, find_model, load_prior, load_tokenizer

Part = Literal["images", "masks", "prior", "decoder"]
NAMES = {"images": "tokenizer", "masks": "mask tokenizer", "prior": "prior", "decoder": "generation decoder"}
# Buffers of a codebook belong together: the codes are the ratio of the two. They quantise the latents of
# their own network: with another network at random weights, most codes would never be used.
CODEBOOK = ("ema_embed_sum", "ema_cluster_size")


@dataclass(frozen=True)
class InitialWeights:
    """The weights of one part of a model.

    Attributes:
        source: Path or name that the user gave.
        part: What they are of.
        tensors: By their names in that part.
        model: Hash and provenance, for the record of the new model.
    """

    source: str
    part: Part
    tensors: Mapping[str, Tensor]
    model: InitialModel

    def copy_to(self, module: nn.Module, say: Callable[[str], None]) -> set[str]:
        """Copy all weights whose name and shape fit, and print what does not fit.

        Both moving averages of a codebook are copied, or neither, and none unless all other weights fit.

        Returns:
            Names of the weights that were copied.

        Raises:
            ConfigError: No weight fits.
        """
        own = module.state_dict()
        fitting = {
            name for name in own if name in self.tensors and self.tensors[name].shape == own[name].shape
        }
        codebooks = {name for name in own if name.rpartition(".")[2] in CODEBOOK}
        network_fits = own.keys() - codebooks <= fitting
        for name in sorted(fitting & codebooks):
            pair = {f"{name.rpartition('.')[0]}.{buffer}" for buffer in CODEBOOK}
            if not (network_fits and pair <= fitting):
                fitting.discard(name)
        if not fitting:
            raise ConfigError(
                f"{self.source}: no weight of its {NAMES[self.part]} fits the new one; use a recipe with the "
                "same architecture, or train without --from"
            )
        with torch.no_grad():
            for name in fitting:
                own[name].copy_(self.tensors[name])
        missing = sorted(own.keys() - fitting)
        kept = (
            f"{len(fitting)} of {len(own)} weight tensors of the {NAMES[self.part]} come from {self.source}"
        )
        say(f"{kept}; at their random start: {', '.join(missing)}" if missing else kept)
        return fitting


def load_initial(source: str | Path | None, part: Part) -> InitialWeights | None:
    """Read the weights of one part from a model file, or from the folder of a run, demo or generator.

    Returns:
        None if there is no source.

    Raises:
        CheckpointError: There is no such model, or its file is damaged.
        ConfigError: The model does not have this part.
    """
    if source is None:
        return None
    path = find_model(Path(source))
    own_kind = {"images": "tokenizer", "masks": "label tokenizer"}.get(part)
    if own_kind and kind_of(path) == own_kind:
        loaded = load_tokenizer(path, kind="tokenizer" if part == "images" else "label tokenizer")
        module: nn.Module | None = loaded.tokenizer
        info = loaded.info.provenance, loaded.info.weights_sha256
    else:
        prior = load_prior(source)
        module = _part_of(prior, part)
        info = prior.info.provenance, prior.info.weights_sha256
    if module is None:
        raise ConfigError(
            f"{source}: has no {NAMES[part]} to start from; train without --from, or start from another model"
        )
    model = InitialModel(weights_sha256=info[1], provenance=info[0])
    return InitialWeights(str(source), part, module.state_dict(), model)


def initial_record(model: InitialModel | None) -> dict[str, Any]:
    """Return what a training's state keeps of the model that it started from."""
    return {"initial": model.model_dump(mode="json") if model else None}


def _part_of(prior: LoadedPrior, part: Part) -> nn.Module | None:
    images = prior.tokenizer.images
    modules: dict[Part, nn.Module | None] = {
        "images": images,
        "masks": prior.tokenizer.masks,
        "prior": prior.prior,
        "decoder": prior.decoder,
    }
    return modules[part]


def initial_model(run: Path, state: State | None, initial: InitialWeights | None) -> InitialModel | None:
    """Return what a training started from: as recorded, if it is resumed.

    Raises:
        ConfigError: The training to resume was started from other weights.
    """
    if state is None:
        return initial.model if initial else None
    recorded = state.progress.get("initial")
    before = InitialModel.model_validate(recorded) if recorded else None
    if initial and (before is None or before.weights_sha256 != initial.model.weights_sha256):
        raise ConfigError(
            f"{run}: was started from {'other' if before else 'random'} weights than those of "
            f"{initial.source}; give --from as before, --restart, or another --out"
        )
    return before
