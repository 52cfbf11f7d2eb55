"""A book: masks' tokens and the slice's as one row, coarse to fine, and back."""

import pytest
import torch
from helpers.book import tokenizer

from slicebook.models.masks import labels_from, one_hot
from slicebook.models.sequence import JointTokenizer

SIZE = (20, 32)  # the rows are padded to 32
VALUES = (0, 2, 5)


@pytest.fixture(scope="module")
def book():
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


def test_the_layout_puts_masks_before_slices_and_coarse_before_fine(book):
    found = [(s.name, s.rows, s.columns, s.stride, s.size) for s in book.layout(SIZE).stages]
    assert found == [("mask_0", 3, 4, 8, 5), ("image_1", 2, 2, 16, 6), ("image_0", 8, 8, 4, 8)]


def test_codebooks_come_in_the_order_of_the_row(book):
    wanted = (book.masks.codebook(0), book.images.codebook(1), book.images.codebook(0))
    assert [codes.shape[0] for codes in book.codebooks] == [5, 6, 8]
    assert all(found.equal(own.codes) for found, own in zip(book.codebooks, wanted, strict=True))


def test_a_row_holds_the_grids_of_both_tokenizers(book, images, masks):
    layout, row = book.layout(SIZE), book.encode(images, masks)
    fine, coarse = book.images.encode(images)
    (mask,) = book.masks.encode(one_hot(masks, VALUES))
    for index, grid in enumerate((mask, coarse, fine)):
        assert row[:, layout.slice_of(index)].equal(grid.flatten(1))


def test_without_a_mask_its_tokens_are_unknown_and_the_others_the_same(book, images, masks):
    layout, row = book.layout(SIZE), book.encode(images)
    assert (row[:, layout.slice_of(0)] == 5).all()
    assert row[:, 12:].equal(book.encode(images, masks)[:, 12:])


def test_a_page_shows_what_the_tokenizers_draw(book, images, masks):
    page = book.decode(book.encode(images, masks), SIZE)
    assert page.images.equal(book.images.decode(book.images.encode(images), SIZE).clamp(-1, 1))
    logits = book.masks.decode(book.masks.encode(one_hot(masks, VALUES)), SIZE)
    assert page.masks.equal(labels_from(logits, VALUES))
    assert set(page.masks.unique().tolist()) <= set(VALUES)


def test_a_page_of_unknown_mask_tokens_has_no_mask(book, images):
    assert book.decode(book.encode(images), SIZE).masks is None


def test_a_page_stays_within_the_range_of_slices(images):
    loud = tokenizer(0, scaling_rates=(4, 4), codebook_sizes=(8, 6))
    with torch.no_grad():
        for parameter in loud.network.parameters():
            parameter.mul_(4)
    tokens = loud.encode(images)
    assert loud.decode(tokens, SIZE).abs().max() > 1
    found = JointTokenizer(loud).decode(JointTokenizer(loud).encode(images), SIZE).images
    assert found.equal(loud.decode(tokens, SIZE).clamp(-1, 1))


def test_a_page_may_be_drawn_from_its_coarsest_levels(book, images, masks):
    row = book.encode(images, masks)
    found = book.decode(row, SIZE, levels=1)
    assert found.images.equal(book.images.decode(book.images.encode(images), SIZE, levels=1).clamp(-1, 1))
    assert not torch.allclose(found.images, book.decode(row, SIZE).images, atol=1e-3)
    assert found.masks is not None


def test_a_book_without_masks_takes_and_gives_none(book, images, masks):
    plain = JointTokenizer(book.images)
    row = plain.encode(images)
    assert [stage.kind for stage in plain.layout(SIZE).stages] == ["image", "image"]
    assert row.equal(plain.encode(images, masks))
    assert plain.decode(row, SIZE).masks is None
