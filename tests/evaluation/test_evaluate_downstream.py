"""What pairs teach a segmenter is measured on patients it never saw, and the same for both teachers."""

import numpy as np
import pytest
import torch

from slicebook.errors import DataError
from slicebook.evaluation import downstream
from slicebook.evaluation.downstream import evaluate_downstream
from slicebook.evaluation.slices import SliceCollection

VALUES = (0, 3)


def collection(count, seed, *, patients=2, lie=False, masks=True):
    """Bright disks on a dark ground, with masks that say where they are, or somewhere else."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:24, :24]
    images, labels = [], []
    for _ in range(count):
        row, column = draw.uniform(7, 17, 2)
        inside = (y - row) ** 2 + (x - column) ** 2 < 16
        images.append(np.where(inside, 0.6, -0.6) + 0.1 * draw.standard_normal((24, 24)))
        labels.append(3 * (inside[::-1, ::-1] if lie else inside))
    return SliceCollection(
        torch.tensor(np.array(images), dtype=torch.float32)[:, None],
        torch.tensor(np.array(labels), dtype=torch.uint8) if masks else None,
        tuple(f"patient-{index % patients}" for index in range(count)),
        ((1.0, 1.0),) * count,
    )


def test_true_pairs_teach_as_much_as_the_training_set():
    result = evaluate_downstream(
        collection(24, 1), collection(24, 2), collection(8, 3), VALUES, steps=60, seed=0
    )
    assert result.generated.mean > 0.8
    assert result.ratio == pytest.approx(result.generated.mean / result.training_set.mean)
    assert list(result.generated.labels) == ["3"]
    assert (result.generated.pairs, result.steps, result.batch_size) == (24, 60, downstream.BATCH)
    assert result.generated.labels["3"].patients == 2


def test_masks_that_lie_teach_nothing():
    result = evaluate_downstream(
        collection(24, 1, lie=True), collection(24, 2), collection(8, 3), VALUES, steps=60, seed=0
    )
    assert result.ratio < 0.6


def test_the_same_seed_teaches_the_same():
    pairs, real = collection(8, 1), collection(4, 3)
    first, again = (evaluate_downstream(pairs, pairs, real, VALUES, steps=3, seed=0) for _ in range(2))
    assert first == again
    assert first.generated == first.training_set


@pytest.mark.parametrize("without", ["ours", "held_out"])
def test_slices_without_masks_teach_no_segmenter(without):
    samples, held_out = (
        collection(4, 1, masks=without != "ours"),
        collection(4, 3, masks=without != "held_out"),
    )
    with pytest.raises(DataError, match=r"no masks.*--mask"):
        evaluate_downstream(samples, collection(4, 2), held_out, VALUES, steps=1, seed=0)


def test_slices_of_any_size_come_back_labelled():
    masks = torch.zeros(2, 19, 23, dtype=torch.uint8)
    network = downstream.train_segmenter(torch.zeros(2, 1, 19, 23), masks, (0, 1), steps=1, seed=0)
    drawn = downstream.segment(network, torch.zeros(3, 1, 19, 23), (0, 1))
    assert drawn.shape == (3, 19, 23)
    assert drawn.dtype == torch.uint8


def test_the_segmenter_learns_what_it_is_shown():
    masks = torch.zeros(16, 19, 24, dtype=torch.uint8)
    for row in range(16):
        masks[row, 4:14, row // 2 : row // 2 + 8] = 3
    images = (masks[:, None].float() - 1.5) / 2
    network = downstream.train_segmenter(images, masks, (0, 3), steps=80, seed=0)
    labels = downstream.segment(network, images, (0, 3))
    assert (labels == masks).float().mean() > 0.98
    again = downstream.train_segmenter(images, masks, (0, 3), steps=80, seed=0)
    assert torch.equal(downstream.segment(again, images, (0, 3)), labels)
