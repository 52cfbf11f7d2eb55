"""Tokens of a split: every view of every slice, and batches of them."""

from dataclasses import replace

import pytest
import torch
from helpers.joint_tokenizer import tokenizer
from helpers.labels import VALUES, labelled_folder
from helpers.training import prepared_folder

from slicebook.config import AugmentConfig
from slicebook.data.dataset import PreparedData, SliceSet
from slicebook.models.conditions import Conditions
from slicebook.models.sequence import JointTokenizer
from slicebook.training.token_dataset import TokenBatches, TokenSet, encode_slices

UNMASKED = (1, 6)
PLAIN = AugmentConfig(rotate_degrees=0, scale=0, shift=0, gamma=0, intensity_scale=0)  # the flip is left
MIRROR = PLAIN.model_copy(update={"flip_probability": 1.0})
MOVED = PLAIN.model_copy(update={"flip_probability": 0.0, "shift": 0.2, "rotate_degrees": 10.0})


@pytest.fixture(scope="module")
def joint_tokenizer():
    return JointTokenizer(
        tokenizer(0, scaling_rates=(4, 4), codebook_sizes=(8, 6)),
        tokenizer(1, scaling_rates=(8,), codebook_sizes=(5,), label_values=VALUES),
    )


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    """Twelve slices of 32×32, two of them without a mask."""
    folder = labelled_folder(tmp_path_factory.mktemp("tokens") / "prepared", without=UNMASKED)
    return PreparedData.open(folder).split("train")


@pytest.fixture
def seen(monkeypatch):
    """Collect what a joint tokenizer encodes: pairs of images and masks."""
    asked, whole = [], JointTokenizer.encode

    def encode(self, images, masks=None):
        asked.append((images, masks))
        return whole(self, images, masks)

    monkeypatch.setattr(JointTokenizer, "encode", encode)
    return asked


# --- Forms


def test_view_0_is_the_slice_itself(joint_tokenizer, slices):
    (token_set,) = encode_slices(joint_tokenizer, slices, views=3, augment=MOVED)
    assert token_set.tokens.shape == (12, 3, token_set.layout.starts[-1])
    wanted = joint_tokenizer.encode(slices[2][None], slices.labels(2)[None])
    assert token_set.tokens[2, :1].long().equal(wanted)


def test_the_other_views_are_changed_as_the_settings_say(joint_tokenizer, slices, seen):
    encode_slices(joint_tokenizer, slices, views=3, augment=MIRROR)
    (plain, mask), (mirrored, mirrored_mask), (again, _) = seen
    assert plain.equal(torch.stack([slices[index] for index in range(12)]))
    assert mirrored.allclose(plain.flip(-1), atol=1e-4)
    assert again.allclose(mirrored, atol=1e-4)
    assert mirrored_mask.equal(mask.flip(-1))


def test_every_slice_of_every_view_is_changed_by_its_own_draw(joint_tokenizer, slices, seen):
    encode_slices(joint_tokenizer, slices, views=9, augment=PLAIN)
    plain = seen[0][0]
    mirrored = torch.stack([(images - plain.flip(-1)).abs().amax((1, 2, 3)) < 1e-3 for images, _ in seen[1:]])
    kept = torch.stack([(images - plain).abs().amax((1, 2, 3)) < 1e-3 for images, _ in seen[1:]])
    assert (mirrored ^ kept).all()
    assert 0.3 < float(mirrored.float().mean()) < 0.7
    assert mirrored.any(0).all()
    assert kept.any(0).all()
    assert len({tuple(view.tolist()) for view in mirrored}) > 4


def test_a_mask_is_augmented_as_its_slice(joint_tokenizer, slices, seen, monkeypatch):
    """Images made of masks by one value per label: inside the labels, both agree after every change."""
    values = torch.tensor(VALUES, dtype=torch.float32)
    shown = torch.linspace(-0.8, 0.8, len(VALUES))

    def labels(self, index):
        mask = torch.full((32, 32), VALUES[0], dtype=torch.uint8)
        mask[4 + index : 12 + index, 3:15] = VALUES[1]
        return mask

    def image_of_mask(self, index):
        found = (labels(self, index)[..., None] == values).float()
        return (found @ shown)[None]

    monkeypatch.setattr(SliceSet, "labels", labels)
    monkeypatch.setattr(SliceSet, "__getitem__", image_of_mask)
    encode_slices(joint_tokenizer, slices, views=4, augment=MOVED)
    assert len({float(images.sum()) for images, _ in seen}) == 4
    for images, masks in seen:
        masked = [row for row in range(12) if row not in UNMASKED]
        nearest = (images[masked, 0, ..., None] - shown).abs().argmin(-1)
        agreed = values[nearest] == masks[masked].float()
        assert float(agreed.float().mean()) > 0.97
        assert (masks[masked] == VALUES[1]).flatten(1).any(1).all()


def test_a_mask_keeps_its_label_values(joint_tokenizer, slices, seen):
    encode_slices(joint_tokenizer, slices, views=3, augment=MOVED)
    for _, masks in seen:
        assert masks.dtype == torch.uint8
        assert set(masks.unique().tolist()) <= set(VALUES)


def test_without_settings_all_views_are_the_slice(joint_tokenizer, slices, seen):
    (token_set,) = encode_slices(joint_tokenizer, slices, views=2)
    assert token_set.tokens[:, 0].equal(token_set.tokens[:, 1])


def test_the_seed_determines_the_views(joint_tokenizer, slices):
    first, same, other = (
        encode_slices(joint_tokenizer, slices, views=4, augment=MOVED, seed=seed)[0].tokens
        for seed in (1, 1, 2)
    )
    assert first.equal(same)
    assert first[:, 0].equal(other[:, 0])
    assert not first.equal(other)
    assert not first[:, 1].equal(first[:, 2])


def test_every_batch_has_views_of_its_own(joint_tokenizer, slices, seen, monkeypatch):
    """Twice the same slice, in batches of one."""
    monkeypatch.setattr("slicebook.training.token_dataset.BATCH", 1)
    twice = SliceSet(slices.folder, (slices.records[0],) * 2)
    encode_slices(joint_tokenizer, twice, views=2, augment=MOVED)
    (first, _), (moved, _), (second, _), (moved_too, _) = seen
    assert first.equal(second)
    assert not moved.equal(moved_too)


def test_a_slice_without_a_mask_has_unknown_mask_tokens(joint_tokenizer, slices):
    (token_set,) = encode_slices(joint_tokenizer, slices, views=2, augment=MOVED)
    mask = token_set.tokens[..., token_set.layout.slice_of(0)]
    unknown = (mask == 5).all(-1).all(-1)
    assert unknown.nonzero()[:, 0].tolist() == list(UNMASKED)
    assert (mask[~unknown] < 5).all()
    assert (token_set.tokens[..., token_set.layout.slice_of(1)] < 6).all()


def test_without_a_mask_tokenizer_no_masks_are_read(joint_tokenizer, slices, monkeypatch):
    monkeypatch.setattr(SliceSet, "labels", lambda *_: pytest.fail("read a mask"))
    (token_set,) = encode_slices(JointTokenizer(joint_tokenizer.images), slices)
    assert [stage.kind for stage in token_set.layout.stages] == ["image", "image"]


# --- Sets


def test_each_size_has_a_set_that_knows_its_slices(joint_tokenizer, tmp_path):
    data = PreparedData.open(prepared_folder(tmp_path / "data", shapes=((32, 32), (16, 48))))
    slices = data.split("train")
    token_sets = encode_slices(JointTokenizer(joint_tokenizer.images), slices)
    assert [token_set.size for token_set in token_sets] == [(32, 32), (16, 48)]
    for token_set in token_sets:
        records = [slices.records[index] for index in token_set.indices.tolist()]
        assert {(record.rows, record.columns) for record in records} == {token_set.size}
        assert token_set.conditions.position.tolist() == pytest.approx(
            [record.position for record in records]
        )
        assert (token_set.conditions.group == -1).all()
        assert token_set.layout.starts[-1] == token_set.tokens.shape[-1]
    assert sorted(index for token_set in token_sets for index in token_set.indices.tolist()) == list(
        range(12)
    )


def test_a_slice_has_the_number_of_its_class(joint_tokenizer, slices):
    groups = ["b", "", "a", "other"] * 3
    named = tuple(replace(r, group=group) for r, group in zip(slices.records, groups, strict=True))
    (token_set,) = encode_slices(joint_tokenizer, SliceSet(slices.folder, named), classes=("a", "b"))
    assert token_set.conditions.group.tolist() == [1, -1, 0, -1] * 3


def test_known_tokens_are_not_encoded_again(joint_tokenizer, slices, seen):
    before = encode_slices(joint_tokenizer, slices, views=2, augment=MOVED)
    seen.clear()
    again = encode_slices(
        joint_tokenizer, slices, views=2, augment=MOVED, known=[token_set.tokens for token_set in before]
    )
    assert seen == []
    assert again[0].tokens.equal(before[0].tokens)
    assert again[0].conditions.position.equal(before[0].conditions.position)


def test_progress_counts_slices(joint_tokenizer, slices, monkeypatch):
    monkeypatch.setattr("slicebook.training.token_dataset.BATCH", 5)
    calls = []
    encode_slices(joint_tokenizer, slices, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(0, 12), (5, 12), (10, 12), (12, 12)]


# --- Batches


def token_set(joint_tokenizer, count, size, start, views=3):
    """A set whose tokens say which slice and which view they are of: 100 × slice + view."""
    layout = JointTokenizer(joint_tokenizer.images).layout(size)
    indices = torch.arange(start, start + count)
    tokens = (100 * indices[:, None] + torch.arange(views)).to(torch.int32)
    tokens = tokens[..., None].expand(-1, -1, layout.starts[-1])
    return TokenSet(size, layout, tokens, Conditions(indices / 50, torch.full((count,), -1)), indices)


@pytest.fixture(scope="module")
def sets(joint_tokenizer):
    return [token_set(joint_tokenizer, 7, (32, 32), 0), token_set(joint_tokenizer, 5, (16, 48), 7)]


def codes(batches):
    """The first token of each row, batch by batch."""
    return [batch.tokens[:, 0].tolist() for batch in batches]


def test_unshuffled_batches_hold_each_slice_once_as_it_is(sets):
    batches = codes(TokenBatches(sets, 4))
    assert batches == [[0, 100, 200, 300], [400, 500, 600], [700, 800, 900], [1000, 1100]]


def test_shuffled_batches_hold_a_view_of_each_slice_once(sets):
    seen = [code for batch in codes(TokenBatches(sets, 4, shuffle=True)) for code in batch]
    assert sorted(code // 100 for code in seen) == list(range(12))
    assert {code % 100 for code in seen} == {0, 1, 2}
    assert [code // 100 for code in seen] != list(range(12))


def test_an_epoch_is_drawn_from_seed_and_epoch_alone(sets):
    batches, other = TokenBatches(sets, 4, shuffle=True), TokenBatches(sets, 4, shuffle=True)
    first = codes(batches)
    batches.set_epoch(3)
    third = codes(batches)
    other.set_epoch(3)
    assert codes(other) == third != first
    batches.set_epoch(0)
    assert codes(batches) == first
    assert codes(TokenBatches(sets, 4, shuffle=True, seed=7)) != first


def test_a_batch_is_of_one_size_and_knows_its_slices(sets):
    for batch in TokenBatches(sets, 4, shuffle=True):
        assert batch.tokens.shape == (len(batch), batch.layout.starts[-1])
        assert (batch.tokens // 100 == batch.indices[:, None]).all()
        assert batch.conditions.position.tolist() == pytest.approx((batch.indices / 50).tolist())


def test_no_slice_of_a_rare_size_is_lost(sets):
    batches = TokenBatches(sets, 6, shuffle=True)
    assert sorted(len(batch) for batch in batches) == [3, 4, 5]
    assert sorted(i for batch in batches for i in batch.indices.tolist()) == list(range(12))


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_processes_share_each_batch_and_its_views(batch_size, sets):
    whole = codes(TokenBatches(sets, batch_size, shuffle=True))
    ranks = [TokenBatches(sets, batch_size, shuffle=True, rank=rank, world_size=5) for rank in range(5)]
    for codes_of_batch, *shares in zip(whole, *ranks, strict=True):
        counted = [share.tokens[: share.part.count, 0].tolist() for share in shares]
        assert [code for part in counted for code in part] == codes_of_batch
        assert all(len(share) == max(1, share.part.count) for share in shares)
