"""The U-Net: sizes of its outputs, what reaches what, and that all of it learns."""

import pytest
import torch

from slicebook.models.unet import GridUNet, ResidualBlock, SelfAttention, coordinates

STRIDES, INPUTS, OUTPUTS = (16, 32, 8), (3, 4, 5), (6, 0, 7)


def network(seed=0, *, attention=(False, True, True), random=True):
    torch.manual_seed(seed)
    made = GridUNet(
        STRIDES,
        INPUTS,
        OUTPUTS,
        resolutions=(8, 16, 32),
        widths=(32, 64, 64),
        conditions=12,
        blocks=1,
        attention=attention,
    )
    for parameter in made.parameters() if random else ():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


def grids(rows, columns, count=2, seed=0):
    """Random grids over a slice of so many tokens of the coarsest grid."""
    draw = torch.Generator().manual_seed(seed)
    return [
        torch.randn(count, channels, rows * 32 // stride, columns * 32 // stride, generator=draw)
        for stride, channels in zip(STRIDES, INPUTS, strict=True)
    ]


def conditions(count=2, seed=0):
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 3), (5, 1)])
def test_outputs_have_the_sizes_of_their_grids(rows, columns):
    first, last = network()(grids(rows, columns), conditions())
    assert first.shape == (2, 6, 2 * rows, 2 * columns)
    assert last.shape == (2, 7, 4 * rows, 4 * columns)


@torch.no_grad()
def test_every_cell_of_every_grid_reaches_all_cells():
    """Also the far ones, by attention: convolutions alone would not get there."""
    made, entered = network(), grids(8, 8, 1)
    before = made(entered, conditions(1))
    for index in range(len(STRIDES)):
        changed = [grid.clone() for grid in entered]
        changed[index][0, :, 0, 0] += 3
        for old, new in zip(before, made(changed, conditions(1)), strict=True):
            assert ((old - new).abs().amax(1) > 1e-6).all()


@torch.no_grad()
def test_convolutions_alone_reach_the_surroundings(monkeypatch):
    """What the test above would see without attention, apart from what the norms share."""
    block = ResidualBlock(8, 8, 12).eval()
    torch.nn.init.normal_(block.conv2.weight)
    monkeypatch.setattr(block, "norm1", torch.nn.Identity())
    monkeypatch.setattr(block, "norm2", torch.nn.Identity())
    x = torch.randn(1, 8, 9, 9)
    other = x.clone()
    other[0, :, 4, 4] += 1
    reached = (block(x, conditions(1)) - block(other, conditions(1))).abs().amax((0, 1)) > 0
    assert reached.nonzero().amin(0).tolist() == [2, 2]
    assert reached.nonzero().amax(0).tolist() == [6, 6]


@torch.no_grad()
def test_attention_is_that_of_all_cells_to_each_other():
    torch.manual_seed(0)
    layer = SelfAttention(64).eval()
    torch.nn.init.normal_(layer.out.weight)
    x = torch.randn(2, 64, 3, 4)
    queries, keys, values = layer.qkv(layer.norm(x)).flatten(2).chunk(3, 1)
    heads = []
    for head in range(2):
        part = slice(32 * head, 32 * head + 32)
        shares = (queries[:, part].mT @ keys[:, part] / 32**0.5).softmax(-1)
        heads.append(values[:, part] @ shares.mT)
    wanted = x + layer.out(torch.cat(heads, 1).view_as(x))
    torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_conditions_change_all_outputs():
    made, entered = network(), grids(2, 2)
    for old, new in zip(made(entered, conditions()), made(entered, conditions(seed=1)), strict=True):
        assert ((old - new).abs().amax(1) > 1e-6).all()


@torch.no_grad()
def test_slices_of_a_batch_do_not_touch_each_other():
    made, entered, given = network(), grids(2, 2, 3), conditions(3)
    whole = made(entered, given)
    alone = made([grid[1:2] for grid in entered], given[1:2])
    for one, all_of_them in zip(alone, whole, strict=True):
        torch.testing.assert_close(one, all_of_them[1:2], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_it_is_told_where_a_cell_lies():
    """A slice of equal cells would otherwise have equal answers at mirrored places."""
    made = network()
    for out in made([torch.zeros_like(grid) for grid in grids(2, 2)], conditions()):
        assert not torch.allclose(out, out.flip(-1), atol=1e-3)
        assert not torch.allclose(out, out.mT, atol=1e-3)


def test_coordinates_tell_every_cell_from_every_other():
    place = coordinates(32, 16, torch.zeros(()))[0].flatten(1).T
    distances = torch.cdist(place, place) + 10 * torch.eye(len(place))
    assert distances.min() > 0.1


def test_coordinates_are_those_of_the_slice_at_every_resolution():
    """The centre of a coarse cell is the mean of those of its four fine cells, to which it is as near."""
    coarse, fine = coordinates(4, 4, torch.zeros(()))[0], coordinates(8, 8, torch.zeros(()))[0]
    for row, column in ((0, 0), (3, 1)):
        distances = (fine - coarse[:, row, column, None, None]).norm(dim=0)
        nearest = distances.flatten().argsort()[:4]
        found = {(int(cell) // 8, int(cell) % 8) for cell in nearest}
        assert found == {(2 * row + i, 2 * column + j) for i in (0, 1) for j in (0, 1)}


def test_at_first_every_cell_has_the_same_answer():
    """The heads start as their biases."""
    for out in network(random=False)(grids(2, 2), conditions()):
        assert out.eq(out[:1, :, :1, :1]).all()


def test_gradients_reach_every_parameter_after_a_few_steps():
    """Not at once: each block starts as its skip connection, and the heads start at zero."""
    made = network(random=False).train()
    optimiser = torch.optim.SGD(made.parameters(), lr=0.1)
    targets = [torch.randn(out.shape) for out in made(grids(2, 3), conditions())]
    for _ in range(4):
        optimiser.zero_grad()
        outputs = made(grids(2, 3), conditions())
        sum((out - wanted).square().mean() for out, wanted in zip(outputs, targets, strict=True)).backward()
        optimiser.step()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
