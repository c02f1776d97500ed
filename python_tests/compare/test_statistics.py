"""Differences, their intervals and Holm's rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ltkernels.compare.statistics import (
    SHOWN,
    _difference,
    differences,
    holm,
    image_weights,
)
from ltkernels.evaluate.grouped import grouped

# Classes of 150, 50 and 5 training images a class: two of each group, unequal test images.
COUNTS = torch.tensor([150, 120, 50, 40, 5, 3])
SIZES = (12, 7, 9, 1, 6, 5)
LABELS = torch.repeat_interleave(torch.arange(6), torch.tensor(SIZES))
WEIGHTS = image_weights(LABELS, COUNTS)


def pairs_of(seeds, rng, better=0.2, labels=LABELS):
    a, b = (rng.random((seeds, len(labels))) < p for p in (0.6 + better, 0.6))
    return a.astype(np.int8) - b.astype(np.int8)


def test_weights_give_the_accuracies_of_a_card():
    logits = torch.randn(len(LABELS), 6, generator=torch.Generator().manual_seed(0))
    right = (logits.argmax(1) == LABELS).numpy()
    accuracy = grouped(logits, LABELS, COUNTS, "kang").accuracy
    for group in SHOWN:
        assert WEIGHTS[group].sum() == pytest.approx(1)
        assert 100 * float(WEIGHTS[group] @ right) == pytest.approx(accuracy[group])


def test_a_group_without_test_images_has_no_difference():
    labels = LABELS[LABELS > 1]
    weights = image_weights(labels, COUNTS)
    assert weights["many"] is None
    found = differences(
        {"x": pairs_of(2, np.random.default_rng(0), labels=labels)}, labels, weights
    )
    assert found["x"]["many"] is None
    assert found["x"]["few"] is not None
    assert set(image_weights(labels, None)) == set(SHOWN)
    assert image_weights(labels, None)["few"] is None


def test_the_difference_is_that_of_the_mean_accuracies():
    rng = np.random.default_rng(0)
    a, b = (rng.random((3, len(LABELS))) < p for p in (0.8, 0.6))
    found = differences({"x": a.astype(np.int8) - b.astype(np.int8)}, LABELS, WEIGHTS)["x"]
    for group in SHOWN:
        accuracy = [100 * np.mean([WEIGHTS[group] @ row for row in runs]) for runs in (a, b)]
        assert found[group].points == pytest.approx(accuracy[0] - accuracy[1])
        assert found[group].seeds == 3


def resampled_by_loops(d, labels, weight, resamples, rng):
    """The definition, image by image."""
    seeds, stars, trained = len(d), [], d @ weight
    members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    for _ in range(resamples):
        of_seed = np.zeros(seeds)
        for own in members:
            n = len(own)
            for i in own if n == 1 else rng.choice(own, n - 1):
                of_seed += weight[i] * d[:, i] * (n / (n - 1) if n > 1 else 1)
        share = np.bincount(rng.integers(0, seeds, seeds - 1), minlength=seeds) / (seeds - 1)
        widen = np.sqrt((seeds - 1) / rng.chisquare(seeds - 1))
        stars.append(of_seed.mean() + widen * ((share - 1 / seeds) @ trained))
    return np.array(stars)


def test_intervals_are_those_of_the_definition():
    d = pairs_of(4, np.random.default_rng(5))
    found = differences({"x": d}, LABELS, WEIGHTS, resamples=20_000)["x"]
    for group in ("overall", "few"):
        stars = resampled_by_loops(
            d, LABELS.numpy(), WEIGHTS[group], 3000, np.random.default_rng(6)
        )
        expected = _difference(float(stars.mean()), stars, 4)
        width = expected.high - expected.low
        assert found[group].low == pytest.approx(expected.low, abs=0.06 * width)
        assert found[group].high == pytest.approx(expected.high, abs=0.06 * width)


def test_the_same_run_differs_by_nothing():
    d = np.zeros((3, len(LABELS)), dtype=np.int8)
    for difference in differences({"x": d}, LABELS, WEIGHTS)["x"].values():
        assert (difference.points, difference.low, difference.high) == (0, 0, 0)
        assert difference.p == 1
        assert not difference.excludes_zero


def test_the_interval_depends_on_neither_the_images_order_nor_the_other_methods():
    rng = np.random.default_rng(1)
    d, other = pairs_of(3, rng), pairs_of(3, rng)
    alone = differences({"x": d}, LABELS, WEIGHTS)["x"]
    order = rng.permutation(len(LABELS))
    weights = image_weights(LABELS[order], COUNTS)
    moved = differences({"y": other[:, order], "x": d[:, order]}, LABELS[order], weights)["x"]
    for group in SHOWN:
        assert moved[group].low == pytest.approx(alone[group].low, abs=1e-9)
        assert moved[group].high == pytest.approx(alone[group].high, abs=1e-9)
        assert moved[group].p == alone[group].p


def test_the_draws_do_not_depend_on_how_many_are_made_at_a_time(monkeypatch):
    d = pairs_of(3, np.random.default_rng(2))
    whole = differences({"x": d}, LABELS, WEIGHTS)["x"]["overall"]
    monkeypatch.setattr("ltkernels.compare.statistics._DRAWS_AT_A_TIME", 1000)
    parts = differences({"x": d}, LABELS, WEIGHTS)["x"]["overall"]
    assert parts.low == pytest.approx(whole.low, abs=1e-9)
    assert differences({"x": d}, LABELS, WEIGHTS, seed=1)["x"]["overall"].low != whole.low


def covered(seeds, of_seed, images, trials, difference=0.1, resamples=1000):
    """How often the interval holds the true difference of two methods.

    Each training is right with a probability that varies by ``of_seed`` with the seed; the chance
    that one is right on an image is between 0 and 1 with ``images``, else 0.7 for all.
    """
    labels = torch.arange(20).repeat_interleave(20)
    weights = {"overall": image_weights(labels, None)["overall"]}
    rng, held = np.random.default_rng(0), 0
    for _ in range(trials):
        easy = rng.normal(0, images, 400)
        shift = rng.normal(0, of_seed, (2, seeds, 1))
        # A common threshold on uniform noise; a linear chance keeps the mean difference exact.
        chance = [0.5 + side * difference + shift[side] + easy for side in (0, 1)]
        right = [rng.random((seeds, 400)) < p for p in chance]
        d = right[1].astype(np.int8) - right[0].astype(np.int8)
        found = differences({"x": d}, labels, weights, resamples=resamples, seed=1)["x"]["overall"]
        held += found.low <= 100 * difference <= found.high
    return held / trials


@pytest.mark.parametrize(
    ("seeds", "of_seed", "images"),
    [
        (3, 0.0, 0.1),  # seeds hardly differ: images and single predictions decide
        (3, 0.08, 0.0),  # seeds decide: three of them, where plain percentiles cover 75 %
        (5, 0.05, 0.1),
    ],
)
def test_intervals_hold_the_truth_as_often_as_they_say(seeds, of_seed, images):
    assert covered(seeds, of_seed, images, trials=120) >= 0.9


def test_with_one_seed_the_interval_is_that_of_the_images():
    labels = torch.zeros(400, dtype=torch.long)
    d = np.zeros((1, 400), dtype=np.int8)
    d[0, :40] = 1
    weights = {"overall": image_weights(labels, None)["overall"]}
    found = differences({"x": d}, labels, weights)["x"]["overall"]
    assert found.seeds == 1
    assert found.points == pytest.approx(10)
    half = 100 * 1.96 * np.sqrt(0.1 * 0.9 / 400)
    assert found.low == pytest.approx(10 - half, abs=0.4)
    assert found.high == pytest.approx(10 + half, abs=0.4)
    assert found.p < 0.001


def test_two_seeds_that_disagree_say_nothing_and_no_more_than_that():
    d = np.ones((2, len(LABELS)), dtype=np.int8)
    d[1, ::2] = -1
    found = differences({"x": d}, LABELS, WEIGHTS)["x"]["overall"]
    assert found.low < -20
    assert found.high == 100
    assert not found.excludes_zero


def test_holm_by_hand():
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == {"a": False, "b": True, "c": False}
    assert holm({"a": 0.04, "b": 0.01, "c": 0.02}) == {"a": True, "b": True, "c": True}
    # 0.026 > 0.05 / 2 stops it, also for those behind.
    assert holm({"a": 0.026, "b": 0.01, "c": 0.03}) == {"a": False, "b": True, "c": False}
    assert holm({}) == {}


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"expected x to be \[S, M\] = \[S, 40\], got \[1, 3\]"):
        differences({"x": np.zeros((1, 3), dtype=np.int8)}, LABELS, WEIGHTS)
    with pytest.raises(ValueError, match="expected `resamples` >= 1, got 0"):
        differences({}, LABELS, WEIGHTS, resamples=0)
