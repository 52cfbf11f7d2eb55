"""Train the parts of a generator over a trained tokenizer: mask tokenizer, prior and decoder.

All parts share one folder, `RUN/prior` by default: the prior lies in it, the mask tokenizer in its subfolder
`masks`, the decoder in `decoder`. Each part can be trained by itself; `train_generator` trains them in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from slicebook.config import Recipe
from slicebook.data.dataset import PreparedData
from slicebook.errors import ConfigError
from slicebook.io.tensors import hash_tensors
from slicebook.models.checkpoint import LoadedDecoder, LoadedTokenizer, load_prior, load_tokenizer, save_prior
from slicebook.recipes import override
from slicebook.training import decoder as decoders
from slicebook.training.fit_prior import PriorRun, fit_prior, refuse_unused_codes
from slicebook.training.resume import Progress, read_state
from slicebook.training.run import (
    DEFAULT_OPTIONS,
    TrainingOptions,
    check_run_files,
    lock_run,
    restart_run,
    state_to_resume,
)
from slicebook.training.tokenizer import TrainingSummary, summarise_run, train_labels
from slicebook.training.warm_start import load_initial

PARTS = {"masks": "labels", "prior": "prior", "decoder": "decoder"}
"""Each part of a generator and its group of settings, in the order of training."""


@dataclass(frozen=True)
class GeneratorSummary:
    """Summaries of the trainings of a generator's parts; None for a part that is not used."""

    masks: TrainingSummary | None
    prior: TrainingSummary
    decoder: TrainingSummary | None


def train_masks(
    run: str | Path,
    settings: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    data: str | Path | None = None,
    options: TrainingOptions = DEFAULT_OPTIONS,
) -> TrainingSummary:
    """Train the tokenizer of label masks in `out`/masks, or resume its training.

    Args:
        run: As all that follow, see `train_prior`.
        settings: `key=value` of the group `labels`.
        out: Folder of the generator.
        data: The prepared folder.
        options: Seed, device and the like.

    Raises:
        DataError: The data have no masks.
        ConfigError: `out`/masks holds a training with other settings, or something else.
    """
    return _train_masks(_open(["masks"], run, settings, out, data, options))


def train_prior(
    run: str | Path,
    settings: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    data: str | Path | None = None,
    masks: bool = True,
    options: TrainingOptions = DEFAULT_OPTIONS,
) -> TrainingSummary:
    """Train a prior over the tokens of a trained tokenizer, or resume its training.

    Where the data have label masks, the prior models them too, by the mask tokenizer in `out`/masks. All
    slices are encoded once, into `out`/tokens.safetensors.

    Args:
        run: Folder of the tokenizer's training, or of a demo.
        settings: `key=value` of the group `prior`, applied to the run's recipe.
        out: Folder of the generator; `run`/prior by default.
        data: The prepared folder, if it has been moved since the tokenizer's training.
        masks: Whether to model masks, if the data have them.
        options: Seed, device and the like.

    Raises:
        CheckpointError: `run` holds no trained tokenizer.
        DataError: The prepared folder does not exist.
        ConfigError: The data are not the tokenizer's; a level uses under a quarter of its codes; the mask
            tokenizer is not trained; `out` holds a training with other settings; or the loss is not finite.
    """
    return _train_prior(_open(["prior"], run, settings, out, data, options), masks)


def train_decoder(
    run: str | Path,
    settings: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    data: str | Path | None = None,
    options: TrainingOptions = DEFAULT_OPTIONS,
) -> TrainingSummary:
    """Train the decoder of a finished prior in `out`/decoder, or resume; then put it into the prior's file.

    Args:
        run: As all that follow, see `train_prior`.
        settings: `key=value` of the group `decoder`.
        out: Folder of the generator.
        data: The prepared folder.
        options: Seed, device and the like.

    Raises:
        ConfigError: The prior is not trained to its end; the recipe's `decoder` is null; or `out`/decoder
            holds a training with other settings, of another prior, or something else.
    """
    return _train_decoder(_open(["decoder"], run, settings, out, data, options))


def train_generator(
    run: str | Path,
    settings: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    data: str | Path | None = None,
    masks: bool = True,
    options: TrainingOptions = DEFAULT_OPTIONS,
) -> GeneratorSummary:
    """Train mask tokenizer, prior and decoder in turn, or resume; all is checked before the first starts.

    With `decoder=null` the prior's file gets no generation decoder.

    Args:
        run: As all that follow, see `train_prior`.
        settings: `key=value` of the groups `labels`, `prior` and `decoder`.
        out: Folder of the generator.
        data: The prepared folder.
        masks: Whether to train and model masks, if the data have them.
        options: Seed, device and the like.

    Raises:
        CheckpointError, DataError, ConfigError: As in the three functions.
    """
    job = _open(list(PARTS), run, settings, out, data, options)
    masks = masks and job.has_masks
    folders = [job.folder, *([job.masks] if masks else []), *([job.decoder] if job.recipe.decoder else [])]
    _check_all(job, folders, masks)
    if options.restart:
        for folder in folders:
            restart_run(folder, options.launch())
        job = replace(job, options=replace(options, restart=False))
    mask_summary = _train_masks(_with_weights(job, "masks")) if masks else None
    prior_summary = _train_prior(job, masks)
    if job.recipe.decoder is None:
        _install_decoder(job, None)
        return GeneratorSummary(mask_summary, prior_summary, None)
    return GeneratorSummary(mask_summary, prior_summary, _train_decoder(_with_weights(job, "decoder")))


def _with_weights(job: _Job, part: Literal["masks", "decoder"]) -> _Job:
    """Return the job without `start_from`, if that model does not have a part."""
    try:
        load_initial(job.options.start_from, part)
    except ConfigError:
        return replace(job, options=replace(job.options, start_from=None))
    return job


@dataclass(frozen=True)
class _Job:
    """What the trainings of a generator's parts share.

    Attributes:
        run: Path given by the user, for messages.
        tokenizer: Trained.
        data: What the tokenizer was trained on.
        recipe: The tokenizer's, with the settings of this training applied.
        folder: Of the generator.
        is_default: Whether it is the default folder, where other commands look for it.
        options: Of each part's training.
    """

    run: Path
    tokenizer: LoadedTokenizer
    data: PreparedData
    recipe: Recipe
    folder: Path
    is_default: bool
    options: TrainingOptions

    @property
    def masks(self) -> Path:
        return self.folder / "masks"

    @property
    def decoder(self) -> Path:
        return self.folder / "decoder"

    @property
    def has_masks(self) -> bool:
        return any(record.label_offset >= 0 for record in self.data.split("train").records)

    def command(self, part: str) -> str:
        """Return the command that trains a part."""
        return f"slicebook train {part} {self.run}{'' if self.is_default else f' --out {self.folder}'}"

    def prior_run(self, masks: bool) -> PriorRun:
        """Return what identifies the training of a prior, without the mask tokenizer."""
        return PriorRun(self.tokenizer, self.data, self.recipe, self.folder, masks)


def _open(
    parts: Sequence[str],
    run: str | Path,
    settings: Sequence[str],
    out: str | Path | None,
    data: str | Path | None,
    options: TrainingOptions,
) -> _Job:
    """Load the tokenizer, apply the settings, and open the data."""
    tokenizer = load_tokenizer(run)
    recipe = _apply(tokenizer.info.recipe, settings, [PARTS[part] for part in parts], options)
    if parts == ["decoder"] and recipe.decoder is None:
        raise ConfigError(f"recipe {recipe.name}: decoder is null, wanted settings for it")
    default = tokenizer.path.parent / "prior"
    folder = default if out is None else Path(out)
    return _Job(Path(run), tokenizer, find_data(tokenizer, data), recipe, folder, folder == default, options)


def _apply(
    recipe: Recipe, settings: Sequence[str], groups: Sequence[str], options: TrainingOptions
) -> Recipe:
    for setting in settings:
        if setting.split(".")[0].partition("=")[0] not in groups:
            raise ConfigError(
                f"{setting}: is not a setting of this training; wanted settings of {' or '.join(groups)}, "
                f"such as {groups[-1]}.training.max_minutes=30"
            )
    recipe = override(recipe, settings)
    used = [f"{group}.training" for group in groups if getattr(recipe, group) is not None]
    return options.apply_seed(recipe, *used)


def find_data(tokenizer: LoadedTokenizer, data: str | Path | None) -> PreparedData:
    """Open the data that a tokenizer was trained on."""
    if data is None:
        state = read_state(tokenizer.path.parent)
        known = state.progress.get("data") if state else None
        if known is None:
            raise ConfigError(
                f"{tokenizer.path.parent}: has no record of its training data; give --data DATA, the "
                "prepared folder"
            )
        data = known
    opened = PreparedData.open(data)
    if opened.split_hash != tokenizer.info.provenance.split_hash:
        raise ConfigError(
            f"{opened.folder}: holds other patients, or another split, than {tokenizer.path} was trained on: "
            "a test patient might be learned; give --data the same data, prepared with the same split"
        )
    return opened


def _check_all(job: _Job, folders: Sequence[Path], masks: bool) -> None:
    """Raise before the first training what a later part would raise."""
    if job.options.restart:
        for folder in folders:
            check_run_files(folder)
    else:
        split = {"split_hash": job.data.split_hash}
        job.prior_run(masks).check_resumable()
        if masks:
            recipe = job.recipe.for_labels(job.data.info.label_values)
            settings = recipe.model_dump(mode="json", include={"tokenizer", "training"})
            state_to_resume(job.masks, split | {"recipe": settings})
        if job.recipe.decoder is not None:
            settings = job.recipe.model_dump(mode="json", include={"decoder"})
            joint_tokenizer = [job.tokenizer.info.weights_sha256]
            state_to_resume(job.decoder, split | {"recipe": settings, "tokenizers": joint_tokenizer})
    load_initial(job.options.start_from, "prior")
    refuse_unused_codes(job.tokenizer, job.data.split("train"))


def _train_masks(job: _Job) -> TrainingSummary:
    return train_labels(job.data.folder, job.recipe, job.masks, job.options)


def _train_prior(job: _Job, masks: bool) -> TrainingSummary:
    masks = masks and job.has_masks
    prior_run = job.prior_run(masks)
    load_initial(job.options.start_from, "prior")  # refused before anything is deleted
    if job.options.restart:
        check_run_files(job.folder)
    else:
        prior_run.check_resumable()
    refuse_unused_codes(job.tokenizer, prior_run.train)
    if masks:
        state = _progress(job.masks)
        if state is None or not state.finished:
            raise ConfigError(
                f"{job.masks}: holds no finished mask tokenizer; train it first: {job.command('masks')}; or "
                "give --no-masks"
            )
        mask_tokenizer = load_tokenizer(job.masks, kind="label tokenizer")
        labels = mask_tokenizer.info.recipe.labels
        recipe = job.recipe.model_copy(update={"labels": labels})
        prior_run = replace(prior_run, masks=mask_tokenizer, recipe=recipe)
    if job.options.restart:
        restart_run(job.folder, job.options.launch())
    with lock_run(job.folder):
        progress = fit_prior(prior_run, job.options)
    return summarise_run(job.folder, progress)


def _train_decoder(job: _Job) -> TrainingSummary:
    state = _progress(job.folder)
    if state is None or not state.finished:
        raise ConfigError(f"{job.folder}: holds no finished prior; train it first: {job.command('prior')}")
    fabric = job.options.launch()
    trained = decoders.train_decoder(job.tokenizer, job.data, job.recipe, job.decoder, job.options)
    if fabric.is_global_zero:
        _install_decoder(job, trained)
    fabric.barrier()
    progress = _progress(job.decoder)
    assert progress is not None
    return summarise_run(job.decoder, progress)


def _progress(run: Path) -> Progress | None:
    """Return how far a training got; None where there is none."""
    state = read_state(run)
    return None if state is None else Progress(**state.progress["progress"])


def _install_decoder(job: _Job, source: LoadedDecoder | None) -> None:
    """Write a decoder into the file of a finished prior; without one, remove that of an earlier training."""
    loaded = load_prior(job.folder)
    before = hash_tensors(loaded.decoder.state_dict()) if loaded.decoder else None
    if before == (source.info.weights_sha256 if source else None):
        return
    update = {
        "recipe": loaded.info.recipe.model_copy(
            update={"decoder": source.info.recipe.decoder if source else None}
        ),
        "decoder_provenance": source.info.provenance if source else None,
    }
    info = loaded.info.model_copy(update=update)
    decoder = source.decoder if source else None
    save_prior(loaded.path, loaded.prior, loaded.tokenizer, info, decoder)
