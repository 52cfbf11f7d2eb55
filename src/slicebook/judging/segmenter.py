"""A small U-Net (Ronneberger et al. 2015) that learns masks from slices: what do generated pairs teach it?"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from slicebook.labels import labels_from

BATCH, WIDTH, DEPTH, RATE = 8, 16, 3, 3e-3


class UNet(nn.Module):
    """Slices of any size to logits; each step down doubles the channels."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        widths = [WIDTH * 2**step for step in range(DEPTH + 1)]
        before = [4, *widths[:-1]]
        self.down = nn.ModuleList(_convolutions(a, b) for a, b in zip(before, widths, strict=True))
        self.up = nn.ModuleList(_convolutions(a + b, a) for a, b in itertools.pairwise(widths))
        self.last = nn.Conv2d(WIDTH, 4 * labels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return a channel of logits a label."""
        rows, columns = images.shape[-2:]
        # Two by two pixels are one place with four channels: convolutions of whole slices are slow on a CPU.
        even = functional.pad(images, (0, columns % 2, 0, rows % 2), mode="replicate")
        kept, x = [], functional.pixel_unshuffle(even, 2).contiguous(memory_format=torch.channels_last)
        for step, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2, ceil_mode=True) if step else x)
            kept.append(x)
        for step in reversed(range(DEPTH)):
            wide = functional.interpolate(x, kept[step].shape[-2:], mode="nearest")
            x = self.up[step](torch.cat([kept[step], wide], 1))
        found: Tensor = functional.pixel_shuffle(self.last(x), 2)
        return found[..., :rows, :columns]


def _convolutions(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [nn.Conv2d(channels, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


def train(images: Tensor, masks: Tensor, values: Sequence[int], *, steps: int, seed: int) -> UNet:
    """Train from scratch on pairs drawn with replacement, half of them mirrored; the rate falls to 0.

    A label's pixels weigh one over the root of their share: organs of a hundredth of a slice are not learnt
    in so few steps otherwise.
    """
    draw = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network = UNet(len(values))
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
def segment(network: UNet, images: Tensor, values: Sequence[int]) -> Tensor:
    """Return the most likely label of each pixel."""
    return torch.cat([labels_from(network(part), values) for part in torch.split(images, BATCH)])
