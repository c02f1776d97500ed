"""What every strategy is given, checked once: the experts' logits and the classes they know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ltkernels import _checks

ClassLists: TypeAlias = Sequence[Sequence[int] | Tensor]

# Samples are taken in chunks of about this many numbers, so that what is computed of one step is
# still in the cache in the next.
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Subsets:
    """The classes of each expert.

    Args:
        classes: int64 ``[S_e]`` of each expert, distinct, in the order of its logits.
        num_classes: C.
    """

    classes: tuple[Tensor, ...]
    num_classes: int

    @property
    def membership(self) -> Tensor:
        """bool ``[K, C]``: which expert knows which class."""
        known = torch.zeros(len(self.classes), self.num_classes, dtype=torch.bool)
        for own, row in zip(self.classes, known, strict=True):
            row[own.cpu()] = True
        return known

    def to(self, device: torch.device) -> Subsets:
        """The same subsets with their indices on a device."""
        return Subsets(tuple(own.to(device) for own in self.classes), self.num_classes)


@dataclass(frozen=True)
class Experts:
    """Checked logits of K experts.

    Args:
        logits: float32 or float64 ``[N, S_e]`` or ``[N, S_e + 1]``.
        subsets: the classes of each.
    """

    logits: tuple[Tensor, ...]
    subsets: Subsets

    @property
    def rows(self) -> int:
        """N."""
        return len(self.logits[0])

    def own(self, e: int) -> Tensor:
        """Logits ``[N, S_e]`` of the classes that expert e knows."""
        return self.logits[e][:, : len(self.subsets.classes[e])]

    def rejects(self, e: int) -> bool:
        """Whether expert e has a reject class."""
        return self.logits[e].shape[1] > len(self.subsets.classes[e])

    def chunks(self) -> list[tuple[slice, Experts]]:
        """The experts on slices of the samples."""
        width = sum(z.shape[1] for z in self.logits) + self.subsets.num_classes
        size = max(1, _CHUNK // width)
        slices = [slice(i, min(i + size, self.rows)) for i in range(0, self.rows, size)]
        return [(s, Experts(tuple(z[s] for z in self.logits), self.subsets)) for s in slices]

    def new(self, columns: int) -> Tensor:
        """An uninitialised ``[N, columns]`` of the logits' dtype."""
        return self.logits[0].new_empty(self.rows, columns)


def check_subsets(op: str, classes: object, num_classes: object = None) -> Subsets:
    """The experts' classes: distinct indices, C their largest plus one where it is not given."""
    if not isinstance(classes, Sequence) or isinstance(classes, str):
        raise TypeError(
            f"`{op}`: expected `classes` to be a list of class indices for each expert, "
            f"got {type(classes).__name__}"
        )
    if len(classes) == 0:
        raise ValueError(f"`{op}`: expected `classes` of at least one expert, got none")
    lists = tuple(_class_list(op, f"classes[{e}]", own) for e, own in enumerate(classes))
    needed = 1 + max(int(own.max()) for own in lists)
    if num_classes is None:
        return Subsets(lists, needed)
    if isinstance(num_classes, bool) or not isinstance(num_classes, int):
        raise TypeError(
            f"`{op}`: expected `num_classes` to be an integer, got {type(num_classes).__name__}"
        )
    if num_classes < needed:
        raise ValueError(
            f"`{op}`: expected `num_classes` > {needed - 1}, the largest of `classes`, "
            f"got {num_classes}"
        )
    return Subsets(lists, num_classes)


def _class_list(op: str, name: str, value: object) -> Tensor:
    if isinstance(value, Tensor):
        own = value.detach()
        if own.is_floating_point() or own.dtype == torch.bool or own.is_complex():
            raise TypeError(f"`{op}`: expected `{name}` to be integers, got {own.dtype}")
    else:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise TypeError(
                f"`{op}`: expected `{name}` to be a list of class indices, "
                f"got {type(value).__name__}"
            )
        if not all(isinstance(c, int) and not isinstance(c, bool) for c in value):
            raise TypeError(f"`{op}`: expected `{name}` to be integers, got {list(value)}")
        own = torch.tensor(list(value), dtype=torch.int64)
    if own.dim() != 1 or len(own) == 0:
        raise ValueError(
            f"`{op}`: expected `{name}` to be [S] with at least one class, got {list(own.shape)}"
        )
    own = own.long()
    if int(own.min()) < 0:
        raise IndexError(f"`{op}`: expected `{name}` >= 0, got {int(own.min())}")
    if len(torch.unique(own)) < len(own):
        raise ValueError(f"`{op}`: expected `{name}` to be distinct, got {own.tolist()}")
    return own


def check_logits(op: str, expert_logits: object, subsets: Subsets) -> Experts:
    """Logits of K experts of one number of samples and on one device, as float32 or float64."""
    if not isinstance(expert_logits, Sequence) or isinstance(expert_logits, str):
        raise TypeError(
            f"`{op}`: expected `expert_logits` to be a list of tensors [N, S] or [N, S + 1], "
            f"got {type(expert_logits).__name__}"
        )
    if len(expert_logits) != len(subsets.classes):
        raise ValueError(
            f"`{op}`: expected `expert_logits` of the {len(subsets.classes)} experts in "
            f"`classes`, got {len(expert_logits)}"
        )
    checked: list[Tensor] = []
    for e, (value, own) in enumerate(zip(expert_logits, subsets.classes, strict=True)):
        name = f"expert_logits[{e}]"
        z = _checks.logits(op, name, value, checked[0] if checked else None)
        rows = len(checked[0]) if checked else len(z)
        if len(z) != rows or z.shape[1] not in (len(own), len(own) + 1):
            raise ValueError(
                f"`{op}`: expected `{name}` to be [N, S] = [{rows}, {len(own)}] or [N, S + 1], "
                f"got {list(z.shape)}"
            )
        checked.append(z)
    dtype = _checks.compute_dtype(*checked)
    return Experts(tuple(z.to(dtype) for z in checked), subsets.to(checked[0].device))


def check_experts(op: str, expert_logits: object, classes: object, num_classes: object) -> Experts:
    """:func:`check_subsets` and :func:`check_logits`."""
    return check_logits(op, expert_logits, check_subsets(op, classes, num_classes))


def check_target(op: str, name: str, target: object, experts: Experts) -> Tensor:
    """Labels int64 ``[N]`` in ``0 ... C - 1``, on the experts' device."""
    y = _checks.tensor(op, name, target)
    if y.dtype != torch.int64:
        raise TypeError(f"`{op}`: expected `{name}` to be int64, got {y.dtype}")
    if list(y.shape) != [experts.rows]:
        raise ValueError(
            f"`{op}`: expected `{name}` to be [N] = [{experts.rows}], got {list(y.shape)}"
        )
    classes = experts.subsets.num_classes
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise IndexError(
            f"`{op}`: expected `{name}` in 0 ... {classes - 1}, got {int(y.min())} ... "
            f"{int(y.max())}"
        )
    return y.to(experts.logits[0].device)
