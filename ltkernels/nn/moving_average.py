"""A copy of a module that follows it slowly."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["MovingAverage"]


class MovingAverage(nn.Module):
    r"""An exponential moving average of a module's parameters: a momentum encoder.

    .. math:: \theta_k \leftarrow m \, \theta_k + (1 - m) \, \theta_q

    Nothing of it has a gradient. In training mode batch normalisation takes the statistics of its
    batch, as MoCo's does, or the running ones; its own batches never move the running ones, which
    come from the followed module.

    Args:
        followed: the module; the average starts as its copy.
        momentum: m, 0 (a copy after every update) to 1 (it stays as it is).
        buffers: floating-point buffers are "averaged" like parameters, or "copied". Others are
            always copied.
        statistics: what batch normalisation takes in training mode, "batch" or "running".

    Raises:
        ValueError: `momentum` or a switch is out of range.

    Source: He et al., "Momentum contrast for unsupervised visual representation learning",
    CVPR 2020, eq. 2.
    """

    def __init__(
        self,
        followed: nn.Module,
        momentum: float = 0.999,
        *,
        buffers: Literal["averaged", "copied"] = "averaged",
        statistics: Literal["batch", "running"] = "batch",
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"`MovingAverage`: expected `momentum` in 0..1, got {momentum}")
        for argument, value, known in (
            ("buffers", buffers, ("averaged", "copied")),
            ("statistics", statistics, ("batch", "running")),
        ):
            if value not in known:
                raise ValueError(
                    f"`MovingAverage`: expected `{argument}` to be one of {known}, got {value!r}"
                )
        self.momentum, self.buffer_rule, self.statistics = momentum, buffers, statistics
        self.module = copy.deepcopy(followed).requires_grad_(False)
        for layer in self.module.modules():
            if isinstance(layer, _BatchNorm):
                layer.momentum = 0.0

    def train(self, mode: bool = True) -> MovingAverage:
        """Training mode for batch normalisation alone, and for that only with "batch"."""
        super().train(mode)
        self.module.train(mode and self.statistics == "batch")
        return self

    def forward(self, *args: Any) -> Any:
        """What the average makes of the arguments, without gradient."""
        with torch.no_grad():
            return self.module(*args)

    @torch.no_grad()
    def update(self, followed: nn.Module) -> None:
        """One step towards a module that has (at least) the names of this one."""
        source = followed.state_dict()
        averaged: dict[str, Tensor] = dict(self.module.named_parameters())
        for name, buffer in self.module.named_buffers():
            if self.buffer_rule == "averaged" and buffer.is_floating_point():
                averaged[name] = buffer
            else:
                buffer.copy_(source[name])
        # One launch for all of them on a GPU.
        others = [source[name] for name in averaged]
        torch._foreach_lerp_(list(averaged.values()), others, 1 - self.momentum)
