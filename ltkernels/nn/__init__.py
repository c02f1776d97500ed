"""Models of the long-tailed recognition papers, classifier heads, and what a model costs."""

from __future__ import annotations

from typing import Any

from .cifar_resnet import CifarBlock, CifarResNet, PadShortcut, cifar_stage
from .contrast import MomentumContrast, projection_head
from .cost import count_macs, count_parameters
from .experts import EXPERT_WIDTH, CifarExperts, MultiExpert, ResNetExperts
from .heads import NormedLinear, build_head
from .moving_average import MovingAverage
from .official import load_official_state
from .pretrained import load_pretrained
from .resnet import BasicBlock, Bottleneck, ResNet, ResNeXtBottleneck, resnet_stage
from .routing import Routed, RoutedExperts
from .separate import SeparateExperts
from .text_cnn import TextCNN, WordEmbedding

__all__ = [
    "MODELS",
    "BasicBlock",
    "Bottleneck",
    "CifarBlock",
    "CifarExperts",
    "CifarResNet",
    "MomentumContrast",
    "MovingAverage",
    "MultiExpert",
    "NormedLinear",
    "PadShortcut",
    "ResNeXtBottleneck",
    "ResNet",
    "ResNetExperts",
    "Routed",
    "RoutedExperts",
    "SeparateExperts",
    "TextCNN",
    "WordEmbedding",
    "build_head",
    "build_model",
    "cifar_stage",
    "count_macs",
    "count_parameters",
    "load_official_state",
    "load_pretrained",
    "projection_head",
    "resnet_stage",
]

_SMALL: dict[str, tuple[int, ...]] = {
    "resnet8": (1, 1, 1),
    "resnet20": (3, 3, 3),
    "resnet32": (5, 5, 5),
}
_LARGE: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    "resnet10": (BasicBlock, (1, 1, 1, 1)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnext50_32x4d": (ResNeXtBottleneck, (3, 4, 6, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}

MODELS: tuple[str, ...] = (*_SMALL, *_LARGE, "textcnn")
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
    experts: int | None = None,
    expert_width: float = EXPERT_WIDTH,
    shared_stem: bool = True,
    **text: Any,
) -> CifarResNet | ResNet | CifarExperts | ResNetExperts | SeparateExperts | TextCNN:
    """Make a classification network by name.

    ``resnet8``, ``resnet20``, ``resnet32`` (three stages, width 16) are for small images,
    ``resnet10``, ``resnet50``, ``resnext50_32x4d`` and ``resnet152`` (four stages, width 64) for
    images of about 224 pixels, ``textcnn`` for token ids.

    Args:
        name: one of :data:`MODELS`.
        num_classes: number of classes C.
        in_channels: channels of the images, 1 for grey ones.
        head: ``"linear"`` or ``"cosine"`` (:class:`NormedLinear`).
        scale: factor on the cosines of the cosine head.
        width: channels of the stem; the network's own by default.
        stem_stride: stride of the stem of a small-image network, 1 by default; 2 makes it four
            times cheaper, which suits 28x28 greys.
        experts: number K of experts on a shared stem (:class:`MultiExpert`); None for a single
            network.
        expert_width: width of the experts' own stages relative to the single network's.
        shared_stem: False for experts that share nothing (:class:`SeparateExperts`), each the whole
            single network.
        **text: the other arguments of :class:`TextCNN`, of ``textcnn`` only: ``vocabulary_size``
            and on. It has no version with experts, and none of the sizes above.

    Returns:
        A module with ``features(x) -> [N, D]``, the attribute ``num_features`` = D and
        ``forward(x) -> logits [N, C]``; with `experts`, both give one tensor an expert.

    Raises:
        ValueError: unknown `name` or `head`, a size below 1, or an argument of another kind of
            network.
    """
    if name not in MODELS:
        raise ValueError(
            f"`build_model`: expected `name` to be one of {', '.join(MODELS)}, got {name!r}"
        )
    if name == "textcnn":
        for argument, given in (
            ("width", width),
            ("stem_stride", stem_stride),
            ("experts", experts),
        ):
            if given is not None:
                raise ValueError(
                    f"`build_model`: expected `{argument}` only with an image network, got {name!r}"
                )
        return TextCNN(num_classes=num_classes, head=head, scale=scale, **text)
    if text:
        raise ValueError(
            f"`build_model`: expected `{next(iter(text))}` only with 'textcnn', got {name!r}"
        )
    sizes = {"num_classes": num_classes, "in_channels": in_channels}
    options: dict[str, Any] = {"in_channels": in_channels, "head": head, "scale": scale}
    for argument, given in (("width", width), ("stem_stride", stem_stride), ("experts", experts)):
        if given is not None:
            options[argument] = sizes[argument] = given
    for argument, size in sizes.items():
        if size < 1:
            raise ValueError(f"`build_model`: expected `{argument}` to be >= 1, got {size}")
    if stem_stride is not None and name in _LARGE:
        raise ValueError(
            f"`build_model`: expected `stem_stride` only with a small-image network, got {name!r}"
        )
    if experts is not None and not shared_stem:
        del options["experts"]
        return SeparateExperts(_single(name, num_classes, options) for _ in range(experts))
    if experts is None:
        return _single(name, num_classes, options)
    options["expert_width"] = expert_width
    if name in _SMALL:
        return CifarExperts(_SMALL[name], num_classes, **options)
    return ResNetExperts(*_LARGE[name], num_classes, **options)


def _single(name: str, num_classes: int, options: dict[str, Any]) -> CifarResNet | ResNet:
    if name in _SMALL:
        return CifarResNet(_SMALL[name], num_classes, **options)
    return ResNet(*_LARGE[name], num_classes, **options)
