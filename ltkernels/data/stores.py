"""Where image files lie: in a folder, or joined to shards by ``python -m ltkernels.data pack``."""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .images import Array, pillow

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "INDEX",
    "MANIFEST",
    "FolderStore",
    "ImageStore",
    "Pack",
    "PackedStore",
    "describe_missing",
    "shard_name",
]

MANIFEST = "pack.json"
"""Says what a packed folder holds; written last, so a folder that has it is complete."""
INDEX = "index.npz"
"""Names, labels, places, lengths and checksums of the images of every split."""


class ImageStore(Protocol):
    """Images by their position."""

    @property
    def names(self) -> Sequence[str]:
        """Path of each image in its list."""

    def open(self, position: int) -> Image:
        """An image, not yet decoded."""

    def where(self, position: int) -> str:
        """Where an image lies, for messages."""

    def missing(self) -> list[str]:
        """Where the images lie whose file is not there, or too short; no file is read."""


class FolderStore:
    """Image files below a folder.

    Args:
        root: the folder.
        names: path of each image from there; a leading slash is left out.
    """

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root, self.names = root, names

    def open(self, position: int) -> Image:
        image: Image = pillow().open(self.path(position))
        return image

    def where(self, position: int) -> str:
        return str(self.path(position))

    def missing(self) -> list[str]:
        # Strings: a Path for each of half a million files takes longer than looking for it.
        root = str(self.root)
        paths = (os.path.join(root, name.lstrip("/")) for name in self.names)
        return [path for path in paths if not os.path.isfile(path)]

    def path(self, position: int) -> Path:
        """The image's file."""
        return self.root / self.names[position].lstrip("/")


def describe_missing(missing: Sequence[str], count: int, of: str) -> str:
    """How many images are missing, and the first three of them, in words."""
    rest = ", ..." if len(missing) > 3 else ""
    return (
        f"{len(missing):,} of the {count:,} images of {of} are missing: "
        f"{', '.join(missing[:3])}{rest}"
    )


def shard_name(split: str, number: int) -> str:
    """File of a shard: ``train-00012.shard``."""
    return f"{split}-{number:05d}.shard"


class PackedStore:
    """The images of one split of a packed folder, read by memory map.

    Args:
        folder: the packed folder.
        split: ``"train"``, ``"val"`` or ``"test"``.
        names: path of each image in its list.
        entries: int64 ``[N, 6]``: shard, offset, length, CRC-32, width and height of each image;
            width 0 where the bytes are those of a file, else they are pixels.
    """

    def __init__(self, folder: Path, split: str, names: Sequence[str], entries: Array) -> None:
        self.folder, self.split, self.names, self.entries = folder, split, names, entries
        self._maps: dict[int, mmap.mmap] = {}

    def open(self, position: int) -> Image:
        """An image.

        Raises:
            ValueError: the shard is not what was written.
        """
        shard, offset, length, checksum, width, height = map(int, self.entries[position])
        content = self._map(shard)[offset : offset + length]
        if len(content) != length or zlib.crc32(content) != checksum:
            raise ValueError(
                f"the shard is damaged: bytes {offset} to {offset + length} are not what was packed"
            )
        if width:
            pixels: Image = pillow().frombytes("RGB", (width, height), content)
            return pixels
        image: Image = pillow().open(io.BytesIO(content))
        return image

    def where(self, position: int) -> str:
        shard = shard_name(self.split, int(self.entries[position, 0]))
        return f"{self.names[position]} in {self.folder / shard}"

    def missing(self) -> list[str]:
        sizes = np.zeros(int(self.entries[:, 0].max(initial=-1)) + 1, np.int64)
        for shard in range(len(sizes)):
            file = self.folder / shard_name(self.split, shard)
            sizes[shard] = file.stat().st_size if file.is_file() else 0
        ends = self.entries[:, 1] + self.entries[:, 2]
        return [self.where(int(i)) for i in np.flatnonzero(ends > sizes[self.entries[:, 0]])]

    def _map(self, shard: int) -> mmap.mmap:
        if shard not in self._maps:
            with (self.folder / shard_name(self.split, shard)).open("rb") as file:
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[shard]


class Pack:
    """A packed folder.

    Args:
        folder: that holds ``pack.json``.

    Raises:
        ValueError: a file is damaged, or another version made it.
    """

    FORMAT = 1

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text("utf-8"))
            form = self.manifest["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"`load`: {folder / MANIFEST} is damaged: {error!r}") from error
        if form != self.FORMAT:
            raise ValueError(
                f"`load`: {folder} was packed in format {form}, this version reads {self.FORMAT}; "
                "pack again"
            )
        content = (folder / INDEX).read_bytes()
        if hashlib.sha256(content).hexdigest() != self.manifest["index_sha256"]:
            raise ValueError(f"`load`: {folder / INDEX} is damaged: it is not what was packed")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            self._arrays = dict(arrays)

    @property
    def splits(self) -> tuple[str, ...]:
        """Those of ``train``, ``val`` and ``test`` that there are."""
        return tuple(self.manifest["splits"])

    @property
    def class_names(self) -> tuple[str, ...]:
        """C names."""
        return tuple(self.manifest["class_names"])

    def store(self, split: str) -> tuple[PackedStore, Array]:
        """The images of a split, and their labels int64 ``[N]``."""
        names = self._arrays[f"{split}_names"].tobytes().decode().split("\n")
        entries = self._arrays[f"{split}_entries"]
        return PackedStore(self.folder, split, names, entries), self._arrays[f"{split}_labels"]
