"""Image files joined to shards, once, so that training reads few large files of small images.

Every image's shorter side is brought to ``size`` pixels (smaller ones stay as they are) and the
image is written as a JPEG, or as plain pixels. A shard holds a fixed number of the list's images,
in its order, so that it is a function of the list and the settings alone: what an interrupted pack
has finished is kept, and any number of processes write the same files.
"""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from ltkernels.train.checkpoint import write_atomic

from .images import Array, pillow
from .listed import ImageList, class_names_of, find_lists
from .sources import data_root
from .stores import INDEX, MANIFEST, Pack, shard_name
from .workers import Workers

__all__ = ["PackOptions", "pack"]

_STARTED = "pack.started.json"
"""The settings of a pack that is being written."""


@dataclass(frozen=True)
class PackOptions:
    """How images are packed.

    Args:
        size: pixels of the shorter side.
        quality: of the JPEGs, 1 to 100.
        raw: pixels instead of JPEGs: five to ten times the bytes, and no decoding.
        workers: processes; 0 packs in this one.
    """

    size: int = 256
    quality: int = 90
    raw: bool = False
    workers: int = 0

    @property
    def shard_images(self) -> int:
        """Images of a shard: 50 to 100 MB of them at 256 pixels."""
        return 384 if self.raw else 2048


def pack(
    name: str,
    root: Path | None,
    out: Path,
    options: PackOptions,
    say: Callable[[int, int], None] = lambda done, total: None,
) -> Pack:
    """Write the packed folder of a data set, or what is missing of it.

    Args:
        name: one of ``ltkernels.data.listed.LISTED``.
        root: where the lists and the images are.
        out: the packed folder.
        options: how images are packed.
        say: told the shards that are done and how many there are.

    Returns:
        The pack.

    Raises:
        FileNotFoundError: lists or images are missing.
        ValueError: an image cannot be read, or the folder holds another pack.
    """
    pillow()
    lists = find_lists(name, data_root(root))
    settings = {
        "format": Pack.FORMAT,
        "name": name,
        "size": options.size,
        "encoding": "raw" if options.raw else f"jpeg {options.quality}",
        "splits": {
            split: {
                "images": len(images.names),
                "list_sha256": hashlib.sha256(
                    "\n".join(images.names).encode() + images.labels.tobytes()
                ).hexdigest(),
            }
            for split, images in lists.items()
        },
    }
    if (out / MANIFEST).is_file():
        finished = Pack(out)
        _same_settings(finished.manifest, settings, out)
        return finished
    out.mkdir(parents=True, exist_ok=True)
    if (out / _STARTED).is_file():
        _same_settings(json.loads((out / _STARTED).read_text("utf-8")), settings, out)
        for left in out.glob(".*.shard.*"):  # half a file of an interrupted pack
            left.unlink()
    else:
        write_atomic(out / _STARTED, json.dumps(settings))
    shards = [
        (split, number)
        for split, images in lists.items()
        for number in range(-(-len(images.names) // options.shard_images))
    ]
    _write_shards(out, lists, shards, options, say)
    _write_index(out, lists, shards, settings)
    return Pack(out)


def _same_settings(before: dict[str, Any], now: dict[str, Any], out: Path) -> None:
    for key, value in now.items():
        if before.get(key) != value:
            what = "other images" if key == "splits" else f"{key} = {before.get(key)!r}"
            raise ValueError(
                f"{out} holds a pack with {what}, not {'these' if key == 'splits' else repr(value)}"
                "; choose another --out"
            )


def _write_shards(
    out: Path,
    lists: dict[str, ImageList],
    shards: list[tuple[str, int]],
    options: PackOptions,
    say: Callable[[int, int], None],
) -> None:
    # The entries are written after their shard: where they are, the shard is complete.
    todo = [shard for shard in shards if not _entries_file(out, *shard).is_file()]
    done = len(shards) - len(todo)
    say(done, len(shards))

    def write(split: str, number: int) -> None:
        content, entries = _make_shard(lists[split], number, options)
        write_atomic(out / shard_name(split, number), content)
        buffer = io.BytesIO()
        np.save(buffer, entries)
        write_atomic(_entries_file(out, split, number), buffer.getvalue())

    if not options.workers:
        for shard in todo:
            write(*shard)
            done += 1
            say(done, len(shards))
        return
    count = min(options.workers, len(todo))

    def work(worker: int, connection: Connection) -> None:
        for shard in todo[worker::count]:
            write(*shard)
            connection.send_bytes(b"done")

    with Workers(count, work) as group:
        for position in range(len(todo)):
            group.receive(position % count)
            done += 1
            say(done, len(shards))


def _entries_file(out: Path, split: str, number: int) -> Path:
    return out / f"{shard_name(split, number)}.npy"


def _make_shard(images: ImageList, number: int, options: PackOptions) -> tuple[bytes, Array]:
    first = number * options.shard_images
    positions = range(first, min(first + options.shard_images, len(images.names)))
    parts, entries, offset = [], np.zeros((len(positions), 6), np.int64), 0
    for row, position in enumerate(positions):
        path = images.store.path(position)
        try:
            content, width, height = _encode(path, options)
        except Exception as error:  # decoders raise whatever they like of a broken file
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise ValueError(f"`pack`: cannot read {path}: {reason}") from error
        entries[row] = number, offset, len(content), zlib.crc32(content), width, height
        parts.append(content)
        offset += len(content)
    return b"".join(parts), entries


def _encode(path: Path, options: PackOptions) -> tuple[bytes, int, int]:
    """An image's bytes, and width and height where they are pixels."""
    original = path.read_bytes()
    module = pillow()
    with module.open(io.BytesIO(original)) as image:
        shorter, plain = min(image.size), image.format == "JPEG" and image.mode == "RGB"
        size = image.size
        if shorter > options.size:
            size = tuple(round(length * options.size / shorter) for length in image.size)
            # A JPEG may be decoded at a fraction that still has twice the pixels wanted.
            image.draft("RGB", tuple(2 * length for length in size))
        elif plain and not options.raw:
            image.load()  # a broken file is found now, not in training
            return original, 0, 0
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        if rgb.size != size:
            rgb = rgb.resize(size, module.Resampling.BICUBIC, reducing_gap=2.0)
        if options.raw:
            return rgb.tobytes(), *size
        buffer = io.BytesIO()
        rgb.save(buffer, "JPEG", quality=options.quality)
        return buffer.getvalue(), 0, 0


def _write_index(
    out: Path,
    lists: dict[str, ImageList],
    shards: list[tuple[str, int]],
    settings: dict[str, Any],
) -> None:
    arrays: dict[str, Array] = {}
    for split, images in lists.items():
        parts = [np.load(_entries_file(out, *shard)) for shard in shards if shard[0] == split]
        names = "\n".join(images.names).encode()
        arrays[f"{split}_names"] = np.frombuffer(names, np.uint8)
        arrays[f"{split}_labels"] = images.labels
        arrays[f"{split}_entries"] = np.concatenate(parts)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    content = buffer.getvalue()
    write_atomic(out / INDEX, content)
    manifest = {
        **settings,
        "class_names": class_names_of(lists["train"]),
        "shards": len(shards),
        "index_sha256": hashlib.sha256(content).hexdigest(),
    }
    # Last: a folder with a manifest is a finished pack.
    write_atomic(out / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    for shard in shards:
        _entries_file(out, *shard).unlink()
    (out / _STARTED).unlink()
