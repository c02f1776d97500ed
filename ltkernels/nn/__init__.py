"""Models of the long-tailed recognition papers, classifier heads, and what a model costs."""

from __future__ import annotations

from functools import partial
from typing import Any

from .cifar_resnet import CifarBlock, CifarResNet, PadShortcut, cifar_stage
from .cost import count_macs, count_parameters
from .heads import NormedLinear, build_head
from .resnet import BasicBlock, Bottleneck, ResNet, resnet_stage

__all__ = [
    "MODELS",
    "BasicBlock",
    "Bottleneck",
    "CifarBlock",
    "CifarResNet",
    "NormedLinear",
    "PadShortcut",
    "ResNet",
    "build_head",
    "build_model",
    "cifar_stage",
    "count_macs",
    "count_parameters",
    "resnet_stage",
]

_CONSTRUCTORS: dict[str, partial[CifarResNet] | partial[ResNet]] = {
    "resnet8": partial(CifarResNet, (1, 1, 1)),
    "resnet20": partial(CifarResNet, (3, 3, 3)),
    "resnet32": partial(CifarResNet, (5, 5, 5)),
    "resnet10": partial(ResNet, BasicBlock, (1, 1, 1, 1)),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3)),
}

MODELS: tuple[str, ...] = tuple(_CONSTRUCTORS)
"""Names that :func:`build_model` takes."""


def build_model(
    name: str,
    num_classes: int,
    in_channels: int = 3,
    head: str = "linear",
    scale: float = 30.0,
    *,
    width: int | None = None,
    stem_stride: int | None = None,
) -> CifarResNet | ResNet:
    """Make a classification network by name.

    ``resnet8``, ``resnet20``, ``resnet32`` (three stages, width 16) are for small images,
    ``resnet10``, ``resnet50`` (four stages, width 64) for images of about 224 pixels.

    Args:
        name: one of :data:`MODELS`.
        num_classes: number of classes C.
        in_channels: channels of the images, 1 for grey ones.
        head: ``"linear"`` or ``"cosine"`` (:class:`NormedLinear`).
        scale: factor on the cosines of the cosine head.
        width: channels of the stem; the network's own by default.
        stem_stride: stride of the stem of a small-image network, 1 by default; 2 makes it four
            times cheaper, which suits 28x28 greys.

    Returns:
        A module with ``forward(x) -> logits [N, C]``, ``features(x) -> [N, D]`` and the attribute
        ``num_features`` = D.

    Raises:
        ValueError: unknown `name` or `head`, a size below 1, or `stem_stride` for a large-image
            network.
    """
    if name not in _CONSTRUCTORS:
        raise ValueError(
            f"`build_model`: expected `name` to be one of {', '.join(MODELS)}, got {name!r}"
        )
    sizes = {"num_classes": num_classes, "in_channels": in_channels}
    options: dict[str, Any] = {"in_channels": in_channels, "head": head, "scale": scale}
    if width is not None:
        options["width"] = sizes["width"] = width
    if stem_stride is not None:
        options["stem_stride"] = sizes["stem_stride"] = stem_stride
    for argument, size in sizes.items():
        if size < 1:
            raise ValueError(f"`build_model`: expected `{argument}` to be >= 1, got {size}")
    constructor = _CONSTRUCTORS[name]
    if stem_stride is not None and constructor.func is ResNet:
        raise ValueError(
            f"`build_model`: expected `stem_stride` only with a small-image network, got {name!r}"
        )
    return constructor(num_classes=num_classes, **options)
