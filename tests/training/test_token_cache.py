"""The tokens of a training are kept shard by shard while they are encoded, and in one file at the end."""

import math
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from slicebook.data.dataset import PreparedData, SliceSet
from slicebook.data.manifest import SliceRecord
from slicebook.training import token_cache, token_dataset
from slicebook.training.progress import Display
from slicebook.training.token_cache import SHARDS_NAME, TOKENS_NAME, load_or_encode
from slicebook.training.token_dataset import encode_slices

IDENTITY: dict[str, Any] = {"tokenizers": ["abc"], "split_hash": "def"}


@pytest.fixture
def encode(trained, loaded):
    """Read or encode the tokens of a training in a folder."""
    data, config = PreparedData.open(trained.data), loaded.info.recipe.prior.training
    splits = {"train": data.split("train"), "validation": data.split("validation")}

    def run(folder, **changes):
        display = Display(folder, shown=False)
        settings = config.model_copy(update=changes)
        joint, device = loaded.tokenizer, torch.device("cpu")
        sets = load_or_encode(folder, joint, splits, settings, (), IDENTITY, display, device=device)
        return [token_set.tokens for of_split in sets.values() for token_set in of_split]

    return run


@pytest.fixture
def parts(monkeypatch):
    """The slices that are encoded, in batches of five."""
    whole, calls = token_dataset._encode_views, []

    def spy(joint_tokenizer, slices, part, *given):
        calls.append(part)
        return whole(joint_tokenizer, slices, part, *given)

    monkeypatch.setattr(token_dataset, "BATCH", 5)
    monkeypatch.setattr(token_dataset, "_encode_views", spy)
    return calls


@pytest.fixture
def interrupted(encode, parts, tmp_path, monkeypatch):
    """A folder with three shards of a training; the fourth was begun."""
    encode_views = token_dataset._encode_views

    def stop(*given):
        if len(parts) == 3:
            raise KeyboardInterrupt
        return encode_views(*given)

    with monkeypatch.context() as patch:
        patch.setattr(token_dataset, "_encode_views", stop)
        with pytest.raises(KeyboardInterrupt):
            encode(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [SHARDS_NAME]
    assert len(list((tmp_path / "out" / SHARDS_NAME).iterdir())) == 3
    return tmp_path / "out"


def test_an_interrupted_encoding_goes_on_after_the_last_shard(encode, parts, interrupted, tmp_path, trained):
    resumed, since = encode(interrupted), len(parts)
    data = PreparedData.open(trained.data)
    sizes = [
        Counter((record.rows, record.columns) for record in data.split("train").records),
        Counter((record.rows, record.columns) for record in data.split("validation").records),
    ]
    assert since == sum(math.ceil(count / 5) for counts in sizes for count in counts.values())
    whole = encode(tmp_path / "whole")
    assert [one.equal(other) for one, other in zip(resumed, whole, strict=True)] == [True] * len(whole)
    assert [path.name for path in interrupted.iterdir()] == [TOKENS_NAME]
    assert (interrupted / TOKENS_NAME).read_bytes() == (tmp_path / "whole" / TOKENS_NAME).read_bytes()


def test_a_damaged_shard_is_encoded_again(encode, parts, interrupted):
    shard = sorted((interrupted / SHARDS_NAME).iterdir())[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    encode(interrupted)
    assert parts[3] == parts[1]
    assert parts[4] != parts[2]


def test_shards_of_other_settings_are_not_taken_over(encode, parts, interrupted, tmp_path):
    changed = encode(interrupted, seed=7)
    assert parts[3] == parts[0]
    whole = encode(tmp_path / "whole", seed=7)
    assert [one.equal(other) for one, other in zip(changed, whole, strict=True)] == [True] * len(whole)


def test_a_shard_belongs_to_its_split(tmp_path):
    remember = partial(token_cache._remember, tmp_path, {"seed": 1})
    one, other = torch.ones(2, 1, 3, dtype=torch.int32), torch.zeros(2, 1, 3, dtype=torch.int32)
    assert remember("train", "8x8-0", lambda: one).equal(one)
    assert remember("train", "8x8-0", lambda: other).equal(one)
    assert remember("validation", "8x8-0", lambda: other).equal(other)


def test_a_large_set_has_no_more_shards_than_a_folder_should_hold(loaded, monkeypatch):
    monkeypatch.setattr(token_dataset, "BATCH", 1)
    monkeypatch.setattr(token_dataset, "SHARDS", 4)
    lengths = iter((3, 3, 3, 2))
    names = []
    record = SliceRecord(
        index=0, patient="p", volume="v", slice=0, position=0.5, split="train", rows=8, columns=8, offset=0,
        label_offset=-1, row_mm=1.0, column_mm=1.0, low=0.0, high=1.0, blank=False,
    )  # fmt: skip

    def remember(name, _):
        names.append(name)
        return torch.zeros(next(lengths), 1, 1, dtype=torch.int32)

    encode_slices(loaded.tokenizer, SliceSet(Path(), (record,) * 11), remember=remember)
    assert names == [f"8x8-{start:08}" for start in (0, 3, 6, 9)]
