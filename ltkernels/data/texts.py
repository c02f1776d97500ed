"""Texts as a data set: what a loader of texts hands over, and how token ids reach the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .inputs import Inputs
from .vocabulary import Vocabulary, tokenize

if TYPE_CHECKING:
    from .dataset import LongTailedDataset

__all__ = ["TextOptions", "TextSource", "TextTransform", "vocabulary_of"]


@dataclass(frozen=True)
class TextOptions:
    """How texts become token ids.

    Args:
        max_length: words of a text that are kept, L.
        min_count: how often a word must occur in the training texts to have an id.
        max_words: how many words have an id, the most frequent ones; no bound by default.

    Raises:
        ValueError: a number is below 1.
    """

    max_length: int = 64
    min_count: int = 1
    max_words: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_length", "min_count", "max_words"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`TextOptions`: expected `{name}` to be >= 1, got {value}")


@dataclass(frozen=True)
class TextTransform:
    """Token ids go to the network as they are; this says what they mean.

    Args:
        vocabulary: words of the ids, counted on the training texts.
    """

    vocabulary: Vocabulary

    def __call__(self, ids: Tensor, generator: torch.Generator) -> Tensor:
        """A training batch int32 ``[N, L]``; nothing of it is random."""
        return self.normalize(ids)

    def normalize(self, ids: Tensor) -> Tensor:
        """A batch of token ids int32 ``[N, L]``, checked.

        Raises:
            TypeError: these are no ids.
            ValueError: they are not ``[N, L]``.
        """
        if ids.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"`TextTransform`: expected `ids` to be int32, got {ids.dtype}")
        if ids.dim() != 2:
            raise ValueError(f"`TextTransform`: expected `ids` to be [N, L], got {list(ids.shape)}")
        return ids

    def fitted(self, inputs: Inputs) -> TextTransform:
        """The same transform: the vocabulary stays that of all training texts.

        Ids have been given when validation texts are held out. A word that only these have keeps
        its id, which nothing trains, instead of that of ``<unk>``; no label is involved. In return
        all runs on a training set share one vocabulary, whatever they hold out, and with it
        teachers, experts and students.
        """
        return self


@dataclass(frozen=True)
class TextSource:
    """A full source set of texts: a pool to draw the training set from, and a balanced test set.

    Args:
        pool_texts: P texts.
        pool_labels: int64 ``[P]``.
        test_texts: M texts.
        test_labels: int64 ``[M]``.
        class_names: C names.
        imbalance: ratio of the default draw; None where the pool itself is long-tailed and is the
            default training set.
        n_max: most texts a class may give; no bound by default.
        default_indices: the fixed default draw, where the set has one.
    """

    pool_texts: Sequence[str]
    pool_labels: Tensor
    test_texts: Sequence[str]
    test_labels: Tensor
    class_names: tuple[str, ...]
    imbalance: float | None
    n_max: int | None = None
    default_indices: Tensor | None = None

    def encoded(
        self, indices: Tensor, options: TextOptions
    ) -> tuple[Tensor, Tensor, TextTransform]:
        """Token ids int32 ``[N, L]`` of the drawn training texts, and of the test texts.

        The vocabulary is counted on the drawn texts alone, as far as they are kept.

        Raises:
            ValueError: no word occurs often enough to have an id.
        """
        length = options.max_length
        train = [tokenize(self.pool_texts[index])[:length] for index in indices.tolist()]
        test = [tokenize(text) for text in self.test_texts]
        vocabulary = Vocabulary.count(
            train, min_count=options.min_count, max_words=options.max_words
        )
        if len(vocabulary) == len(Vocabulary.count([])):
            raise ValueError(
                f"`text.min_count`: no word of the {len(train):,} training texts occurs "
                f"{options.min_count:,} times"
            )
        ids = vocabulary.encode(train, length), vocabulary.encode(test, length)
        return *ids, TextTransform(vocabulary)


def vocabulary_of(dataset: LongTailedDataset) -> Vocabulary | None:
    """The vocabulary of a data set of texts; None where it has none."""
    transform = dataset.transform
    return transform.vocabulary if isinstance(transform, TextTransform) else None
