r"""Is a difference of accuracies real? A bootstrap over test images and seeds.

Two methods A and B were trained with the same seeds s = 1 .. S and classify the same M test images.
Accuracy is the mean over the C classes of a group (or over all), so that image i of class c, one of
n_c, counts with the weight w_i = 1 / (C n_c) in its group and 0 in others. With
d_si = [A of seed s is right] - [B of seed s is right] the difference is

.. math:: \Delta = \frac1S \sum_s \sum_i w_i d_{si}

A resample draws, with replacement,

- images: of each class n_c - 1 of its n_c images, the same for both methods and all seeds. m_i is
  how often image i was drawn times n_c / (n_c - 1), so that the class keeps its weight;
- seeds: S - 1 of the S pairs. u_s is the share of the draws that pair s got.

One fewer than there are, because the mean of n draws from n varies too little, by the factor
(n - 1)/n, with three seeds 2/3 (Rao and Wu, "Resampling inference with complex survey data", JASA
1988). And
three seeds say little about how far seeds differ at all: where only seeds matter, percentiles of
plain resamples reach from the least to the greatest of the three differences and hold the truth
three times in four. Student's t answers that for a mean by dividing by a chi, and so does a
resample here, in the part that the seeds make:

.. math::
    \Delta^* = \sum_i m_i w_i \frac1S \sum_s d_{si}
    + \sqrt{\frac{S - 1}{\chi^2_{S-1}}} \sum_s \Bigl(u_s - \frac1S\Bigr) \sum_i w_i d_{si}

held between -1 and 1. The interval is from the 2.5 to the 97.5 percentile of 10,000 resamples or
more, and

.. math::
    p = \min\Bigl(1, 2 \min\Bigl(\frac{1 + \#(\Delta^* \le 0)}{R + 1},
    \frac{1 + \#(\Delta^* \ge 0)}{R + 1}\Bigr)\Bigr)

With one seed the second term is missing: the interval then says how the two trained networks differ
on other test images, not how the methods do. Chance that belongs to an image in one training alone
is in both terms (as in any bootstrap of rows and columns: Owen, "The pigeonhole bootstrap", AOAS
2007), so the intervals are rather too wide than too narrow: in simulations of two to five seeds
they hold the truth 96 to 99 times in a hundred. Several methods are compared with one baseline:
:func:`holm` says which of their p stand at 5 % together; three seeds seldom give a p so small.

All draws come from one seed and depend on the classes' sizes and S alone; images are put into an
order of their own first. So an interval depends neither on the order of the images nor on which
other methods are in the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ltkernels.metrics import shot_groups

__all__ = ["ALPHA", "RESAMPLES", "SHOWN", "Difference", "differences", "holm", "image_weights"]

ALPHA = 0.05
RESAMPLES = 10_000
SHOWN = ("overall", "many", "medium", "few")
_DRAWS_AT_A_TIME = 1 << 21

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """How much better a method is than the baseline in one group, in percentage points.

    Args:
        points: the difference.
        low, high: the interval.
        p: two-sided.
        seeds: pairs of runs; with one the interval covers test images alone.
    """

    points: float
    low: float
    high: float
    p: float
    seeds: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval does not hold 0."""
        return self.low > 0 or self.high < 0


def image_weights(
    labels: Tensor, class_counts: Tensor | None, rule: str = "kang"
) -> dict[str, Floats | None]:
    """What each test image counts in the accuracy of each group.

    Args:
        labels: int64 ``[M]``.
        class_counts: ``[C]``, training images of each class; None: overall only.
        rule: which classes are many, medium and few.

    Returns:
        ``overall``, ``many``, ``medium``, ``few`` -> weights ``[M]`` of sum 1, with which the mean
        is that of the classes' accuracies; None for a group without test images.
    """
    y = labels.numpy()
    images = np.bincount(y)[y]
    members: dict[str, npt.NDArray[np.bool_]] = {"overall": np.ones(len(y), dtype=bool)}
    if class_counts is not None:
        group = shot_groups(class_counts, rule).numpy()[y]  # type: ignore[arg-type]
        members |= {name: group == index for index, name in enumerate(SHOWN[1:])}
    weights: dict[str, Floats | None] = dict.fromkeys(SHOWN)
    for name, own in members.items():
        if own.any():
            weights[name] = own / (images * len(np.unique(y[own])))
    return weights


def differences(
    pairs: Mapping[str, npt.NDArray[np.int8]],
    labels: Tensor,
    weights: Mapping[str, Floats | None],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, Difference | None]]:
    """Differences to a baseline with their intervals.

    Args:
        pairs: name -> d, int8 ``[S, M]`` in -1, 0, 1: right minus the baseline's right, a row a
            seed in the order of the seeds.
        labels: int64 ``[M]``.
        weights: as of :func:`image_weights`.
        resamples: R.
        seed: of the draws.

    Returns:
        Name -> group -> difference; None for a group without test images.

    Raises:
        ValueError: R is below 1, or a d is not ``[S, M]``.
    """
    if resamples < 1:
        raise ValueError(f"`differences`: expected `resamples` >= 1, got {resamples}")
    y = labels.numpy()
    for name, d in pairs.items():
        if d.ndim != 2 or d.shape[1] != len(y) or d.shape[0] == 0:
            raise ValueError(
                f"`differences`: expected {name} to be [S, M] = [S, {len(y)}], got {list(d.shape)}"
            )
    groups = [name for name, weight in weights.items() if weight is not None]
    w = np.stack([np.asarray(weights[name]) for name in groups])
    columns = [_columns(d, y, w) for d in pairs.values()]
    sizes = np.unique(y, return_counts=True)[1]
    rng = np.random.default_rng(seed)
    table = np.concatenate(columns, axis=1) if columns else np.zeros((len(y), 0))
    of_images = np.concatenate([m @ table for m in _image_draws(sizes, resamples, rng)])
    found: dict[str, dict[str, Difference | None]] = {}
    for n, (name, d) in enumerate(pairs.items()):
        of_seed: Floats = w @ d.T.astype(np.float64)  # [groups, S]
        stars = of_images[:, n * len(groups) : (n + 1) * len(groups)]
        stars = np.clip(stars + _seed_draws(of_seed, resamples, seed), -1, 1)
        points = of_seed.mean(1)
        found[name] = dict.fromkeys(weights)
        for k, group in enumerate(groups):
            found[name][group] = _difference(float(points[k]), stars[:, k], len(d))
    return found


def _columns(d: npt.NDArray[np.int8], y: npt.NDArray[np.int64], w: Floats) -> Floats:
    """``w_i mean_s d_si``, ``[M, groups]``; the images by class and, in it, by what d they have."""
    order = np.lexsort((*d[::-1], y))
    columns: Floats = (w * d.mean(0)).T[order]
    return columns


def _image_draws(
    sizes: npt.NDArray[np.int64], resamples: int, rng: np.random.Generator
) -> Iterator[Floats]:
    """The m of some resamples at a time, ``[some, M]``; the images stand class by class."""
    total = int(sizes.sum())
    drawn = np.maximum(sizes - 1, 1)  # a class of one image has no other to be drawn
    first = np.repeat(np.cumsum(sizes) - sizes, drawn)
    size = np.repeat(sizes, drawn)
    scale = np.repeat(sizes / drawn, sizes)
    at_a_time = max(1, _DRAWS_AT_A_TIME // total)
    for begin in range(0, resamples, at_a_time):
        count = min(at_a_time, resamples - begin)
        image = first + (rng.random((count, len(size))) * size).astype(np.int64)
        image += total * np.arange(count)[:, None]
        times = np.bincount(image.ravel(), minlength=count * total)
        yield times.reshape(count, total) * scale


def _seed_draws(of_seed: Floats, resamples: int, seed: int) -> Floats:
    """The second term ``[R, groups]``, of the seeds' differences ``[groups, S]``."""
    s = of_seed.shape[1]
    if s == 1:
        return np.zeros((resamples, len(of_seed)))
    rng = np.random.default_rng((seed, s))
    share = rng.multinomial(s - 1, np.full(s, 1 / s), size=resamples) / (s - 1)
    widen = np.sqrt((s - 1) / rng.chisquare(s - 1, size=resamples))
    moved: Floats = widen[:, None] * ((share - 1 / s) @ of_seed.T)
    return moved


def _difference(points: float, stars: Floats, seeds: int) -> Difference:
    low, high = np.quantile(stars, [ALPHA / 2, 1 - ALPHA / 2])
    below, above = int((stars <= 0).sum()), int((stars >= 0).sum())
    p = min(1.0, 2 * (1 + min(below, above)) / (1 + len(stars)))
    return Difference(100 * points, 100 * float(low), 100 * float(high), p, seeds)


def holm(p: Mapping[str, float], alpha: float = ALPHA) -> dict[str, bool]:
    """Which of several p are significant together.

    The k-th smallest of K is, as long as all before it are, if ``p <= alpha / (K - k + 1)``: the
    chance of any false one among them is at most alpha.

    Args:
        p: name -> p.
        alpha: the level.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    significant, still = {}, True
    for k, name in enumerate(sorted(p, key=p.__getitem__)):
        still = still and p[name] <= alpha / (len(p) - k)
        significant[name] = still
    return {name: significant[name] for name in p}
