"""What a loader hands over (a source set, not yet long-tailed), and where it looks for files."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

__all__ = ["FILES", "Source", "data_root", "find_folder"]

FILES = Path(__file__).parent / "files"
"""Folder of the data shipped with the package."""


@dataclass(frozen=True)
class Source:
    """A full source set: a pool to draw the training set from, and a balanced test set.

    Args:
        pool_inputs: uint8 ``[P, channels, H, W]``.
        pool_labels: int64 ``[P]``.
        test_inputs: uint8 ``[M, channels, H, W]``.
        test_labels: int64 ``[M]``.
        class_names: C names.
        imbalance: ratio of the default draw.
        augmentation: arguments of :class:`~ltkernels.data.Augmentation` but mean and std.
        n_max: most images a class may give; no bound by default.
        default_indices: the fixed default draw, where the set ships one.
    """

    pool_inputs: Tensor
    pool_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    imbalance: float
    augmentation: dict[str, Any] = field(default_factory=dict)
    n_max: int | None = None
    default_indices: Tensor | None = None


def data_root(root: str | os.PathLike[str] | None) -> Path:
    """Folder that holds the user's data: the argument, else $LTKERNELS_DATA, else ./data."""
    return Path(root if root is not None else os.environ.get("LTKERNELS_DATA") or "data")


def find_folder(candidates: list[Path], files: list[str], name: str, *, package: str = "") -> Path:
    """First of `candidates` that holds all `files`.

    Raises:
        FileNotFoundError: none does; the message names the files, every folder searched, and the
            Debian package that has them where there is one.
    """
    for folder in candidates:
        if all((folder / file).is_file() for file in files):
            return folder
    searched = ", ".join(str(folder.absolute()) for folder in candidates)
    install = f", or install the Debian package {package}" if package else ""
    raise FileNotFoundError(
        f"`load`: {name} needs the files {', '.join(files)} in one folder, searched {searched}; "
        "name the folder with `root` (--set data.root=DIR on the command line) "
        f"or the environment variable LTKERNELS_DATA{install}"
    )
