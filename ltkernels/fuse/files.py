"""Logits in files of any origin: NumPy's .npz and .npy, and safetensors.

Arrays of a .npz or .safetensors file:

| name | what |
|---|---|
| ``logits`` | test logits ``[M, S]``, or ``[M, S + 1]`` with a reject class last |
| ``val_logits`` | the same of validation images ``[V, ...]``; needed by what is fitted |
| ``classes`` | int ``[S]``, the class of each column; by default 0 ... S - 1 |
| ``labels``, ``val_labels`` | int ``[M]``, ``[V]``: the true classes |
| ``class_counts`` | int ``[C]``: training images a class, for many, medium and few |

Several experts in one file have names: ``logits_<name>``, ``val_logits_<name>``,
``classes_<name>``. A .npy file is test logits ``[M, C]`` of all classes; its validation logits are
in ``NAME.val.npy`` beside it. Labels and counts may be files of their own on the command line.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .sources import Member, Source

__all__ = ["read_array", "read_logits", "write_logits"]

SUFFIXES = (".npz", ".npy", ".safetensors")
_COMMON = ("labels", "val_labels", "class_counts")


def read_logits(path: Path) -> Source:
    """Read a file of logits.

    Args:
        path: .npz, .npy or .safetensors, see above.

    Raises:
        ValueError: another kind of file, an unknown or a missing name, or a wrong shape.
        OSError: the file cannot be read.
    """
    arrays = _arrays(path)
    kinds = ("val_logits", "logits", "classes")
    experts: dict[str, dict[str, Tensor]] = {}
    for name, value in arrays.items():
        if name in _COMMON:
            continue
        kind = next((k for k in kinds if name == k or name.startswith(f"{k}_")), None)
        if kind is None:
            raise ValueError(
                f"{path}: unknown array {name!r} (there are {', '.join((*kinds, *_COMMON))})"
            )
        experts.setdefault(name[len(kind) + 1 :], {})[kind] = value
    if not any("logits" in parts for parts in experts.values()):
        raise ValueError(f"{path}: the array 'logits' is missing")
    return Source(
        str(path),
        tuple(_member(path, name, parts) for name, parts in experts.items()),
        labels=_integers(path, "labels", arrays.get("labels")),
        validation_labels=_integers(path, "val_labels", arrays.get("val_labels")),
        class_counts=_integers(path, "class_counts", arrays.get("class_counts")),
    )


def _arrays(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".npy":
        beside = path.with_name(f"{path.stem}.val.npy")
        arrays = {"logits": read_array(path)}
        if beside.exists():
            arrays["val_logits"] = read_array(beside)
        return arrays
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as stored:
            return {name: torch.from_numpy(stored[name]) for name in stored.files}
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(path))
    raise ValueError(f"{path}: expected a run's folder or a file {', '.join(SUFFIXES)}")


def read_array(path: Path) -> Tensor:
    """One array of a .npy file."""
    return torch.from_numpy(np.load(path, allow_pickle=False))


def _member(path: Path, name: str, parts: Mapping[str, Tensor]) -> Member:
    label = f"{path}:{name}" if name else str(path)
    suffix = f"_{name}" if name else ""
    if "logits" not in parts:
        raise ValueError(f"{path}: the array 'logits{suffix}' is missing")
    z = _floating(path, f"logits{suffix}", parts["logits"])
    classes = _integers(path, f"classes{suffix}", parts.get("classes"))
    if classes is None:
        classes = torch.arange(z.shape[1])
    validation = None
    if "val_logits" in parts:
        validation = _floating(path, f"val_logits{suffix}", parts["val_logits"])
        if validation.shape[1] != z.shape[1]:
            raise ValueError(
                f"{path}: 'val_logits{suffix}' has {validation.shape[1]} columns, "
                f"'logits{suffix}' has {z.shape[1]}"
            )
    if z.shape[1] not in (len(classes), len(classes) + 1):
        raise ValueError(
            f"{path}: 'logits{suffix}' has {z.shape[1]} columns for {len(classes)} classes"
        )
    return Member(label, classes, z, validation)


def _floating(path: Path, name: str, value: Tensor) -> Tensor:
    if value.dim() != 2 or not value.is_floating_point() or value.shape[1] == 0:
        raise ValueError(
            f"{path}: expected {name!r} to be floating [N, S], got {value.dtype} "
            f"{list(value.shape)}"
        )
    return value if value.dtype == torch.float64 else value.float()


def _integers(path: Path, name: str, value: Tensor | None) -> Tensor | None:
    if value is None:
        return None
    if value.dim() != 1 or value.is_floating_point() or value.dtype == torch.bool:
        raise ValueError(
            f"{path}: expected {name!r} to be integers [N], got {value.dtype} {list(value.shape)}"
        )
    return value.long()


def write_logits(path: Path, source: Source) -> None:
    """Write a source as a .npz file that :func:`read_logits` reads back.

    Raises:
        ValueError: the file's name does not end in .npz.
    """
    from ltkernels.train.checkpoint import write_atomic

    if path.suffix != ".npz":
        raise ValueError(f"{path}: expected a file .npz")
    arrays: dict[str, np.ndarray] = {}
    for i, member in enumerate(source.members):
        short = member.name.rpartition(":")[2] if len(source.members) > 1 else ""
        suffix = f"_{short or i}" if len(source.members) > 1 else ""
        arrays[f"logits{suffix}"] = member.test.numpy()
        arrays[f"classes{suffix}"] = member.classes.numpy()
        if member.validation is not None:
            arrays[f"val_logits{suffix}"] = member.validation.numpy()
    for key, value in (
        ("labels", source.labels),
        ("val_labels", source.validation_labels),
        ("class_counts", source.class_counts),
    ):
        if value is not None:
            arrays[key] = value.numpy()
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(path, buffer.getvalue())
