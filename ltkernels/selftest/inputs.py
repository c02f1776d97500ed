"""The inputs of a call, made from a few numbers and a seed.

A failing call is printed with the source of these functions. So each stands on its own: it uses
`math`, `torch`, `Tensor` and its `HELPERS`, and nothing else of this package.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def laid_out(x: Tensor, layout: str, rows: int) -> Tensor:
    """The values of `x` in another memory layout, with NaN in all gaps."""
    n, c = x.shape
    if layout == "transposed":
        return x.t().contiguous().t()
    if layout == "expanded":
        return x[:1].expand(rows, c)
    gaps = {"columns": (n, c + 5), "strided": (n, 2 * c), "rows": (2 * n, c)}
    if layout in gaps:
        wide = x.new_full(gaps[layout], math.nan)
        view = {"columns": wide[:, 3 : 3 + c], "strided": wide[:, ::2], "rows": wide[::2]}[layout]
    elif layout == "unaligned":
        view = x.new_full((n * c + 1,), math.nan)[1:].view(n, c)
    else:
        return x
    return view.copy_(x)


def logits(
    rows: int,
    classes: int,
    dtype: torch.dtype,
    *,
    seed: int,
    device: str,
    layout: str = "contiguous",
    spread: float = 2.0,
    level: float = 0.0,
    holes: str = "none",
) -> Tensor:
    """`[rows, classes]`, normal around `level`; `holes` says where -inf (or NaN) lies."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, classes, generator=random, dtype=torch.float64) * spread + level
    x = x.clamp(-6e4, 6e4)  # within float16
    kept = torch.randint(classes, (rows, 1), generator=random)  # every row keeps one
    hole = torch.zeros(rows, classes, dtype=torch.bool)
    if holes == "scattered":
        hole = torch.rand(rows, classes, generator=random) < 1 / 3
    elif holes == "most":
        hole[:] = True
    elif holes == "leading":
        hole[:, : (classes + 1) // 2] = True
        kept[:] = classes - 1
    hole.scatter_(1, kept, False)
    if holes == "row":
        hole[:1] = True
    x[hole] = -math.inf
    if holes == "nan" and rows > 0:
        x[0, kept[0]] = math.nan
    return laid_out(x.to(device, dtype), layout, rows)


def uniform(
    *shape: int,
    seed: int,
    device: str,
    low: float = 0.0,
    high: float = 1.0,
    zeros: float = 0.0,
    dtype: torch.dtype = torch.float32,
    strided: bool = False,
) -> Tensor:
    """Numbers of low..high, a share `zeros` of them 0."""
    random = torch.Generator().manual_seed(seed)
    x = low + (high - low) * torch.rand(shape, generator=random, dtype=torch.float64)
    x[torch.rand(shape, generator=random) < zeros] = 0.0
    x = x.to(device, dtype)
    return torch.stack([x, x], dim=-1)[..., 0] if strided else x


def class_indices(
    rows: int,
    classes: int,
    *,
    seed: int,
    device: str,
    strided: bool = False,
    ignored: float = 0.0,
    ignore_index: int = -100,
) -> Tensor:
    """int64 `[rows]`, a share `ignored` of them `ignore_index`."""
    random = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (rows,), generator=random)
    y[torch.rand(rows, generator=random) < ignored] = ignore_index
    y = y.to(device)
    return torch.stack([y, y], dim=1)[:, 0] if strided else y


def class_subset(
    size: int, classes: int, *, seed: int, device: str, order: str = "random"
) -> Tensor:
    """int64 `[size]`, distinct: in a random order, in theirs, or one after the other."""
    random = torch.Generator().manual_seed(seed)
    subset = torch.randperm(classes, generator=random)[:size]
    if order == "sorted":
        subset = subset.sort().values
    elif order == "neighbours":
        first = torch.randint(classes - size + 1, (), generator=random)
        subset = first + torch.arange(size)
    return subset.to(device)


def probabilities(rows: int, classes: int, *, seed: int, device: str, hard: bool) -> Tensor:
    """float32 `[rows, classes]`, rows of sum 1, one-hot if `hard`."""
    random = torch.Generator().manual_seed(seed)
    x = torch.rand(rows, classes, generator=random)
    if hard:
        x = (x == x.amax(dim=1, keepdim=True)).float()
    return (x / x.sum(dim=1, keepdim=True)).to(device)


def log_prior(classes: int, *, seed: int, device: str, absent: bool) -> Tensor:
    """log n_c of a long-tailed set, `[classes]`; `absent`: some classes have no image, log 0."""
    random = torch.Generator().manual_seed(seed)
    counts = 1 + (1000 * torch.rand(classes, generator=random).pow(4)).floor()
    if absent:
        counts[torch.rand(classes, generator=random) < 0.1] = 0
    return counts.log().to(device)


# The functions that one of the others calls, to be printed along with it.
HELPERS: dict[Callable[..., Any], tuple[Callable[..., Any], ...]] = {logits: (laid_out,)}
