"""The inputs of a data set: a tensor in memory, or inputs that are loaded when they are wanted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
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

    @property
    def names(self) -> Sequence[str] | None:
        """What each input is called in its source set; None: they have their positions only."""
        return None

    @abstractmethod
    def load(
        self,
        batches: Sequence[Tensor],
        key: Key | None,
        places: Sequence[Tensor],
        *,
        pin_memory: bool,
    ) -> Generator[Tensor, None, None]:
        """The inputs of each batch of positions; see :func:`load_batches`."""


Inputs: TypeAlias = Tensor | StoredInputs
"""A tensor ``[N, ...]`` or :class:`StoredInputs`; both have ``shape``, a length, and a choice by
``inputs[positions]``."""


def load_batches(
    inputs: Inputs,
    batches: Sequence[Tensor],
    key: Key | None = None,
    places: Sequence[Tensor] | None = None,
    *,
    pin_memory: bool = False,
) -> Generator[Tensor, None, None]:
    """Load batch after batch.

    What is loaded ahead, and by which processes, ends with the generator: close it
    (``contextlib.closing``) where it may be left before its end.

    Args:
        inputs: of which the batches are.
        batches: int64 positions ``[n]`` of each batch.
        key: where an input is loaded at random (a crop of an image file), what it depends on
            besides its place: the seed, the stage, the epoch. None for evaluation, without
            randomness.
        places: int64 ``[n]`` for each batch, the place of each input in the epoch, so that an input
            that comes twice is loaded in two ways; by default they are counted from 0 on.
        pin_memory: whether what is loaded lies in page-locked memory, for a GPU to fetch.

    Yields:
        A tensor ``[n, ...]`` a batch, on the device of a tensor's inputs, else on the CPU.
    """
    if isinstance(inputs, Tensor):
        return (inputs[batch] for batch in batches)
    if places is None:
        sizes = [len(batch) for batch in batches]
        places = torch.split(torch.arange(sum(sizes)), sizes)
    return inputs.load(batches, key, places, pin_memory=pin_memory)
