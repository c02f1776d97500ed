"""glyph-lt: 28x28 greys of characters, 120 classes, shipped with the package.

Rendered from free fonts; the balanced test set holds designs that no training image comes from.
``files/FONTS.csv`` names every font with its licence, ``tools/glyph_lt`` in the repository makes
the file.
"""

from __future__ import annotations

import hashlib
import io
import os

import numpy as np
import torch

from .sources import FILES, Source

__all__ = ["load_glyph_lt"]

SHA256 = "77b76f91c02b15fdfd934ddf0d450c98f368621d91175b2964cac1abf6f632d8"


def load_glyph_lt(root: str | os.PathLike[str] | None = None) -> Source:
    """Read the shipped glyphs: the pool, the fixed default long-tailed draw and the test set.

    Args:
        root: not used, the file is in the package.

    Returns:
        The source set.

    Raises:
        FileNotFoundError: the package's file is missing.
        ValueError: the package's file is damaged.
    """
    path = FILES / "glyph_lt.npz"
    if not path.is_file():
        raise FileNotFoundError(
            f"`load`: glyph-lt needs {path}, which ltkernels ships; reinstall it"
        )
    packed = path.read_bytes()
    if hashlib.sha256(packed).hexdigest() != SHA256:
        raise ValueError(f"`load`: {path} is damaged (SHA-256 differs); reinstall ltkernels")
    with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
        pool_labels = torch.from_numpy(arrays["train_labels"].astype(np.int64))
        default_indices = torch.from_numpy(arrays["train_index"].astype(np.int64))
        counts = torch.bincount(pool_labels[default_indices])
        return Source(
            pool_inputs=torch.from_numpy(arrays["train_images"])[:, None],
            pool_labels=pool_labels,
            test_inputs=torch.from_numpy(arrays["test_images"])[:, None],
            test_labels=torch.from_numpy(arrays["test_labels"].astype(np.int64)),
            class_names=tuple(str(name) for name in arrays["class_names"]),
            imbalance=100,
            augmentation={"shift": 2},
            n_max=int(counts.max()),
            default_indices=default_indices,
        )
