"""agnews-lt: news of 4 topics, title and description, from the two CSV files of AG's News.

Zhang et al., "Character-level Convolutional Networks for Text Classification", NeurIPS 2015.
"""

from __future__ import annotations

import csv
import html
import os
import re
from pathlib import Path

import torch
from torch import Tensor

from .sources import data_root, find_folder
from .texts import TextSource

__all__ = ["clean_news", "load_agnews", "read_news"]

CLASS_NAMES = ("World", "Sports", "Business", "Sci/Tech")
FILE_NAMES = ["train.csv", "test.csv"]

# The files have lost the "&" of numbered entities, and have a space in its place: "It #39;s".
_NUMBERED = re.compile(r" ?&?#(\d{2,4});")
_TAG = re.compile(r"</?[A-Za-z][^>]*>")


def clean_news(text: str) -> str:
    """What a reader sees: HTML's entities as characters, its tags and line ends as spaces."""
    text = html.unescape(_NUMBERED.sub(r"&#\1;", text))
    return _TAG.sub(" ", text).replace("\\", " ").replace("\n", " ")


def read_news(path: Path) -> tuple[list[str], Tensor]:
    """One of the two files: ``"class","title","description"`` a row, classes 1 to 4.

    Args:
        path: the CSV file; a row of titles (``Class Index,Title,Description``) may come first.

    Returns:
        Title and description of each row, cleaned, as one text; labels int64 ``[N]`` from 0.

    Raises:
        ValueError: a row is something else, or the file is not UTF-8; the message names file and
            line.
    """
    texts, labels = [], []
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            rows = csv.reader(lines)
            for row in rows:
                if not row or (rows.line_num == 1 and row[0].strip().lower() == "class index"):
                    continue
                if len(row) != 3 or row[0].strip() not in ("1", "2", "3", "4"):
                    raise ValueError(
                        f"`load`: {path}, line {rows.line_num}: expected a class from 1 to 4, a "
                        f"title and a description, got {len(row)} cells that begin with {row[0]!r}"
                    )
                labels.append(int(row[0]) - 1)
                texts.append(clean_news(f"{row[1]} {row[2]}"))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"`load`: {path} is damaged: {error}") from error
    return texts, torch.tensor(labels, dtype=torch.int64)


def load_agnews(root: str | os.PathLike[str] | None = None) -> TextSource:
    """Read AG's News' two CSV files.

    The training set is drawn from the 30,000 texts a class of ``train.csv``, by default with an
    imbalance of 100 (30,000 ... 300, class 1 first); the draw of the BKD paper was not released.

    Args:
        root: folder with the files or with a folder ``ag_news_csv`` that has them, as the archive
            has; $LTKERNELS_DATA, then ./data by default.

    Returns:
        The source set: 120,000 training and 7,600 test texts.

    Raises:
        FileNotFoundError: no folder searched has both files.
        ValueError: a file is damaged.
    """
    base = data_root(root)
    folder = find_folder([base, base / "ag_news_csv"], FILE_NAMES, "agnews-lt")
    pool_texts, pool_labels = read_news(folder / "train.csv")
    test_texts, test_labels = read_news(folder / "test.csv")
    return TextSource(
        pool_texts=pool_texts,
        pool_labels=pool_labels,
        test_texts=test_texts,
        test_labels=test_labels,
        class_names=CLASS_NAMES,
        imbalance=100,
    )
