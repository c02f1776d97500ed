"""Long-tailed class counts, and the draw of the training images that have them.

Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019 (exp profile);
Buda et al., "A systematic study of the class imbalance problem", 2018 (step profile).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["draw_long_tailed", "fitting_n_max", "long_tailed_counts"]


def long_tailed_counts(
    n_max: int, num_classes: int, imbalance: float, kind: str = "exp"
) -> list[int]:
    """Training images of each class, largest class first.

    With ``f = 1 / imbalance``: ``exp`` is ``int(n_max * f ** (i / (C - 1)))`` for class i;
    ``step`` is n_max for the first half of the classes and ``int(n_max * f)`` for the second.

    Args:
        n_max: images of the largest class.
        num_classes: number of classes C.
        imbalance: ratio of the largest to the smallest class, >= 1.
        kind: ``"exp"`` or ``"step"``.

    Returns:
        C counts, all >= 1.

    Raises:
        ValueError: an argument is out of range, or the smallest class would be empty.
    """
    if kind not in ("exp", "step"):
        raise ValueError(
            f"`long_tailed_counts`: expected `kind` to be 'exp' or 'step', got {kind!r}"
        )
    if not 1 <= imbalance < float("inf"):
        raise ValueError(f"`long_tailed_counts`: expected `imbalance` to be >= 1, got {imbalance}")
    if num_classes < 1 or n_max < 1:
        raise ValueError(
            f"`long_tailed_counts`: expected `n_max` and `num_classes` to be >= 1, got {n_max} and "
            f"{num_classes}"
        )
    fraction = 1.0 / imbalance
    if kind == "exp":
        last = max(num_classes - 1, 1)
        counts = [int(n_max * fraction ** (i / last)) for i in range(num_classes)]
    else:
        head = num_classes // 2
        counts = [n_max] * head + [int(n_max * fraction)] * (num_classes - head)
    if min(counts) < 1:
        raise ValueError(
            f"`long_tailed_counts`: expected `imbalance` to leave every class an image, got "
            f"{imbalance} with a largest class of {n_max}"
        )
    return counts


def fitting_n_max(
    available: Sequence[int], imbalance: float, kind: str = "exp", *, limit: int | None = None
) -> int:
    """Largest `n_max` whose :func:`long_tailed_counts` the available images can fill.

    Args:
        available: images of each class in the source set.
        imbalance: ratio of the largest to the smallest class, >= 1.
        kind: ``"exp"`` or ``"step"``.
        limit: upper bound of the result; none by default.

    Returns:
        n_max. For a source with equally many images in every class, that number.

    Raises:
        ValueError: no long-tailed set of this imbalance fits.
    """
    n_max = max(available) if limit is None else min(limit, max(available))
    while True:
        counts = long_tailed_counts(n_max, len(available), imbalance, kind)
        if all(count <= most for count, most in zip(counts, available, strict=True)):
            return n_max
        n_max -= 1


def draw_long_tailed(
    labels: Tensor, counts: Sequence[int], *, seed: int = 0, draw: str = "ltkernels"
) -> Tensor:
    """Choose which images of a source set make up the long-tailed training set.

    ``"ltkernels"``: class c takes the first ``counts[c]`` of a permutation that depends on
    (seed, c) alone, so a smaller set of the same seed is a subset of a larger one. ``"official"``:
    the draw of the LDAM-DRW, RIDE and BKD code (``imbalance_cifar.py``), one legacy random stream
    through all classes; with seed 0 the published images.

    Args:
        labels: int64 ``[N]``, class of each source image, in the source's order.
        counts: images to take of each class, C integers.
        seed: seed of the draw, 0 ... 2**32 - 1.
        draw: ``"ltkernels"`` or ``"official"``.

    Returns:
        int64 indices into `labels`, class after class.

    Raises:
        ValueError: a class has fewer images than asked for, or `draw` is unknown.
    """
    if draw not in ("ltkernels", "official"):
        raise ValueError(
            f"`draw_long_tailed`: expected `draw` to be 'ltkernels' or 'official', got {draw!r}"
        )
    if not 0 <= seed < 2**32:
        raise ValueError(f"`draw_long_tailed`: expected `seed` to be in [0, 2**32), got {seed}")
    targets = labels.cpu().numpy()
    official_stream = np.random.RandomState(seed)
    chosen = []
    for label, count in enumerate(counts):
        indices = np.where(targets == label)[0]
        if count > len(indices):
            raise ValueError(
                f"`draw_long_tailed`: expected `labels` to hold at least {count} images of class "
                f"{label}, got {len(indices)}"
            )
        # RandomState's streams are frozen by NumPy's compatibility policy, Generator's are not.
        stream = official_stream if draw == "official" else np.random.RandomState([seed, label])
        stream.shuffle(indices)
        chosen.append(indices[:count])
    return torch.from_numpy(np.concatenate(chosen).astype(np.int64))
