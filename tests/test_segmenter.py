"""The segmenter that judges generated pairs learns what it is shown, and the same each time."""

import torch

from slicebook.judging import segmenter


def test_the_segmenter_learns_what_it_is_shown():
    masks = torch.zeros(16, 19, 24, dtype=torch.uint8)
    for row in range(16):
        masks[row, 4:14, row // 2 : row // 2 + 8] = 3
    images = (masks[:, None].float() - 1.5) / 2
    network = segmenter.train(images, masks, (0, 3), steps=80, seed=0)
    found = segmenter.segment(network, images, (0, 3))
    assert (found == masks).float().mean() > 0.98
    again = segmenter.train(images, masks, (0, 3), steps=80, seed=0)
    assert torch.equal(segmenter.segment(again, images, (0, 3)), found)
