"""Epoch orders: functions of (seed, epoch), balanced where they promise it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from golden_vectors import load_case
from ltkernels.data import (
    balanced_epoch_indices,
    class_aware_epoch_indices,
    derived_generator,
    epoch_indices,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "ride"


def image_counts_within_classes(labels, indices):
    """For each class, how often each of its images comes."""
    times = torch.bincount(indices, minlength=len(labels))
    return [times[labels == label] for label in labels.unique()]


def test_epoch_indices_are_permutations_that_depend_on_seed_and_epoch_alone():
    first = epoch_indices(100, seed=1, epoch=2)
    assert torch.equal(first.sort().values, torch.arange(100))
    torch.manual_seed(123)
    torch.rand(7)
    assert torch.equal(first, epoch_indices(100, seed=1, epoch=2))
    others = [epoch_indices(100, 1, 3), epoch_indices(100, 2, 2), epoch_indices(100, 2, 1)]
    assert all(not torch.equal(first, other) for other in others)


def test_epoch_indices_ends():
    assert epoch_indices(0, 0, 0).tolist() == []
    with pytest.raises(ValueError, match="`n` to be >= 0, got -1"):
        epoch_indices(-1, 0, 0)


def test_derived_generator_tells_keys_apart():
    keys = [(0,), (0, 0), (1, 23), (12, 3), (123,), ("0",), (0, "a"), ("a", 0), (-1,)]
    drawn = {int(torch.randint(2**62, (), generator=derived_generator(*key))) for key in keys}
    assert len(drawn) == len(keys)
    with pytest.raises(TypeError, match="int and str"):
        derived_generator(0.5)


@pytest.mark.parametrize("num_samples", [None, 0, 1, 8, 300])
def test_balanced_epoch_has_every_class_equally_often(num_samples):
    labels = torch.tensor([0] * 40 + [2] * 22 + [1] * 12 + [5] * 7 + [3] * 4 + [7] * 2)
    labels = labels[epoch_indices(len(labels), 0, 0)]
    indices = balanced_epoch_indices(labels, seed=0, epoch=0, num_samples=num_samples)
    assert len(indices) == (len(labels) if num_samples is None else num_samples)
    of_class = torch.stack([(labels[indices] == label).sum() for label in labels.unique()])
    assert of_class.max() - of_class.min() <= 1
    for times in image_counts_within_classes(labels, indices):
        assert times.max() - times.min() <= 1, "no image again before the others of its class"


def test_balanced_epoch_is_shuffled_and_stateless():
    labels = torch.arange(50) % 5
    first = balanced_epoch_indices(labels, 3, 4)
    assert torch.equal(first, balanced_epoch_indices(labels, 3, 4))
    assert not torch.equal(first, balanced_epoch_indices(labels, 3, 5))
    assert not torch.equal(first, balanced_epoch_indices(labels, 4, 4))
    assert not torch.equal(labels[first], labels[first].sort().values)


def test_balanced_epoch_shares_the_remainder_at_random():
    labels = torch.arange(10)
    times = torch.zeros(10)
    for epoch in range(300):
        times[balanced_epoch_indices(labels, 0, epoch, num_samples=3)] += 1
    assert times.min() > 50
    assert times.max() < 130


def test_balanced_epoch_keeps_the_official_samplers_promise_within_a_class():
    """The official sampler draws classes at random; both go through a class before repeating."""
    case = next(
        case
        for case in json.loads((GOLDEN / "manifest.json").read_text())["cases"]
        if case["id"] == "balanced_sampler_retain1"
    )
    with np.load(GOLDEN / case["file"]) as arrays:
        labels = torch.from_numpy(arrays["labels"])
        official = torch.from_numpy(arrays["sequence"])
    ours = balanced_epoch_indices(labels, 0, 0)
    assert len(ours) == len(official)
    for indices in (official, ours):
        for times in image_counts_within_classes(labels, indices):
            assert times.max() - times.min() <= 1


@pytest.mark.parametrize("labels", [torch.empty(0, dtype=torch.int64), torch.zeros(2, 2)])
def test_balanced_epoch_refuses_other_labels(labels):
    with pytest.raises(ValueError, match=r"`labels` to be \[N\]"):
        balanced_epoch_indices(labels, 0, 0)


def test_balanced_epoch_refuses_a_negative_length():
    with pytest.raises(ValueError, match="`num_samples`"):
        balanced_epoch_indices(torch.arange(3), 0, 0, num_samples=-1)


# -- class-aware epochs of OLTR and LFME


def groups_of(labels, sequence, per_class):
    """The class of each group of successive images; every group is of one class."""
    groups = labels[sequence].view(-1, per_class)
    assert (groups == groups[:, :1]).all()
    return groups[:, 0]


def cycles_are_permutations(sequence, n):
    """Whether a sequence of 0 ... n-1 repeats none before all have come, cycle by cycle."""
    whole = sequence[: len(sequence) // n * n].view(-1, n)
    return bool((whole.sort(1).values == torch.arange(n)).all())


def ours(labels):
    sequence = class_aware_epoch_indices(labels, seed=3, epoch=5, num_samples=280)
    return labels, sequence


def official(case_id):
    case = load_case("lfme", case_id)
    return case["labels"], case["sequence"]


@pytest.mark.parametrize("which", ["ours", "sampler_curric_k4", "sampler_class_aware_k4"])
def test_class_aware_epoch_is_the_official_kind(which):
    labels, sequence = official(which if which != "ours" else "sampler_curric_k4")
    if which == "ours":
        labels, sequence = ours(labels)
    assert len(sequence) == 280
    classes = groups_of(labels, sequence, 4)
    assert cycles_are_permutations(classes, len(labels.unique()))
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        drawn = sequence[labels[sequence] == label]
        assert cycles_are_permutations(torch.searchsorted(members, drawn), len(members))


@pytest.mark.parametrize(("per_class", "num_samples"), [(4, None), (1, 31), (3, 10), (50, 120)])
def test_class_aware_epoch_of_any_length(per_class, num_samples):
    labels = torch.tensor([0] * 40 + [7] * 2 + [3] * 11)[epoch_indices(53, 0, 0)]
    options = {"per_class": per_class, "num_samples": num_samples}
    indices = class_aware_epoch_indices(labels, 1, 2, **options)
    assert len(indices) == (53 if num_samples is None else num_samples)
    times = labels[indices].bincount()[[0, 3, 7]]
    assert times.max() - times.min() <= per_class
    assert torch.equal(indices, class_aware_epoch_indices(labels, 1, 2, **options))
    assert not torch.equal(indices, class_aware_epoch_indices(labels, 1, 3, **options))


def test_class_aware_epoch_refuses_what_it_cannot_do():
    labels = torch.arange(4)
    with pytest.raises(ValueError, match="`labels` to be"):
        class_aware_epoch_indices(labels[:0], 0, 0)
    with pytest.raises(ValueError, match="`per_class` to be >= 1, got 0"):
        class_aware_epoch_indices(labels, 0, 0, per_class=0)
    with pytest.raises(ValueError, match="`num_samples` to be >= 0, got -1"):
        class_aware_epoch_indices(labels, 0, 0, num_samples=-1)
