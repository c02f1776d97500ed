"""The inputs of a data set: a tensor in memory, or inputs that are loaded when they are wanted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["Inputs", "StoredInputs", "load_batches"]

Key: TypeAlias = tuple[int | str, ...]


class StoredInputs(ABC):
    """N inputs that are not in memory, of which batches are loaded ahead of their use."""

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """``[N, ...]``: the shape that all of them would have, loaded."""

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def __getitem__(self, chosen: Tensor) -> StoredInputs:
        """Some of the inputs, by int64 positions or a bool mask ``[N]``; nothing is loaded."""

    @abstractmethod
    def load(self, batches: Sequence[Tensor], key: Key | None) -> Iterator[Tensor]:
        """The inputs of each batch of positions; see :func:`load_batches`."""


Inputs: TypeAlias = Tensor | StoredInputs
"""A tensor ``[N, ...]`` or :class:`StoredInputs`; both have ``shape``, a length, and a choice by
``inputs[positions]``."""


def load_batches(
    inputs: Inputs, batches: Sequence[Tensor], key: Key | None = None
) -> Iterator[Tensor]:
    """Load batch after batch.

    Args:
        inputs: of which the batches are.
        batches: int64 positions ``[n]`` of each batch.
        key: where an input is loaded at random (a crop of an image file), what it depends on
            besides its position: the seed, the stage, the epoch. None for evaluation, without
            randomness.

    Yields:
        A tensor ``[n, ...]`` a batch, on the device of a tensor's inputs, else on the CPU.
    """
    if isinstance(inputs, Tensor):
        return (inputs[batch] for batch in batches)
    return inputs.load(batches, key)
