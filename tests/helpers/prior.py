"""What tests of prior and others share."""

import torch

from slicebook.config import PriorConfig, TrunkConfig
from slicebook.models.prior import Prior
from slicebook.models.sequence import TokenGrid, sequence_layout
from slicebook.models.transformer import Conditions

SIZES = (3, 4, 5)


STAGES = (
    TokenGrid("mask", 0, 2, 1, 8, SIZES[0]),
    TokenGrid("image", 1, 2, 1, 8, SIZES[1]),
    TokenGrid("image", 0, 4, 2, 4, SIZES[2]),
)


LAYOUT = sequence_layout(STAGES)


COUNT = LAYOUT.starts[-1]


def tiny(seed=0, groups=0):
    """A prior whose answers differ from step to step: its heads do not start at zero."""
    torch.manual_seed(seed)
    small = TrunkConfig(width=64, layers=2)
    prior = Prior(
        PriorConfig(coarse=small, fine=small, embedding=4), [torch.randn(k, 3) for k in SIZES], groups
    )
    for transformer in prior.transformers:
        for head in transformer.heads:
            torch.nn.init.normal_(head.get_parameter("weight"), std=0.5)
    return prior.eval()


def rows(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.cat([torch.randint(s.size, (count, len(s)), generator=draw) for s in STAGES], 1)


@torch.no_grad()
def nats(prior, tokens, order, conditions=None, input_tokens=None):
    return prior(LAYOUT, tokens, order, conditions or Conditions.unknown(len(tokens)), input_tokens)
