"""A tokenizer with random weights, for tests of joint tokenizers."""

from typing import Any

import torch

from slicebook.config import TokenizerConfig
from slicebook.models.tokenizer import Tokenizer


def tokenizer(seed, **settings):
    """A tokenizer with random weights and codes."""
    torch.manual_seed(seed)
    common: dict[str, Any] = {"code_dim": 4, "width": 16, "residual_layers": 1}
    return Tokenizer(TokenizerConfig(**common, **settings)).eval()
