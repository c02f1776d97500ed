"""`info_nce`, as its definition is called."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from .._checks import Reduction, Temperature


def info_nce(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    temperature: Temperature = 0.2,
    reduction: Reduction = "mean",
) -> Tensor:
    return reference.info_nce(
        query,
        key,
        queue,
        temperature,
        reduction,
    )


info_nce.__doc__ = reference.info_nce.__doc__
