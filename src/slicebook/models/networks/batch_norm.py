"""Batch norm whose statistics are those of the whole batch, over any number of processes and devices."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from slicebook.distributed import current_part, summed


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, with all-reduced moments where several processes share a batch.

    `torch.nn.SyncBatchNorm` does the same on a GPU only. Two small sums over the processes give the mean,
    then the variance about it, so that no digits cancel; the backward pass has as many. A batch of a single
    value per channel, which PyTorch refuses, has variance 0.
    """

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:  # noqa: A002 (PyTorch's name)
        """Return the normalised batch; in training mode the running statistics follow it."""
        part = current_part(len(input))
        values = part.total * input.shape[-2] * input.shape[-1]  # per channel, of all processes
        if not self.training or (part.processes == 1 and values > 1):
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            x = input.float()
            mean = summed(x.sum((0, 2, 3)), part) / values
            centred = x - mean[:, None, None]
            variance = summed(centred.square().sum((0, 2, 3)), part) / values
            self._follow(mean.detach(), variance.detach() * (values / max(values - 1, 1)))
            scale = self.weight * (variance + self.eps).rsqrt()
            normalised = torch.addcmul(self.bias[:, None, None], centred, scale[:, None, None])
        return normalised.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Float[Tensor, " c"], variance: Float[Tensor, " c"]) -> None:
        """Update the running statistics; the variance is the unbiased one, as in PyTorch."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
