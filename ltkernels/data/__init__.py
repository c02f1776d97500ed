"""Long-tailed data sets, their transforms as batched tensor operations, and samplers.

>>> data = load("glyph-lt")
>>> batch = epoch_indices(len(data.train_labels), seed=0, epoch=0)[:128]
>>> images = data.transform(data.train_inputs[batch], derived_generator(0, "augment", 0, 0))
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

from .agnews import load_agnews
from .autoaugment import CIFAR_POLICY, PolicyView, auto_augment
from .cifar import load_cifar10, load_cifar100
from .contrast_view import (
    ContrastView,
    color_jitter,
    gaussian_blur,
    grayscale,
    random_resized_crop,
)
from .dataset import LongTailedDataset
from .digits import load_digits
from .fashion_mnist import load_fashion_mnist
from .glyph_lt import load_glyph_lt
from .image_files import ImageFiles
from .images import ImageOptions
from .inputs import Inputs, StoredInputs, load_batches
from .listed import LISTED, load_listed
from .longtail import draw_long_tailed, fitting_n_max, long_tailed_counts
from .photographs import PhotoAugmentation
from .randaugment import RandAugmentView, rand_augment
from .sampling import (
    balanced_epoch_indices,
    class_aware_epoch_indices,
    derived_generator,
    epoch_indices,
)
from .sources import Source
from .subsets import class_subsets, longtailness
from .texts import TextOptions, TextSource, TextTransform, vocabulary_of
from .transforms import (
    Augmentation,
    Transform,
    channel_statistics,
    cutout,
    flip,
    mixup,
    normalize,
    rotate,
    shift,
)
from .views import VIEWS, View, make_view
from .vocabulary import Vocabulary, tokenize
from .word_vectors import read_word_vectors
from .wordnet import load_wordnet

__all__ = [
    "CIFAR_POLICY",
    "DATASETS",
    "IMAGE_FILES",
    "OFFICIAL_VALIDATION",
    "TEXTS",
    "VIEWS",
    "Augmentation",
    "ContrastView",
    "ImageFiles",
    "ImageOptions",
    "Inputs",
    "LongTailedDataset",
    "PhotoAugmentation",
    "PolicyView",
    "RandAugmentView",
    "StoredInputs",
    "TextOptions",
    "TextTransform",
    "Transform",
    "View",
    "Vocabulary",
    "auto_augment",
    "balanced_epoch_indices",
    "class_aware_epoch_indices",
    "class_subsets",
    "color_jitter",
    "cutout",
    "derived_generator",
    "draw_long_tailed",
    "epoch_indices",
    "fitting_n_max",
    "flip",
    "gaussian_blur",
    "grayscale",
    "load",
    "load_batches",
    "long_tailed_counts",
    "longtailness",
    "make_view",
    "mixup",
    "normalize",
    "rand_augment",
    "random_resized_crop",
    "read_word_vectors",
    "rotate",
    "shift",
    "tokenize",
    "vocabulary_of",
]

_IMAGE_LOADERS: dict[str, Callable[[str | os.PathLike[str] | None], Source]] = {
    "glyph-lt": load_glyph_lt,
    "digits-lt": load_digits,
    "fashion-mnist-lt": load_fashion_mnist,
    "cifar10-lt": load_cifar10,
    "cifar100-lt": load_cifar100,
}
_TEXT_LOADERS: dict[str, Callable[[str | os.PathLike[str] | None], TextSource]] = {
    "wordnet-lt": load_wordnet,
    "agnews-lt": load_agnews,
}

DATASETS: tuple[str, ...] = (*_IMAGE_LOADERS, *_TEXT_LOADERS, *LISTED)
"""Names that :func:`load` takes."""

TEXTS = frozenset(_TEXT_LOADERS)
"""Data sets of texts; the others have images."""

IMAGE_FILES = frozenset(LISTED)
"""Data sets of image files, which are decoded, cropped and scaled when they are wanted."""

OFFICIAL_VALIDATION = frozenset(name for name, what in LISTED.items() if "val" in what.lists)
"""Data sets that have validation images of their own, apart from training and test."""


def load(
    name: str,
    *,
    root: str | os.PathLike[str] | None = None,
    imbalance: float | None = None,
    kind: str = "exp",
    seed: int = 0,
    draw: str = "ltkernels",
    text: TextOptions | None = None,
    images: ImageOptions | None = None,
) -> LongTailedDataset:
    """Load a data set and draw its long-tailed training set.

    The training set has the counts of :func:`long_tailed_counts`, the largest ones the source can
    fill (CIFAR-100 at 100: 500 ... 5, 10,847 images). glyph-lt's default draw (seed 0) is fixed and
    shipped with the data; every other one is drawn again from its pool. wordnet-lt is long-tailed
    by nature: without an `imbalance` its training set is the whole pool, and with one a draw like
    the others'. imagenet-lt, places-lt and inat2018 are long-tailed as they are: nothing is drawn.

    Args:
        name: one of :data:`DATASETS`. glyph-lt and digits-lt come with the package.
        root: folder with the user's files; $LTKERNELS_DATA, then ./data by default.
        imbalance: ratio of the largest to the smallest class, >= 1; 100 by default, 20 for
            digits-lt, none for wordnet-lt.
        kind: ``"exp"`` or ``"step"``.
        seed: seed of the draw.
        draw: ``"ltkernels"``, or ``"official"`` for the images of the LDAM-DRW, RIDE and BKD code
            (with seed 0); see :func:`draw_long_tailed`.
        text: how texts become token ids; of data sets of texts only.
        images: how image files are loaded; read by the sets that consist of them.

    Returns:
        The data set.

    Raises:
        FileNotFoundError: files are missing; the message names the layout and the folder searched.
        ValueError: an argument is out of range, or a file is damaged.
    """
    if name not in DATASETS:
        raise ValueError(
            f"`load`: expected `name` to be one of {', '.join(DATASETS)}, got {name!r}"
        )
    if draw not in ("ltkernels", "official"):
        raise ValueError(f"`load`: expected `draw` to be 'ltkernels' or 'official', got {draw!r}")
    if kind not in ("exp", "step"):
        raise ValueError(f"`load`: expected `kind` to be 'exp' or 'step', got {kind!r}")
    if imbalance is not None and not 1 <= imbalance < float("inf"):
        raise ValueError(f"`load`: expected `imbalance` to be >= 1, got {imbalance}")
    if name in LISTED:
        if (imbalance, kind, draw) != (None, "exp", "ltkernels"):
            raise ValueError(
                f"`load`: {name} is long-tailed as it is; expected no `imbalance`, `kind` and "
                f"`draw`, got {imbalance}, {kind!r} and {draw!r}"
            )
        return load_listed(name, root, images)
    source = (_IMAGE_LOADERS | _TEXT_LOADERS)[name](root)
    indices = _training_indices(name, source, imbalance, kind, seed, draw)
    train_inputs: Tensor
    transform: Transform
    if isinstance(source, TextSource):
        train_inputs, test_inputs, transform = source.encoded(indices, text or TextOptions())
    else:
        train_inputs, test_inputs = source.pool_inputs[indices], source.test_inputs
        transform = Augmentation(*channel_statistics(train_inputs), **source.augmentation)
    return LongTailedDataset(
        name=name,
        train_inputs=train_inputs,
        train_labels=source.pool_labels[indices],
        test_inputs=test_inputs,
        test_labels=source.test_labels,
        class_names=source.class_names,
        transform=transform,
        train_indices=indices,
    )


def _training_indices(
    name: str,
    source: Source | TextSource,
    imbalance: float | None,
    kind: str,
    seed: int,
    draw: str,
) -> Tensor:
    """Which of the pool are the training set."""
    ratio = source.imbalance if imbalance is None else imbalance
    if ratio is None:
        if kind != "exp" or draw != "ltkernels":
            raise ValueError(
                f"`load`: expected `imbalance` with kind={kind!r} and draw={draw!r}: without it "
                f"the training set of {name} is not drawn"
            )
        return torch.arange(len(source.pool_labels))
    default = (ratio, kind, seed, draw) == (source.imbalance, "exp", 0, "ltkernels")
    if default and source.default_indices is not None:
        return source.default_indices
    num_classes = len(source.class_names)
    available = source.pool_labels.bincount(minlength=num_classes).tolist()
    n_max = fitting_n_max(available, ratio, kind, limit=source.n_max)
    counts = long_tailed_counts(n_max, num_classes, ratio, kind)
    return draw_long_tailed(source.pool_labels, counts, seed=seed, draw=draw)
