"""ResNets for large images, with torchvision's parameter names and shapes.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; the stride of a bottleneck is
on its 3x3 convolution, as in torchvision, so that torchvision's weights load with
``load_state_dict``. ResNet-10 is the network of the ImageNet-LT papers: one basic block a stage.
ResNeXt: Xie et al., "Aggregated residual transformations for deep neural networks", CVPR 2017.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .heads import build_head

__all__ = ["BasicBlock", "Bottleneck", "ResNeXtBottleneck", "ResNet", "resnet_stage"]


def _downsample(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """Projection shortcut, or None where the input can be added as it is."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions of `width` channels, added to the shortcut.

    Args:
        in_channels: channels of the input.
        width: channels of both convolutions and of the output.
        stride: stride of the first convolution and of the shortcut.
    """

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _downsample(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, H, W] -> [N, width, ceil(H/stride), ceil(W/stride)]``."""
        out = F.relu(self.bn1(self.conv1(x)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.bn2(self.conv2(out)) + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions; the last one widens to four times `width`.

    Args:
        in_channels: channels of the input.
        width: channels of the 3x3 convolution; the output has ``4 * width``.
        stride: stride of the 3x3 convolution and of the shortcut.
    """

    expansion = 4
    groups = 1

    @classmethod
    def inner_width(cls, width: int) -> int:
        """Channels of the 3x3 convolution in a block of `width`."""
        return width

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        out_channels, inner = self.expansion * width, self.inner_width(width)
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=self.groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = _downsample(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, H, W] -> [N, 4 * width, ceil(H/stride), ceil(W/stride)]``."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.bn3(self.conv3(out)) + shortcut)


class ResNeXtBottleneck(Bottleneck):
    """The bottleneck of ResNeXt 32x4d: 32 groups, of 4 channels each at a width of 64."""

    groups = 32

    @classmethod
    def inner_width(cls, width: int) -> int:
        """Channels of the 3x3 convolution, twice the width in whole groups."""
        return cls.groups * max(1, width * 4 // 64)


def resnet_stage(
    block: type[BasicBlock] | type[Bottleneck],
    in_channels: int,
    width: int,
    blocks: int,
    stride: int,
) -> nn.Sequential:
    """One stage: `blocks` blocks of `width`, the first with `stride`.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        in_channels: channels of the input.
        width: width of every block; the output has ``width * block.expansion`` channels.
        blocks: number of blocks, >= 1.
        stride: stride of the first block.

    Returns:
        The stage as a sequence of blocks.
    """
    first = block(in_channels, width, stride)
    rest = [block(width * block.expansion, width) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def initialize(model: nn.Module) -> None:
    """Kaiming-normal convolutions (fan out), as in torchvision; other layers as they are."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class ResNet(nn.Module):
    """ResNet for images of about 224 pixels: a 7x7 stem, a pooling, four stages.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        blocks: blocks of each of the four stages; ``(3, 4, 6, 3)`` bottlenecks are ResNet-50.
        num_classes: number of classes C.
        in_channels: channels of the images.
        width: channels w of the stem and width of the first stage; the others have 2w, 4w, 8w.
        head: ``"linear"`` or ``"cosine"``.
        scale: factor on the cosines of the cosine head.

    Shape:
        images ``[N, in_channels, H, W]`` -> logits ``[N, C]``.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: Sequence[int],
        num_classes: int,
        *,
        in_channels: int = 3,
        width: int = 64,
        head: str = "linear",
        scale: float = 30.0,
    ) -> None:
        super().__init__()
        grow = block.expansion
        self.num_features = 8 * width * grow
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = resnet_stage(block, width, width, blocks[0], stride=1)
        self.layer2 = resnet_stage(block, width * grow, 2 * width, blocks[1], stride=2)
        self.layer3 = resnet_stage(block, 2 * width * grow, 4 * width, blocks[2], stride=2)
        self.layer4 = resnet_stage(block, 4 * width * grow, 8 * width, blocks[3], stride=2)
        self.fc = build_head(head, self.num_features, num_classes, scale)
        initialize(self)

    def features(self, x: Tensor) -> Tensor:
        """Pooled features ``[N, D]`` of images, D = 8 * width * block.expansion."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.max_pool2d(out, kernel_size=3, stride=2, padding=1)
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return F.adaptive_avg_pool2d(out, 1).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, C]`` of images ``[N, in_channels, H, W]``."""
        logits: Tensor = self.fc(self.features(x))
        return logits
