"""The joint tokenizer: mask and image tokens as one sequence, coarse to fine, and back."""

import pytest
import torch
from helpers.joint_tokenizer import tokenizer

from slicebook.models.masks import labels_from, one_hot
from slicebook.models.sequence import JointTokenizer

SIZE = (20, 32)  # the rows are padded to 32
VALUES = (0, 2, 5)


@pytest.fixture(scope="module")
def joint_tokenizer():
    return JointTokenizer(
        tokenizer(0, scaling_rates=(4, 4), codebook_sizes=(8, 6)),
        tokenizer(1, scaling_rates=(8,), codebook_sizes=(5,), label_values=VALUES),
    )


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 1, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def masks():
    drawn = torch.randint(3, (3, *SIZE), generator=torch.Generator().manual_seed(0))
    return torch.tensor(VALUES, dtype=torch.uint8)[drawn]


def test_the_layout_puts_masks_before_slices_and_coarse_before_fine(joint_tokenizer):
    grids = [(s.name, s.rows, s.columns, s.stride, s.size) for s in joint_tokenizer.layout(SIZE).stages]
    assert grids == [("mask_0", 3, 4, 8, 5), ("image_1", 2, 2, 16, 6), ("image_0", 8, 8, 4, 8)]


def test_codebooks_are_in_the_order_of_the_sequence(joint_tokenizer):
    wanted = (
        joint_tokenizer.masks.codebook(0),
        joint_tokenizer.images.codebook(1),
        joint_tokenizer.images.codebook(0),
    )
    assert [codes.shape[0] for codes in joint_tokenizer.codebooks] == [5, 6, 8]
    assert all(codes.equal(own.codes) for codes, own in zip(joint_tokenizer.codebooks, wanted, strict=True))


def test_a_sequence_holds_the_grids_of_both_tokenizers(joint_tokenizer, images, masks):
    layout, row = joint_tokenizer.layout(SIZE), joint_tokenizer.encode(images, masks)
    fine, coarse = joint_tokenizer.images.encode(images)
    (mask,) = joint_tokenizer.masks.encode(one_hot(masks, VALUES))
    for index, grid in enumerate((mask, coarse, fine)):
        assert row[:, layout.slice_of(index)].equal(grid.flatten(1))


def test_without_a_mask_its_tokens_are_unknown_and_the_others_the_same(joint_tokenizer, images, masks):
    layout, row = joint_tokenizer.layout(SIZE), joint_tokenizer.encode(images)
    assert (row[:, layout.slice_of(0)] == 5).all()
    assert row[:, 12:].equal(joint_tokenizer.encode(images, masks)[:, 12:])


def test_decoding_equals_that_of_the_tokenizers(joint_tokenizer, images, masks):
    decoded = joint_tokenizer.decode(joint_tokenizer.encode(images, masks), SIZE)
    assert decoded.images.equal(
        joint_tokenizer.images.decode(joint_tokenizer.images.encode(images), SIZE).clamp(-1, 1)
    )
    logits = joint_tokenizer.masks.decode(joint_tokenizer.masks.encode(one_hot(masks, VALUES)), SIZE)
    assert decoded.masks.equal(labels_from(logits, VALUES))
    assert set(decoded.masks.unique().tolist()) <= set(VALUES)


def test_unknown_mask_tokens_decode_to_no_mask(joint_tokenizer, images):
    assert joint_tokenizer.decode(joint_tokenizer.encode(images), SIZE).masks is None


def test_decoded_images_stay_within_the_range_of_slices(images):
    loud = tokenizer(0, scaling_rates=(4, 4), codebook_sizes=(8, 6))
    with torch.no_grad():
        for parameter in loud.network.parameters():
            parameter.mul_(4)
    tokens = loud.encode(images)
    assert loud.decode(tokens, SIZE).abs().max() > 1
    decoded = JointTokenizer(loud).decode(JointTokenizer(loud).encode(images), SIZE).images
    assert decoded.equal(loud.decode(tokens, SIZE).clamp(-1, 1))


def test_images_can_be_decoded_from_the_coarsest_levels(joint_tokenizer, images, masks):
    row = joint_tokenizer.encode(images, masks)
    decoded = joint_tokenizer.decode(row, SIZE, levels=1)
    assert decoded.images.equal(
        joint_tokenizer.images.decode(joint_tokenizer.images.encode(images), SIZE, levels=1).clamp(-1, 1)
    )
    assert not torch.allclose(decoded.images, joint_tokenizer.decode(row, SIZE).images, atol=1e-3)
    assert decoded.masks is not None


def test_without_a_mask_tokenizer_there_are_no_masks(joint_tokenizer, images, masks):
    plain = JointTokenizer(joint_tokenizer.images)
    row = plain.encode(images)
    assert [stage.kind for stage in plain.layout(SIZE).stages] == ["image", "image"]
    assert row.equal(plain.encode(images, masks))
    assert plain.decode(row, SIZE).masks is None


def test_strides_are_those_of_the_layout(joint_tokenizer):
    assert joint_tokenizer.strides == [8, 16, 4]
    assert joint_tokenizer.strides == [stage.stride for stage in joint_tokenizer.layout(SIZE).stages]


def test_grids_are_those_of_the_tokenizers(joint_tokenizer, images, masks):
    """Finest first."""
    grids = joint_tokenizer.grids(joint_tokenizer.encode(images, masks), SIZE)
    for actual, wanted in zip(grids["image"], joint_tokenizer.images.encode(images), strict=True):
        assert actual.equal(wanted)
    assert grids["mask"][0].equal(joint_tokenizer.masks.encode(one_hot(masks, VALUES))[0])
