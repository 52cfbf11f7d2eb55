"""The training of a prior: its identity, data and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from slicebook.config import Recipe
from slicebook.data.dataset import PreparedData, SliceSet
from slicebook.data.manifest import slice_kinds
from slicebook.distributed import Watch
from slicebook.environment import InitialModel
from slicebook.errors import ConfigError
from slicebook.io.tensors import hash_tensors
from slicebook.models.checkpoint import LoadedTokenizer, PriorInfo, save_prior
from slicebook.models.prior import Prior
from slicebook.models.quantizer import usage_of
from slicebook.models.sequence import JointTokenizer
from slicebook.training.prior import PriorObjective
from slicebook.training.progress import Display
from slicebook.training.resume import Progress
from slicebook.training.run import TrainingOptions, provenance, state_to_resume, write_settings
from slicebook.training.token_cache import load_or_encode
from slicebook.training.token_dataset import TokenBatches, encode_slices
from slicebook.training.tokenizer import LOW_USAGE
from slicebook.training.trainer import Trainer
from slicebook.training.warm_start import initial_model, initial_record, load_initial

PROBE_SLICES = 512  # training slices, about, from which code usage is measured


@dataclass(frozen=True)
class PriorRun:
    """One training of a prior.

    Attributes:
        tokenizer: Trained tokenizer of slices.
        data: What it was trained on.
        recipe: Settings; the group `prior` is used.
        folder: Receives the files of the training.
        with_masks: Whether the prior models masks too.
        masks: Their trained tokenizer, once loaded.
    """

    tokenizer: LoadedTokenizer
    data: PreparedData
    recipe: Recipe
    folder: Path
    with_masks: bool
    masks: LoadedTokenizer | None = None

    @property
    def train(self) -> SliceSet:
        """Training slices."""
        return self.data.split("train")

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names of the training slices, sorted."""
        return tuple(sorted({record.group for record in self.train.records if record.group}))

    @property
    def identity(self) -> dict[str, Any]:
        """What a resumed training must have in common, for `state_to_resume`."""
        return {
            "recipe": self.recipe.model_dump(mode="json", include={"prior"}),
            "split_hash": self.data.split_hash,
            "tokenizers": [
                hash_tensors(self.tokenizer.tokenizer.state_dict()),
                *([self.masks.info.weights_sha256] if self.masks else []),
            ],
            "classes": list(self.classes),
        }

    def check_resumable(self) -> None:
        """Raise if the folder has a training with other settings, data, masks or classes."""
        state = state_to_resume(self.folder, self.identity)
        if state is None:
            return
        had_masks = len(state.progress["tokenizers"]) > 1  # hashes of the slice and of the mask tokenizer
        if had_masks != self.with_masks:
            before, now = ("with", "without") if had_masks else ("without", "with")
            raise ConfigError(
                f"{self.folder}: was started {before} masks, and would be resumed {now} them; use data and "
                "--no-masks as before, --restart, or another --out"
            )
        known = state.progress.get("classes", list(self.classes))
        if known != list(self.classes):
            raise ConfigError(
                f"{self.folder}: was started with classes {', '.join(known) or 'none'}, and the data have "
                f"{', '.join(self.classes) or 'none'}; give --data prepared with the same --class-regex, "
                "--restart, or another --out"
            )


def fit_prior(run: PriorRun, options: TrainingOptions) -> Progress:
    """Train a prior, or resume its training."""
    weights = load_initial(options.start_from, "prior")
    state = state_to_resume(run.folder, run.identity)
    initial = initial_model(run.folder, state, weights)
    fabric = options.launch()
    config = run.recipe.prior.training
    fabric.seed_everything(config.seed, verbose=False)
    joint_tokenizer = JointTokenizer(
        run.tokenizer.tokenizer.to(fabric.device),
        run.masks.tokenizer.to(fabric.device) if run.masks else None,
    )
    display = Display(run.folder, shown=options.progress and fabric.is_global_zero)
    if fabric.is_global_zero:
        write_settings(run.folder, run.recipe, config, state)
    splits = {"train": run.train, "validation": run.data.split("validation")}
    with Watch(str(run.folder)):
        tokens = load_or_encode(
            run.folder,
            joint_tokenizer,
            splits,
            config,
            run.classes,
            run.identity,
            display,
            device=fabric.device,
            rank=fabric.global_rank,
            world_size=fabric.world_size,
        )
    token_batches = partial(
        TokenBatches,
        batch_size=config.batch_size,
        seed=config.seed,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
    prior = Prior(run.recipe.prior, joint_tokenizer.codebooks, joint_tokenizer.strides, len(run.classes))
    if weights and state is None:
        weights.copy_to(prior, display.say)
    objective = _objective(run, prior, joint_tokenizer, fabric, initial)
    trainer = Trainer(objective, config, run.folder, run.identity | initial_record(initial), fabric)
    with display:
        batches = token_batches(tokens["train"], shuffle=True)
        reached = trainer(batches, token_batches(tokens["validation"]), state, display)
    fabric.barrier()  # until rank 0 has written the model file
    return reached


def _objective(
    run: PriorRun,
    prior: Prior,
    joint_tokenizer: JointTokenizer,
    fabric: Fabric,
    initial: InitialModel | None,
) -> PriorObjective:
    """Return the training step of a new prior, which also writes the model file."""

    def save(path: Path, prior: Prior, reached: Progress, scores: Mapping[str, float]) -> None:
        info = PriorInfo(
            schema_version=run.tokenizer.info.schema_version,
            kind="prior",
            recipe=run.recipe,
            masks=run.masks.info.recipe if run.masks else None,
            slices=slice_kinds(run.train.records),
            classes=run.classes,
            label_names=run.data.info.label_names if run.masks else {},
            tokenizer_provenance=run.tokenizer.info.provenance,
            provenance=provenance(run.data, run.train, fabric.device, reached, scores, initial),
            weights_sha256="",
        )
        save_prior(path, prior, joint_tokenizer, info)

    return PriorObjective(prior, run.recipe.prior.training, fabric, save)


def refuse_unused_codes(tokenizer: LoadedTokenizer, train: SliceSet) -> None:
    """Raise if a level of a tokenizer uses less than a quarter of its codes."""
    token_sets = encode_slices(JointTokenizer(tokenizer.tokenizer), _subset(train))
    for level, size in enumerate(tokenizer.info.recipe.tokenizer.codebook_sizes):
        count = torch.zeros(size)
        for token_set in token_sets:
            index = len(token_set.layout.stages) - 1 - level
            tokens = token_set.tokens[:, 0, token_set.layout.slice_of(index)].flatten().long()
            count += torch.bincount(tokens, minlength=size)
        used = usage_of(count).utilization
        if used < LOW_USAGE:
            raise ConfigError(
                f"{tokenizer.path}: level {level} uses {used:.0%} of its {size} codes, too few to learn "
                f"from (wanted {LOW_USAGE:.0%}); train the tokenizer with a smaller "
                f"tokenizer.codebook_sizes[{level}], or longer"
            )


def _subset(slices: SliceSet) -> SliceSet:
    return SliceSet(slices.folder, slices.records[:: max(1, len(slices) // PROBE_SLICES)])
