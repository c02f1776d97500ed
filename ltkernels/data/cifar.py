"""cifar10-lt and cifar100-lt: 32x32 colour images, from the "python version" of CIFAR-10 and -100.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. The files are pickles
made by Python 2; they are read with an unpickler that builds containers and numeric arrays only and
calls nothing that the file names, so a tampered file cannot run code.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .sources import Source, data_root

__all__ = ["load_cifar10", "load_cifar100", "safe_unpickle"]


@dataclass(frozen=True)
class _Layout:
    """Files and keys of one of the two sets."""

    name: str
    folder: str
    archive: str
    md5: str
    train_files: tuple[str, ...]
    test_file: str
    meta_file: str
    label_key: bytes
    names_key: bytes


CIFAR10 = _Layout(
    name="cifar10-lt",
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    train_files=tuple(f"data_batch_{i}" for i in range(1, 6)),
    test_file="test_batch",
    meta_file="batches.meta",
    label_key=b"labels",
    names_key=b"label_names",
)
CIFAR100 = _Layout(
    name="cifar100-lt",
    folder="cifar-100-python",
    archive="cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    train_files=("train",),
    test_file="test",
    meta_file="meta",
    label_key=b"fine_labels",
    names_key=b"fine_label_names",
)


class _Dtype:
    """Stands in for ``numpy.dtype``, whose real ``__setstate__`` trusts the flags in the file."""

    def __init__(self, code: str | bytes, align: bool = False, copy: bool = False) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        self.code = (order.decode("ascii") if isinstance(order, bytes) else order) + self.code

    def numpy(self) -> np.dtype[Any]:
        if self.code.lstrip("<>|=") not in ("u1", "i1", "i2", "i4", "i8", "f4", "f8"):
            raise pickle.UnpicklingError(f"an array of dtype {self.code} is not allowed here")
        return np.dtype(self.code)


class _Array:
    """Stands in for ``numpy.ndarray``: takes its state, makes the array from plain bytes."""

    value: np.ndarray[Any, Any]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, content = state
        self.value = _array_of(content, dtype, shape, "F" if is_fortran else "C").value


def _empty_array(*_: object) -> _Array:
    return _Array()


def _array_of(content: bytes, dtype: _Dtype, shape: tuple[int, ...], order: Any) -> _Array:
    array = _Array()
    array.value = np.frombuffer(content, dtype.numpy()).reshape(shape, order=order)
    return array


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy.core.numeric", "_frombuffer"): _array_of,
    ("numpy._core.numeric", "_frombuffer"): _array_of,
}


class _SafeUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed here") from None


def safe_unpickle(content: bytes) -> dict[Any, Any]:
    """Unpickle a dict of containers, numbers, strings and numeric NumPy arrays, and nothing else.

    No global of the pickle is looked up: the few names an array needs stand for constructors in
    this file. Python 2 strings become bytes.

    Args:
        content: the pickle.

    Returns:
        The dict; arrays are its values, not nested deeper.

    Raises:
        pickle.UnpicklingError: the pickle holds or asks for anything else, or is damaged in a way
            pickle notices (other damage may raise ValueError, EOFError and the like).
    """
    loaded = _SafeUnpickler(io.BytesIO(content), encoding="bytes").load()
    if not isinstance(loaded, dict):
        raise pickle.UnpicklingError(f"expected a dict, got {type(loaded).__name__}")
    return {k: v.value if isinstance(v, _Array) else v for k, v in loaded.items()}


def _open(layout: _Layout, root: str | os.PathLike[str] | None) -> Callable[[str], bytes]:
    """Find the folder or the archive; return a function from file name to content."""
    base = data_root(root)
    names = [*layout.train_files, layout.test_file, layout.meta_file]
    for folder in (base / layout.folder, base):
        if all((folder / name).is_file() for name in names):
            return lambda name: (folder / name).read_bytes()
    archive = base / layout.archive
    if not archive.is_file():
        raise FileNotFoundError(
            f"`load`: {layout.name} needs the folder {layout.folder} with the files "
            f"{', '.join(names)}, or the archive {layout.archive}, searched {base.absolute()}; "
            "name the folder that holds it with `root` (--set data.root=DIR on the command line) "
            "or the environment variable LTKERNELS_DATA"
        )
    packed = archive.read_bytes()
    md5 = hashlib.md5(packed, usedforsecurity=False).hexdigest()
    if md5 != layout.md5:
        raise ValueError(
            f"`load`: {archive} is damaged or incomplete: expected MD5 {layout.md5}, got {md5}"
        )
    members = {f"{layout.folder}/{name}": name for name in names}
    content = {}
    # In the archive's own order: seeking back in a gzip stream starts it over.
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name in members else None
            if file is not None:
                content[members[member.name]] = file.read()
    missing = [name for name in names if name not in content]
    if missing:
        raise ValueError(f"`load`: {archive} has no {', '.join(missing)} in {layout.folder}")
    return content.__getitem__


def _read_dict(read: Callable[[str], bytes], name: str) -> dict[bytes, Any]:
    try:
        content = safe_unpickle(read(name))
    # Unpickling damaged bytes fails in any of these ways.
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError,
            AttributeError, OverflowError, MemoryError) as error:  # fmt: skip
        raise ValueError(f"`load`: file {name} is damaged or unsafe: {error}") from error
    # Files written again by Python 3 have str keys.
    return {k.encode() if isinstance(k, str) else k: v for k, v in content.items()}


def _read_batch(
    read: Callable[[str], bytes], name: str, label_key: bytes, num_classes: int
) -> tuple[Tensor, Tensor]:
    batch = _read_dict(read, name)
    missing = [key.decode() for key in (b"data", label_key) if key not in batch]
    if missing:
        raise ValueError(f"`load`: file {name} has no {' and no '.join(missing)}")
    data = batch[b"data"]
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,):
        raise ValueError(f"`load`: file {name}: expected `data` to be uint8 [N, 3072]")
    labels = np.asarray(batch[label_key])
    if labels.shape != (len(data),) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"`load`: file {name}: expected {label_key.decode()} to be {len(data)} integers"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"`load`: file {name}: expected {label_key.decode()} in 0 ... {num_classes - 1}, got "
            f"{labels.min()} ... {labels.max()}"
        )
    images = torch.from_numpy(data.reshape(-1, 3, 32, 32).copy())
    return images, torch.from_numpy(labels.astype(np.int64))


def _load(layout: _Layout, root: str | os.PathLike[str] | None) -> Source:
    read = _open(layout, root)
    names = _read_dict(read, layout.meta_file).get(layout.names_key)
    if not isinstance(names, list) or not all(isinstance(n, (bytes, str)) for n in names):
        raise ValueError(f"`load`: file {layout.meta_file} has no list {layout.names_key.decode()}")
    parts = [_read_batch(read, name, layout.label_key, len(names)) for name in layout.train_files]
    test_images, test_labels = _read_batch(read, layout.test_file, layout.label_key, len(names))
    return Source(
        pool_inputs=torch.cat([images for images, _ in parts]),
        pool_labels=torch.cat([labels for _, labels in parts]),
        test_inputs=test_images,
        test_labels=test_labels,
        class_names=tuple(n.decode() if isinstance(n, bytes) else n for n in names),
        imbalance=100,
        augmentation={"shift": 4, "flip": True},
    )


def load_cifar10(root: str | os.PathLike[str] | None = None) -> Source:
    """Read CIFAR-10: the folder ``cifar-10-batches-py`` or ``cifar-10-python.tar.gz`` in `root`.

    Args:
        root: folder that holds one of the two; $LTKERNELS_DATA or ./data by default.

    Returns:
        The source set, images in the files' order (that of torchvision and of the official draw).

    Raises:
        FileNotFoundError: neither is there.
        ValueError: the archive's MD5 differs, or a file is damaged or unsafe.
    """
    return _load(CIFAR10, root)


def load_cifar100(root: str | os.PathLike[str] | None = None) -> Source:
    """Read CIFAR-100: the folder ``cifar-100-python`` or ``cifar-100-python.tar.gz`` in `root`.

    Args, Returns and Raises are those of :func:`load_cifar10`; labels are the 100 fine ones.
    """
    return _load(CIFAR100, root)
