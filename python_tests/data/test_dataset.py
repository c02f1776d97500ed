"""LongTailedDataset: counts, split hash, statistics, holding out."""

import hashlib

import numpy as np
import pytest
import torch

from ltkernels.data import Augmentation, LongTailedDataset
from ltkernels.data.transforms import channel_statistics


def make_dataset(counts=(9, 5, 2, 1), channels=2):
    labels = torch.cat([torch.full((n,), label) for label, n in enumerate(counts)])
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (len(labels), channels, 3, 4), generator=generator).byte()
    mean, std = channel_statistics(images)
    return LongTailedDataset(
        name="toy-lt",
        train_inputs=images,
        train_labels=labels,
        test_inputs=images[:4],
        test_labels=labels[:4],
        class_names=tuple("abcd"),
        transform=Augmentation(mean, std, shift=1),
        train_indices=torch.arange(100, 100 + len(labels)),
    )


def test_properties():
    data = make_dataset()
    assert data.num_classes == 4
    assert data.input_shape == (2, 3, 4)
    assert data.class_counts.tolist() == [9, 5, 2, 1]
    assert data.class_counts.dtype == torch.int64
    expected = hashlib.sha256(np.arange(100, 117, dtype="<i8").tobytes()).hexdigest()[:12]
    assert data.split_hash == expected
    assert expected in repr(data)
    assert "9 ... 1" in repr(data)


def test_channel_statistics():
    images = make_dataset().train_inputs
    mean, std = channel_statistics(images)
    scaled = images.double() / 255
    assert mean == pytest.approx(scaled.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert std == pytest.approx(scaled.std((0, 2, 3), correction=0).tolist(), rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [({"per_class": 3}, [6, 2, 1, 1]), ({"fraction": 0.4}, [6, 3, 2, 1])],
)
def test_holdout_splits_the_training_set(arguments, expected):
    data = make_dataset()
    smaller, images, labels = data.holdout(**arguments, seed=2)
    assert smaller.class_counts.tolist() == expected
    taken = data.class_counts - torch.tensor(expected)
    assert labels.bincount(minlength=4).tolist() == taken.tolist()
    assert smaller.split_hash != data.split_hash
    assert torch.equal(
        torch.cat([smaller.train_inputs, images]).flatten(1).sort(0).values,
        data.train_inputs.flatten(1).sort(0).values,
    )
    kept = smaller.train_indices - 100
    assert torch.equal(data.train_inputs[kept], smaller.train_inputs)
    assert torch.equal(data.train_labels[kept], smaller.train_labels)
    statistics = channel_statistics(smaller.train_inputs)
    assert (smaller.transform.mean, smaller.transform.std) == statistics
    assert smaller.transform.shift == 1


def test_holdout_depends_on_the_seed():
    data = make_dataset(counts=(50, 50, 50, 50))
    first, again, other = (data.holdout(per_class=5, seed=seed)[0] for seed in (0, 0, 1))
    assert first.split_hash == again.split_hash
    assert first.split_hash != other.split_hash


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one"),
        ({"per_class": 1, "fraction": 0.5}, "exactly one"),
        ({"per_class": 0}, "`per_class`"),
        ({"fraction": 1.0}, "`fraction`"),
        ({"fraction": 0.01}, "at least one image"),
    ],
)
def test_holdout_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_dataset().holdout(**arguments)
