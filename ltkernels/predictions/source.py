"""The logits of one model on test images and, where there are any, on validation images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Member", "Source"]


@dataclass(frozen=True)
class Member:
    """One expert.

    Args:
        name: shown in tables.
        classes: int64 ``[S]``, the class of each column.
        test: logits ``[M, S]``, or ``[M, S + 1]`` with a reject class last.
        validation: logits of the validation images; None where there are none.
    """

    name: str
    classes: Tensor
    test: Tensor
    validation: Tensor | None

    @property
    def rejects(self) -> bool:
        """Whether it has a reject class."""
        return self.test.shape[1] > len(self.classes)


@dataclass(frozen=True)
class Source:
    """One argument of the command: a run or a file, with one expert or several.

    Args:
        name: the path.
        members: its experts.
        labels: int64 ``[M]`` of the test images; None where not known.
        validation_labels: int64 ``[V]``; None where not known.
        class_counts: int64 ``[C]``, training images a class; None where not known.
        rule: which classes are many, medium and few; "" where not known.
        split: hash of the training images; "" where not known.
    """

    name: str
    members: tuple[Member, ...]
    labels: Tensor | None = None
    validation_labels: Tensor | None = None
    class_counts: Tensor | None = None
    rule: str = ""
    split: str = ""
