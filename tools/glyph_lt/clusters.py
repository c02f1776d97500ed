"""Families that are one design under several names.

A design that is in the training set under one name and in the test set under another would make
the test a test of memory. Families are one cluster if their names differ only in style words, or
if at least three of their glyphs are the same picture up to rounding; letters too plain to tell
designs apart do not count.
"""

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

Glyphs = dict[str, NDArray[np.uint8]]  # character -> levels 0 ... 15

ENOUGH_SHARED = 3
SAME = 0.1  # mean absolute difference in levels over the 28x28 pixels: above rounding, no more


def _root(parents: list[int], node: int) -> int:
    while parents[node] != node:
        parents[node] = parents[parents[node]]
        node = parents[node]
    return node


def _shared(families: list[Glyphs], characters: str) -> NDArray[np.int64]:
    """How many of `characters` two families draw alike: [families, families]."""
    shared = np.zeros((len(families), len(families)), dtype=np.int64)
    for character in characters:
        having = [i for i, glyphs in enumerate(families) if character in glyphs]
        pixels = np.stack([families[i][character].ravel() for i in having]).astype(np.float32)
        for row, i in enumerate(having):
            distance = np.abs(pixels[row + 1 :] - pixels[row]).mean(1)
            for other in np.flatnonzero(distance < SAME):
                j = having[row + 1 + int(other)]
                shared[i, j] += 1
    return shared


def design_clusters(stems: list[str], families: list[Glyphs], characters: str) -> list[int]:
    """The cluster of each family: the index of its first member."""
    parents = list(range(len(families)))
    by_stem: dict[str, list[int]] = defaultdict(list)
    for i, stem in enumerate(stems):
        by_stem[stem].append(i)
    pairs = [(group[0], i) for group in by_stem.values() for i in group[1:]]
    shared = _shared(families, characters)
    pairs += [(int(i), int(j)) for i, j in zip(*np.nonzero(shared >= ENOUGH_SHARED), strict=True)]
    for i, j in pairs:
        first, second = sorted((_root(parents, i), _root(parents, j)))
        parents[second] = first
    return [_root(parents, i) for i in range(len(families))]
