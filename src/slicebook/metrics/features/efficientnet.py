"""EfficientNet-Lite0 up to its pooled features, for inference only.

Tan and Le 2019 (https://arxiv.org/abs/1905.11946), table 1, in the Lite variant of the same authors' code:
ReLU6 instead of swish, no squeeze-and-excitation. Batch norms are folded into the preceding convolutions,
which have biases for that.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SIZE = 224  # side of the input in pixels, as in training
FEATURES = 1280


class _Stage(NamedTuple):
    """Blocks of one resolution; the stride and the change of width are in the first block."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    width: int


_STEM_WIDTH = 32
_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)
_NORM_EPSILON = 1e-3  # of the folded batch norms: TensorFlow's default, not torch's


class Convolution(nn.Conv2d):
    """A convolution with TensorFlow's `SAME` padding: with stride 2, one pixel more at the end of a side."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            inputs, outputs, kernel, stride, padding=kernel // 2 if stride == 1 else 0, groups=groups
        )
        before, after = (kernel - 2) // 2, (kernel - 1) // 2
        self._before = None if stride == 1 else (before, after, before, after)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d g v"]:
        """Convolve; an even side is divided by the stride."""
        out: Tensor = super().forward(x if self._before is None else F.pad(x, self._before))
        return out


class InvertedResidual(nn.Module):
    """Expansion (1×1), depthwise convolution and linear projection (1×1) (Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expand = Convolution(inputs, width) if expansion > 1 else None
        self.depthwise = Convolution(width, width, kernel, stride, groups=width)
        self.project = Convolution(width, outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d g v"]:
        """Return x + f(x) if the shapes agree, or else f(x)."""
        wide = x if self.expand is None else F.relu6(self.expand(x))
        out: Tensor = self.project(F.relu6(self.depthwise(wide)))
        return x + out if self.residual else out


class EfficientNetLite0(nn.Module):
    """The network without its classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, _STEM_WIDTH, 3, 2)
        width, blocks = _STEM_WIDTH, []
        for stage in _STAGES:
            for index in range(stage.repeats):
                stride = stage.stride if index == 0 else 1
                blocks.append(InvertedResidual(width, stage.width, stage.kernel, stride, stage.expansion))
                width = stage.width
        self.blocks = nn.Sequential(*blocks)
        self.head = Convolution(width, FEATURES)

    def forward(self, images: Float[Tensor, "b 3 224 224"]) -> Float[Tensor, "b 1280"]:
        """Return the spatial mean of the last 1,280 channels, each in [0, 6].

        Args:
            images: RGB, normalised to (v - 127) / 128 from values v in [0, 255].
        """
        activations: Tensor = F.relu6(self.head(self.blocks(F.relu6(self.stem(images)))))
        return activations.mean(dim=(2, 3))


def fold(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return this network's weights, given those of lukemelas' EfficientNet-PyTorch or a fork of it.

    In inference a batch norm is a scale and a shift per channel; both are folded into the preceding
    convolution.

    Raises:
        KeyError: A weight is missing.
    """
    layers = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    expanding = [stage.expansion > 1 for stage in _STAGES for _ in range(stage.repeats)]
    for index, expands in enumerate(expanding):
        block, original = f"blocks.{index}", f"_blocks.{index}"
        if expands:
            layers[f"{block}.expand"] = (f"{original}._expand_conv", f"{original}._bn0")
        layers[f"{block}.depthwise"] = (f"{original}._depthwise_conv", f"{original}._bn1")
        layers[f"{block}.project"] = (f"{original}._project_conv", f"{original}._bn2")
    folded = {}
    for name, (convolution, norm) in layers.items():
        scale = weights[f"{norm}.weight"] / torch.sqrt(weights[f"{norm}.running_var"] + _NORM_EPSILON)
        folded[f"{name}.weight"] = weights[f"{convolution}.weight"] * scale[:, None, None, None]
        folded[f"{name}.bias"] = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
    return folded
