"""Experts that share nothing: whole networks side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from .cifar_resnet import CifarResNet
from .experts import MultiExpert
from .heads import NormedLinear
from .resnet import ResNet

__all__ = ["SeparateExperts"]


class SeparateExperts(MultiExpert):
    """K networks that each see the images themselves, as in the released code of NCL.

    Li et al., "Nested collaborative learning for long-tailed visual recognition", CVPR 2022.

    Args:
        networks: the experts, at least one, of the same sizes.

    Shape:
        images ``[N, in_channels, H, W]`` -> K logits ``[N, C]``.

    Raises:
        ValueError: there is no network.
    """

    def __init__(self, networks: Iterable[CifarResNet | ResNet]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        if not self.networks:
            raise ValueError("`SeparateExperts`: expected `networks` to hold at least one, got 0")
        self.num_features = int(self._network(0).num_features)

    @property
    def num_experts(self) -> int:
        """K."""
        return len(self.networks)

    def stem(self, x: Tensor) -> Tensor:
        """The images themselves."""
        return x

    def stages(self, k: int) -> Sequence[nn.Module]:
        """Expert k's network, its head included."""
        return (self.networks[k],)

    def expert(self, k: int, shared: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[N, C]`` and pooled feature ``[N, D]`` of expert k."""
        network = self._network(k)
        feature = network.features(shared)
        return _head(network)(feature), feature

    def classifiers(self) -> tuple[nn.Linear | NormedLinear, ...]:
        """The experts' heads."""
        return tuple(_head(self._network(k)) for k in range(self.num_experts))

    def _network(self, k: int) -> CifarResNet | ResNet:
        network = self.networks[k]
        assert isinstance(network, (CifarResNet, ResNet))
        return network


def _head(network: CifarResNet | ResNet) -> nn.Linear | NormedLinear:
    return network.linear if isinstance(network, CifarResNet) else network.fc
