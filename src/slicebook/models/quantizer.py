"""One codebook: nearest code, moving averages, k-means start, reset of dead codes. It knows vectors only.

Preventing codebook collapse: codes are the ratio of two buffers, `ema_embed_sum` and `ema_cluster_size`.
The ratio is never stored. Whatever moves a code writes both buffers, so that the next update cannot move it
back; and no code starts with a sum but a count of zero. Both mistakes are common causes of dead codes in
other implementations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn
from torch.nn import functional

from slicebook.config import QuantizerConfig
from slicebook.distributed import Part, even_part, initialized, summed

# Distances are made a block at a time: this many stay in the cache of a core and cost no large temporary.
BLOCK_ELEMENTS = 1 << 19
ARGMIN_BLOCK = 32  # codes whose minimum a CPU takes with vector instructions


@dataclass(frozen=True)
class Quantized:
    """The quantisation of `n` vectors."""

    vectors: Float[Tensor, "n d"]
    """Nearest codes, with the gradient of the input (straight-through)."""
    tokens: Int64[Tensor, " n"]
    """Index of each code, in `[0, k)`."""
    commitment: Float[Tensor, ""]
    """Mean squared distance from the input to its code; its gradient reaches the input only."""


@dataclass(frozen=True)
class Usage:
    """Usage of a codebook by the tokens of a period."""

    utilization: float
    """Share of the codes that were hit at least once, in `[0, 1]`."""
    perplexity: float
    """Exponential of the tokens' entropy: the number of codes in effective use."""


def nearest_code(vectors: Float[Tensor, "n d"], codes: Float32[Tensor, "k d"]) -> Int64[Tensor, " n"]:
    """Return the index of the closest code for each vector.

    Closest is by squared Euclidean distance (van den Oord et al. 2017, eq. 1,
    https://arxiv.org/abs/1711.00937). Works in float32 whatever autocast says, and records no gradient.

    >>> nearest_code(torch.tensor([[0.9], [-3.0]]), torch.tensor([[-1.0], [1.0]])).tolist()
    [1, 0]
    """
    with torch.no_grad(), torch.autocast(vectors.device.type, enabled=False):
        # ||x - c||² orders codes as ||c||²/2 - x·c does: the norm of x is the same for every code.
        half_norms = codes.square().sum(1).mul_(0.5)
        transposed = codes.t().contiguous()
        rows = max(1, BLOCK_ELEMENTS // len(codes))
        indices = [
            _nearest(torch.addmm(half_norms, block, transposed, alpha=-1.0))
            for block in torch.split(vectors.detach().float(), rows)
        ]
        return torch.cat(indices) if indices else vectors.new_empty(0, dtype=torch.int64)


def kmeans(
    vectors: Float[Tensor, "n d"], k: int, generator: torch.Generator, *, rounds: int = 10
) -> tuple[Float32[Tensor, "k d"], Float32[Tensor, " k"]]:
    """Cluster vectors into `k` means by Lloyd's rounds from random vectors; an empty mean is drawn anew.

    Returns:
        Means, and how many vectors each holds. With fewer vectors than means, means repeat with small noise.
    """
    vectors = vectors.detach().float()
    spread = vectors.std(0, unbiased=False).add(1e-6)

    def draw() -> Tensor:
        # Indices come from a CPU generator so that every device starts from the same vectors.
        order = torch.randperm(len(vectors), generator=generator).repeat(-(-k // len(vectors)))[:k]
        noise = torch.randn(k, vectors.shape[1], generator=generator).to(vectors) * spread * 1e-3
        return vectors[order.to(vectors.device)] + noise

    means = draw()
    counts = torch.zeros(k, device=vectors.device)
    for _ in range(rounds):
        sums, counts = _cluster_sums(vectors, nearest_code(vectors, means), k)
        means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], draw())
    return means, counts


class Quantizer(nn.Module):
    """A codebook that follows its vectors by exponential moving averages.

    Follows van den Oord et al. 2017, appendix A.1, with Laplace smoothing of the counts, so that the codes
    need no optimiser. In training mode a forward pass also updates the averages, summed over all processes.
    No step waits for the device: nothing here reads a value back to the host but `usage`.
    """

    ema_embed_sum: Tensor
    ema_cluster_size: Tensor
    code_hits: Tensor

    def __init__(self, size: int, dim: int, config: QuantizerConfig | None = None) -> None:
        super().__init__()
        self.size = size
        self.dim = dim
        self.config = config or QuantizerConfig()
        self.register_buffer("ema_embed_sum", torch.randn(size, dim))
        self.register_buffer("ema_cluster_size", torch.ones(size))
        self.register_buffer("code_hits", torch.zeros(size), persistent=False)

    @property
    def codes(self) -> Float32[Tensor, "k d"]:
        """The codebook: sums over Laplace-smoothed counts."""
        sizes, epsilon = self.ema_cluster_size, self.config.epsilon
        total = sizes.sum()
        smoothed = (sizes + epsilon) * total / (total + self.size * epsilon)
        return self.ema_embed_sum / smoothed[:, None]

    @property
    def mean_code(self) -> Float32[Tensor, " d"]:
        """The code of an average token: codes weighted by how often they are used."""
        return self.ema_embed_sum.sum(0) / self.ema_cluster_size.sum()

    def dequantize(self, tokens: Int64[Tensor, "*shape"]) -> Float32[Tensor, "*shape d"]:
        """Return the code of each token."""
        return functional.embedding(tokens, self.codes)

    def forward(self, vectors: Float[Tensor, "n d"], reset_dead_codes: bool = False) -> Quantized:
        """Quantise vectors; in training mode also learn from them.

        Args:
            vectors: Continuous latents.
            reset_dead_codes: In training mode, give dead codes vectors of this batch after the update.
        """
        codes = self.codes
        tokens = nearest_code(vectors, codes)
        nearest = codes[tokens].to(vectors.dtype)
        commitment = functional.mse_loss(vectors, nearest)
        straight_through = vectors + (nearest - vectors).detach()
        if self.training:
            self._update_ema(vectors.detach().float(), tokens)
            if reset_dead_codes:
                self._reset_dead_codes(vectors.detach().float())
        return Quantized(straight_through, tokens, commitment)

    @torch.no_grad()
    def init_from_kmeans(self, vectors: Float[Tensor, "n d"], generator: torch.Generator) -> None:
        """Begin with the k-means of vectors, the same on every process (rank 0 clusters)."""
        means, counts = kmeans(vectors, self.size, generator)
        counts = counts / counts.sum() * self.size  # as if a mean of one vector a code had been seen
        counts.clamp_(min=0.1)
        table = torch.cat([means * counts[:, None], counts[:, None]], 1)
        if initialized():
            torch.distributed.broadcast(table, src=0)  # another kind of device would round otherwise
        self._set_codes(torch.ones(self.size, dtype=torch.bool, device=table.device), table)

    def usage(self) -> Usage:
        """Usage of the tokens counted since the last `reset_usage` (in training, of all processes)."""
        return usage_of(self.code_hits)

    def reset_usage(self) -> None:
        """Restart counting."""
        self.code_hits.zero_()

    @torch.no_grad()
    def _update_ema(self, vectors: Tensor, tokens: Tensor) -> None:
        sums, counts = _cluster_sums(vectors, tokens, self.size, even_part(len(vectors)))
        self.code_hits += counts
        self.ema_embed_sum.lerp_(sums, 1 - self.config.decay)
        self.ema_cluster_size.lerp_(counts, 1 - self.config.decay)

    @torch.no_grad()
    def _reset_dead_codes(self, vectors: Tensor) -> None:
        mean_count = self.ema_cluster_size.mean()
        dead = self.ema_cluster_size < self.config.reset_below * mean_count
        # A revived code starts with the count of an average one: enough to survive until it is hit.
        counts = mean_count.expand(self.size, 1)
        self._set_codes(dead, torch.cat([self._drawn(vectors) * counts, counts], 1))

    def _drawn(self, vectors: Float[Tensor, "n d"]) -> Float[Tensor, "k d"]:
        """Return random vectors of the whole batch, the same on every process."""
        part = even_part(len(vectors))
        indices = torch.randint(part.total, (self.size,)).to(vectors.device, non_blocking=True)
        if part.processes == 1:
            return vectors[indices]
        torch.distributed.broadcast(indices, src=0)
        indices = indices - part.start
        there = (indices >= 0) & (indices < len(vectors))
        return summed(vectors[indices.clamp(0, len(vectors) - 1)] * there[:, None], part)

    def _set_codes(self, chosen: Tensor, table: Float[Tensor, "k d_and_one"]) -> None:
        # Count and sum move together: a code moved alone is put back by its next update.
        self.ema_embed_sum.copy_(torch.where(chosen[:, None], table[:, :-1], self.ema_embed_sum))
        self.ema_cluster_size.copy_(torch.where(chosen, table[:, -1], self.ema_cluster_size))


def usage_of(hits: Float[Tensor, " k"]) -> Usage:
    """Usage of a codebook from the number of tokens of each code."""
    total = hits.sum()
    entropy = torch.special.entr(hits / total.clamp(min=1)).sum()  # in float32: an Apple GPU has no float64
    return Usage(int((hits > 0).sum()) / len(hits), float(entropy.exp()) if total > 0 else 0.0)


def _nearest(distances: Float[Tensor, "n k"]) -> Int64[Tensor, " n"]:
    """Return `distances.argmin(1)`, the first of equals too: by the run of codes, then the code in it.

    On a CPU torch's `argmin` goes element by element, its `amin` does not: the search for the smallest took
    as long as the product.
    """
    n, k = distances.shape
    if k % ARGMIN_BLOCK or k < 8 * ARGMIN_BLOCK:
        return distances.argmin(1)
    runs = distances.view(n, k // ARGMIN_BLOCK, ARGMIN_BLOCK)
    run = runs.amin(2).argmin(1)
    return run * ARGMIN_BLOCK + runs[torch.arange(n, device=run.device), run].argmin(1)


def _cluster_sums(vectors: Tensor, tokens: Tensor, k: int, part: Part | None = None) -> tuple[Tensor, Tensor]:
    """Sum and number of the vectors of each token, in one (k, d + 1) table and so one all-reduce."""
    n, d = vectors.shape
    table = vectors.new_zeros(k, d + 1)
    table[:, :d].index_add_(0, tokens, vectors)
    table[:, d].index_add_(0, tokens, vectors.new_ones(n))  # `bincount` would wait for a GPU
    if part is not None:
        table = summed(table, part)
    return table[:, :d], table[:, d]
