"""Warnings and provenance of an evaluation: what its numbers were measured with and how far they hold."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import torch

from slicebook.data.dataset import PreparedData
from slicebook.data.splits import Split
from slicebook.environment import Provenance, commit, versions
from slicebook.evaluation.reconstruction import ReconstructionResult
from slicebook.io.tensors import hash_tensors
from slicebook.models.checkpoint import LoadedPrior, LoadedTokenizer
from slicebook.starters import is_starter
from slicebook.version import __version__


@dataclass(frozen=True)
class LoadedModels:
    """The tokenizer that reconstructs and the prior that generates, if there is one."""

    tokenizer: LoadedTokenizer
    prior: LoadedPrior | None


def collect_warnings(
    models: LoadedModels, data: PreparedData, split: Split, reconstruction: ReconstructionResult | None
) -> tuple[str, ...]:
    """Return what a reader must know before using the numbers of a report."""
    return (
        *_split_warnings(models.tokenizer, data, split, data.split(split).patients),
        *_initial_warnings(models),
        *_tokenizer_warnings(models),
        *_codec_warnings(reconstruction),
    )


def _split_warnings(
    tokenizer: LoadedTokenizer, data: PreparedData, split: Split, patients: Sequence[str]
) -> list[str]:
    warnings = []
    if tokenizer.info.provenance.split_hash != data.split_hash:
        warnings.append(
            "This data set was not split together with the training data, and pseudonyms cannot be compared: "
            "make sure that no patient here was in the training set."
        )
    elif split == "train":
        warnings.append(
            "TRAINED ON THESE PATIENTS: the scores measure the fit to the training set, not the "
            "reconstruction of new patients. Do not report them as results; use --split test."
        )
    elif split == "validation":
        warnings.append(
            "Validation patients selected this checkpoint, so their scores are slightly optimistic."
        )
    if len(patients) < 2:
        warnings.append("One patient: there is no interval, because it needs the spread between patients.")
    return warnings


def _initial_warnings(models: LoadedModels) -> list[str]:
    """Return a warning for each model whose training started from one that was trained on other patients."""
    warnings = []
    trainings: list[tuple[str, Provenance | None]] = [("tokenizer", models.tokenizer.info.provenance)]
    if models.prior:
        trainings.append(("prior", models.prior.info.provenance))
        trainings.append(("generation decoder", models.prior.info.decoder_provenance))
    for name, own in trainings:
        initial = own.initial if own else None
        while initial and not is_starter(initial.weights_sha256):
            made = initial.provenance
            if own and made.split_hash != own.split_hash:
                warnings.append(
                    f"The training of the {name} started from a model that was trained on "
                    f"{made.train_patients} patients of another data set or split: make sure that none of "
                    "them is evaluated here."
                )
            initial = made.initial
    return warnings


def _tokenizer_warnings(models: LoadedModels) -> list[str]:
    """Return a warning where the samples come from another tokenizer than the reconstructions."""
    if models.prior is None:
        return []
    states = models.tokenizer.tokenizer.state_dict(), models.prior.tokenizer.images.state_dict()
    if hash_tensors(states[0]) == hash_tensors(states[1]):
        return []
    return [
        "The prior was trained with another tokenizer than the one in its run folder. The reconstruction "
        "scores do not describe the tokenizer of the samples. Train the prior again."
    ]


def _codec_warnings(reconstruction: ReconstructionResult | None) -> list[str]:
    codecs = (reconstruction and reconstruction.codecs) or {}
    return [
        f"{codec.title} cannot encode {codec.slices_over_budget} slices within the tokenizer's bits: its "
        f"scores are at {codec.bits_per_pixel.mean_of_slices:.3f} bits per pixel."
        for codec in codecs.values()
        if codec.slices_over_budget
    ]


def describe_request(models: LoadedModels, data: PreparedData) -> dict[str, Any]:
    """Return all that an evaluation depends on besides its options: models, data and libraries.

    The voxels are known by the size and the time of their files; to hash them could take minutes.
    """
    voxels = [path for name in ("images.f32", "labels.u8") if (path := data.folder / name).is_file()]
    return {
        "slicebook_version": __version__,
        "tokenizer": models.tokenizer.info.weights_sha256,
        "prior": models.prior and models.prior.info.weights_sha256,
        "records": hashlib.sha256(repr((data.info, data.records)).encode()).hexdigest(),
        "voxels": [(path.stat().st_size, path.stat().st_mtime_ns) for path in voxels],
        "versions": versions(),
    }


def describe_provenance(
    models: LoadedModels, data: PreparedData, device: torch.device, seed: int
) -> dict[str, Any]:
    """Return what is needed to reproduce an evaluation. No folder is named: paths may identify people."""
    tokenizer, prior = models.tokenizer, models.prior
    model = {
        "file": tokenizer.path.name,
        "codebook_hash": tokenizer.codebook_hash,
        "parameters": sum(parameter.numel() for parameter in tokenizer.tokenizer.parameters()),
    } | tokenizer.info.model_dump(mode="json")
    return {
        "model": model,
        "prior": None if prior is None else prior.info.model_dump(mode="json"),
        "data": data.info.model_dump(mode="json"),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": commit(),
        "versions": versions(),
        "hardware": {
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        },
        "seed": seed,
    }
