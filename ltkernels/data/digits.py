"""digits-lt: 8x8 handwritten digits, 10 classes, shipped with the package.

The 1,797 images are the test part of the UCI "Optical Recognition of Handwritten Digits" set
(Alpaydin and Kaynak, 1998, CC BY 4.0); see ``files/DIGITS.md``.
"""

from __future__ import annotations

import gzip
import hashlib
import os

import numpy as np
import torch

from .sources import FILES, Source

__all__ = ["TEST_PER_CLASS", "load_digits"]

SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
TEST_PER_CLASS = 50


def load_digits(root: str | os.PathLike[str] | None = None) -> Source:
    """Read the shipped table and split it into a balanced test set and a training pool.

    The split is fixed and stratified: 50 images a class are the test set, the other 1,297 the pool,
    whatever the seed of the long-tailed draw. Pixel values 0 ... 16 become 0 ... 255.

    Args:
        root: not used, the table is in the package.

    Returns:
        The source set.

    Raises:
        FileNotFoundError: the package's file is missing.
        ValueError: the package's file is damaged.
    """
    path = FILES / "digits.csv.gz"
    if not path.is_file():
        raise FileNotFoundError(
            f"`load`: digits-lt needs {path}, which ltkernels ships; reinstall it"
        )
    packed = path.read_bytes()
    if hashlib.sha256(packed).hexdigest() != SHA256:
        raise ValueError(f"`load`: {path} is damaged (SHA-256 differs); reinstall ltkernels")
    rows = gzip.decompress(packed).decode("ascii").split()
    table = np.array([[int(float(cell)) for cell in row.split(",")] for row in rows])
    pixels = (table[:, :64] * 255 + 8) // 16
    images = torch.from_numpy(pixels.astype(np.uint8)).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(table[:, 64].astype(np.int64))

    is_test = torch.zeros(len(labels), dtype=torch.bool)
    stream = np.random.RandomState(0)
    for digit in range(10):
        members = np.where(table[:, 64] == digit)[0]
        stream.shuffle(members)
        is_test[torch.from_numpy(members[:TEST_PER_CLASS])] = True
    return Source(
        pool_inputs=images[~is_test],
        pool_labels=labels[~is_test],
        test_inputs=images[is_test],
        test_labels=labels[is_test],
        class_names=tuple("0123456789"),
        imbalance=20,
        augmentation={"shift": 1},
    )
