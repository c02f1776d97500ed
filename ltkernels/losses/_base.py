"""What the loss modules share: class counts by either name, and deferred re-weighting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from .. import _checks
from .._checks import ClassCounts
from ..schedules import effective_number_weight, inverse_frequency_weight

ClassWeight: TypeAlias = (
    Literal["effective_number", "inverse_frequency"] | Sequence[float] | Tensor | None
)


def counts_of(
    loss: str, class_counts: ClassCounts | None, cls_num_list: ClassCounts | None
) -> Tensor | None:
    """The class counts, float64 `[C]`, under the one or the other name."""
    if class_counts is not None and cls_num_list is not None:
        raise TypeError(f"`{loss}`: expected `class_counts` or `cls_num_list`, got both")
    given = cls_num_list if class_counts is None else class_counts
    return None if given is None else _checks.class_counts(loss, given)


def required_counts(
    loss: str, class_counts: ClassCounts | None, cls_num_list: ClassCounts | None
) -> Tensor:
    """As `counts_of`, where the loss cannot do without."""
    counts = counts_of(loss, class_counts, cls_num_list)
    if counts is None:
        raise TypeError(f"`{loss}`: expected `class_counts`, the training images of each class")
    return counts


class Reweighted(nn.Module):
    """A loss with class weights, from the start or from an epoch on (deferred re-weighting).

    The weights in force are the buffer `class_weight`: ones until the epoch `drw_epoch` starts,
    `full_class_weight` from then on. Swapping values instead of branching keeps the module
    compilable and its state in its `state_dict`. Both are None where there are no weights.
    Vectors of class constants are float64 and stay so under `.half()` and its kin; the ops round
    them to the dtype of their arithmetic.
    """

    class_weight: Tensor | None
    full_class_weight: Tensor | None

    def __init__(
        self,
        counts: Tensor | None,
        weight: ClassWeight,
        drw_epoch: int | None,
        beta: float,
        reduction: _checks.Reduction,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        _checks.reduction(name, reduction)
        if drw_epoch is not None:
            _check_epoch(name, "drw_epoch", drw_epoch)
        full = _resolve(name, counts, weight, beta)
        if drw_epoch is not None and full is None:
            raise ValueError(f"`{name}`: expected `weight` where `drw_epoch` is given")
        self.drw_epoch = drw_epoch
        self.reduction: _checks.Reduction = reduction
        self.register_buffer("full_class_weight", full)
        deferred = full is not None and bool(drw_epoch)
        in_force = torch.ones_like(full) if full is not None and deferred else full
        self.register_buffer("class_weight", None if in_force is None else in_force.clone())

    def on_epoch_start(self, epoch: int) -> None:
        """Put the class weights of this epoch (0-based) in force."""
        _check_epoch(type(self).__name__, "epoch", epoch)
        if self.drw_epoch is None or self.class_weight is None or self.full_class_weight is None:
            return
        if epoch >= self.drw_epoch:
            self.class_weight.copy_(self.full_class_weight)
        else:
            self.class_weight.fill_(1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Reweighted:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self


def _resolve(name: str, counts: Tensor | None, weight: ClassWeight, beta: float) -> Tensor | None:
    if weight is None:
        return None
    if isinstance(weight, str):
        if weight not in ("effective_number", "inverse_frequency"):
            raise ValueError(
                f"`{name}`: expected `weight` to be 'effective_number', 'inverse_frequency', "
                f"class weights [C] or None, got {weight!r}"
            )
        if counts is None:
            raise TypeError(f"`{name}`: expected `class_counts` where `weight` is {weight!r}")
        if weight == "effective_number":
            return effective_number_weight(counts, beta)
        return inverse_frequency_weight(counts)
    device = weight.device if isinstance(weight, Tensor) else "cpu"
    full = torch.as_tensor(weight).detach().to(torch.float64)
    if full.dim() != 1 or (counts is not None and full.shape != counts.shape):
        classes = "" if counts is None else f" = [{len(counts)}]"
        raise ValueError(f"`{name}`: expected `weight` to be [C]{classes}, got {list(full.shape)}")
    if not bool((full >= 0).all()):
        raise ValueError(f"`{name}`: expected `weight` >= 0, got {float(full.min())}")
    return full.to(device)


def _check_epoch(name: str, argument: str, epoch: object) -> None:
    if isinstance(epoch, bool) or not isinstance(epoch, int):
        raise TypeError(f"`{name}`: expected `{argument}` to be an int, got {epoch!r}")
    if epoch < 0:
        raise ValueError(f"`{name}`: expected `{argument}` >= 0 (the first is 0), got {epoch}")
