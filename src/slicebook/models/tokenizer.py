"""The hierarchical tokenizer: slices to token grids and back, and its loss.

A network and one codebook per level. Levels are quantised from coarse to fine, each conditioned on the
coarser ones (Razavi et al. 2019, https://arxiv.org/abs/1906.00446). Grids come finest first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn
from torch.nn import functional

from slicebook.config import TokenizerConfig
from slicebook.errors import DataError, ShapeError
from slicebook.models.networks import build_network
from slicebook.models.networks.base import Context
from slicebook.models.quantizer import Quantizer, nearest_code

INIT_BATCH = 32  # slices whose latents are made at a time
MAX_ABS_INPUT = 4.0  # from 0: beyond any slice that an intensity map or an augmentation makes


@dataclass(frozen=True)
class Reconstruction:
    """A batch of reconstructed slices."""

    images: Float[Tensor, "b c h w"]
    """In the shape of the input; for label masks the logits of each label value."""
    tokens: tuple[Int64[Tensor, "b _ _"], ...]
    """Token grids, finest first."""
    commitment: Float[Tensor, ""]
    """Summed over levels."""


class Tokenizer(nn.Module):
    """Slices in about [-1, 1] to token grids and back, at any size.

    With `label_values` in its configuration: label masks, one-hot in and logits out (`models.masks`).

    Slices are padded (by their edge) to a multiple of `stride` and cropped back; never stretched, but by
    a configuration that asks for it (`resize`).
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.network = build_network(config)
        self.quantizers = nn.ModuleList(
            Quantizer(size, config.code_dim, config.quantizer) for size in config.codebook_sizes
        )

    @property
    def levels(self) -> int:
        """Number of levels."""
        return len(self.config.scaling_rates)

    @property
    def stride(self) -> int:
        """Pixels along a side of one token of the coarsest level."""
        return math.prod(self.config.scaling_rates)

    def grids(self, size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Token grid (rows, columns) of each level, finest first, for a slice of `size` pixels."""
        rows, columns = self._padded(self.config.resize or size)
        strides = [math.prod(self.config.scaling_rates[: level + 1]) for level in range(self.levels)]
        return tuple((rows // stride, columns // stride) for stride in strides)

    def bits(self, size: tuple[int, int], *, levels: int | None = None) -> float:
        """Raw bits of one slice of `size` pixels: tokens × log2 K, summed over levels.

        Args:
            size: Rows and columns.
            levels: So many of them, from the coarsest on; all by default.
        """
        spent = [
            rows * columns * math.log2(k)
            for (rows, columns), k in zip(self.grids(size), self.config.codebook_sizes, strict=True)
        ]
        return sum(spent[-(levels or self.levels) :])

    def forward(
        self,
        images: Float[Tensor, "b c h w"],
        *,
        reset_dead_codes: bool = False,
        dropped_levels: Bool[Tensor, "levels b"] | None = None,
    ) -> Reconstruction:
        """Reconstruct slices; in training mode the codebooks also learn from them.

        Args:
            images: Slices in [-1, 1], or label masks, one-hot.
            reset_dead_codes: In training mode, replace dead codes after this step's update.
            dropped_levels: Levels replaced by their mean code, for each slice.
        """
        context: Context = ()
        tokens: list[Tensor] = []
        commitment = images.new_zeros(())
        features = self.network.features(self.pad(images))
        for level in reversed(range(self.levels)):
            latents = self.network.latents(level, features[level], context)
            quantized = self.codebook(level)(_to_vectors(latents), reset_dead_codes=reset_dead_codes)
            vectors = _to_map(quantized.vectors, latents.shape)
            if dropped_levels is not None:
                vectors = torch.where(dropped_levels[level][:, None, None, None], self._mean(level), vectors)
            context = self.network.decode_level(level, context, vectors)
            tokens.insert(0, quantized.tokens.view(len(latents), *latents.shape[-2:]))
            commitment = commitment + quantized.commitment
        drawn = self.unpad(self.network.image(context), images.shape[-2:])
        return Reconstruction(drawn, tuple(tokens), commitment)

    @torch.no_grad()
    def encode(self, images: Tensor | Shaped[np.ndarray, ...]) -> tuple[Int64[Tensor, "b _ _"], ...]:
        """Return the token grids of slices, finest first; wants evaluation mode.

        Args:
            images: As `forward` takes them (b, c, h, w), in about [-1, 1]. Arrays and other number types
                are converted.

        Raises:
            ShapeError: It does not have four dimensions, or a side is 0, or the channels do not fit.
            DataError: It holds NaN, or values far beyond [-1, 1].
        """
        return tuple(grid for _, grid in self.encode_levels(self._validate_images(images)))[::-1]

    @torch.no_grad()
    def decode(
        self,
        tokens: Sequence[Tensor | Shaped[np.ndarray, ...]],
        size: tuple[int, int],
        *,
        levels: int | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Decode token grids, finest first, into slices of `size` pixels; for label masks into logits.

        Args:
            tokens: One grid of integers per level (b, rows, columns); arrays are converted.
            size: Rows and columns of the slices.
            levels: Use only this many of the coarsest levels; the finer ones are set to their mean code.

        Raises:
            ShapeError: Grids that a slice of this size does not have, or a token outside its codebook.
            DataError: Tokens that are not integers.
        """
        if levels is not None and not 1 <= levels <= self.levels:
            raise ShapeError(f"levels {levels}: wanted 1 to {self.levels}, as many as the tokenizer has")
        grids = [self._accepted_grid(grid) for grid in tokens]
        self._check(grids, size)
        return self.decode_unchecked(grids, size, levels=levels)

    def decode_unchecked(
        self, tokens: Sequence[Int64[Tensor, "b _ _"]], size: tuple[int, int], *, levels: int | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Do as `decode`, unchecked and with gradients."""
        kept_levels = self.levels if levels is None else levels
        vectors = [self._vectors(level, grid) for level, grid in enumerate(tokens)]
        for level in range(self.levels - kept_levels):
            vectors[level] = self._mean(level).expand_as(vectors[level])
        return self.decode_vectors(vectors, size)

    def decode_vectors(
        self, vectors: Sequence[Float[Tensor, "b d _ _"]], size: tuple[int, int]
    ) -> Float[Tensor, "b c h w"]:
        """Decode codes, or mixtures of them, finest level first; with gradients."""
        context: Context = ()
        for level in reversed(range(self.levels)):
            context = self.network.decode_level(level, context, vectors[level])
        return self.unpad(self.network.image(context), size)

    @torch.no_grad()
    def init_from_kmeans(
        self,
        images: Float[Tensor, "b c h w"],
        generator: torch.Generator,
        levels: Collection[int] | None = None,
    ) -> None:
        """Start the codebooks of some levels (default: all) by k-means of their latents, coarsest first.

        In training mode, as the first steps will be: batch norm scales the latents by their batch.
        """
        for level in sorted(range(self.levels) if levels is None else levels, reverse=True):
            vectors = []
            for batch in torch.split(images, INIT_BATCH):
                *_, (latents, _) = itertools.islice(self.encode_levels(batch), self.levels - level)
                vectors.append(_to_vectors(latents))
            self.codebook(level).init_from_kmeans(torch.cat(vectors), generator)

    def codebook(self, level: int) -> Quantizer:
        """The codebook of a level."""
        quantizer = self.quantizers[level]
        assert isinstance(quantizer, Quantizer)
        return quantizer

    def encode_levels(
        self, images: Float[Tensor, "b c h w"]
    ) -> Iterator[tuple[Float[Tensor, "b d _ _"], Int64[Tensor, "b _ _"]]]:
        """Yield the latents and the token grid of each level, coarsest first. Learns nothing."""
        context: Context = ()
        features = self.network.features(self.pad(images))
        for level in reversed(range(self.levels)):
            latents = self.network.latents(level, features[level], context)
            grid = nearest_code(_to_vectors(latents), self.codebook(level).codes)
            grid = grid.view(len(latents), *latents.shape[-2:])
            yield latents, grid
            if level:  # the finest level conditions no other
                context = self.network.decode_level(level, context, self._vectors(level, grid))

    def _vectors(self, level: int, grid: Tensor) -> Tensor:
        return self.codebook(level).dequantize(grid).permute(0, 3, 1, 2)

    def _mean(self, level: int) -> Tensor:
        return self.codebook(level).mean_code[:, None, None]

    def _padded(self, size: tuple[int, int]) -> tuple[int, int]:
        rows, columns = size
        return -(-rows // self.stride) * self.stride, -(-columns // self.stride) * self.stride

    def pad(self, images: Float[Tensor, "b c _ _"]) -> Float[Tensor, "b c _ _"]:
        """Pad by the edge, half on each side, to whole tokens; or stretch, where the settings say so."""
        if images.shape[1] != self.config.channels:
            wanted = "one-hot label masks" if self.config.label_values else "grayscale slices"
            raise ShapeError(
                f"found slices of {images.shape[1]} channels; this tokenizer takes {wanted} "
                f"of {self.config.channels}: use the one that was trained for them"
            )
        if self.config.resize:
            images = _resize(images, self.config.resize)
        left, right, top, bottom = self._margins((images.shape[-2], images.shape[-1]))
        if left or right or top or bottom:
            images = functional.pad(images, (left, right, top, bottom), mode="replicate")
        return images

    def unpad(self, images: Float[Tensor, "b c _ _"], size: Sequence[int]) -> Float[Tensor, "b c _ _"]:
        """Undo `pad` for slices that were of `size` pixels."""
        rows, columns = self.config.resize or size
        left, _, top, _ = self._margins((rows, columns))
        images = images[..., top : top + rows, left : left + columns]
        if self.config.resize:
            images = _resize(images, size)
        return images

    def _margins(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        rows, columns = size
        padded_rows, padded_columns = self._padded(size)
        top, left = (padded_rows - rows) // 2, (padded_columns - columns) // 2
        return left, padded_columns - columns - left, top, padded_rows - rows - top

    def _validate_images(self, images: Tensor | Shaped[np.ndarray, ...]) -> Float[Tensor, "b c h w"]:
        """Convert what a caller gave to slices of the weights' type and device, or refuse it."""
        slices, like = torch.as_tensor(images), next(self.parameters())
        if slices.ndim != 4 or 0 in slices.shape:
            raise ShapeError(
                f"slices of shape {tuple(slices.shape)}, wanted (batch, {self.config.channels}, rows, "
                "columns)"
            )
        if slices.is_complex():
            raise DataError("slices of complex values, wanted real ones in [-1, 1]; take their magnitude")
        slices = slices.to(like)
        low, high = (float(value) for value in torch.stack(slices.aminmax()))  # NaN where any value is
        if not (low >= -MAX_ABS_INPUT and high <= MAX_ABS_INPUT):
            raise DataError(
                f"slices with values from {low:g} to {high:g}, wanted numbers in [-1, 1]; map the "
                "intensities first (slicebook.data.transforms.IntensityMap), and replace NaN"
            )
        return slices

    def _accepted_grid(self, grid: Tensor | Shaped[np.ndarray, ...]) -> Int64[Tensor, "b _ _"]:
        tokens = torch.as_tensor(grid)
        if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
            raise DataError(f"tokens of type {tokens.dtype}, wanted integers, as encode returns them")
        if tokens.ndim != 3:
            raise ShapeError(f"a token grid of shape {tuple(tokens.shape)}, wanted (batch, rows, columns)")
        return tokens.to(next(self.parameters()).device, torch.int64)

    def _check(self, tokens: Sequence[Tensor], size: tuple[int, int]) -> None:
        grids = tuple(tuple(grid.shape[-2:]) for grid in tokens)
        if grids != self.grids(size):
            raise ShapeError(
                f"token grids {grids} do not fit a slice of {size[0]}×{size[1]} pixels: "
                f"wanted {self.grids(size)}, finest first"
            )
        if len({len(grid) for grid in tokens}) > 1:
            raise ShapeError(
                f"token grids of {', '.join(str(len(grid)) for grid in tokens)} slices, wanted as many at "
                "each level"
            )
        for level, (grid, k) in enumerate(zip(tokens, self.config.codebook_sizes, strict=True)):
            if grid.numel() and not 0 <= int(grid.min()) <= int(grid.max()) < k:
                raise ShapeError(
                    f"level {level}: tokens from {grid.min()} to {grid.max()}, wanted 0 to {k - 1}"
                )


def draw_dropped_levels(
    levels: int, batch: int, probability: float, generator: torch.Generator
) -> Bool[Tensor, "levels batch"]:
    """Choose the dropped levels: with `probability` a slice keeps only some of its coarsest levels.

    The number kept, from one to all but one, is uniform; the finest level is always dropped first.
    """
    drops = torch.rand(batch, generator=generator) < probability
    num_dropped = torch.randint(1, max(levels, 2), (batch,), generator=generator) * drops
    return torch.arange(levels)[:, None] < num_dropped.clamp(max=levels - 1)


def _resize(images: Float[Tensor, "b 1 _ _"], size: Sequence[int]) -> Float[Tensor, "b 1 _ _"]:
    # In float32: antialiased resize is not implemented in bf16.
    return functional.interpolate(images.float(), tuple(size), mode="bilinear", antialias=True)


def _to_vectors(latents: Float[Tensor, "b d h w"]) -> Float[Tensor, "n d"]:
    return latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])


def _to_map(vectors: Float[Tensor, "n d"], shape: Sequence[int]) -> Float[Tensor, "b d h w"]:
    batch, dim, rows, columns = shape
    return vectors.view(batch, rows, columns, dim).permute(0, 3, 1, 2)
