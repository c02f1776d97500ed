"""What a model costs: multiply-accumulate operations of a forward pass, and parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .heads import NormedLinear
from .text_cnn import WordEmbedding

__all__ = ["count_macs", "count_parameters"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PRODUCTS = (nn.Linear, NormedLinear)
_Counted = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear | NormedLinear


def _macs_of_call(module: _Counted, output: Tensor) -> int:
    if isinstance(module, _PRODUCTS):
        return output.numel() * module.in_features
    # A convolution's weight is [out, in / groups, *kernel]: one output value reads a whole filter.
    return output.numel() * module.weight[0].numel()


def count_macs(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Multiply-accumulates of one image's forward pass, convolutions and linear layers only.

    Counts every call of Conv1d/2d/3d, Linear and NormedLinear in one forward pass of a zero image
    in evaluation mode; batch normalisation, activations and pooling are left out, as in the costs
    that RIDE and its successors print (sometimes as "FLOPs"). A network with an embedding is given
    the id 0, L times, and the look-up costs nothing. The model is left as it was found: training
    flags, buffers and hooks.

    Args:
        model: any module built from these layers; must take one tensor ``[1, *input_shape]``.
        input_shape: shape of one input without the batch dimension, e.g. ``(3, 32, 32)``.

    Returns:
        The number of multiply-accumulates.
    """
    total = 0

    def add(module: _Counted, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += _macs_of_call(module, output)

    counted = [m for m in model.modules() if isinstance(m, (*_CONVOLUTIONS, *_PRODUCTS))]
    training = {module: module.training for module in model.modules()}
    ids = any(isinstance(m, (nn.Embedding, WordEmbedding)) for m in model.modules())
    handles = [module.register_forward_hook(add) for module in counted]
    like: Callable[..., Tensor] = next(model.parameters(), torch.zeros(())).new_zeros
    try:
        model.eval()
        with torch.no_grad():
            model(like((1, *input_shape), dtype=torch.int64 if ids else None))
    finally:
        for handle in handles:
            handle.remove()
        for module, flag in training.items():
            module.training = flag
    return total


def count_parameters(model: nn.Module) -> int:
    """Number of scalar parameters of a model (buffers are not counted, shared ones once).

    Args:
        model: any module.

    Returns:
        The number of parameters.
    """
    return sum(parameter.numel() for parameter in model.parameters())
