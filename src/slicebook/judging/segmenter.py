"""A small U-Net that learns masks from slices: what do generated pairs teach it?

It is MONAI's, of the extra `usefulness`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from slicebook.errors import ConfigError
from slicebook.labels import labels_from

BATCH, RATE = 8, 3e-3
CHANNELS = (16, 32, 64, 128)  # of each scale; each is half the one before
NAME = f"MONAI's UNet, channels {', '.join(map(str, CHANNELS))}, two residual units a scale, batch norm"

_FOLD = 2  # pixels of each side that are one place: convolutions of whole slices are slow on a CPU
_STRIDE = _FOLD * 2 ** (len(CHANNELS) - 1)


def installed() -> bool:
    """Return whether MONAI is."""
    return importlib.util.find_spec("monai") is not None


class Segmenter(nn.Module):
    """Slices of any size to logits: MONAI's UNet, two by two pixels being one place with four channels."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        try:
            from monai.networks.nets.unet import UNet
        except ModuleNotFoundError as error:
            raise ConfigError(
                "usefulness: MONAI is not installed, wanted for the segmenter that learns from samples; "
                "run: pip install 'slicebook[usefulness]', or judge other parts (--only)"
            ) from error
        self.network = UNet(
            spatial_dims=2,
            in_channels=_FOLD**2,
            out_channels=_FOLD**2 * labels,
            channels=CHANNELS,
            strides=(2,) * (len(CHANNELS) - 1),
            num_res_units=2,
            norm="batch",
        )

    def forward(self, images: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b labels h w"]:
        """Return a channel of logits a label."""
        rows, columns = images.shape[-2:]
        whole = functional.pad(images, (0, -columns % _STRIDE, 0, -rows % _STRIDE), mode="replicate")
        folded = functional.pixel_unshuffle(whole, _FOLD).contiguous(memory_format=torch.channels_last)
        found: Tensor = functional.pixel_shuffle(self.network(folded), _FOLD)
        return found[..., :rows, :columns]


def train(
    images: Float[Tensor, "n 1 h w"],
    masks: UInt8[Tensor, "n h w"],
    values: Sequence[int],
    *,
    steps: int,
    seed: int,
) -> Segmenter:
    """Train from scratch on pairs drawn with replacement, half of them mirrored; the rate falls to 0.

    A label's pixels weigh one over the root of their share: organs of a hundredth of a slice are not learnt
    in so few steps otherwise.

    Raises:
        ConfigError: MONAI is not installed.
    """
    draw = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network = Segmenter(len(values))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    optimizer = torch.optim.AdamW(network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1)
    places = torch.bucketize(masks, torch.tensor(values, dtype=masks.dtype))
    share = torch.bincount(places.flatten(), minlength=len(values)) / places.numel()
    weights = share.clamp(min=1e-6).rsqrt()
    for _ in range(steps):
        rows = torch.randint(len(images), (BATCH,), generator=draw)
        ways = [(-1,) if mirrored else () for mirrored in torch.rand(BATCH, generator=draw) < 0.5]
        pairs = [(images[row].flip(way), places[row].flip(way)) for row, way in zip(rows, ways, strict=True)]
        logits = network(torch.stack([x for x, _ in pairs]))
        loss = functional.cross_entropy(logits, torch.stack([y for _, y in pairs]), weights)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def segment(
    network: Segmenter, images: Float[Tensor, "n 1 h w"], values: Sequence[int]
) -> UInt8[Tensor, "n h w"]:
    """Return the most likely label of each pixel."""
    return torch.cat([labels_from(network(part), values) for part in torch.split(images, BATCH)])
