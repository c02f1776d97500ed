"""Accuracy by group and calibration of a set of logits, and the logits of a set of images."""

from __future__ import annotations

from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ltkernels.data.inputs import load_batches
from ltkernels.metrics import expected_calibration_error, shot_accuracy
from ltkernels.schedules import log_prior

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from torch import Tensor

    from ltkernels.data import Inputs, Transform
    from ltkernels.methods import Method
    from ltkernels.train.distributed import World

__all__ = ["GROUPS", "Score", "adjust_logits", "in_layout", "predict_logits", "score"]

GROUPS = ("many", "medium", "few")


@dataclass(frozen=True)
class Score:
    """How good a set of predictions is.

    Args:
        accuracy: ``overall``, ``many``, ``medium``, ``few`` in percent; None for an empty group.
        ece: expected calibration error, 15 bins, a fraction.
        sizes: classes in each group.
        rule: the rule that made the groups.
    """

    accuracy: dict[str, float | None]
    ece: float
    sizes: dict[str, int]
    rule: str

    def row(self) -> dict[str, Any]:
        """Accuracies and ECE as one flat row of ``metrics.jsonl``."""
        return {**self.accuracy, "ece": self.ece}


def score(logits: Tensor, labels: Tensor, class_counts: Tensor, rule: str = "kang") -> Score:
    """Score logits against labels.

    Args:
        logits: ``[M, C]``.
        labels: int64 ``[M]``.
        class_counts: ``[C]``, training images of each class.
        rule: which classes are many, medium and few.

    Returns:
        Group accuracies (means of per-class accuracies) and calibration.
    """
    shots = shot_accuracy(logits.argmax(1), labels, class_counts, rule)  # type: ignore[arg-type]
    fractions = {"overall": shots.overall, **{g: getattr(shots, g) for g in GROUPS}}
    return Score(
        accuracy={k: None if v is None else 100 * v for k, v in fractions.items()},
        ece=expected_calibration_error(logits.softmax(1), labels),
        sizes=shots.sizes,
        rule=shots.rule,
    )


def adjust_logits(logits: Tensor, class_counts: Tensor, tau: float = 1.0) -> Tensor:
    """Logit adjustment after training: ``logits - tau * log(n_c / N)``, without retraining.

    Args:
        logits: ``[M, C]`` of a model trained with plain cross-entropy.
        class_counts: ``[C]``, training images of each class.
        tau: strength; 1 replaces the training prior by a uniform one.

    Returns:
        Adjusted logits ``[M, C]``.

    Source: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, eq. 9.
    """
    return logits - tau * log_prior(class_counts).to(logits)


def in_layout(inputs: Tensor, channels_last: bool) -> Tensor:
    """A batch in the memory layout of the network; only images have one."""
    layout = torch.channels_last if channels_last and inputs.dim() == 4 else torch.contiguous_format
    return inputs.contiguous(memory_format=layout)


@torch.no_grad()
def predict_logits(
    method: Method,
    inputs: Inputs,
    transform: Transform,
    world: World,
    *,
    device: torch.device,
    amp: AbstractContextManager[Any] | None = None,
    channels_last: bool = False,
    batch_size: int = 512,
    function: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Logits of inputs in evaluation mode; the processes share the inputs.

    Args:
        method: what predicts.
        inputs: M of them, as the data set has them.
        transform: gives the normalisation.
        world: the processes of the run.
        device: device of the method.
        amp: autocast context.
        channels_last: memory layout of images.
        batch_size: inputs at a time.
        function: what is computed of normalised inputs, row by row; None: ``method.predict``.

    Returns:
        The rows, ``[M, C]`` for logits, on the CPU; float32, or float64 where they are.
    """
    training = method.training
    method.eval()
    rows = []
    own = world.part(torch.arange(len(inputs)))
    batches = torch.split(own, batch_size)
    pin_memory = device.type == "cuda"
    with closing(load_batches(inputs, batches, pin_memory=pin_memory)) as loaded:
        for chunk in loaded:
            chunk = chunk.to(device, non_blocking=True)
            x = in_layout(transform.normalize(chunk), channels_last)
            with amp or nullcontext():
                row = (function or method.predict)(x)
            rows.append(row if row.dtype == torch.float64 else row.float())
    method.train(training)
    gathered: Tensor = world.gather(torch.cat(rows), len(inputs))
    return gathered.cpu()
