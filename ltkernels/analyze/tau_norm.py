"""Tau-normalisation: a trained classifier's weight vectors, brought towards equal lengths.

Kang et al., "Decoupling representation and classifier for long-tailed recognition", ICLR 2020:
``w_c / |w_c|^tau`` with the bias left out; tau = 0 changes nothing but the bias, tau = 1 makes all
lengths equal. Nothing is trained. Of several experts each one's head is normalised (RIDE, Fig. 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ltkernels.nn import MultiExpert, RoutedExperts
from ltkernels.train.config import ConfigError
from ltkernels.train.distributed import World
from ltkernels.train.evaluation import predict_logits, score
from ltkernels.train.loop import resolve_device
from ltkernels.train.run import load_config, load_method, load_training_set

__all__ = ["TAUS", "TauNorm", "analyze_tau_norm", "tau_normalize"]

TAUS = tuple(i / 10 for i in range(11))


@dataclass(frozen=True)
class TauNorm:
    """Accuracy of a run in percent, ``overall``, ``many``, ``medium``, ``few``, by tau.

    Args:
        method: the run's method.
        trained: as it was trained.
        by_tau: after normalisation.
    """

    method: str
    trained: dict[str, float | None]
    by_tau: dict[float, dict[str, float | None]]


@torch.no_grad()
def tau_normalize(model: nn.Module, tau: float) -> None:
    """Divide each class's weight vector by its length to the power tau and drop the bias, in place.

    Args:
        model: a network of `ltkernels.nn` with linear heads.
        tau: 0 to 1.

    Raises:
        ValueError: the heads are cosine heads, whose vectors count by their direction alone.
    """
    for head in heads_of(model):
        if not isinstance(head, nn.Linear):
            raise ValueError("`tau_normalize`: a cosine head's weights have no length to change")
        length = head.weight.norm(dim=1, keepdim=True).clamp(min=1e-12)
        head.weight /= length**tau
        head.bias.zero_()


def heads_of(model: nn.Module) -> Sequence[Any]:
    """The classifiers of a network."""
    if isinstance(model, RoutedExperts):
        model = model.network
    if isinstance(model, MultiExpert):
        return model.classifiers()
    return [model.linear if hasattr(model, "linear") else model.fc]


def analyze_tau_norm(run: Path, taus: Sequence[float] = TAUS, device: str = "auto") -> TauNorm:
    """Accuracies of a finished run over tau.

    Args:
        run: its folder.
        taus: the values to try.
        device: where to predict.

    Raises:
        ConfigError: no finished run, or one with cosine heads.
    """
    config, world = load_config(run), World.from_environment()
    where = resolve_device(device, world)
    dataset = load_training_set(config)
    method = load_method(run, dataset, where)
    if any(not isinstance(head, nn.Linear) for head in heads_of(method.model)):
        raise ConfigError(f"{run} has cosine heads, whose weights have no length to change")
    trained = {name: value.clone() for name, value in method.model.state_dict().items()}

    def accuracy() -> dict[str, float | None]:
        logits = predict_logits(method, dataset.test_inputs, dataset.transform, world, device=where)
        return score(logits, dataset.test_labels, dataset.class_counts, config.shot_rule).accuracy

    before, by_tau = accuracy(), {}
    for tau in taus:
        tau_normalize(method.model, tau)
        by_tau[tau] = accuracy()
        method.model.load_state_dict(trained)
    return TauNorm(config.method, before, by_tau)
