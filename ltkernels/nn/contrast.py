"""The momentum-contrast branch of several experts."""

from __future__ import annotations

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .experts import MultiExpert
from .moving_average import MovingAverage
from .separate import SeparateExperts

__all__ = ["MomentumContrast", "projection_head"]


def projection_head(in_features: int, width: int, *, hidden: int | None = None) -> nn.Module:
    """What takes features to the space where they are contrasted.

    Args:
        in_features: D.
        width: E.
        hidden: width of a hidden layer with ReLU; None is D, as in MoCo v2 and NCL; 0 is no hidden
            layer, as in MoCo v1.

    Returns:
        A module ``[N, D] -> [N, E]``.
    """
    if hidden == 0:
        return nn.Linear(in_features, width)
    middle = in_features if hidden is None else hidden
    return nn.Sequential(nn.Linear(in_features, middle), nn.ReLU(), nn.Linear(middle, width))


class MomentumContrast(nn.Module):
    """For each expert a query head, a momentum encoder with its key head, and a queue of keys.

    A training step asks for :meth:`query` (of the first view's features) and :meth:`key` (of the
    second view), compares them against ``queue``, and calls :meth:`update` when the optimiser's
    step is done. Encoder and key head both follow; in NCL's released code the key head stays as it
    was drawn, and the encoder follows before the optimiser's step. Images are not shuffled between
    processes as MoCo does, where those share their batch statistics, as in `ltkernels.train`.

    Args:
        experts: the network that is trained; the momentum encoder starts as its copy, without the
            classifiers.
        width: E, width of queries and keys.
        hidden: of :func:`projection_head`.
        queue: Q, keys kept of each expert. It starts with random directions, as MoCo's.
        momentum: m of :class:`MovingAverage`.
        buffers: of :class:`MovingAverage`.
        statistics: of :class:`MovingAverage`.

    Raises:
        ValueError: a size is below 1.

    Source: He et al., "Momentum contrast for unsupervised visual representation learning",
    CVPR 2020; Chen et al., "Improved baselines with momentum contrastive learning", 2020.
    """

    queue: Tensor
    """float32 ``[K, Q, E]``, unit rows."""
    position: Tensor
    """int64, where the next key goes."""

    def __init__(
        self,
        experts: MultiExpert,
        width: int = 64,
        *,
        hidden: int | None = None,
        queue: int = 1024,
        momentum: float = 0.999,
        buffers: Literal["averaged", "copied"] = "averaged",
        statistics: Literal["batch", "running"] = "batch",
    ) -> None:
        super().__init__()
        for argument, size in (("width", width), ("queue", queue)):
            if size < 1:
                raise ValueError(
                    f"`MomentumContrast`: expected `{argument}` to be >= 1, got {size}"
                )
        self.query_heads = nn.ModuleList(
            projection_head(experts.num_features, width, hidden=hidden)
            for _ in range(experts.num_experts)
        )
        self.key_heads = MovingAverage(self.query_heads, momentum)
        self.key_encoder = MovingAverage(
            _without_classifiers(experts), momentum, buffers=buffers, statistics=statistics
        )
        drawn = torch.randn(experts.num_experts, queue, width)
        self.register_buffer("queue", F.normalize(drawn, dim=2))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    def query(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Unit queries, K tensors ``[N, E]``, of the trained experts' K features ``[N, D]``."""
        return _projected(self.query_heads, features)

    @torch.no_grad()
    def key(self, images: Tensor) -> tuple[Tensor, ...]:
        """Unit keys, K tensors ``[N, E]``, of images; without gradient."""
        heads = self.key_heads.module
        encoder = self.key_encoder.module
        assert isinstance(heads, nn.ModuleList)
        assert isinstance(encoder, MultiExpert)
        return _projected(heads, encoder.features(images))

    @torch.no_grad()
    def update(self, experts: MultiExpert, keys: tuple[Tensor, ...]) -> None:
        """After the optimiser's step: encoder and key heads follow, the oldest keys leave.

        Args:
            experts: the trained network.
            keys: what :meth:`key` gave for the whole batch, all processes' images in order. Of more
                keys than the queue holds the last ones stay.
        """
        self.key_encoder.update(experts)
        self.key_heads.update(self.query_heads)
        length = self.queue.shape[1]
        new = torch.stack(keys)[:, -length:].to(self.queue.dtype)
        # Index arithmetic on the device: the position is never read back.
        place = (self.position + torch.arange(new.shape[1], device=new.device)) % length
        self.queue.index_copy_(1, place, new)
        self.position.add_(new.shape[1]).remainder_(length)


def _projected(heads: nn.ModuleList, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    pairs = zip(heads, features, strict=True)
    return tuple(F.normalize(head(feature).float(), dim=1) for head, feature in pairs)


def _without_classifiers(experts: MultiExpert) -> MultiExpert:
    """A copy that gives features only."""
    bare = copy.deepcopy(experts)
    if isinstance(bare, SeparateExperts):
        for network in bare.networks:
            setattr(network, "linear" if hasattr(network, "linear") else "fc", nn.Identity())
    else:
        bare.linears = nn.ModuleList(nn.Identity() for _ in bare.linears)
    return bare
