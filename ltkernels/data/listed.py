"""imagenet-lt, places-lt and inat2018: published lists of image files, and the user's images.

Liu et al., "Large-scale long-tailed recognition in an open world", CVPR 2019 (ImageNet-LT and
Places-LT: ``relative/path label`` a line); Van Horn et al., "The iNaturalist species classification
and detection dataset", CVPR 2018 (the same form, or the JSON files of 2018).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .dataset import LongTailedDataset
from .image_files import ImageFiles
from .images import Array, ImageOptions, pillow, resized_side
from .photographs import PhotoAugmentation
from .sources import data_root
from .stores import MANIFEST, FolderStore, ImageStore, Pack, describe_missing

__all__ = ["LISTED", "ImageList", "find_lists", "load_listed"]


@dataclass(frozen=True)
class _Set:
    """What is published of a set."""

    folder: str
    """Usual folder of the lists."""
    lists: dict[str, str]
    """Split -> file."""
    json: dict[str, str]
    """The same as JSON; empty where there is none."""
    images: dict[str, int]
    """Published number of images of each split."""
    classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    jitter: float


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def _liu(name: str) -> dict[str, str]:
    return {split: f"{name}_{split}.txt" for split in ("train", "val", "test")}


# Colour jitter as in the released codes of OLTR, LFME and RIDE; theirs for iNaturalist have none.
LISTED: dict[str, _Set] = {
    "imagenet-lt": _Set(
        folder="ImageNet_LT",
        lists=_liu("ImageNet_LT"),
        json={},
        images={"train": 115_846, "val": 20_000, "test": 50_000},
        classes=1000,
        mean=_IMAGENET[0],
        std=_IMAGENET[1],
        jitter=0.4,
    ),
    "places-lt": _Set(
        folder="Places_LT",
        lists=_liu("Places_LT"),
        json={},
        images={"train": 62_500, "val": 7_300, "test": 36_500},
        classes=365,
        mean=_IMAGENET[0],
        std=_IMAGENET[1],
        jitter=0.4,
    ),
    # The test labels are not published; as in the papers, the validation images are the test.
    "inat2018": _Set(
        folder="iNaturalist18",
        lists={"train": "iNaturalist18_train.txt", "test": "iNaturalist18_val.txt"},
        json={"train": "train2018.json", "test": "val2018.json"},
        images={"train": 437_513, "test": 24_426},
        classes=8142,
        mean=(0.466, 0.471, 0.380),
        std=(0.195, 0.194, 0.192),
        jitter=0.0,
    ),
}
"""Data set -> what is published of it."""


@dataclass(frozen=True)
class ImageList:
    """The images of a split.

    Args:
        file: the list.
        names: path of each image from the root.
        labels: int64 ``[N]``.
        root: folder that the paths start from.
        class_names: what the list itself calls the classes; empty for nothing.
    """

    file: Path
    names: Sequence[str]
    labels: Array
    root: Path
    class_names: tuple[str, ...] = ()

    @property
    def store(self) -> FolderStore:
        """The files."""
        return FolderStore(self.root, self.names)


def load_listed(
    name: str,
    root: str | os.PathLike[str] | None = None,
    options: ImageOptions | None = None,
) -> LongTailedDataset:
    """Read the lists of a set, or its packed folder.

    Args:
        name: one of :data:`LISTED`.
        root: folder with the lists and, in it or one folder deeper, the images; or a folder that
            ``python -m ltkernels.data pack`` wrote. $LTKERNELS_DATA, then ./data by default.
        options: how images are loaded.

    Returns:
        The data set; its inputs are :class:`ImageFiles`.

    Raises:
        FileNotFoundError: lists or images are missing; the message names what was searched where.
        ModuleNotFoundError: Pillow is not installed.
        ValueError: a list or a packed folder is damaged.
    """
    pillow()
    options = options or ImageOptions()
    base = data_root(root)
    stores: dict[str, tuple[ImageStore, Tensor]] = {}
    for folder in (base, base / name):
        if (folder / MANIFEST).is_file():
            pack = _open_pack(folder, name, options)
            for split in pack.splits:
                store, labels = pack.store(split)
                stores[split] = store, torch.from_numpy(labels)
            class_names = pack.class_names
            break
    else:
        found = find_lists(name, base)
        class_names = class_names_of(found["train"])
        for split, images in found.items():
            stores[split] = images.store, torch.from_numpy(images.labels)
    what, (train, train_labels) = LISTED[name], stores["train"]
    test, test_labels = stores["test"]
    jitter = what.jitter if options.jitter is None else options.jitter
    validation = None
    if "val" in stores:
        validation = ImageFiles(stores["val"][0], options), stores["val"][1]
    return LongTailedDataset(
        name=name,
        train_inputs=ImageFiles(train, options),
        train_labels=train_labels,
        test_inputs=ImageFiles(test, options),
        test_labels=test_labels,
        class_names=class_names,
        transform=PhotoAugmentation(what.mean, what.std, flip=True, jitter=jitter),
        train_indices=torch.arange(len(train_labels)),
        validation=validation,
    )


def _open_pack(folder: Path, name: str, options: ImageOptions) -> Pack:
    pack = Pack(folder)
    packed, size = pack.manifest["name"], pack.manifest["size"]
    if packed != name:
        raise ValueError(f"`load`: {folder} is packed {packed}, not {name}")
    if resized_side(options.size) > size:
        raise ValueError(
            f"`load`: {folder} was packed with --size {size}; images of {options.size} pixels "
            f"(data.image_size) need --size {resized_side(options.size)}"
        )
    return pack


def find_lists(name: str, base: Path) -> dict[str, ImageList]:
    """The lists of a set, checked, with the folders of their images.

    Args:
        name: one of :data:`LISTED`.
        base: folder to search.

    Raises:
        FileNotFoundError: lists or images are missing.
        ValueError: a list is damaged.
    """
    what = LISTED[name]
    folders = [base, base / name, base / what.folder]
    for folder in folders:
        for files in (what.lists, what.json):
            if files and all((folder / file).is_file() for file in files.values()):
                read = {split: _read(folder / file, what.classes) for split, file in files.items()}
                _check(read)
                return {
                    split: ImageList(file, names, labels, _image_root(file, names, base), classes)
                    for split, (file, names, labels, classes) in read.items()
                }
    layouts = [", ".join(files.values()) for files in (what.lists, what.json) if files]
    form = "a line an image: relative/path label" + (
        ", or the JSON of the data set" if what.json else ""
    )
    searched = ", ".join(str(folder.absolute()) for folder in folders)
    raise FileNotFoundError(
        f"`load`: {name} needs the lists {' or '.join(layouts)} ({form}) in one folder, and the "
        f"images below it; or a packed folder ({MANIFEST}); searched {searched}; name the folder "
        "with `root` (--set data.root=DIR on the command line) or the environment variable "
        "LTKERNELS_DATA"
    )


_Read = tuple[Path, Sequence[str], Array, tuple[str, ...]]


def _read(file: Path, classes: int) -> _Read:
    reader = _read_json if file.suffix == ".json" else _read_text
    names, labels, class_names = reader(file, classes)
    if not names:
        raise ValueError(f"`load`: {file} lists no image")
    return file, names, np.asarray(labels, np.int64), class_names


def _read_text(file: Path, classes: int) -> tuple[list[str], list[int], tuple[str, ...]]:
    names, labels = [], []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            parts = line.rsplit(maxsplit=1)
            # isascii: other digits than 0-9 pass isdigit.
            if len(parts) != 2 or not (parts[1].isascii() and parts[1].isdigit()):
                raise ValueError(
                    f"`load`: {file}, line {number}: expected `relative/path label`, got "
                    f"{line.strip()!r}"
                )
            # Python refuses to read numbers of thousands of digits.
            if len(parts[1]) > 18 or int(parts[1]) >= classes:
                raise _beyond(f"{file}, line {number}", classes, parts[1])
            names.append(parts[0])
            labels.append(int(parts[1]))
    return names, labels, ()


def _beyond(where: str, classes: int, label: str) -> ValueError:
    got = label if len(label) <= 18 else f"{label[:18]}..."
    return ValueError(f"`load`: {where}: expected a label of 0 ... {classes - 1}, got {got}")


def _read_json(file: Path, classes: int) -> tuple[list[str], list[int], tuple[str, ...]]:
    try:
        content = json.loads(file.read_bytes())
        path = {image["id"]: str(image["file_name"]) for image in content["images"]}
        pairs = [(path[a["image_id"]], int(a["category_id"])) for a in content["annotations"]]
        categories = {int(c["id"]): str(c["name"]) for c in content.get("categories", ())}
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(
            f"`load`: {file}: expected JSON with images (id, file_name) and annotations "
            f"(image_id, category_id), got {error!r}"
        ) from error
    for name, label in pairs:
        if not 0 <= label < classes:
            raise _beyond(f"{file}, category_id of {name}", classes, str(label))
    complete = sorted(categories) == list(range(len(categories)))
    class_names = tuple(categories[i] for i in range(len(categories))) if complete else ()
    return [name for name, _ in pairs], [label for _, label in pairs], class_names


def _check(read: dict[str, _Read]) -> None:
    """Every class has a training image, no other class is tested, no image is in two lists."""
    file, _, labels, _ = read["train"]
    counts = np.bincount(labels)
    if not counts.all():
        raise ValueError(
            f"`load`: {file}: expected labels 0 ... {len(counts) - 1} with an image each, class "
            f"{int(np.flatnonzero(counts == 0)[0])} has none"
        )
    seen: dict[str, Path] = {}
    for file, names, labels, _ in read.values():
        if int(labels.max()) >= len(counts):
            raise ValueError(
                f"`load`: {file} has label {int(labels.max())}, the training images have "
                f"0 ... {len(counts) - 1}"
            )
        for name in names:
            if name in seen:
                both = f"twice in {file}" if seen[name] == file else f"in {seen[name]} and {file}"
                raise ValueError(f"`load`: {name} is {both}")
            seen[name] = file


def _image_root(file: Path, names: Sequence[str], base: Path) -> Path:
    """The folder from which a list's paths start, told by its first image."""
    first = names[0].lstrip("/")
    candidates = list(dict.fromkeys([file.parent, base, *_subfolders(file.parent)]))
    candidates += [folder for folder in _subfolders(base) if folder not in candidates]
    for folder in candidates:
        if (folder / first).is_file():
            return folder
    # Some of the others tell whether it is that image alone that is missing.
    some = names[:: -(-len(names) // 100)]
    for folder in candidates:
        if len(FolderStore(folder, some).missing()) < len(some):
            missing = FolderStore(folder, names).missing()
            raise FileNotFoundError(f"`load`: {describe_missing(missing, len(names), str(file))}")
    raise FileNotFoundError(
        f"`load`: {first}, the first image of {file}, is not below {base.absolute()} or one of its "
        "folders; put the images there as the list names them (links will do)"
    )


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def class_names_of(images: ImageList) -> tuple[str, ...]:
    """Names of the classes: the list's own, else their folders (synsets), else their numbers."""
    count = int(images.labels.max()) + 1
    if len(images.class_names) == count:
        return images.class_names
    folders: list[str | None] = [None] * count
    for name, label in zip(images.names, images.labels.tolist(), strict=True):
        folder = name.lstrip("/").rpartition("/")[0]
        if folders[label] is None:
            folders[label] = folder
        elif folders[label] != folder:
            return _numbers(count)
    named = [folder or "" for folder in folders]
    if len(set(named)) < count:
        return _numbers(count)
    shared = os.path.commonpath(named) if all(named) else ""
    return tuple(os.path.relpath(folder, shared) if shared else folder for folder in named)


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


def published(name: str, counts: Iterable[tuple[str, int]], classes: int) -> str:
    """Whether a set has the published size, in words."""
    what = LISTED[name]
    if dict(counts) == what.images and classes == what.classes:
        return "as published"
    images = ", ".join(f"{split} {n:,}" for split, n in what.images.items())
    return f"not as published ({what.classes:,} classes; {images})"
