"""Cache of the tokens of all slices of a training, in its folder.

While they are encoded, each shard is kept in a folder of its own, so that an interrupted training goes on.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slicebook.config import PriorTrainingConfig
from slicebook.data.dataset import SliceSet
from slicebook.io.tensors import State, hash_tensors, load_kept, save_state
from slicebook.models.sequence import JointTokenizer
from slicebook.training.progress import Display
from slicebook.training.token_dataset import TokenSet, encode_slices

TOKENS_NAME, SHARDS_NAME = "tokens.safetensors", "tokens.partial"


def load_or_encode(
    folder: Path,
    joint_tokenizer: JointTokenizer,
    splits: Mapping[str, SliceSet],
    config: PriorTrainingConfig,
    classes: Sequence[str],
    identity: Mapping[str, Any],
    display: Display,
    *,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, list[TokenSet]]:
    """Read the tokens cached in `folder`, or encode the slices and cache their tokens.

    Args:
        folder: Folder of the training.
        joint_tokenizer: The tokenizers.
        splits: Slices of `train`, encoded in `config.num_views` views, and of `validation`, in one.
        config: Settings of the views (augmented copies).
        classes: Names of the classes, in the order of their numbers.
        identity: `book` (hashes of the tokenizers) and `split_hash`.
        display: Receives a line per split that is encoded, and the progress.
        device: Device of the tokenizers.
        rank: Of this process. Processes share the work; that of rank 0 writes the file.
        world_size: Number of processes.
    """
    made_from = {
        "tokenizers": identity["tokenizers"],
        "split_hash": identity["split_hash"],
        "sizes": [
            hash_tensors({"offsets": torch.tensor([record.offset for record in slices.records])})
            for slices in splits.values()
        ],
        "views": [config.num_views, config.augment.model_dump(mode="json"), config.seed],
    }
    path = folder / TOKENS_NAME
    kept = _read(path, made_from)
    if world_size > 1:
        everywhere = torch.tensor(float(kept is not None), device=device)
        torch.distributed.all_reduce(everywhere, op=torch.distributed.ReduceOp.MIN)
        kept = kept if everywhere else None
    encoded: dict[str, list[TokenSet]] = {}
    for split, slices in splits.items():
        views = config.num_views if split == "train" else 1
        if kept is None:
            display.say(f"encoding {len(slices)} {split} slices, {views} augmentations of each slice")
        encoded[split] = encode_slices(
            joint_tokenizer,
            slices,
            views=views,
            augment=config.augment,
            seed=config.seed,
            device=device,
            classes=classes,
            known=None if kept is None else kept[split],
            rank=rank,
            world_size=world_size,
            remember=partial(_remember, folder / SHARDS_NAME, made_from, split),
            progress=display.counter("slice") if kept is None else None,
        )
    if kept is None and rank == 0:
        tensors = {
            f"{split}.{index}": token_set.tokens
            for split, token_sets in encoded.items()
            for index, token_set in enumerate(token_sets)
        }
        save_state(path, State(tensors, made_from))
    if rank == 0:  # every process has the tokens of all
        shutil.rmtree(folder / SHARDS_NAME, ignore_errors=True)
    return encoded


def _remember(
    folder: Path, made_from: Mapping[str, Any], split: str, name: str, encode: Callable[[], Tensor]
) -> Tensor:
    """Return the tokens of a shard from its file, or encode and keep them."""
    path, this = folder / f"{split}-{name}.safetensors", {**made_from, "shard": f"{split}-{name}"}
    kept = load_kept(path, this)
    if kept is not None:
        return kept["tokens"]
    tokens = encode()
    save_state(path, State({"tokens": tokens}, this))
    return tokens


def _read(path: Path, made_from: Mapping[str, Any]) -> dict[str, list[Tensor]] | None:
    """Return the tokens of each split, one tensor per slice size; None if made from something else."""
    tensors = load_kept(path, made_from)
    if tensors is None:
        return None
    by_split: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        split, _, index = key.partition(".")
        by_split[split][int(index)] = tensor
    return {split: [sizes[index] for index in sorted(sizes)] for split, sizes in by_split.items()}
