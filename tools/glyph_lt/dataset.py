"""From glyphs by family to a long-tailed training pool and a balanced test set."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from classes import CHARACTERS, CYRILLIC, GREEK, LATIN_CAPITALS, LATIN_EXTENDED, LATIN_SMALL
from clusters import Glyphs

CLASSES = 120
TEST_PER_CLASS = 30
LARGEST, IMBALANCE = 200, 100  # images of the first class, and how many times the last's
SCRIPTS = (LATIN_CAPITALS, LATIN_SMALL, LATIN_EXTENDED, GREEK, CYRILLIC)
GREY = 17  # 15 levels * 17 = 255


@dataclass(frozen=True)
class Cluster:
    """One design: its name, and for each character the family it is taken from."""

    name: str
    source: dict[str, str]
    glyphs: Glyphs
    test: bool


def _shuffled(key: str) -> str:
    """A sort key that is random but the same on every machine."""
    return hashlib.sha256(key.encode()).hexdigest()


def make_clusters(families: dict[str, Glyphs], cluster_of: dict[str, str]) -> list[Cluster]:
    """One glyph a cluster and character; 30 % of the clusters are for the test only.

    Clusters are dealt out script by script, so that each script has its share in the test: a third
    of those with Greek or Cyrillic, of which there are few, and three in eleven of the others.
    """
    members: dict[str, list[str]] = {}
    for family in sorted(families, key=lambda f: (-len(families[f]), f)):
        if families[family]:
            members.setdefault(cluster_of[family], []).append(family)
    source = {
        name: {c: family for family in reversed(group) for c in families[family]}
        for name, group in members.items()
    }

    def scripts(name: str) -> tuple[bool, ...]:
        return tuple(2 * sum(c in source[name] for c in script) > len(script) for script in SCRIPTS)

    def for_test(name: str, position: int) -> bool:
        rare = any(scripts(name)[-2:])
        return position % 3 == 1 if rare else position % 11 in (1, 4, 8)

    dealt = sorted(members, key=lambda name: (scripts(name), _shuffled(name)))
    return [
        Cluster(
            name,
            source[name],
            {c: families[f][c] for c, f in source[name].items()},
            test=for_test(name, position),
        )
        for position, name in enumerate(dealt)
    ]


def choose_classes(clusters: list[Cluster]) -> list[str]:
    """The characters most designs offer, in that order: rare scripts are the tail."""
    offers = {c: sum(c in cluster.glyphs for cluster in clusters) for c in CHARACTERS}
    return sorted(CHARACTERS, key=lambda c: (-offers[c], CHARACTERS.index(c)))[:CLASSES]


def long_tailed_count(index: int) -> int:
    """n_i = int(n_max * (1 / imbalance) ** (i / (C - 1)))."""
    return int(LARGEST * (1 / IMBALANCE) ** (index / (CLASSES - 1)))


def make_arrays(
    clusters: list[Cluster], classes: list[str]
) -> tuple[dict[str, NDArray[np.generic]], set[str]]:
    """The arrays of the shipped file, and the families whose glyphs are in them."""
    images: dict[bool, list[NDArray[np.uint8]]] = {False: [], True: []}
    labels: dict[bool, list[int]] = {False: [], True: []}
    index: list[int] = []
    used: set[str] = set()
    for label, character in enumerate(classes):
        drawn = long_tailed_count(label)
        for test, needed in ((False, drawn), (True, TEST_PER_CLASS)):
            offering = [k for k in clusters if k.test == test and character in k.glyphs]
            if len(offering) < needed:
                part = "test" if test else "training"
                raise ValueError(
                    f"{character!r}: {needed} {part} designs needed, {len(offering)} found"
                )
            offering.sort(key=lambda k: _shuffled(k.name + character))
            if not test:
                index += range(len(images[False]), len(images[False]) + drawn)
            taken = offering[:TEST_PER_CLASS] if test else offering
            images[test] += [k.glyphs[character] * GREY for k in taken]
            labels[test] += [label] * len(taken)
            used |= {k.source[character] for k in taken}
    arrays = {
        "train_images": np.stack(images[False]),
        "train_labels": np.array(labels[False], dtype=np.int64),
        "train_index": np.array(index, dtype=np.int64),
        "test_images": np.stack(images[True]),
        "test_labels": np.array(labels[True], dtype=np.int64),
        "class_names": np.array(classes),
    }
    return arrays, used
