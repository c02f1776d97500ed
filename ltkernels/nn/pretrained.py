"""Weights of torchvision's networks, from a file, as the start of a network of this package."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["load_pretrained"]

_WRAPPER = re.compile(r"^module\.")
_HEAD = re.compile(r"(^|\.)(fc|linear|linears\.\d+)\.")
# What an expert has of its own is called by the number of the expert.
_EXPERT = ((re.compile(r"^networks\.\d+\."), ""), (re.compile(r"^(layer\d)s\.\d+\."), r"\1."))


def load_pretrained(network: nn.Module, path: Path) -> None:
    """Start from a file of weights; classifiers stay as they were drawn.

    Every expert starts from the same weights. The file holds a state dict with torchvision's names,
    perhaps under ``"state_dict"`` or ``"model"``, perhaps with ``module.`` before each name.

    Args:
        network: from :func:`build_model`.
        path: ``.safetensors``, or what ``torch.save`` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no weights, or those of another network; the message names some.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`load_pretrained`: there is no file {path}")
    found = _read(path)
    own = network.state_dict()
    state, problems = {}, []
    for name, value in own.items():
        if _HEAD.search(name):
            continue
        source = name
        for pattern, replacement in _EXPERT:
            source = pattern.sub(replacement, source)
        if source not in found:
            # Files from before PyTorch 0.4.1 do not count batches.
            if not name.endswith("num_batches_tracked"):
                problems.append(f"{source} is missing")
        elif found[source].shape != value.shape:
            have, want = list(found[source].shape), list(value.shape)
            problems.append(f"{source} is {have}, the network has {want}")
        else:
            state[name] = found[source]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        narrow = any("s." in name and name.startswith("layer") for name in own)
        hint = "; experts as wide as the file's have `model.expert_width` = 1" if narrow else ""
        raise ValueError(
            f"`load_pretrained`: {path} does not fit: {'; '.join(problems[:3])}{more}{hint}"
        )
    network.load_state_dict({**own, **state})


def _read(path: Path) -> dict[str, Tensor]:
    content: Any
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            content = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"`load_pretrained`: {path} is damaged: {error}") from error
    else:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"`load_pretrained`: {path} holds no weights that can be read: {reason}"
            ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise ValueError(f"`load_pretrained`: {path} holds {type(content).__name__}, not weights")
    state = {
        _WRAPPER.sub("", name): value
        for name, value in content.items()
        if isinstance(value, Tensor)
    }
    if not state:
        raise ValueError(f"`load_pretrained`: {path} holds no weights")
    return state
