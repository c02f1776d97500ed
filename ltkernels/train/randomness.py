"""Seeding of code that draws from torch's global generators.

Every random decision of a run depends on (seed, purpose, position in the run), never on what was
drawn before, so that an interrupted run continues with the very numbers it would have drawn.
Code that takes a generator gets one from ``ltkernels.data.sampling.derived_generator``; for code
that takes none (the initialisation of layers, dropout) the global generators are seeded here.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from ltkernels.data.sampling import derived_generator

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["seed_global", "seeded"]


def seed_global(*key: int | str) -> None:
    """Seed torch's global generators from a hash of a key like ``(seed, "step", epoch, step)``."""
    torch.manual_seed(derived_generator(*key).initial_seed())


@contextmanager
def seeded(*key: int | str) -> Iterator[None]:
    """:func:`seed_global` for a block; the generators' states are put back after it."""
    with torch.random.fork_rng():
        seed_global(*key)
        yield
