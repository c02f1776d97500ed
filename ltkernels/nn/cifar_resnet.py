"""ResNets for small images: three stages and parameter-free ("option A") shortcuts.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2. The parameter
names are those of the long-tailed CIFAR code (LDAM-DRW, RIDE, BKD): conv1, bn1, layer1 ... layer3,
linear.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .heads import build_head

__all__ = ["CifarBlock", "CifarResNet", "PadShortcut", "cifar_stage"]


class PadShortcut(nn.Module):
    """Shortcut without parameters: take every `stride`-th pixel, pad the new channels with zeros.

    Half of the new channels go before the old ones, half after.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, >= in_channels.
        stride: subsampling in both directions.

    Raises:
        ValueError: there are fewer output channels than input channels.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        added = out_channels - in_channels
        if added < 0:
            raise ValueError(
                f"`PadShortcut`: expected `out_channels` to be >= {in_channels}, got {out_channels}"
            )
        self.stride = stride
        self.padding = (0, 0, 0, 0, added // 2, added - added // 2)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, H, W] -> [N, out_channels, ceil(H/stride), ceil(W/stride)]``."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


class CifarBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation, added to the shortcut.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: stride of the first convolution and of the shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = (
            nn.Identity()
            if stride == 1 and in_channels == out_channels
            else PadShortcut(in_channels, out_channels, stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, H, W] -> [N, out_channels, ceil(H/stride), ceil(W/stride)]``."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


def cifar_stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    """One stage: `blocks` blocks of `out_channels`, the first with `stride`.

    Args:
        in_channels: channels of the input.
        out_channels: channels of every block.
        blocks: number of blocks, >= 1.
        stride: stride of the first block.

    Returns:
        The stage as a sequence of :class:`CifarBlock`.
    """
    first = CifarBlock(in_channels, out_channels, stride)
    rest = [CifarBlock(out_channels, out_channels) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def initialize(model: nn.Module) -> None:
    """Kaiming-normal weights (fan in) for every convolution and linear layer, as in LDAM-DRW."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)


class CifarResNet(nn.Module):
    """ResNet for images of about 8 to 64 pixels: a 3x3 stem and stages of width w, 2w, 4w.

    Args:
        blocks: blocks of each of the three stages; ``(5, 5, 5)`` is ResNet-32.
        num_classes: number of classes C.
        in_channels: channels of the images.
        width: channels w of the stem and the first stage.
        stem_stride: stride of the stem; 2 quarters the cost.
        head: ``"linear"`` or ``"cosine"``.
        scale: factor on the cosines of the cosine head.

    Shape:
        images ``[N, in_channels, H, W]`` -> logits ``[N, C]``.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        num_classes: int,
        *,
        in_channels: int = 3,
        width: int = 16,
        stem_stride: int = 1,
        head: str = "linear",
        scale: float = 30.0,
    ) -> None:
        super().__init__()
        self.num_features = 4 * width
        self.conv1 = nn.Conv2d(in_channels, width, 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = cifar_stage(width, width, blocks[0], stride=1)
        self.layer2 = cifar_stage(width, 2 * width, blocks[1], stride=2)
        self.layer3 = cifar_stage(2 * width, 4 * width, blocks[2], stride=2)
        self.linear = build_head(head, self.num_features, num_classes, scale)
        initialize(self)

    def features(self, x: Tensor) -> Tensor:
        """Pooled features ``[N, D]`` of images ``[N, in_channels, H, W]``, D = 4 * width."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return F.adaptive_avg_pool2d(out, 1).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, C]`` of images ``[N, in_channels, H, W]``."""
        logits: Tensor = self.linear(self.features(x))
        return logits
