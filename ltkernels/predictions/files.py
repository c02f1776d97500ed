"""Logits in files of any origin: NumPy's .npz and .npy, and safetensors.

Arrays of a .npz or .safetensors file:

| name | what |
|---|---|
| ``logits`` | test logits ``[M, S]``, or ``[M, S + 1]`` with a reject class last |
| ``val_logits`` | the same of validation images ``[V, ...]``; needed by what is fitted |
| ``classes`` | int ``[S]``, the class of each column; by default 0 ... S - 1 |
| ``labels``, ``val_labels`` | int ``[M]``, ``[V]``: the true classes |
| ``class_counts`` | int ``[C]``: training images a class, for many, medium and few |
| ``rule``, ``split`` | text: which classes are many, medium and few; hash of the training images |

Several experts in one file have names: ``logits_<name>``, ``val_logits_<name>``,
``classes_<name>``. In safetensors, text stands in the metadata, as does the order of the experts
where it is not that of their names (``experts``, a JSON list).

A .npy file is test logits ``[M, C]`` of all classes; its validation logits are in ``NAME.val.npy``
beside it. Labels and counts may be files of their own on the command line.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from ltkernels.metrics import SHOT_RULES

from .source import Member, Source

__all__ = ["read_array", "read_integers", "read_logits", "write_logits"]

SUFFIXES = (".npz", ".npy", ".safetensors")
_COMMON = ("labels", "val_labels", "class_counts")
_TEXT = ("rule", "split")


def read_logits(path: Path) -> Source:
    """Read a file of logits.

    Args:
        path: .npz, .npy or .safetensors, see above.

    Raises:
        ValueError: another kind of file, an unknown or a missing name, or a wrong shape.
        OSError: the file cannot be read.
    """
    arrays, text = _contents(path)
    kinds = ("val_logits", "logits", "classes")
    experts: dict[str, dict[str, Tensor]] = {}
    for name, value in arrays.items():
        if name in _COMMON:
            continue
        kind = next((k for k in kinds if name == k or name.startswith(f"{k}_")), None)
        if kind is None:
            raise ValueError(
                f"{path}: unknown array {name!r} "
                f"(there are {', '.join((*kinds, *_COMMON, *_TEXT))})"
            )
        experts.setdefault(name[len(kind) + 1 :], {})[kind] = value
    if not any("logits" in parts for parts in experts.values()):
        raise ValueError(f"{path}: the array 'logits' is missing")
    rule = text.get("rule", "")
    if rule and rule not in SHOT_RULES:
        raise ValueError(
            f"{path}: expected 'rule' to be one of {', '.join(SHOT_RULES)}, got {rule!r}"
        )
    order = json.loads(text.get("experts", "[]"))
    names = sorted(experts, key=lambda name: order.index(name) if name in order else len(order))
    return Source(
        str(path),
        tuple(_member(path, name, experts[name]) for name in names),
        labels=_maybe_integers(path, "labels", arrays.get("labels")),
        validation_labels=_maybe_integers(path, "val_labels", arrays.get("val_labels")),
        class_counts=_maybe_integers(path, "class_counts", arrays.get("class_counts")),
        rule=rule,
        split=text.get("split", ""),
    )


def _contents(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The arrays of a file, and its text."""
    if path.suffix == ".npy":
        beside = path.with_name(f"{path.stem}.val.npy")
        arrays = {"logits": read_array(path)}
        if beside.exists():
            arrays["val_logits"] = read_array(beside)
        return arrays, {}
    if path.suffix == ".npz":
        with _named(path), np.load(path, allow_pickle=False) as stored:
            numbers = {n: torch.from_numpy(stored[n]) for n in stored.files if n not in _TEXT}
            return numbers, {n: str(stored[n]) for n in stored.files if n in _TEXT}
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with _named(path), safe_open(path, framework="pt", device="cpu") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return arrays, dict(file.metadata() or {})
    raise ValueError(f"{path}: expected a run's folder or a file {', '.join(SUFFIXES)}")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """The readers' errors name no file."""
    from safetensors import SafetensorError

    try:
        yield
    except (ValueError, TypeError, EOFError, KeyError, BadZipFile, SafetensorError) as error:
        raise ValueError(f"{path}: not a readable {path.suffix} file of numbers") from error


def read_array(path: Path) -> Tensor:
    """One array of a .npy file.

    Raises:
        ValueError: it is none.
        OSError: the file cannot be read.
    """
    with _named(path):
        return torch.from_numpy(np.load(path, allow_pickle=False))


def read_integers(path: Path) -> Tensor:
    """Labels or counts of a .npy file, int64 ``[N]``.

    Raises:
        ValueError: it is no such file.
        OSError: the file cannot be read.
    """
    return _integers(path, "the array", read_array(path))


def _member(path: Path, name: str, parts: Mapping[str, Tensor]) -> Member:
    label = f"{path}:{name}" if name else str(path)
    suffix = f"_{name}" if name else ""
    if "logits" not in parts:
        raise ValueError(f"{path}: the array 'logits{suffix}' is missing")
    z = _floating(path, f"logits{suffix}", parts["logits"])
    classes = _maybe_integers(path, f"classes{suffix}", parts.get("classes"))
    if classes is None:
        classes = torch.arange(z.shape[1])
    elif len(set(classes.tolist())) < len(classes):
        twice = int(classes[classes == classes.mode().values][0])
        raise ValueError(f"{path}: expected 'classes{suffix}' to be distinct, got {twice} twice")
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
    if len(value) == 0:
        raise ValueError(f"{path}: expected {name!r} to have a row at least, got none")
    if bool((value.isnan() | value.isposinf()).any()):
        raise ValueError(f"{path}: expected {name!r} to be numbers or -inf, got NaN or +inf")
    return value if value.dtype == torch.float64 else value.float()


def _maybe_integers(path: Path, name: str, value: Tensor | None) -> Tensor | None:
    return None if value is None else _integers(path, name, value)


def _integers(path: Path, name: str, value: Tensor) -> Tensor:
    if value.dim() != 1 or value.is_floating_point() or value.dtype == torch.bool:
        raise ValueError(
            f"{path}: expected {name!r} to be integers [N], got {value.dtype} {list(value.shape)}"
        )
    if len(value) and int(value.min()) < 0:
        raise ValueError(f"{path}: expected {name!r} >= 0, got {int(value.min())}")
    return value.long()


def write_logits(path: Path, source: Source) -> None:
    """Write a source as a file that :func:`read_logits` reads back.

    Raises:
        ValueError: the file's name ends neither in .npz nor in .safetensors.
    """
    from ltkernels.train.checkpoint import write_atomic

    if path.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"{path}: expected a file .npz or .safetensors")
    arrays: dict[str, Tensor] = {}
    several = len(source.members) > 1
    names = [m.name.rpartition(":")[2] or str(i) for i, m in enumerate(source.members)]
    for name, member in zip(names, source.members, strict=True):
        suffix = f"_{name}" if several else ""
        arrays[f"logits{suffix}"] = member.test
        arrays[f"classes{suffix}"] = member.classes
        if member.validation is not None:
            arrays[f"val_logits{suffix}"] = member.validation
    for key in _COMMON:
        value = getattr(source, "validation_labels" if key == "val_labels" else key)
        if value is not None:
            arrays[key] = value
    text = {key: getattr(source, key) for key in _TEXT if getattr(source, key)}
    if path.suffix == ".npz":
        buffer = io.BytesIO()
        numbers = {name: value.numpy() for name, value in arrays.items()}
        np.savez(buffer, **numbers, **{k: np.array(v) for k, v in text.items()})  # type: ignore[arg-type]
        write_atomic(path, buffer.getvalue())
        return
    from safetensors.torch import save

    if several:
        text["experts"] = json.dumps(names)
    # Of tensors that share memory, as the experts' classes may, safetensors will have none.
    write_atomic(path, save({k: v.contiguous().clone() for k, v in arrays.items()}, text))
