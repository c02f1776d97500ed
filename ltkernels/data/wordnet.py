"""wordnet-lt: a word's definition and which of WordNet's 45 files it comes from; long-tailed.

Fellbaum (ed.), "WordNet: An Electronic Lexical Database", 1998; WordNet 3.0 (WordNet licence). Its
lexicographers' files part synsets by part of speech and topic (noun.animal, verb.motion ...).
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from .sources import data_root, find_folder
from .texts import TextSource

__all__ = ["LEXICOGRAPHER_FILES", "TEST_PER_CLASS", "load_wordnet", "read_glosses"]

# In the order of their numbers (lexnames(5WN)).
LEXICOGRAPHER_FILES = (
    "adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact",
    "noun.attribute", "noun.body", "noun.cognition", "noun.communication", "noun.event",
    "noun.feeling", "noun.food", "noun.group", "noun.location", "noun.motive", "noun.object",
    "noun.person", "noun.phenomenon", "noun.plant", "noun.possession", "noun.process",
    "noun.quantity", "noun.relation", "noun.shape", "noun.state", "noun.substance", "noun.time",
    "verb.body", "verb.change", "verb.cognition", "verb.communication", "verb.competition",
    "verb.consumption", "verb.contact", "verb.creation", "verb.emotion", "verb.motion",
    "verb.perception", "verb.possession", "verb.social", "verb.stative", "verb.weather", "adj.ppl",
)  # fmt: skip
FILE_NAMES = ["data.noun", "data.verb", "data.adj", "data.adv"]
SYSTEM_FOLDER = Path("/usr/share/wordnet")
"""Where the Debian package wordnet-base puts the files."""

TEST_PER_CLASS = 50
"""Most test texts of a class."""


def read_glosses(path: Path) -> tuple[list[str], list[int]]:
    """The definitions of one of WordNet's data files.

    Lines of the licence begin with a space. Of a synset's line the second field is the number of
    its lexicographer file, and the gloss follows ``" | "``: a definition, then examples in quotes,
    which are cut off.

    Args:
        path: ``data.noun`` or one of its like.

    Returns:
        Definitions, and the number of the file of each.

    Raises:
        ValueError: a line is no synset's; the message names file and line.
    """
    glosses, numbers = [], []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for place, line in enumerate(lines, 1):
            if line.startswith(" "):
                continue
            synset, bar, gloss = line.partition(" | ")
            fields = synset.split(maxsplit=2)
            number = fields[1] if len(fields) > 1 else ""
            if not bar or not number.isdecimal() or int(number) >= len(LEXICOGRAPHER_FILES):
                raise ValueError(
                    f"`load`: {path}, line {place} is no synset of WordNet: expected an offset, a "
                    f"file number from 00 to {len(LEXICOGRAPHER_FILES) - 1} and a gloss after ' | '"
                )
            glosses.append(gloss.partition('"')[0].strip(" ;:,\r\n"))
            numbers.append(int(number))
    return glosses, numbers


def load_wordnet(root: str | os.PathLike[str] | None = None) -> TextSource:
    """Read WordNet's data files and split off a balanced test set.

    The classes stand in the order of their texts, most first (WordNet 3.0: adj.all with 14,435 to
    noun.motive with 42 of 117,659). Of each class as many texts are for the test: two thirds of the
    smallest class and at most :data:`TEST_PER_CLASS`, which is 28 for WordNet 3.0. They are drawn
    by a fixed seed from the definitions that WordNet has only once. The pool is everything else,
    and long-tailed as it is: 116,399 texts, 14,407 ... 14.

    Args:
        root: folder with the four files or with a folder ``wordnet`` that has them. Without it,
            $LTKERNELS_DATA or ./data, then the folder of Debian's ``wordnet-base``.

    Returns:
        The source set; its default training set is the whole pool.

    Raises:
        FileNotFoundError: no folder searched has all four files.
        ValueError: a file is damaged, or a class has too few texts to be tested.
    """
    base = data_root(root)
    candidates = [base, base / "wordnet"]
    if root is None:
        candidates.append(SYSTEM_FOLDER)
    folder = find_folder(candidates, FILE_NAMES, "wordnet-lt", package="wordnet-base")
    texts: list[str] = []
    numbers: list[int] = []
    for name in FILE_NAMES:
        glosses, files = read_glosses(folder / name)
        texts += glosses
        numbers += files

    sizes = np.bincount(numbers, minlength=len(LEXICOGRAPHER_FILES))
    order = np.argsort(-sizes, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    labels = rank[numbers]

    times = Counter(texts)
    once = np.array([times[text] == 1 for text in texts])
    eligible = [np.where((labels == label) & once)[0] for label in range(len(order))]
    fewest_once = min(len(members) for members in eligible)
    per_class = min(TEST_PER_CLASS, 2 * int(sizes.min()) // 3, fewest_once)
    if per_class < 1:
        raise ValueError(
            f"`load`: {folder} has too few texts of {LEXICOGRAPHER_FILES[order[-1]]}: expected at "
            f"least 2 of each of {len(order)} classes, and one that occurs once; got {sizes.min()}"
        )
    is_test = np.zeros(len(texts), dtype=bool)
    for label, members in enumerate(eligible):
        np.random.RandomState([0, label]).shuffle(members)
        is_test[members[:per_class]] = True
    pool, test = np.where(~is_test)[0], np.where(is_test)[0]
    return TextSource(
        pool_texts=[texts[index] for index in pool],
        pool_labels=torch.from_numpy(labels[pool].astype(np.int64)),
        test_texts=[texts[index] for index in test],
        test_labels=torch.from_numpy(labels[test].astype(np.int64)),
        class_names=tuple(LEXICOGRAPHER_FILES[number] for number in order),
        imbalance=None,
    )
