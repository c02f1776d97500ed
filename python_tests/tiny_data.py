"""A long-tailed data set of 8x8 images that a small network learns in a second."""

from __future__ import annotations

import os
from pathlib import Path

import torch

import ltkernels
from ltkernels.data import Augmentation, LongTailedDataset, channel_statistics

COUNTS = (110, 60, 40, 24, 12, 6)


def tiny_dataset(test_per_class: int = 10) -> LongTailedDataset:
    """Six classes, each a fixed pattern under noise; 252 training images, 60 test images."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(0, 256, (len(COUNTS), 1, 8, 8), generator=generator).float()

    def draw(labels: torch.Tensor) -> torch.Tensor:
        noise = 40 * torch.randn((len(labels), 1, 8, 8), generator=generator)
        return (patterns[labels] + noise).clamp(0, 255).to(torch.uint8)

    classes = torch.arange(len(COUNTS))
    train_labels = classes.repeat_interleave(torch.tensor(COUNTS))
    test_labels = classes.repeat_interleave(test_per_class)
    images = draw(train_labels)
    mean, std = channel_statistics(images)
    return LongTailedDataset(
        name="tiny",
        train_inputs=images,
        train_labels=train_labels,
        test_inputs=draw(test_labels),
        test_labels=test_labels,
        class_names=tuple("abcdef"),
        transform=Augmentation(mean, std, shift=1),
        train_indices=torch.arange(len(train_labels)),
    )


TINY = {
    "dataset": "tiny",
    "epochs": 3,
    "batch_size": 32,
    "threads": 1,
    "model": {"name": "resnet8", "width": 4},
}
"""Configuration of a run on it (pass the data set itself to `train`)."""


def process_environment() -> dict[str, str]:
    """Environment of a child process that imports this very package, on one thread."""
    paths = [str(Path(ltkernels.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(filter(None, paths))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
