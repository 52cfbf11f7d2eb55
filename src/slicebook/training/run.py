"""The folder of a training run: options, lock, resume, settings and curves."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor

from slicebook.config import Recipe, TrainingConfig, validate
from slicebook.data.augment import augment_labels, augment_slices, draw_augmentation
from slicebook.data.dataset import SliceSet
from slicebook.data.loader import SliceBatches
from slicebook.devices import Launched, is_first_process, launch
from slicebook.errors import ConfigError
from slicebook.io.atomic import remove_unfinished, write_csv, write_text
from slicebook.io.resumable import LOCK_NAME, locked
from slicebook.io.tensors import State
from slicebook.models.masks import one_hot
from slicebook.models.tokenizer import Tokenizer
from slicebook.recipes import override
from slicebook.training.progress import Display
from slicebook.training.resume import read_state
from slicebook.visualization import figures

# Files of a training that was killed before its first validation, partial files included.
BEGUN = re.compile(
    r"\.lock|config\.yaml|prior|masks|decoder|(tokens|samples)\.safetensors|tokens\.partial|batch\.png|events\.out\..*"
    r"|\.(config|batch|model|state|metrics|curves|tokens|samples)\..*"
)
# Files of any training, and its subfolders: of trainings that depend on it, and of tokens being encoded.
WRITTEN = re.compile(BEGUN.pattern + r"|(model|state|previous-state)\.safetensors|metrics\.csv|curves\.png")
SUBFOLDERS = ("prior", "masks", "decoder", "tokens.partial")
TOKENS_PER_CODE = 20


@dataclass(frozen=True)
class TrainingOptions:
    """Options that all trainings share, besides the settings of the recipe.

    Attributes:
        seed: Replaces the training seed of the recipe.
        device: `auto`, `cpu`, `cuda` or `mps`. Under `torchrun` or SLURM all processes train together.
        precision: `auto` measures on a CPU, once per run, whether the model's steps are faster in float32 or
            in `bf16-mixed`; on a GPU it is `bf16-mixed` where bf16 is native, else `32-true`.
        workers: Number of data loading processes; a prior's tokens are in memory and need none.
        restart: Whether to delete the files of an earlier training first.
        start_from: Model whose weights to start from, as far as they fit; random weights by default.
        progress: Whether to show the progress.
    """

    seed: int | None = None
    device: str = "auto"
    precision: str = "auto"
    workers: int = 0
    restart: bool = False
    start_from: str | Path | None = None
    progress: bool = True

    def launch(self) -> Launched:
        """Take the device, as `devices.launch` does."""
        return launch(self.device, self.precision)

    def apply_seed(self, recipe: Recipe, *groups: str) -> Recipe:
        """Return a recipe with the seed, if there is one, in these groups of training settings."""
        return (
            recipe if self.seed is None else override(recipe, [f"{name}.seed={self.seed}" for name in groups])
        )


DEFAULT_OPTIONS = TrainingOptions()


@contextlib.contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Lock a run folder for this training until the block ends; rank 0 holds the lock for all processes.

    Files that an earlier training was killed while writing are removed.

    Raises:
        ConfigError: Another training holds the folder.
    """
    if not is_first_process() or (run.exists() and not run.is_dir()):
        yield
        return
    made = not run.exists()
    try:
        with locked(run / LOCK_NAME, "another training") as held:
            if held:
                remove_unfinished(run)
            yield
    finally:
        with contextlib.suppress(OSError):
            if made:
                run.rmdir()  # fails unless it is empty


def check_run_files(run: Path) -> None:
    """Raise if a folder to restart contains anything but files of a training."""
    items = sorted(run.iterdir()) if run.is_dir() else [run] if run.exists() else []
    for item in items:
        if not WRITTEN.fullmatch(item.name) or item.is_dir() != (item.name in SUBFOLDERS):
            raise ConfigError(
                f"{item}: was not written by a training, so nothing is deleted; move it away, or use another "
                "--out"
            )


def restart_run(run: Path, fabric: Fabric) -> None:
    """Delete the files of a training, so that it starts anew; subfolders stay.

    Raises:
        ConfigError: The folder holds something else too, or another training writes there.
    """
    check_run_files(run)
    fabric.barrier()  # all processes have checked before rank 0 deletes
    if run.is_dir() and fabric.is_global_zero:
        with lock_run(run):
            for item in run.iterdir():
                if item.is_file() and item.name != LOCK_NAME:
                    item.unlink()
    fabric.barrier()


def state_to_resume(run: Path, identity: Mapping[str, Any]) -> State | None:
    """Return the state to resume from, or None for a new run.

    Args:
        run: Folder of the training.
        identity: What a resumed training must have in common: `recipe` (its settings) and `split_hash`; if
            it depends on other models, `tokenizers` (their hashes, as far as known).

    Raises:
        ConfigError: The folder is something else, or a training with other settings or data.
        CheckpointError: Its state is damaged.
    """
    state = read_state(run)
    if state is not None:
        if state.progress["split_hash"] != identity["split_hash"]:
            raise ConfigError(
                f"{run}: was trained on other data or another split; use another --out, or --restart"
            )
        known = identity.get("tokenizers", [])
        if state.progress.get("tokenizers", [])[: len(known)] != known:
            raise ConfigError(
                f"{run}: was trained on the tokens of another tokenizer, or of another prior; use another "
                "--out, or --restart"
            )
        # Validated, so that settings unknown to the version that wrote it get their defaults.
        before = validate(Recipe, state.progress["recipe"], str(run)).model_dump(mode="json")
        different = _differences({key: before[key] for key in identity["recipe"]}, identity["recipe"])
        if different:
            raise ConfigError(
                f"{run}: was started with other settings ({'; '.join(different)}); use another --out, or "
                "--restart"
            )
        return state
    if run.exists() and (not run.is_dir() or any(not BEGUN.fullmatch(item.name) for item in run.iterdir())):
        raise ConfigError(
            f"{run}: exists and is not a training that can be resumed; use another --out, or remove it"
        )
    return None


def _differences(before: Any, now: Any, key: str = "") -> list[str]:
    # The settings of masks affect no other training; how often a state is kept affects none.
    if key in ("name", "description", "labels") or key.endswith(".save_minutes"):
        return []
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
        return [
            text
            for name in keys
            for text in _differences(before.get(name), now.get(name), f"{key}.{name}".lstrip("."))
        ]
    return [] if before == now else [f"{key}: {before} then, {now} now"]


def write_settings_and_batch(run: Path, recipe: Recipe, train: SliceSet, display: Display) -> None:
    """Write the settings and a picture of a training batch; report codebooks too large for the data."""
    write_text(run / "config.yaml", recipe.to_yaml())
    config, tokenizer = recipe.training, Tokenizer(recipe.tokenizer)
    record = train.records[0]
    figures.batch(
        _first_batch(train, config, recipe.tokenizer.label_values),
        run / "batch.png",
        aspect=record.row_mm / record.column_mm,
    )
    tokens = [0] * tokenizer.levels
    for record in train.records:
        for level, (rows, columns) in enumerate(tokenizer.grids((record.rows, record.columns))):
            tokens[level] += rows * columns
    for level, (count, size) in enumerate(zip(tokens, recipe.tokenizer.codebook_sizes, strict=True)):
        if count < TOKENS_PER_CODE * size:
            display.say(
                f"level {level}: {size:,} codes for {count:,} training tokens, fewer "
                f"than {TOKENS_PER_CODE} per code; a smaller tokenizer.codebook_sizes[{level}] would suit"
            )


def _first_batch(
    train: SliceSet, config: TrainingConfig, label_values: Sequence[int]
) -> Float[Tensor, "b 1 h w"]:
    """Return a training batch after augmentation, in [-1, 1]; masks in grays, in the order of labels."""
    what: Literal["images", "labels"] = "labels" if label_values else "images"
    batches = SliceBatches(train, config.batch_size, shuffle=True, seed=config.seed, what=what)
    first = next(iter(batches)).images
    if config.augment:
        generator = torch.Generator().manual_seed(config.seed)
        if label_values:
            first = augment_labels(first, draw_augmentation(config.augment, len(first), generator))
        else:
            first = augment_slices(first, config.augment, generator)
    if not label_values:
        return first
    grays = torch.linspace(-1, 1, len(label_values))[:, None, None]
    return (one_hot(first[:, 0], label_values) * grays).sum(1, keepdim=True)


def write_metrics(run: Path, history: list[dict[str, float]]) -> None:
    """Write `metrics.csv`, one row per validation, and `curves.png`."""
    columns = list(dict.fromkeys(name for row in history for name in row))
    rows = [{name: f"{value:.6g}" for name, value in row.items()} for row in history]
    write_csv(run / "metrics.csv", rows, columns)
    figures.curves(run / "metrics.csv", run / "curves.png")
