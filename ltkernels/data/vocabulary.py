"""Words of texts and their ids: a tokeniser, and a vocabulary counted on training texts."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

__all__ = ["PAD", "TOKENISATION", "UNKNOWN", "Vocabulary", "tokenize"]

PAD, UNKNOWN = 0, 1
"""Ids of what fills a text up, and of a word that is not in the vocabulary."""

_SPECIAL = ("<pad>", "<unk>")
# A word before n't; contractions; words of letters and digits; the marks that Kim's code keeps.
_TOKEN = re.compile(r"[^\W_]+?(?=n't\b)|n't\b|'(?:s|ve|re|ll|d|m)\b|[^\W_]+|[,!?()]")

TOKENISATION = (
    "lower case, \N{RIGHT SINGLE QUOTATION MARK} as ', then every match of the regular expression "
    f"{_TOKEN.pattern}"
)
"""What :func:`tokenize` does, for a reader without it."""


def tokenize(text: str) -> list[str]:
    """Split a text into words in lower case, as Kim's TextCNN code does.

    Words are runs of letters and digits; the contractions ``n't 's 've 're 'll 'd 'm`` are words of
    their own (``don't`` is ``do n't``, as in GloVe's vocabulary), and so are ``, ! ? ( )``.
    Everything else parts words and is dropped.

    Args:
        text: any string.

    Returns:
        The words in their order.
    """
    return _TOKEN.findall(text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))


@dataclass(frozen=True, repr=False)
class Vocabulary:
    """Words and their ids: ``words[id]``; id 0 is ``<pad>``, id 1 ``<unk>``.

    Args:
        words: V different words, the two special ones first.

    Raises:
        ValueError: the special words are not first, or a word comes twice.
    """

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.words[:2] != _SPECIAL:
            raise ValueError(
                f"`Vocabulary`: expected `words` to begin with {', '.join(_SPECIAL)}, got "
                f"{', '.join(self.words[:2])}"
            )
        if len(self._ids) != len(self.words):
            word = Counter(self.words).most_common(1)[0][0]
            raise ValueError(f"`Vocabulary`: expected `words` to be different, got {word!r} twice")

    @classmethod
    def count(
        cls, texts: Iterable[Sequence[str]], *, min_count: int = 1, max_words: int | None = None
    ) -> Vocabulary:
        """The words of some texts, the most frequent first, equally frequent ones by alphabet.

        Args:
            texts: words of each text; give training texts only.
            min_count: how often a word must occur.
            max_words: how many words are kept beside the special ones; no bound by default.

        Returns:
            The vocabulary.
        """
        counts = Counter(word for text in texts for word in text)
        frequent = [word for word, n in counts.items() if n >= min_count]
        frequent.sort(key=lambda word: (-counts[word], word))
        return cls((*_SPECIAL, *frequent[:max_words]))

    @classmethod
    def from_text(cls, text: str) -> Vocabulary:
        """The inverse of :meth:`to_text`."""
        return cls(tuple(text.removesuffix("\n").split("\n")))

    def to_text(self) -> str:
        """One word a line; a word's line, counted from 0, is its id."""
        return "\n".join(self.words) + "\n"

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.words)}

    @cached_property
    def hash(self) -> str:
        """12 hex digits of the SHA-256 of :meth:`to_text`."""
        return hashlib.sha256(self.to_text().encode()).hexdigest()[:12]

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._ids

    def __getitem__(self, word: str) -> int:
        """The id of a word; that of ``<unk>`` where it has none."""
        return self._ids.get(word, UNKNOWN)

    def encode(self, texts: Sequence[Sequence[str]], length: int) -> Tensor:
        """Ids of texts, cut to a length or padded behind.

        Args:
            texts: words of each text.
            length: L, words of a text that are kept.

        Returns:
            int32 ``[N, L]``.
        """
        ids = np.zeros((len(texts), length), np.int32)
        find = self._ids.get
        for row, text in zip(ids, texts, strict=True):
            kept = [find(word, UNKNOWN) for word in text[:length]]
            row[: len(kept)] = kept
        return torch.from_numpy(ids)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} words, {self.hash})"
