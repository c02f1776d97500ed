"""Word vectors in GloVe's text format.

Pennington et al., "GloVe: Global Vectors for Word Representation", EMNLP 2014.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .vocabulary import Vocabulary

__all__ = ["read_word_vectors"]


def read_word_vectors(path: Path, vocabulary: Vocabulary, width: int) -> tuple[Tensor, Tensor]:
    """The vectors of a vocabulary's words.

    The file has a word a line and its numbers, parted by spaces; it is read line by line, and only
    the vocabulary's words are kept.

    Args:
        path: for example ``glove.6B.300d.txt``.
        vocabulary: whose words are wanted.
        width: D, numbers that a vector must have.

    Returns:
        ``(ids, vectors)``: int64 ``[F]``, rising, and float32 ``[F, D]`` of the F words found.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: its vectors have another width, a line holds something else than finite
            numbers, or no word of the vocabulary is there.
    """
    found: dict[int, np.ndarray] = {}
    with path.open(encoding="utf-8", errors="replace") as lines:
        for place, line in enumerate(lines, 1):
            word, _, rest = line.rstrip().partition(" ")
            values = rest.split(" ")
            if place == 1 and len(values) == 1 and values[0].isdecimal() and width != 1:
                continue  # "words width", which word2vec's format begins with
            if len(values) != width:
                # A word may have spaces in it; no word of a vocabulary has.
                if place > 1 and len(values) > width:
                    continue
                raise ValueError(
                    f"{path}, line {place}: expected {width} numbers (`embedding_width`), got "
                    f"{len(values)}"
                )
            if word not in vocabulary:
                continue
            try:
                with np.errstate(over="ignore"):  # too large for float32: infinite, said below
                    vector = np.array(values, dtype=np.float64).astype(np.float32)
            except ValueError as error:
                raise ValueError(f"{path}, line {place}: {error}") from error
            finite = np.isfinite(vector)
            if not finite.all():
                raise ValueError(
                    f"{path}, line {place}: expected finite numbers, got "
                    f"{values[int(finite.argmin())]} for {word!r}"
                )
            found[vocabulary[word]] = vector
    if not found:
        raise ValueError(f"{path} has none of the vocabulary's {len(vocabulary) - 2} words")
    ids = sorted(found)
    vectors = np.stack([found[index] for index in ids])
    return torch.tensor(ids, dtype=torch.int64), torch.from_numpy(vectors)
