"""What a trained method says of its test and validation images."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from ltkernels.data import Inputs, LongTailedDataset
from ltkernels.methods import CBE, Method, SubsetExpert
from ltkernels.methods.cbe import expert_names

from .source import Member, Source

__all__ = ["Predict", "has_experts", "source_of_method"]

Predict: TypeAlias = Callable[[Inputs, Callable[[Tensor], Tensor]], Tensor]
"""Applies a function of normalised images to raw images, row by row; the rows are on the CPU."""


def has_experts(method: Method) -> bool:
    """Whether what it predicts is joined of experts of parts of the classes."""
    return isinstance(method, CBE)


def source_of_method(
    name: str,
    method: Method,
    dataset: LongTailedDataset,
    validation: tuple[Inputs, Tensor] | None,
    predict: Predict,
    *,
    rule: str,
    experts: bool = False,
    predicted: Tensor | None = None,
) -> Source:
    """Logits of the test images, and of those held out of training.

    Args:
        name: of the source.
        method: what predicts.
        dataset: its test images; its training images are those that are left.
        validation: inputs and labels held out of training; None for none.
        predict: applies the method.
        rule: which classes are many, medium and few.
        experts: of a method of several experts for parts of the classes these, one by one, in the
            place of what they say together.
        predicted: what ``method.predict`` gave for the test images, ``[M, C]``, where it is known
            already.
    """
    apart = experts and isinstance(method, CBE)

    def function(x: Tensor) -> Tensor:
        if apart:
            assert isinstance(method, CBE)
            return torch.cat(method.expert_logits(x), 1)
        return method.subset_logits(x) if isinstance(method, SubsetExpert) else method.predict(x)

    if predicted is None or apart:
        test = predict(dataset.test_inputs, function)
    else:
        some = method.classes.cpu() if isinstance(method, SubsetExpert) else None
        test = predicted if some is None else predicted[:, some]
    held = None if validation is None else predict(validation[0], function)
    if apart:
        assert isinstance(method, CBE)
        classes = [own.cpu() for own in method.model.classes]
        widths = method.model.fusion.widths
        names = [f"{name}:{expert}" for expert in expert_names(len(classes))]
    else:
        whole = torch.arange(dataset.num_classes)
        classes = [method.classes.cpu() if isinstance(method, SubsetExpert) else whole]
        widths, names = [test.shape[1]], [name]
    parts = torch.split(test, widths, 1)
    held_parts = [None] * len(widths) if held is None else torch.split(held, widths, 1)
    return Source(
        name,
        tuple(
            Member(label, own, z, v)
            for label, own, z, v in zip(names, classes, parts, held_parts, strict=True)
        ),
        labels=dataset.test_labels.cpu(),
        validation_labels=None if validation is None else validation[1].cpu(),
        class_counts=dataset.class_counts.cpu(),
        rule=rule,
        split=dataset.split_hash,
    )
