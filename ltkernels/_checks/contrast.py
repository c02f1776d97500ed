"""Arguments of `info_nce`."""

from __future__ import annotations

from torch import Tensor

from .arguments import (
    TemperatureKind,
    embedding,
    reduction,
    shape_of,
    temperature,
    wrong_shape,
)


def info_nce(
    query: object, key: object, queue: object, temperature_: object, reduction_: object
) -> TemperatureKind:
    """Check the arguments of `info_nce`; returns the kind of its temperature."""
    op = "info_nce"
    q = embedding(op, "query", query)
    rows, width = q.shape
    k = embedding(op, "key", key, like=q)
    if k.shape != q.shape:
        raise wrong_shape(op, "key", "[N, D]", [rows, width], k)
    negatives = embedding(op, "queue", queue, like=q)
    if negatives.shape[1] != width:
        raise wrong_shape(op, "queue", "[Q, D]", [negatives.shape[0], width], negatives)
    reduction(op, reduction_)
    # One a column of similarities would have no meaning.
    kinds: tuple[list[int], ...] = ([], [1], [1, 1], [rows, 1])
    if isinstance(temperature_, Tensor) and list(temperature_.shape) not in kinds:
        raise ValueError(
            f"`{op}`: expected `temperature` to be a number or [N, 1] = [{rows}, 1], "
            f"got {shape_of(temperature_)}"
        )
    return temperature(op, temperature_, rows, 1 + negatives.shape[0], q)
