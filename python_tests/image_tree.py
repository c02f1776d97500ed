"""A small tree of real JPEG files with lists in the published form, made in a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SYNSETS = [f"n{1_000_000 + 37 * i:08d}" for i in range(1000)]


def write_image(path: Path, stream: np.random.Generator, size: tuple[int, int] = (30, 24)) -> None:
    """A JPEG (or what the name says) of coarse random colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = stream.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR).save(path, quality=85)


def write_tree(
    root: Path,
    *,
    name: str = "ImageNet_LT",
    classes: int = 1000,
    most: int = 6,
    size: tuple[int, int] = (30, 24),
) -> dict[str, list[tuple[str, int]]]:
    """Lists and images: `most` ... 1 training images a class, one to validate and one to test.

    Returns:
        The lists, in their order, which is not that of the classes.
    """
    stream = np.random.default_rng(0)
    lists: dict[str, list[tuple[str, int]]] = {"train": [], "val": [], "test": []}
    for label in range(classes):
        synset = SYNSETS[label]
        for i in range(max(1, round(most * 0.001 ** (label / classes)))):
            lists["train"].append((f"train/{synset}/{synset}_{i}.JPEG", label))
        lists["val"].append((f"train/{synset}/{synset}_val.JPEG", label))
        lists["test"].append((f"val/{synset}/test_{label}.JPEG", label))
    root.mkdir(parents=True, exist_ok=True)
    for split, images in lists.items():
        stream.shuffle(images)
        for number, (path, _) in enumerate(images):
            file = root / path
            if number < 64:
                write_image(file, stream, size)
            else:  # the same again: what differs is where it lies
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes((root / images[number % 64][0]).read_bytes())
        lines = "".join(f"{path} {label}\n" for path, label in images)
        (root / f"{name}_{split}.txt").write_text(lines)
    return lists
