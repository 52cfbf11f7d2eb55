"""The encoder and decoder architectures, behind one small protocol.

A network turns slices into features and vectors back into slices. It does not quantise: the tokenizer
walks it from the coarsest level to the finest and puts a codebook between `latents` and `absorb`.
"""

from __future__ import annotations

from slicebook.config import TokenizerConfig
from slicebook.models.networks.base import Context, Network
from slicebook.models.networks.ladder import Ladder
from slicebook.models.networks.vqvae2 import VQVAE2

__all__ = ["VQVAE2", "Context", "Ladder", "Network", "build_network"]


def build_network(config: TokenizerConfig) -> Network:
    """Return the untrained network that a configuration names."""
    return VQVAE2(config) if config.architecture == "vqvae2" else Ladder(config)
