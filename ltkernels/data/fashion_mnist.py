"""fashion-mnist-lt: 28x28 greys of clothes, 10 classes, from the four IDX files of Fashion-MNIST.

Xiao et al., "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
2017 (MIT licence).
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .sources import Source, data_root, find_folder

__all__ = ["load_fashion_mnist", "read_idx"]

CLASS_NAMES = (
    "t-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
FILE_NAMES = [
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
]
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian package dataset-fashion-mnist puts the files."""


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Read one gzipped IDX file of unsigned bytes.

    Args:
        path: the ``.gz`` file.
        dimensions: dimensions the file must have, 1 for labels and 3 for images.

    Returns:
        uint8 tensor of `dimensions` dimensions.

    Raises:
        ValueError: the file is damaged or holds something else; the message names it.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"`load`: {path} is damaged: {error}") from error
    header = 4 + 4 * dimensions
    # Two zero bytes, type 8 (unsigned byte), number of dimensions; then one big-endian size each.
    if len(content) < header or content[:4] != bytes((0, 0, 8, dimensions)):
        raise ValueError(f"`load`: {path} is no IDX file of bytes with {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise ValueError(
            f"`load`: {path} is damaged: expected {math.prod(shape)} bytes for {list(shape)}, got "
            f"{len(content) - header}"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy())


def _read_part(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    images = read_idx(folder / f"{part}-images-idx3-ubyte.gz", 3)
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz", 1).long()
    if len(images) != len(labels):
        raise ValueError(
            f"`load`: {folder} has {len(images)} images but {len(labels)} labels in {part}-*"
        )
    if len(labels) and int(labels.max()) >= len(CLASS_NAMES):
        raise ValueError(
            f"`load`: {folder} has label {int(labels.max())} in {part}-*, expected 0-9"
        )
    return images[:, None], labels


def load_fashion_mnist(root: str | os.PathLike[str] | None = None) -> Source:
    """Read Fashion-MNIST's four gzipped IDX files.

    Args:
        root: folder with the files or with a folder ``fashion-mnist`` that has them. Without it,
            $LTKERNELS_DATA or ./data, then the folder of Debian's ``dataset-fashion-mnist``.

    Returns:
        The source set: 60,000 training and 10,000 test images.

    Raises:
        FileNotFoundError: no folder searched has all four files.
        ValueError: a file is damaged.
    """
    base = data_root(root)
    candidates = [base, base / "fashion-mnist"]
    if root is None:
        candidates.append(SYSTEM_FOLDER)
    folder = find_folder(
        candidates, FILE_NAMES, "fashion-mnist-lt", package="dataset-fashion-mnist"
    )
    pool_inputs, pool_labels = _read_part(folder, "train")
    test_images, test_labels = _read_part(folder, "t10k")
    return Source(
        pool_inputs=pool_inputs,
        pool_labels=pool_labels,
        test_inputs=test_images,
        test_labels=test_labels,
        class_names=CLASS_NAMES,
        imbalance=100,
        augmentation={"shift": 2, "flip": True},
    )
