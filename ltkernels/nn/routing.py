"""Routers that decide, image by image, whether another expert is asked.

Wang et al., "Long-tailed recognition by routing diverse distribution-aware experts", ICLR 2021,
section 3.3: after expert i a small gate looks at the mean logits of the experts asked so far and at
expert i's feature; where it sees no need, the later experts are not computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import functional as F
from .cost import count_macs
from .experts import MultiExpert

__all__ = ["Routed", "RoutedExperts"]


class Routed(NamedTuple):
    """What a routed network says of a batch.

    Attributes:
        logits: mean logits of the experts that each image was shown to, ``[N, C]``.
        experts: how many those were, int64 ``[N]``.
    """

    logits: Tensor
    experts: Tensor


class RoutedExperts(nn.Module):
    """A multi-expert network with a router between each expert and the next.

    The gate of router i is ``W2 (top_z(mean logits of experts 1..i) + relu(W1_i v_i / |v_i|))``
    (`functional.topz_gate`); an image goes on while its gate is above the threshold.

    Args:
        network: the experts; routing asks them in their order.
        z: how many of the largest logits a gate sees (30 for CIFAR, 50 for larger sets); at most
            the number of classes is taken.
        hidden: width of a gate's hidden layer.
        shared: one second layer for all routers (official), or one each.

    Shape:
        images ``[N, in_channels, H, W]`` -> mean logits ``[N, C]`` and experts used ``[N]``.
    """

    def __init__(
        self, network: MultiExpert, *, z: int = 30, hidden: int = 16, shared: bool = True
    ) -> None:
        super().__init__()
        routers, classes = network.num_experts - 1, network.num_classes
        if routers < 1:
            raise ValueError("`RoutedExperts`: expected a `network` of at least 2 experts, got 1")
        self.network = network
        self.z = min(z, classes)
        self.hidden = nn.ModuleList(nn.Linear(network.num_features, hidden) for _ in range(routers))
        self.gates = nn.ModuleList(
            nn.Linear(self.z + hidden, 1) for _ in range(1 if shared else routers)
        )

    @property
    def num_routers(self) -> int:
        """K - 1."""
        return len(self.hidden)

    def gate(self, i: int, logits: Tensor, feature: Tensor) -> Tensor:
        """Gate ``[N]`` of router i, after expert i: above 0 asks for the next expert.

        Args:
            i: which router, 0 to K - 2.
            logits: mean logits of the experts so far, ``[N, C]``.
            feature: pooled feature of expert i, ``[N, D]``.
        """
        first, second = self.hidden[i], self.gates[i if len(self.gates) > 1 else 0]
        return F.topz_gate(
            logits,
            feature,
            first.weight,  # type: ignore[arg-type]
            first.bias,  # type: ignore[arg-type]
            second.weight,  # type: ignore[arg-type]
            second.bias,  # type: ignore[arg-type]
            self.z,
        )

    def gates_of_all(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Gates ``[K - 1, N]`` of all routers, with every expert computed, and the K logits.

        What the routers are trained on; the experts may be frozen.
        """
        shared = self.network.stem(x)
        logits, gates = [], []
        total: Tensor | None = None
        for k in range(self.network.num_experts):
            own, feature = self.network.expert(k, shared)
            logits.append(own)
            total = own if total is None else total + own
            if k < self.num_routers:
                gates.append(self.gate(k, total / (k + 1), feature))
        return torch.stack(gates), tuple(logits)

    def macs(self, input_shape: Sequence[int]) -> list[int]:
        """Multiply-accumulates of an image that 1, 2, ..., K experts see, routers included.

        Args:
            input_shape: shape of one image, e.g. ``(3, 32, 32)``.
        """
        stem = count_macs(_Stem(self.network), input_shape)
        every = count_macs(self.network, input_shape)
        expert = (every - stem) // self.network.num_experts
        hidden = int(self.hidden[0].out_features)  # type: ignore[arg-type]
        router = hidden * self.network.num_features + self.z + hidden
        routers = [min(k, self.num_routers) for k in range(1, self.network.num_experts + 1)]
        return [stem + k * expert + n * router for k, n in enumerate(routers, start=1)]

    def forward(self, x: Tensor, threshold: float | Tensor = 0.0) -> Routed:
        """Route images: the later experts compute only the images that still need them.

        Args:
            x: images ``[N, in_channels, H, W]``.
            threshold: an image goes on where its gate is above it; 0 is a probability of 1/2.
        """
        shared = self.network.stem(x)
        total, feature = self.network.expert(0, shared)
        used = torch.ones(len(x), dtype=torch.int64, device=x.device)
        asked = torch.arange(len(x), device=x.device)
        own_total = total
        for k in range(1, self.network.num_experts):
            needs_help = self.gate(k - 1, own_total / k, feature) > threshold
            asked, shared = asked[needs_help], shared[needs_help]
            if len(asked) == 0:
                break
            logits, feature = self.network.expert(k, shared)
            own_total = own_total[needs_help] + logits
            total = total.index_copy(0, asked, own_total)
            used = used.index_fill(0, asked, k + 1)
        return Routed(total / used.unsqueeze(1), used)


class _Stem(nn.Module):
    """The shared part of a network, as a module that can be counted."""

    def __init__(self, network: MultiExpert) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.stem(x)
