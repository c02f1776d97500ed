"""Files that are either the old version or the new one, never half of one."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch

__all__ = ["load_checkpoint", "save_checkpoint", "write_atomic"]


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replace a file in one step: temporary file beside it, fsync, rename.

    Args:
        path: file to write; its folder must exist.
        content: the whole new content; text is written as UTF-8.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    # The rename itself is durable once the folder is on disk.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a state of tensors and plain Python values atomically.

    Args:
        path: file to write.
        state: what :func:`load_checkpoint` gives back.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; only tensors and plain values are unpickled.

    Args:
        path: a file of :func:`save_checkpoint`.

    Returns:
        The saved state.
    """
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
