"""Networks of several experts on a shared stem, as RIDE builds them.

Wang et al., "Long-tailed recognition by routing diverse distribution-aware experts", ICLR 2021,
section 3.1: the early stages are shared, the later ones and the classifier are each expert's own,
three quarters as wide as in the network they come from. The parameter names are those of the
released code (``layer2s.0``, ``linears.0``, ...), so that its checkpoints load.

Experts run one after the other: as one grouped convolution a layer they take longer on a CPU
(``bench/grouped_experts.py``), and the later experts could not be left out for some of the images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import cifar_resnet, resnet
from .cifar_resnet import cifar_stage
from .heads import NormedLinear, build_head
from .resnet import BasicBlock, Bottleneck, resnet_stage

__all__ = ["EXPERT_WIDTH", "CifarExperts", "MultiExpert", "ResNetExperts"]

EXPERT_WIDTH = 0.75
"""Width of an expert's own stages relative to the network they come from."""


class MultiExpert(nn.Module, ABC):
    """A stem that all experts share, and K experts of their own stages and head.

    Nothing is kept on the module between calls: :meth:`forward` returns the logits of every expert,
    and :meth:`stem` and :meth:`expert` give the parts that routing calls one by one.
    """

    linears: nn.ModuleList
    num_features: int

    @property
    def num_experts(self) -> int:
        """K."""
        return len(self.linears)

    @property
    def num_classes(self) -> int:
        """C."""
        return self.classifiers()[0].out_features

    @abstractmethod
    def stem(self, x: Tensor) -> Tensor:
        """What the experts start from: a map of images ``[N, in_channels, H, W]``."""

    @abstractmethod
    def stages(self, k: int) -> Sequence[nn.Module]:
        """Expert k's own stages, in their order."""

    def expert(self, k: int, shared: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[N, C]`` and pooled feature ``[N, D]`` of expert k.

        Args:
            k: which expert, 0 to K - 1.
            shared: what :meth:`stem` gave, of all images or of some.
        """
        out = shared
        for stage in self.stages(k):
            out = stage(out)
        feature = F.adaptive_avg_pool2d(out, 1).flatten(1)
        return self.linears[k](feature), feature

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Logits of images ``[N, in_channels, H, W]``: K tensors ``[N, C]``."""
        shared = self.stem(x)
        return tuple(self.expert(k, shared)[0] for k in range(self.num_experts))

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Pooled features of images: K tensors ``[N, D]``."""
        shared = self.stem(x)
        return tuple(self.expert(k, shared)[1] for k in range(self.num_experts))

    def logits_and_features(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Both of :meth:`forward` and :meth:`features`, from one pass."""
        shared = self.stem(x)
        logits, features = zip(
            *(self.expert(k, shared) for k in range(self.num_experts)), strict=True
        )
        return logits, features

    def predict(self, x: Tensor) -> Tensor:
        """The mean of the experts' logits, ``[N, C]``."""
        return torch.stack(self(x)).mean(dim=0)

    def classifiers(self) -> tuple[nn.Linear | NormedLinear, ...]:
        """The experts' heads."""
        return tuple(self.linears)  # type: ignore[arg-type]


def _expert_width(name: str, experts: int, width: int, expert_width: float) -> int:
    if experts < 1:
        raise ValueError(f"`{name}`: expected `experts` to be >= 1, got {experts}")
    if not expert_width > 0:
        raise ValueError(f"`{name}`: expected `expert_width` to be > 0, got {expert_width}")
    return max(1, round(width * expert_width))


class CifarExperts(MultiExpert):
    """K experts on the stem and first stage of a :class:`CifarResNet`.

    Args:
        blocks: blocks of each of the three stages; ``(5, 5, 5)`` is ResNet-32.
        num_classes: number of classes C.
        experts: number of experts K.
        in_channels: channels of the images.
        width: channels w of the stem and the first stage; an expert's stages have 2w and 4w times
            `expert_width`.
        stem_stride: stride of the stem.
        head: ``"linear"`` or ``"cosine"``.
        scale: factor on the cosines of the cosine head.
        expert_width: width of the experts' stages relative to the single network's.

    Shape:
        images ``[N, in_channels, H, W]`` -> K logits ``[N, C]``.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        num_classes: int,
        *,
        experts: int,
        in_channels: int = 3,
        width: int = 16,
        stem_stride: int = 1,
        head: str = "linear",
        scale: float = 30.0,
        expert_width: float = EXPERT_WIDTH,
    ) -> None:
        super().__init__()
        own = [_expert_width("CifarExperts", experts, n * width, expert_width) for n in (2, 4)]
        self.num_features = own[1]
        self.conv1 = nn.Conv2d(in_channels, width, 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = cifar_stage(width, width, blocks[0], stride=1)
        self.layer2s = nn.ModuleList(
            cifar_stage(width, own[0], blocks[1], stride=2) for _ in range(experts)
        )
        self.layer3s = nn.ModuleList(
            cifar_stage(own[0], own[1], blocks[2], stride=2) for _ in range(experts)
        )
        self.linears = nn.ModuleList(
            build_head(head, own[1], num_classes, scale) for _ in range(experts)
        )
        cifar_resnet.initialize(self)

    def stem(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer1(F.relu(self.bn1(self.conv1(x))))
        return out

    def stages(self, k: int) -> Sequence[nn.Module]:
        return self.layer2s[k], self.layer3s[k]


class ResNetExperts(MultiExpert):
    """K experts on the stem and first two stages of a :class:`ResNet`.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        blocks: blocks of each of the four stages; ``(3, 4, 6, 3)`` bottlenecks are ResNet-50.
        num_classes: number of classes C.
        experts: number of experts K.
        in_channels: channels of the images.
        width: channels w of the stem; the shared stages have w and 2w, an expert's 4w and 8w times
            `expert_width`.
        head: ``"linear"`` or ``"cosine"``.
        scale: factor on the cosines of the cosine head.
        expert_width: width of the experts' stages relative to the single network's.

    Shape:
        images ``[N, in_channels, H, W]`` -> K logits ``[N, C]``.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: Sequence[int],
        num_classes: int,
        *,
        experts: int,
        in_channels: int = 3,
        width: int = 64,
        head: str = "linear",
        scale: float = 30.0,
        expert_width: float = EXPERT_WIDTH,
    ) -> None:
        super().__init__()
        own = [_expert_width("ResNetExperts", experts, n * width, expert_width) for n in (4, 8)]
        grow = block.expansion
        self.num_features = own[1] * grow
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = resnet_stage(block, width, width, blocks[0], stride=1)
        self.layer2 = resnet_stage(block, width * grow, 2 * width, blocks[1], stride=2)
        self.layer3s = nn.ModuleList(
            resnet_stage(block, 2 * width * grow, own[0], blocks[2], stride=2)
            for _ in range(experts)
        )
        self.layer4s = nn.ModuleList(
            resnet_stage(block, own[0] * grow, own[1], blocks[3], stride=2) for _ in range(experts)
        )
        self.linears = nn.ModuleList(
            build_head(head, self.num_features, num_classes, scale) for _ in range(experts)
        )
        resnet.initialize(self)

    def stem(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.max_pool2d(out, kernel_size=3, stride=2, padding=1)
        shared: Tensor = self.layer2(self.layer1(out))
        return shared

    def stages(self, k: int) -> Sequence[nn.Module]:
        return self.layer3s[k], self.layer4s[k]
