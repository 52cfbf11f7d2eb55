"""What tests of prior and others share."""

import torch

from slicebook.config import PriorConfig
from slicebook.models.conditions import Conditions
from slicebook.models.prior import Prior, states_of
from slicebook.models.sequence import TokenGrid, sequence_layout

SIZES = (3, 4, 5)


STAGES = (
    TokenGrid("mask", 0, 2, 1, 8, SIZES[0]),
    TokenGrid("image", 1, 2, 1, 8, SIZES[1]),
    TokenGrid("image", 0, 4, 2, 4, SIZES[2]),
)


LAYOUT = sequence_layout(STAGES)


COUNT = LAYOUT.starts[-1]


def untrained(sizes=SIZES, strides=(8, 8, 4), seed=0, groups=0, width=3):
    """A prior as training starts it."""
    torch.manual_seed(seed)
    config = PriorConfig(widths=(32,), blocks=1, embedding=16)
    return Prior(config, [torch.randn(k, width) for k in sizes], strides, groups).eval()


def tiny(seed=0, groups=0):
    """A prior that depends on all its inputs: weights that training starts at zero are random."""
    prior = untrained(seed=seed, groups=groups)
    for parameter in prior.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return prior


def rows(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.cat([torch.randint(s.size, (count, len(s)), generator=draw) for s in STAGES], 1)


@torch.no_grad()
def logits_of(prior, tokens, states=None, *, conditions=None, time=0.3, seed=0, layout=LAYOUT):
    """The logits of each grid, from noise of which every slice has the same."""
    draw = torch.Generator().manual_seed(seed)
    clean = prior.embed(layout, tokens)
    noise = [torch.randn(x[:1].shape, generator=draw).expand(x.shape) for x in clean]
    states = states_of(layout, tokens) if states is None else states
    conditions = conditions or Conditions.unknown(len(tokens))
    return prior(layout, noise, torch.full((len(tokens),), time), clean, states, conditions)
