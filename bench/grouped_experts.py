"""Do experts run faster as one grouped convolution than one after the other?

    python bench/grouped_experts.py [--experts 3] [--batch 128] [--device cpu] [--threads 1]

Times forward and backward of the experts' own stages of RIDE's ResNet-32 at 32x32, once as K
modules, once with every 3x3 convolution of the K experts as one convolution with `groups=K` (batch
normalisation is a channel's own affair, so that it needs no groups). Both sides in turns; medians.
"""

from __future__ import annotations

import argparse
from functools import partial
from statistics import median

import torch
from measure import interleave
from torch import Tensor, nn

from ltkernels.nn import CifarExperts, build_model
from ltkernels.nn.cifar_resnet import CifarBlock, PadShortcut


class GroupedBlock(nn.Module):
    """K blocks as one: channels of expert k are the k-th part."""

    def __init__(self, blocks: list[CifarBlock]) -> None:
        super().__init__()
        k = len(blocks)

        def conv(each: list[nn.Conv2d]) -> nn.Conv2d:
            first = each[0]
            grouped = nn.Conv2d(
                k * first.in_channels,
                k * first.out_channels,
                3,
                first.stride,  # type: ignore[arg-type]
                padding=1,
                groups=k,
                bias=False,
            )
            grouped.weight.data = torch.cat([c.weight.data for c in each])
            return grouped

        def norm(each: list[nn.BatchNorm2d]) -> nn.BatchNorm2d:
            return nn.BatchNorm2d(k * each[0].num_features)

        self.experts = k
        self.conv1, self.bn1 = conv([b.conv1 for b in blocks]), norm([b.bn1 for b in blocks])
        self.conv2, self.bn2 = conv([b.conv2 for b in blocks]), norm([b.bn2 for b in blocks])
        self.shortcut = blocks[0].shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if isinstance(self.shortcut, PadShortcut):  # pads inside each expert's channels
            each = x.unflatten(1, (self.experts, -1)).flatten(0, 1)
            x = self.shortcut(each).unflatten(0, (len(out), self.experts)).flatten(1, 2)
        return torch.relu(out + x)


def separate(model: CifarExperts, x: Tensor, _: int) -> None:
    sum(model.layer3s[i](model.layer2s[i](x)).sum() for i in range(model.num_experts)).backward()


def together(grouped: nn.Module, x: Tensor, experts: int, _: int) -> None:
    grouped(x.repeat(1, experts, 1, 1)).sum().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experts", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, k = arguments.device, arguments.experts
    model = build_model("resnet32", 100, head="cosine", experts=k)
    stages = [[*model.layer2s[i], *model.layer3s[i]] for i in range(k)]
    grouped = nn.Sequential(*(GroupedBlock(list(blocks)) for blocks in zip(*stages, strict=True)))
    model, grouped = model.to(device), grouped.to(device)
    for name, layout in (
        ("contiguous", torch.contiguous_format),
        ("channels_last", torch.channels_last),
    ):
        model, grouped = model.to(memory_format=layout), grouped.to(memory_format=layout)
        x = torch.randn(arguments.batch, 16, 32, 32, device=device).contiguous(memory_format=layout)
        sides = {
            "separate": partial(separate, model, x),
            "grouped": partial(together, grouped, x, k),
        }
        times = interleave(sides, rounds=arguments.rounds, device=torch.device(device))
        one, other = (median(times[side]) for side in sides)
        print(
            f"{name:>13}: separate {1e3 * one:.1f} ms, grouped {1e3 * other:.1f} ms, "
            f"separate / grouped = {one / other:.2f}"
        )


if __name__ == "__main__":
    main()
