"""What is joined: the logits of some models on common validation and test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ltkernels.predictions import Member, Source

__all__ = ["Ensemble", "Member", "Source", "join"]


@dataclass(frozen=True)
class Ensemble:
    """Sources that fit each other.

    Args:
        sources: what is joined.
        labels: int64 ``[M]`` of the test images.
        validation_labels: int64 ``[V]``; None without validation images.
        num_classes: C.
        class_counts: int64 ``[C]``; None where no source knows them.
        rule: which classes are many, medium and few.
    """

    sources: tuple[Source, ...]
    labels: Tensor
    validation_labels: Tensor | None
    num_classes: int
    class_counts: Tensor | None
    rule: str

    @property
    def members(self) -> tuple[Member, ...]:
        """The experts of all sources."""
        return tuple(member for source in self.sources for member in source.members)

    def without(self, source: Source) -> Ensemble:
        """The same ensemble less one source."""
        rest = tuple(s for s in self.sources if s is not source)
        return Ensemble(
            rest,
            self.labels,
            self.validation_labels,
            self.num_classes,
            self.class_counts,
            self.rule,
        )


def join(sources: Sequence[Source], *, rule: str = "") -> Ensemble:
    """Check that sources are of the same images and classes.

    Args:
        sources: at least one.
        rule: which classes are many, medium and few; by default what the sources say, else "kang".

    Raises:
        ValueError: labels, counts, splits or numbers of images that differ, or no labels at all.
    """
    labels = _common(sources, "labels", "test labels")
    if labels is None:
        names = ", ".join(s.name for s in sources)
        raise ValueError(f"no test labels: neither --labels nor one of {names} has them")
    validation = _common(sources, "validation_labels", "validation labels")
    counts = _common(sources, "class_counts", "training images a class")
    splits = {s.split: s.name for s in sources if s.split}
    if len(splits) > 1:
        differing = ", ".join(f"{name} ({split})" for split, name in splits.items())
        raise ValueError(
            "the runs were trained on different images, so that one's validation images are "
            f"another's training images: {differing}"
        )
    largest = max(int(member.classes.max()) for s in sources for member in s.members)
    num_classes = 1 + max(largest, int(labels.max()))
    if counts is not None:
        if len(counts) < num_classes:
            raise ValueError(
                f"training images of {len(counts)} classes, but labels or experts of {num_classes}"
            )
        num_classes = len(counts)
    for source in sources:
        for member in source.members:
            for name, z, y in (
                ("test", member.test, labels),
                ("validation", member.validation, validation),
            ):
                if z is not None and y is not None and len(z) != len(y):
                    raise ValueError(
                        f"{member.name}: {name} logits of {len(z)} images, labels of {len(y)}"
                    )
    rules = {s.rule for s in sources if s.rule}
    chosen = rule or (rules.pop() if len(rules) == 1 else "kang")
    return Ensemble(tuple(sources), labels, validation, num_classes, counts, chosen)


def _common(sources: Sequence[Source], attribute: str, what: str) -> Tensor | None:
    """The value of all sources that have one."""
    having = [s for s in sources if getattr(s, attribute) is not None]
    if not having:
        return None
    first: Tensor = getattr(having[0], attribute)
    for source in having[1:]:
        value: Tensor = getattr(source, attribute)
        if not torch.equal(first, value):
            raise ValueError(f"{source.name} and {having[0].name} have different {what}")
    return first
