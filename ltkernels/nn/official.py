"""Checkpoints of the released RIDE code, on the networks of this package."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .cifar_resnet import CifarResNet
from .experts import MultiExpert
from .resnet import ResNet
from .routing import RoutedExperts

__all__ = ["load_official_state"]

# nn.DataParallel's and the released code's own wrapper.
_WRAPPERS = re.compile(r"^(module\.)?(backbone\.)?")
# Router names there and here; everything else of a routed network lies in `network.` here.
_ROUTERS = (
    (re.compile(r"^expert_help_pred_hidden_fcs\.(\d+)\."), r"hidden.\1."),
    (re.compile(r"^expert_help_pred_fcs\.(\d+)\."), r"gates.\1."),
    (re.compile(r"^expert_help_pred_fc\."), r"gates.0."),
)


def load_official_state(
    model: CifarResNet | ResNet | MultiExpert | RoutedExperts, checkpoint: Mapping[str, Any]
) -> None:
    """Load a checkpoint of RIDE's released code into a network of the same shape.

    Takes what ``torch.load`` gives of a published file (weights under ``"state_dict"``) or the
    state dict itself, of a single network, of experts (``ride_resnet_cifar.ResNet_s``,
    ``RIDEResNet``), or of experts with routers (``ea_resnet_cifar``, ``EAResNet``); a network of
    experts takes the experts out of a checkpoint that has routers.

    Args:
        model: from :func:`build_model` with the checkpoint's sizes (``resnet32``, ``experts=3``,
            ``head="cosine"`` for the published CIFAR-100-LT models), or :class:`RoutedExperts` on
            it. Its heads hold the scale, which is 30 in the released code.
        checkpoint: what the file holds.

    Raises:
        ValueError: a parameter is missing, has another shape, or fits nothing in the network; the
            message names them.
    """
    found = checkpoint.get("state_dict", checkpoint)
    state: dict[str, Tensor] = {}
    for name, value in found.items():
        own = _own_name(name, routed=isinstance(model, RoutedExperts))
        if own is not None and isinstance(value, Tensor):
            state[own] = value
    wanted = model.state_dict()
    problems = [f"{name} is missing" for name in wanted if name not in state]
    for name, value in state.items():
        if name not in wanted:
            problems.append(f"{name} fits nothing")
        elif value.shape != wanted[name].shape:
            have, want = list(value.shape), list(wanted[name].shape)
            problems.append(f"{name} is {have}, the network has {want}")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(
            f"`load_official_state`: the checkpoint does not fit: {'; '.join(problems[:5])}{more}"
        )
    model.load_state_dict(state)


def _own_name(name: str, *, routed: bool) -> str | None:
    """The name here of a parameter there; None for a router's where there are none here."""
    name = _WRAPPERS.sub("", name)
    for theirs, ours in _ROUTERS:
        if theirs.match(name):
            return theirs.sub(ours, name) if routed else None
    return f"network.{name}" if routed else name
