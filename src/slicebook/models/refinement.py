"""A search for better tokens of a slice, by gradients through the decoder.

The codes nearest to the encoder's latents are not the ones from which the decoder draws a slice best. The
search draws codes near them at random, at a falling temperature (stochastic Gumbel annealing, Yang, Bamler
and Mandt 2020, https://arxiv.org/abs/2006.04240). Tokens keep their number and their codebook: only encoding
takes longer.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from slicebook.config import LossConfig
from slicebook.errors import ConfigError
from slicebook.models.losses import loss
from slicebook.models.tokenizer import Reconstruction, Tokenizer

CANDIDATES = 8  # codes nearest to the encoder's latent that a token may become
TEMPERATURES = (0.5, 0.1)  # of the first and of the last step
LEARNING_RATE = 0.3
BATCH_PIXELS = 16 * 128 * 128  # that are searched at once, so that memory is bounded


def encode_refined(
    tokenizer: Tokenizer, images: Float[Tensor, "b 1 h w"], config: LossConfig, steps: int
) -> tuple[Int64[Tensor, "b _ _"], ...]:
    """Return the token grids of slices, finest first, after a search of so many steps.

    A slice's tokens do not depend on the other slices, and the same call returns the same tokens. A slice
    for which the search finds nothing better keeps the encoder's tokens.

    Args:
        tokenizer: Of slices, in evaluation mode.
        images: In about [-1, 1], of any size that the tokenizer takes.
        config: The loss to minimise; that of the tokenizer's training.
        steps: Passes through the decoder and back, each about four times as long as decoding; 0 encodes only.

    Raises:
        ConfigError: The tokenizer encodes label masks, or `steps` is negative.
        ShapeError, DataError: As `Tokenizer.encode`, or a side is smaller than the window of SSIM.
    """
    if steps < 0 or tokenizer.config.label_values:
        found = f"{steps} steps" if steps < 0 else "a tokenizer of label masks"
        raise ConfigError(f"refinement: found {found}, wanted 0 or more steps for a tokenizer of slices")
    if steps == 0:
        return tokenizer.encode(images)
    count = max(1, BATCH_PIXELS // (images.shape[-2] * images.shape[-1]))
    parts = [_search(tokenizer, part, config, steps) for part in torch.split(images, count)]
    return tuple(torch.cat(level) for level in zip(*parts, strict=True))


def _search(
    tokenizer: Tokenizer, images: Float[Tensor, "b 1 h w"], config: LossConfig, steps: int
) -> tuple[Int64[Tensor, "b _ _"], ...]:
    """Search the tokens of a few slices."""
    size = (images.shape[-2], images.shape[-1])
    tokens = tokenizer.encode(images)
    noise = torch.Generator().manual_seed(0)  # the same for every slice, whatever its batch
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        # A copy: one made in inference mode could not be differentiated through.
        images = images.to(next(tokenizer.parameters())).clone()
        candidates, logits = _candidates(tokenizer, images)
        optimizer = torch.optim.Adam(logits, LEARNING_RATE, betas=(0.9, 0.99))
        first, last = TEMPERATURES
        for step in range(steps):
            temperature = first * (last / first) ** (step / max(1, steps - 1))
            vectors = [
                _mixed(tokenizer.codebook(level).codes, *choice, temperature, noise)
                for level, choice in enumerate(zip(candidates, logits, strict=True))
            ]
            drawn = tokenizer.decode_vectors(vectors, size)
            # The mean times the number of slices: a slice's gradient does not depend on the others.
            total = loss(_drawn(drawn), images, config).total * len(images)
            gradients = torch.autograd.grad(total, logits)
            for parameter, gradient in zip(logits, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
    refined = [
        near.gather(-1, logit.detach().argmax(-1, keepdim=True))[..., 0]
        for near, logit in zip(candidates, logits, strict=True)
    ]
    better = _losses(tokenizer, refined, images, config) < _losses(tokenizer, tokens, images, config)
    return tuple(
        torch.where(better[:, None, None], new, old) for new, old in zip(refined, tokens, strict=True)
    )


@torch.no_grad()
def _candidates(
    tokenizer: Tokenizer, images: Tensor
) -> tuple[list[Int64[Tensor, "b _ _ k"]], list[Float[Tensor, "b _ _ k"]]]:
    """Return the nearest codes of each latent and, larger for nearer ones, the first logit of each."""
    candidates: list[Tensor] = []
    logits: list[Tensor] = []
    for latents, grid in reversed(list(tokenizer.encode_levels(images))):
        codes = tokenizer.codebook(len(candidates)).codes
        vectors = latents.permute(0, 2, 3, 1).flatten(1, 2)
        distances = torch.cdist(vectors, codes.expand(len(vectors), -1, -1)).square()
        near, indices = distances.topk(min(CANDIDATES, len(codes)), largest=False)
        excess = near - near[..., :1]
        scaled = excess / excess.mean((1, 2), keepdim=True).clamp(min=1e-12)
        candidates.append(indices.view(*grid.shape, -1))
        logits.append(scaled.neg().view(*grid.shape, -1).requires_grad_(True))
    return candidates, logits


def _mixed(
    codes: Float[Tensor, "n d"],
    candidates: Int64[Tensor, "b r c k"],
    logits: Float[Tensor, "b r c k"],
    temperature: float,
    noise: torch.Generator,
) -> Float[Tensor, "b d r c"]:
    """Return the mean of the candidates, weighted by a draw of the Gumbel-softmax distribution."""
    uniform = torch.rand(logits.shape[1:], generator=noise).clamp(1e-9, 1 - 1e-7)
    gumbel = -(-uniform.log()).log()
    weights = (logits / temperature + gumbel.to(logits)).softmax(-1)
    return torch.einsum("brck,brckd->bdrc", weights, codes[candidates])


def _drawn(images: Tensor) -> Reconstruction:
    return Reconstruction(images, (), images.new_zeros(()))


@torch.no_grad()
def _losses(
    tokenizer: Tokenizer, tokens: list[Tensor] | tuple[Tensor, ...], images: Tensor, config: LossConfig
) -> Float[Tensor, " b"]:
    """Return the loss of each slice, decoded from tokens."""
    drawn = tokenizer.decode_unchecked(tokens, (images.shape[-2], images.shape[-1]))
    pairs = zip(torch.split(drawn, 1), torch.split(images, 1), strict=True)
    return torch.stack([loss(_drawn(copy), image, config).total for copy, image in pairs])
