"""Train what generates, over a trained tokenizer: the tokenizer of masks, the prior, and its decoder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from slicebook.config import Recipe
from slicebook.data.dataset import PreparedData, SliceSet
from slicebook.data.manifest import slice_kinds
from slicebook.devices import launch
from slicebook.errors import ConfigError
from slicebook.io.atomic import write_text
from slicebook.io.tensors import STATE_NAME, State, hash_tensors, load_kept, load_state, save_state
from slicebook.models.checkpoint import LoadedTokenizer, PriorInfo, load_prior, load_tokenizer, save_prior
from slicebook.models.noise import NoiseModel, fit_noise_model
from slicebook.models.prior import Prior
from slicebook.models.quantizer import usage_of
from slicebook.models.sequence_book import JointTokenizer
from slicebook.recipes import override
from slicebook.training.decoder import KIND, Samples, read_samples, train_decoder
from slicebook.training.prior import PriorObjective
from slicebook.training.progress import Display
from slicebook.training.run import hold_run, open_run
from slicebook.training.token_dataset import TokenBatches, TokenSet, encode_slices
from slicebook.training.tokenizer import LOW_USAGE, TrainingSummary, summarise_run, train_labels
from slicebook.training.trainer import Progress, Trainer, provenance

TOKENS_NAME = "tokens.safetensors"
JUDGED = 512  # training slices, about, that tell which codes are used, and the noise


def train_prior(
    run: str | Path,
    settings: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    data: str | Path | None = None,
    masks: bool = True,
    device: str = "auto",
    precision: str = "auto",
    progress: bool = True,
) -> TrainingSummary:
    """Train a prior over the tokens of a trained tokenizer, or go on with the training that `out` holds.

    Where the data have label masks, a tokenizer of masks comes first (`out`/masks): the prior then draws
    both. The tokens of all slices are made once and kept beside (`out`/tokens.safetensors). Last, a copy of
    the tokenizer's decoder learns to draw crisply, the finished prior's samples too (`out`/decoder).

    Args:
        run: Folder of the tokenizer's training, or of a demo.
        settings: `key=value` over the run's recipe; its groups `prior`, `labels` and `decoder` alone.
        out: Folder of this training; `run`/prior by default.
        data: The prepared folder, where it is no longer where the tokenizer's training found it.
        masks: Whether to learn the masks too, where there are any.
        device: `auto`, `cpu`, `cuda` or `mps`. Under `torchrun` or SLURM all processes train together.
        precision: As in `train_tokenizer`.
        progress: Show the progress.

    Raises:
        CheckpointError: `run` holds no trained tokenizer.
        DataError: The prepared folder is not there.
        ConfigError: Other data than the tokenizer's; a level that uses under a quarter of its codes; `out`
            holds a training with other settings; or the loss became NaN or infinite.
    """
    tokenizer = load_tokenizer(run)
    folder = Path(out) if out is not None else tokenizer.path.parent / "prior"
    recipe = _chosen(tokenizer.info.recipe, settings)
    opened = find_data(tokenizer, data)
    with hold_run(folder):
        return _train(tokenizer, folder, recipe, opened, masks, device, precision, progress)


def _train(
    tokenizer: LoadedTokenizer,
    folder: Path,
    recipe: Recipe,
    opened: PreparedData,
    masks: bool,
    device: str,
    precision: str,
    progress: bool,
) -> TrainingSummary:
    train, validation = opened.split("train"), opened.split("validation")
    config = recipe.prior.training
    identity: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json", include={"prior"}),
        "split_hash": opened.split_hash,
        "book": [hash_tensors(tokenizer.tokenizer.token_state())],
    }
    classes = tuple(sorted({record.group for record in train.records if record.group}))
    identity["classes"] = list(classes)
    masks = masks and any(record.label_offset >= 0 for record in train.records)
    _refuse_other_parts(folder, open_run(folder, identity), masks, classes)  # before anything is trained
    _refuse_unused(tokenizer, train)
    labelled = None
    if masks:
        train_labels(
            opened.folder, recipe, folder / "masks", device=device, precision=precision, progress=progress
        )
        labelled = load_tokenizer(folder / "masks", kind="label tokenizer")
        identity["book"].append(labelled.info.weights_sha256)
    state = open_run(folder, identity)
    fabric = launch(device, precision)
    fabric.seed_everything(config.seed, verbose=False)
    book = JointTokenizer(
        tokenizer.tokenizer.to(fabric.device), labelled.tokenizer.to(fabric.device) if labelled else None
    )
    noise_model = _grain(tokenizer, train)
    display = Display(folder, shown=progress and fabric.is_global_zero)
    if fabric.is_global_zero and state is None:
        write_text(folder / "config.yaml", recipe.to_yaml())
    with fabric.rank_zero_first():
        learned, judged = _tokens(folder, book, train, validation, recipe, classes, identity, fabric, display)
    batches = TokenBatches(
        learned,
        config.batch_size,
        shuffle=True,
        seed=config.seed,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )

    def keep(path: Path, prior: Prior, reached: Progress, scores: Mapping[str, float]) -> None:
        info = PriorInfo(
            schema_version=tokenizer.info.schema_version,
            kind="prior",
            recipe=recipe,
            masks=labelled.info.recipe if labelled else None,
            slices=slice_kinds(train.records),
            classes=classes,
            noise_model=noise_model,
            tokenizer_provenance=tokenizer.info.provenance,
            provenance=provenance(opened, train, fabric.device, reached, scores),
            weights_sha256="",
        )
        save_prior(path, prior, book, info)

    objective = PriorObjective(Prior(recipe.prior, book.codebooks, len(classes)), config, fabric, keep)
    fit = Trainer(objective, config, folder, identity, fabric)
    with display:
        reached = fit(batches, TokenBatches(judged, config.batch_size), state, display)
    fabric.barrier()  # its file is whole
    drawing = tokenizer
    if recipe.decoder is not None:
        drawing = train_decoder(
            tokenizer,
            load_prior(folder, fabric.device),
            opened,
            recipe,
            folder / "decoder",
            device=device,
            precision=precision,
            progress=progress,
        )
    if fabric.is_global_zero:
        _set_decoder(folder, drawing, recipe, train)
    fabric.barrier()
    return summarise_run(folder, reached)


def _refuse_other_parts(folder: Path, state: State | None, masks: bool, classes: Sequence[str]) -> None:
    """Refuse to go on with a prior of other networks: with masks and without, or of other classes."""
    if state is None:
        return
    had_masks = len(state.progress["book"]) > 1  # hashes of the tokenizer of slices, and of that of masks
    if had_masks != masks:
        before, now = ("with", "without") if had_masks else ("without", "with")
        raise ConfigError(
            f"{folder}: was begun {before} masks, and would go on {now} them; use data and --no-masks as "
            "before, or another --out"
        )
    known = state.progress.get("classes", list(classes))
    if known != list(classes):
        raise ConfigError(
            f"{folder}: was begun with classes {', '.join(known) or 'none'}, and the data have "
            f"{', '.join(classes) or 'none'}; give --data prepared "
            "with the same --class-regex, or another --out"
        )


def _set_decoder(folder: Path, drawing: LoadedTokenizer, recipe: Recipe, train: SliceSet) -> None:
    """Put a decoder into the file of a finished prior, and the noise that its drawings lack."""
    kept = load_prior(folder)
    if hash_tensors(kept.book.images.state_dict()) == hash_tensors(drawing.tokenizer.state_dict()):
        return
    made = drawing.info.provenance if drawing.info.kind == KIND else None
    noise_model = _grain(drawing, train, read_samples(kept, folder / "decoder") if made else None)
    update = {"recipe": recipe, "noise_model": noise_model, "decoder_provenance": made}
    book = JointTokenizer(drawing.tokenizer, kept.book.masks)
    save_prior(kept.path, kept.prior, book, kept.info.model_copy(update=update))


def _chosen(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    for setting in settings:
        if setting.split(".")[0].partition("=")[0] not in ("prior", "labels", "decoder"):
            raise ConfigError(
                f"{setting}: the tokenizer is trained already; wanted settings of prior, labels or "
                "decoder, such as prior.training.max_minutes=30"
            )
    return override(recipe, settings)


def find_data(tokenizer: LoadedTokenizer, data: str | Path | None) -> PreparedData:
    """Open the data that a tokenizer was trained on."""
    if data is None:
        state = tokenizer.path.parent / STATE_NAME
        known = load_state(state).progress.get("data") if state.is_file() else None
        if known is None:
            raise ConfigError(
                f"{tokenizer.path.parent}: does not say which data it was trained on; give --data DATA, the "
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


def _tokens(
    folder: Path,
    book: JointTokenizer,
    train: SliceSet,
    validation: SliceSet,
    recipe: Recipe,
    classes: Sequence[str],
    identity: Mapping[str, object],
    fabric: Fabric,
    display: Display,
) -> tuple[list[TokenSet], list[TokenSet]]:
    """Encode both splits, or read what was encoded before."""
    config = recipe.prior.training
    made_from = {
        "book": identity["book"],
        "split_hash": identity["split_hash"],
        "sizes": [
            hash_tensors({"offsets": torch.tensor([r.offset for r in s.records])})
            for s in (train, validation)
        ],
        "views": [config.num_views, config.shift, config.seed],
    }
    path = folder / TOKENS_NAME
    kept = _kept(path, made_from)
    found = []
    for name, slices, views in (("train", train, config.num_views), ("validation", validation, 1)):
        if kept is None:
            display.say(f"{len(slices)} {name} slices, {views} forms of each, to tokens")
        sets = encode_slices(
            book,
            slices,
            views=views,
            shift=config.shift,
            seed=config.seed,
            device=fabric.device,
            classes=classes,
            known=None if kept is None else kept[name],
        )
        found.append(sets)
    if kept is None and fabric.is_global_zero:
        tensors = {
            f"{name}.{index}": one.tokens
            for name, sets in zip(("train", "validation"), found, strict=True)
            for index, one in enumerate(sets)
        }
        save_state(path, State(tensors, made_from))
    return found[0], found[1]


def _kept(path: Path, made_from: Mapping[str, object]) -> dict[str, list[torch.Tensor]] | None:
    tensors = load_kept(path, made_from)
    if tensors is None:
        return None
    found: dict[str, dict[int, torch.Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        name, _, index = key.partition(".")
        found[name][int(index)] = tensor
    return {name: [sets[index] for index in sorted(sets)] for name, sets in found.items()}


def _refuse_unused(tokenizer: LoadedTokenizer, train: SliceSet) -> None:
    """Refuse a tokenizer of whose codes hardly any are used: its tokens say nothing that could be learned."""
    some = _some(train)
    sets = encode_slices(JointTokenizer(tokenizer.tokenizer), some)
    for level, size in enumerate(tokenizer.info.recipe.tokenizer.codebook_sizes):
        count = torch.zeros(size)
        for one in sets:
            index = len(one.layout.stages) - 1 - level
            tokens = one.tokens[:, 0, one.layout.part(index)].flatten().long()
            count += torch.bincount(tokens, minlength=size)
        used = usage_of(count).used
        if used < LOW_USAGE:
            raise ConfigError(
                f"{tokenizer.path}: level {level} uses {used:.0%} of its {size} codes, too few to learn "
                f"from (wanted {LOW_USAGE:.0%}); train the tokenizer with a smaller "
                f"tokenizer.codebook_sizes[{level}], or longer"
            )


def _some(slices: SliceSet) -> SliceSet:
    return SliceSet(slices.folder, slices.records[:: max(1, len(slices) // JUDGED)])


def _grain(tokenizer: LoadedTokenizer, train: SliceSet, samples: Samples | None = None) -> NoiseModel | None:
    """Measure the noise that the tokenizer was taught to leave out, and what it draws of samples."""
    strength = tokenizer.info.recipe.training.loss.denoise_strength
    if not strength:
        return None
    some, whole = _some(train), tokenizer.tokenizer
    device = next(whole.parameters()).device

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for index in range(len(some)):
            image = some[index][None]
            yield image, draw(whole.encode(image.to(device)), (image.shape[-2], image.shape[-1]))

    def draw(tokens: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        return whole.decode([grid.to(device) for grid in tokens], size).clamp(-1, 1).cpu()

    def drawings(samples: Samples) -> Iterator[Tensor]:
        for size, grids in samples.items():
            for index in range(len(grids[0])):
                yield draw([grid[index : index + 1] for grid in grids], size)

    return fit_noise_model(pairs(), strength, None if samples is None else drawings(samples))
