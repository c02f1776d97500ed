"""What can be had for nothing after training: the same weights, other logits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ltkernels import _checks
from ltkernels.fusion import balanced_weight

if TYPE_CHECKING:
    from pathlib import Path

    from ltkernels.data import Inputs, LongTailedDataset

__all__ = ["DEFAULT_TAU", "POSTHOC", "TauNormalized", "fit_temperature", "tau_normalized"]

POSTHOC = ("logit_adjustment", "temperature", "logit_adjustment+temperature", "tau_norm")
"""Rows of a card beside the model as it was trained."""

DEFAULT_TAU = 0.7
"""Of tau-normalisation, where no validation images can choose one."""

_LARGEST = 100.0
_STEPS = 100


def fit_temperature(logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> float:
    r"""The temperature T that makes ``softmax(logits / T)`` likeliest on validation images.

    .. math:: \min_T - \sum_i w_i \log \mathrm{softmax}(z_i / T)_{y_i} / \sum_i w_i

    In 1/T the loss is convex; its minimum is found by Newton's method, in float64, which halves a
    bracket where it leaves it.

    Args:
        logits: ``[V, C]`` of images that were not trained on; -inf where a class is impossible.
        target: int64 ``[V]``.
        sample_weight: ``[V]``, >= 0; by default every class weighs the same, as it does in a
            balanced test set (`fusion.balanced_weight`).

    Returns:
        T, from 0.01 to 100: a bound where no T between is best, 0.01 where every image is right.

    Raises:
        ValueError, TypeError, IndexError: arguments that do not fit, or no image whose true class
            is possible.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017, sec. 4.2.
    """
    op = "fit_temperature"
    z = _checks.logits(op, "logits", logits).detach().double()
    _checks.class_target(op, "target", target, z)
    weight = balanced_weight(target) if sample_weight is None else sample_weight
    of_target = z.gather(1, target[:, None])
    possible = of_target.squeeze(1).isfinite()
    if not bool(possible.any()):
        raise ValueError(f"`{op}`: expected `target` to hold a possible class, got none")
    z, of_target, w = z[possible], of_target[possible], weight.to(z)[possible]
    # Relative to the true class; what is impossible has probability 0 at any temperature.
    gap = z - of_target
    finite = gap.masked_fill(gap.isneginf(), 0)

    def derivatives(beta: float) -> tuple[float, float]:
        """First and second, by beta = 1/T: mean and variance of the gap."""
        p = (beta * gap).softmax(1)
        first = (p * finite).sum(1)
        second = (p * finite.square()).sum(1) - first.square()
        return float(w @ first), float(w @ second)

    low, high = 1 / _LARGEST, _LARGEST
    if derivatives(high)[0] <= 0:
        return 1 / high
    if derivatives(low)[0] >= 0:
        return 1 / low
    beta = 1.0
    for _ in range(_STEPS):
        slope, curvature = derivatives(beta)
        if abs(slope) <= 1e-10 * beta * curvature:
            break
        low, high = (beta, high) if slope < 0 else (low, beta)
        beta -= slope / curvature if curvature > 0 else math.inf
        if not low < beta < high:
            beta = math.sqrt(low * high)
    return 1 / beta


class TauNormalized:
    """Test logits of a run after tau-normalisation of its classifier.

    Attributes:
        logits: ``[M, C]``.
        setting: ``tau`` and where it comes from, ``chosen_on``.
    """

    def __init__(self, logits: Tensor, setting: dict[str, Any]) -> None:
        self.logits, self.setting = logits, setting


def tau_normalized(
    run: Path,
    device: str = "auto",
    dataset: LongTailedDataset | None = None,
) -> TauNormalized | str:
    """Normalise a run's classifier and predict its test images.

    tau is the one of ``analyze.tau_norm.TAUS`` that is best on the validation images (mean of the
    classes' accuracies; of equal ones the smallest), else :data:`DEFAULT_TAU`.

    Returns:
        The logits; or why there are none.
    """
    from ltkernels.analyze.tau_norm import TAUS, heads_of, tau_normalize
    from ltkernels.methods import CBE, SubsetExpert
    from ltkernels.metrics import class_accuracy
    from ltkernels.nn import RoutedExperts
    from ltkernels.train.distributed import World
    from ltkernels.train.evaluation import predict_logits
    from ltkernels.train.loop import resolve_device
    from ltkernels.train.run import hold_out, load_config, load_dataset, load_method

    if not (run / "model.safetensors").exists():
        return "the run's weights are not there"
    config, world = load_config(run), World()
    try:
        whole = dataset or load_dataset(config)
    except (OSError, ValueError) as error:
        return f"the data set cannot be loaded: {' '.join(str(error).split())}"
    data, validation = hold_out(whole, config)
    where = resolve_device(device, world)
    method = load_method(run, data, where)
    if isinstance(method, (CBE, SubsetExpert)):
        return "there is no one classifier of all classes"
    if isinstance(method.model, RoutedExperts):
        return "the routers were trained on the logits as they are"
    if any(not isinstance(head, torch.nn.Linear) for head in heads_of(method.model)):
        return "a cosine head's weights have no length to change"
    trained = {name: value.clone() for name, value in method.model.state_dict().items()}

    def predict(inputs: Inputs, tau: float) -> Tensor:
        method.model.load_state_dict(trained)
        tau_normalize(method.model, tau)
        return predict_logits(
            method,
            inputs,
            data.transform,
            world,
            device=where,
            channels_last=config.channels_last,
        )

    tau, chosen_on = DEFAULT_TAU, "no validation images: fixed"
    if validation is not None:
        inputs, labels = validation

        def accuracy(tau: float) -> float:
            predicted = predict(inputs, tau).argmax(1)
            return float(class_accuracy(predicted, labels.cpu(), data.num_classes).nanmean())

        tau, chosen_on = max(TAUS, key=accuracy), f"{len(labels)} validation images"
    test = predict(data.test_inputs, tau)
    return TauNormalized(test, {"tau": tau, "chosen_on": chosen_on})
