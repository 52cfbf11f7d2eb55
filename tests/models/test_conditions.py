"""Conditions: what is unknown has an embedding of its own."""

import math

import pytest
import torch

from slicebook.models.conditions import ConditionEmbedding, Conditions


def embedding(groups=2):
    torch.manual_seed(0)
    made = ConditionEmbedding(groups, 8)
    for parameter in (made.unknown_position, made.group.weight):
        torch.nn.init.normal_(parameter)
    return made.eval()


@torch.no_grad()
def embed(*conditions):
    positions, groups = zip(*conditions, strict=True)
    return embedding()(Conditions(torch.tensor(positions), torch.tensor(groups)))


def test_each_condition_and_each_unknown_one_has_an_embedding_of_its_own():
    nan = math.nan
    vectors = embed((nan, -1), (0.0, -1), (0.5, -1), (1.0, -1), (0.5, 0), (0.5, 1), (nan, 0), (nan, 1))
    assert torch.isfinite(vectors).all()
    distances = torch.cdist(vectors, vectors) + 10 * torch.eye(len(vectors))
    assert distances.min() > 0.05


def test_near_positions_have_similar_embeddings():
    vectors = embed((0.5, 0), (0.501, 0), (0.9, 0))
    assert (vectors[0] - vectors[1]).norm() < 0.1 * (vectors[0] - vectors[2]).norm()


def test_a_slice_is_embedded_independently_of_its_batch():
    pairs = [(0.2, 1), (math.nan, 0), (0.7, -1)]
    whole = embed(*pairs)
    for row, pair in enumerate(pairs):
        torch.testing.assert_close(embed(pair)[0], whole[row])


def test_an_unknown_position_sends_no_gradient_that_is_not_a_number():
    made = embedding()
    made(Conditions(torch.tensor([math.nan, 0.3]), torch.tensor([-1, 1]))).square().sum().backward()
    for name, parameter in made.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def test_rows_are_chosen_and_unknown_conditions_are_made():
    conditions = Conditions(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([3, 4, 5]))
    chosen = conditions[torch.tensor([2, 0])]
    assert chosen.position.tolist() == pytest.approx([0.3, 0.1])
    assert chosen.group.tolist() == [5, 3]
    unknown = Conditions.unknown(2)
    assert unknown.position.isnan().all()
    assert unknown.group.tolist() == [-1, -1]
