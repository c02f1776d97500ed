"""A long-tailed data set of short texts that a small TextCNN learns in a second, and WordNet's and
AG's News' formats on small files."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import torch

from ltkernels.data import LongTailedDataset, TextTransform, Vocabulary, wordnet
from tiny_data import COUNTS

LENGTH = 8


def tiny_texts(labels: list[int], seed: int) -> list[list[str]]:
    """Texts of 2 to 8 words, most of them of any class and one or two of the label's own."""
    stream = random.Random(seed)
    texts = []
    for label in labels:
        text = [f"any{stream.randrange(30)}" for _ in range(stream.randint(1, 6))]
        for _ in range(stream.randint(1, 2)):
            text.insert(stream.randrange(len(text) + 1), f"own{label}x{stream.randrange(3)}")
        texts.append(text)
    return texts


def tiny_text_dataset(test_per_class: int = 10) -> LongTailedDataset:
    """Six classes of 110 ... 6 training texts, and 60 test texts."""
    classes = torch.arange(len(COUNTS))
    train_labels = classes.repeat_interleave(torch.tensor(COUNTS))
    test_labels = classes.repeat_interleave(test_per_class)
    train = tiny_texts(train_labels.tolist(), seed=0)
    test = tiny_texts(test_labels.tolist(), seed=1)
    vocabulary = Vocabulary.count(train)
    return LongTailedDataset(
        name="tiny-text",
        train_inputs=vocabulary.encode(train, LENGTH),
        train_labels=train_labels,
        test_inputs=vocabulary.encode(test, LENGTH),
        test_labels=test_labels,
        class_names=tuple("abcdef"),
        transform=TextTransform(vocabulary),
        train_indices=torch.arange(len(train_labels)),
    )


SMALL_TEXTCNN = {
    "name": "textcnn",
    "embedding_width": 8,
    "feature_maps": 6,
    "filter_widths": [1, 2, 3],
    "dropout": 0.2,
}

TINY_TEXT = {
    "dataset": "tiny-text",
    "epochs": 3,
    "batch_size": 32,
    "lr": 0.3,
    "threads": 1,
    "model": SMALL_TEXTCNN,
}
"""Configuration of a run on it (pass the data set itself to `train`)."""


def write_wordnet(folder: Path, sizes: dict[str, int]) -> dict[str, str]:
    """WordNet's four data files; returns the class of each definition.

    Args:
        folder: where.
        sizes: synsets of a lexicographer file, by its name; 6 of every other one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, str] = {}
    lines: dict[str, list[str]] = {name: [] for name in wordnet.FILE_NAMES}
    for number, name in enumerate(wordnet.LEXICOGRAPHER_FILES):
        part = name.partition(".")[0]
        for index in range(sizes.get(name, 6)):
            topic = name.replace(".", " ")
            definition = f"the {topic} of kind k{index}"
            made[definition] = name
            offset = 1000 * number + index
            lines[f"data.{part}"].append(
                f"{offset:08d} {number:02d} {part[0]} 01 word_{index} 0 001 @ 00001740 {part[0]} "
                f'0000 | {definition}; "an example, quoted"; "and | another"  '
            )
    licence = ["  1 This software and database is being provided to you", "  2 by Princeton | any"]
    for name, own in lines.items():
        (folder / name).write_text("\n".join([*licence, *own, ""]), encoding="utf-8")
    return made


def write_agnews(folder: Path, per_class: int, header: bool = False) -> None:
    """AG's News' two files, every cell quoted."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train.csv", per_class), ("test.csv", 2)):
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            out = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
            if header:
                out.writerow(["Class Index", "Title", "Description"])
            for index in range(count):
                for label in (3, 1, 4, 2):
                    out.writerow([label, f'Title {label}, "n{index}"', f"It #39;s\\ {name[:2]}"])
