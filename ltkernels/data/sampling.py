"""Order of the training images, derived from (seed, epoch) and from nothing else.

No sampler here has a state: an epoch's indices are a function of the seed and the epoch number, so
a resumed run sees the images of an uninterrupted one, whatever was drawn before.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

__all__ = [
    "balanced_epoch_indices",
    "class_aware_epoch_indices",
    "derived_generator",
    "derived_seed",
    "epoch_indices",
]


def derived_seed(*key: int | str) -> int:
    """63 bits of a hash of the whole key: for generators of other libraries.

    Args:
        key: integers and strings, in order.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def derived_generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Make a generator whose seed is a hash of the whole key, such as ``(seed, "mixup", epoch)``.

    Keys that differ anywhere give unrelated streams; equal keys give equal streams.

    Args:
        key: integers and strings, in order.
        device: device of the generator.

    Returns:
        A fresh ``torch.Generator``.

    Raises:
        TypeError: a part of `key` is neither an integer nor a string.
    """
    for part in key:
        if isinstance(part, bool) or not isinstance(part, (int, str)):
            raise TypeError(
                f"`derived_generator`: expected `key` to hold int and str, got {type(part)}"
            )
    return torch.Generator(device=device).manual_seed(derived_seed(*key))


def epoch_indices(n: int, seed: int, epoch: int) -> Tensor:
    """Shuffle ``0 ... n-1`` for one epoch; every index comes once.

    Args:
        n: number of training images, >= 0.
        seed: seed of the run.
        epoch: 0-based epoch.

    Returns:
        int64 ``[n]``, a permutation.

    Raises:
        ValueError: `n` is negative.
    """
    if n < 0:
        raise ValueError(f"`epoch_indices`: expected `n` to be >= 0, got {n}")
    return torch.randperm(n, generator=derived_generator(seed, "shuffle", epoch))


def balanced_epoch_indices(
    labels: Tensor, seed: int, epoch: int, *, num_samples: int | None = None
) -> Tensor:
    """Class-balanced indices for one epoch: every class equally often, small classes repeated.

    Each of the C classes present comes ``num_samples // C`` times (the remainder goes to classes
    drawn at random); within a class no image comes again before every other one has come, as in the
    samplers of class-balanced fine-tuning (cRT, RIDE's second stage).

    Args:
        labels: int64 ``[N]``, non-negative class of each training image.
        seed: seed of the run.
        epoch: 0-based epoch.
        num_samples: length of the epoch; N by default.

    Returns:
        int64 ``[num_samples]``, indices into `labels`, shuffled.

    Raises:
        ValueError: `labels` is not a non-empty vector, or `num_samples` is negative.
    """
    if labels.dim() != 1 or len(labels) == 0:
        raise ValueError(
            f"`balanced_epoch_indices`: expected `labels` to be [N] with N > 0, got "
            f"{list(labels.shape)}"
        )
    total = len(labels) if num_samples is None else num_samples
    if total < 0:
        raise ValueError(
            f"`balanced_epoch_indices`: expected `num_samples` to be >= 0, got {num_samples}"
        )
    generator = derived_generator(seed, "balanced", epoch)
    _, classes, counts = torch.unique(labels.cpu(), return_inverse=True, return_counts=True)
    num_classes = len(counts)
    quota = torch.full((num_classes,), total // num_classes)
    quota[torch.randperm(num_classes, generator=generator)[: total % num_classes]] += 1

    # Lay out as many rounds of each class as its quota needs, order each class's images by
    # (round, random key), and keep the first `quota` of every class.
    rounds_of_class = -(-quota // counts)
    rounds_of_image = rounds_of_class[classes]
    image = torch.repeat_interleave(torch.arange(len(classes)), rounds_of_image)
    first = torch.cumsum(rounds_of_image, 0) - rounds_of_image
    round_ = torch.arange(len(image)) - first[image]
    order = torch.randperm(len(image), generator=generator)
    order = order[torch.argsort(round_[order], stable=True)]
    order = order[torch.argsort(classes[image[order]], stable=True)]
    class_size = counts * rounds_of_class
    start = torch.cumsum(class_size, 0) - class_size
    rank = torch.arange(len(order)) - torch.repeat_interleave(start, class_size)
    kept = image[order[rank < torch.repeat_interleave(quota, class_size)]]
    return kept[torch.randperm(len(kept), generator=generator)]


def class_aware_epoch_indices(
    labels: Tensor, seed: int, epoch: int, *, per_class: int = 4, num_samples: int | None = None
) -> Tensor:
    """Class-balanced indices for one epoch, ``per_class`` successive images of a class at a time.

    The classes come in random order, and again in another once all have come; so do the images of a
    class. A batch of N images thus holds about N / per_class classes: the sampler of OLTR and LFME.
    (Theirs goes on where the last epoch stopped; here an epoch is a function of its number.)

    Args:
        labels: int64 ``[N]``, class of each training image.
        seed: seed of the run.
        epoch: 0-based epoch.
        per_class: successive images of a class, >= 1; classes with fewer are repeated.
        num_samples: length of the epoch; N by default.

    Returns:
        int64 ``[num_samples]``, indices into `labels`.

    Raises:
        ValueError: `labels` is not a non-empty vector, `per_class` < 1 or `num_samples` < 0.
    """
    function = "class_aware_epoch_indices"
    if labels.dim() != 1 or len(labels) == 0:
        raise ValueError(
            f"`{function}`: expected `labels` to be [N] with N > 0, got {list(labels.shape)}"
        )
    if per_class < 1:
        raise ValueError(f"`{function}`: expected `per_class` to be >= 1, got {per_class}")
    total = len(labels) if num_samples is None else num_samples
    if total < 0:
        raise ValueError(f"`{function}`: expected `num_samples` to be >= 0, got {num_samples}")
    generator = derived_generator(seed, "class-aware", epoch)
    _, classes, counts = torch.unique(labels.cpu(), return_inverse=True, return_counts=True)
    groups = -(-total // per_class)
    turns = _cycles(len(counts), groups, generator)
    images = torch.empty(groups, per_class, dtype=torch.int64)
    by_class = torch.split(torch.argsort(classes, stable=True), counts.tolist())
    for label, members in enumerate(by_class):
        own = (turns == label).nonzero().flatten()
        drawn = _cycles(len(members), len(own) * per_class, generator)
        images[own] = members[drawn].view(-1, per_class)
    return images.flatten()[:total]


def _cycles(n: int, length: int, generator: torch.Generator) -> Tensor:
    """Permutations of ``0 ... n-1``, one after the other, cut to a length."""
    rounds = torch.rand(-(-length // n), n, generator=generator).argsort(1)
    return rounds.flatten()[:length]
