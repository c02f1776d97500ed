"""The data set every trainer sees: long-tailed to train, balanced to test."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .inputs import Inputs
from .transforms import Transform

__all__ = ["LongTailedDataset"]


@dataclass(frozen=True, eq=False, repr=False)
class LongTailedDataset:
    """A long-tailed training set with a balanced test set.

    Args:
        name: name of the set, for example ``"glyph-lt"``.
        train_inputs: of images uint8 ``[N, channels, H, W]``, of texts int32 ids ``[N, L]``.
        train_labels: int64 ``[N]``.
        test_inputs: likewise, M of them.
        test_labels: int64 ``[M]``.
        class_names: C names; class i is ``class_names[i]``.
        transform: what a batch of them goes through before the network.
        train_indices: int64 ``[N]``, index of each training input in the full source set.
        validation: the set's official validation inputs and their labels int64 ``[V]``; None for
            sets that have none.
    """

    name: str
    train_inputs: Inputs
    train_labels: Tensor
    test_inputs: Inputs
    test_labels: Tensor
    class_names: tuple[str, ...]
    transform: Transform
    train_indices: Tensor
    validation: tuple[Inputs, Tensor] | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input: ``(channels, H, W)`` of an image, ``(L,)`` of a text."""
        return tuple(self.train_inputs.shape[1:])

    @property
    def class_counts(self) -> Tensor:
        """int64 ``[C]``: training images of each class."""
        return torch.bincount(self.train_labels, minlength=self.num_classes)

    @property
    def split_hash(self) -> str:
        """Which images are trained on: 12 hex digits of the SHA-256 of the sorted indices.

        The indices are hashed as little-endian int64, so the value does not depend on the machine.
        Inputs that are files of a published list have its paths: these are hashed, sorted, each
        with a line feed, so the value does not depend on the order of the list.
        """
        names = None if isinstance(self.train_inputs, Tensor) else self.train_inputs.names
        if names is not None:
            text = "".join(f"{name}\n" for name in sorted(names))
            return hashlib.sha256(text.encode()).hexdigest()[:12]
        ordered = np.sort(self.train_indices.cpu().numpy()).astype("<i8")
        return hashlib.sha256(ordered.tobytes()).hexdigest()[:12]

    def holdout(
        self,
        *,
        per_class: int | None = None,
        fraction: float | None = None,
        at_least: int = 0,
        seed: int = 0,
    ) -> tuple[LongTailedDataset, Inputs, Tensor]:
        """Take validation inputs out of the training set, before anything is counted.

        Every class gives ``per_class`` images or ``int(fraction * n_c)`` of its n_c (and not fewer
        than `at_least`), chosen at random by `seed`, but never its last one. Class counts,
        transform and split hash of the returned set are those of the images that are left.

        Args:
            per_class: images to take of each class, >= 1.
            fraction: share to take of each class, in (0, 1). Exactly one of the two is given.
            at_least: images to take of each class with `fraction`, where that gives fewer.
            seed: seed of the choice.

        Returns:
            ``(dataset, inputs, labels)``: the smaller data set, the V validation inputs and their
            labels int64 ``[V]``.

        Raises:
            ValueError: not exactly one of `per_class` and `fraction` is given, one is out of range,
                or it takes no image at all.
        """
        if (per_class is None) == (fraction is None):
            raise ValueError(
                "`holdout`: expected exactly one of `per_class` and `fraction`, got "
                f"{per_class} and {fraction}"
            )
        if per_class is not None and per_class < 1:
            raise ValueError(f"`holdout`: expected `per_class` to be >= 1, got {per_class}")
        if fraction is not None and not 0 < fraction < 1:
            raise ValueError(f"`holdout`: expected `fraction` to be in (0, 1), got {fraction}")
        if at_least < 0 or (at_least and fraction is None):
            raise ValueError(
                f"`holdout`: expected `at_least` to be >= 0, and given with `fraction`, "
                f"got {at_least}"
            )
        held = torch.zeros(len(self.train_labels), dtype=torch.bool)
        labels = self.train_labels.cpu().numpy()
        for label in range(self.num_classes):
            members = np.where(labels == label)[0]
            share = max(int((fraction or 0) * len(members)), at_least)
            wanted = share if per_class is None else per_class
            np.random.RandomState([seed, label]).shuffle(members)
            held[torch.from_numpy(members[: min(wanted, max(len(members) - 1, 0))])] = True
        if not held.any():
            raise ValueError(
                f"`holdout`: expected to take at least one image, got none with "
                f"per_class={per_class}, fraction={fraction}"
            )
        left = self.train_inputs[~held]
        smaller = dataclasses.replace(
            self,
            train_inputs=left,
            train_labels=self.train_labels[~held],
            train_indices=self.train_indices[~held],
            transform=self.transform.fitted(left),
        )
        return smaller, self.train_inputs[held], self.train_labels[held]

    def __repr__(self) -> str:
        counts = self.class_counts
        return (
            f"LongTailedDataset({self.name}: {self.num_classes} classes, {len(self.train_labels)} "
            f"training inputs {int(counts.max())} ... {int(counts.min())}, {len(self.test_labels)} "
            f"test inputs, split {self.split_hash})"
        )
