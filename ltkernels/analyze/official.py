"""Published checkpoints of RIDE's released code, evaluated here.

The released files hold, beside the weights, objects of the released code. Reading them runs none of
it: of a file's pickle only tensors and plain containers are built, everything else is left out.
"""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ltkernels.data import Augmentation, LongTailedDataset
from ltkernels.methods import TestSet
from ltkernels.nn import load_official_state
from ltkernels.train.config import Config, ConfigError, Table, resolve
from ltkernels.train.distributed import World
from ltkernels.train.evaluation import predict_logits, score
from ltkernels.train.loop import resolve_device
from ltkernels.train.run import load_dataset, untrained_method

__all__ = ["Published", "evaluate_official", "read_official"]

# Images go through the released code with these, whatever subset of CIFAR is drawn.
_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)

_BUILT = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch", "Size"),
}


@dataclass(frozen=True)
class Published:
    """A checkpoint's accuracy in percent: ``overall``, ``many``, ``medium``, ``few``.

    Args:
        config: the configuration whose network fits the checkpoint.
        accuracy: of the network as it predicts, with routers where it has them.
        ece: expected calibration error, a fraction.
        report: what a training run of the method reports beside these: single experts, routing.
    """

    config: Config
    accuracy: dict[str, float | None]
    ece: float
    report: dict[str, Any]


class _LeftOut:
    """Stands for an object of the released code."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> _LeftOut:
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(module, name) if (module, name) in _BUILT else _LeftOut


def _restricted_pickle() -> ModuleType:
    """What ``torch.load`` needs of the pickle module."""
    module = ModuleType("restricted_pickle")
    module.Unpickler = _Unpickler  # type: ignore[attr-defined]
    module.load = lambda file, **more: _Unpickler(file, **more).load()  # type: ignore[attr-defined]
    return module


def read_official(path: Path) -> dict[str, torch.Tensor]:
    """The state dict of a published file, without running any code that the file names.

    Raises:
        ConfigError: no checkpoint.
    """
    try:
        content = torch.load(path, "cpu", pickle_module=_restricted_pickle(), weights_only=False)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ConfigError(f"{path} is no checkpoint: {error}") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise ConfigError(f"{path} is no checkpoint: it holds no weights")
    return tensors


def evaluate_official(
    path: Path, *overrides: Table, dataset: LongTailedDataset | None = None, device: str = "auto"
) -> Published:
    """Evaluate a published checkpoint; experts, heads and routers are read off its weights.

    Args:
        path: the file.
        *overrides: configuration, e.g. ``{"dataset": "cifar100-lt"}``.
        dataset: data to evaluate on instead of the configuration's.
        device: where to predict.

    Raises:
        ConfigError: no checkpoint.
        ValueError: the network of the configuration does not fit it.
    """
    state = read_official(path)
    config = resolve(_shape_of(state), *overrides)
    dataset = dataset or load_dataset(config)
    transform = dataset.transform
    if dataset.name.startswith("cifar"):
        transform = Augmentation(_CIFAR_MEAN, _CIFAR_STD)
    world = World.from_environment()
    where = resolve_device(device, world)
    method = untrained_method(config, dataset, where)
    load_official_state(method.model, state)  # type: ignore[arg-type]
    method.to(where).requires_grad_(False).eval()

    def run(function: Any = None) -> torch.Tensor:
        return predict_logits(
            method, dataset.test_inputs, transform, world, device=where, function=function
        )

    labels, counts, rule = dataset.test_labels, dataset.class_counts, config.shot_rule
    found = score(run(), labels, counts, rule)
    report = method.report(TestSet(labels, counts, rule, dataset.input_shape, run))
    return Published(config, found.accuracy, found.ece, report)


def _shape_of(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The configuration keys that a checkpoint's names and shapes decide."""

    def weights(pattern: str) -> list[torch.Tensor]:
        return [v for name, v in state.items() if re.search(pattern, name)]

    experts = len(weights(r"(^|\.)linears\.\d+\.weight$"))
    biased = weights(r"(^|\.)(linears\.\d+|linear|fc)\.bias$")
    found: dict[str, Any] = {"model.head": "linear" if biased else "cosine"}
    found |= {"method": "ride", "experts": experts} if experts else {"method": "ce"}
    hidden = weights(r"expert_help_pred_hidden_fcs\.\d+\.weight$")
    gates = weights(r"expert_help_pred_fcs?\.(\d+\.)?weight$")
    if hidden:
        width = len(hidden[0])
        found |= {
            "routing.epochs": 1,  # it has routers
            "routing.hidden": width,
            "routing.z": gates[0].shape[1] - width,
            "routing.shared": len(gates) == 1,
        }
    return found
