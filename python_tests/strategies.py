"""Hypothesis strategies for what every op takes: logits of all layouts and values, temperatures.

An example holds small descriptions (readable when it fails) that `built` turns into tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

LAYOUTS = ("contiguous", "transposed", "columns", "strided", "rows", "expanded", "unaligned")
SPREADS = {"normal": 2.0, "sharp": 30.0, "huge": 1e4, "equal": 0.0, "low": 3.0}
# Where -inf (or NaN) lies: nowhere; a third of the classes; all classes but one; the first half of
# the classes; all of row 0; NaN at one class of row 0.
HOLES = ("none", "scattered", "most", "leading", "row", "nan")

seeds = st.integers(0, 2**20)
rows = st.sampled_from([1, 2, 3, 5, 17]) | st.just(0)
# Every remainder of the vector widths, and both sides of the kernels' chunk of 1024.
classes = st.one_of(
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from([255, 256, 257, 1000, 1023, 1024, 1025, 2047, 2048, 2049, 8142]),
)


@dataclass(frozen=True)
class Made:
    """The result of a function, called when the example is built."""

    function: Callable[..., Any]
    args: tuple[Any, ...]

    def __repr__(self) -> str:
        return f"{self.function.__name__}({', '.join(map(repr, self.args))})"

    def build(self) -> Any:
        return self.function(*self.args)


def made(function: Callable[..., Any], *args: Any) -> Made:
    return Made(function, args)


def built(call: Mapping[str, Any]) -> dict[str, Any]:
    """The call with its descriptions turned into values."""
    described = (Made, Logits, Temperature)
    return {k: v.build() if isinstance(v, described) else v for k, v in call.items()}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Logits:
    """`[rows, classes]` logits."""

    rows: int
    classes: int
    dtype: torch.dtype
    layout: str
    spread: str
    holes: str
    seed: int

    def build(self) -> Tensor:
        random = generator(self.seed)
        n, c = (1 if self.layout == "expanded" else self.rows), self.classes
        x = torch.randn(n, c, generator=random, dtype=torch.float64) * SPREADS[self.spread]
        x = (x - 500 * (self.spread == "low")).clamp(-6e4, 6e4)  # within float16
        if n > 0:
            kept = torch.randint(c, (n, 1), generator=random)
            hole = torch.zeros(n, c, dtype=torch.bool)
            if self.holes == "scattered":
                hole = torch.rand(n, c, generator=random) < 1 / 3
            if self.holes == "most":
                hole[:] = True
            if self.holes == "leading":
                hole[:, : (c + 1) // 2] = True
                kept[:] = c - 1
            hole.scatter_(1, kept, False)
            if self.holes == "row":
                hole[0] = True
            x[hole] = -math.inf
            if self.holes == "nan":
                x[0, kept[0]] = math.nan
        return laid_out(x.to(self.dtype), self.layout, self.rows)


def laid_out(x: Tensor, layout: str, rows: int) -> Tensor:
    """The values of `x` in another memory layout, with NaN in all gaps."""
    n, c = x.shape
    if layout == "transposed":
        return x.t().contiguous().t()
    if layout == "columns":
        wide = x.new_full((n, c + 5), math.nan)
        wide[:, 3 : 3 + c] = x
        return wide[:, 3 : 3 + c]
    if layout == "strided":
        wide = x.new_full((n, 2 * c), math.nan)
        wide[:, ::2] = x
        return wide[:, ::2]
    if layout == "rows":
        tall = x.new_full((2 * n, c), math.nan)
        tall[::2] = x
        return tall[::2]
    if layout == "expanded":
        return x.expand(rows, c)
    if layout == "unaligned":
        flat = x.new_full((n * c + 1,), math.nan)
        flat[1:] = x.reshape(-1)
        return flat[1:].view(n, c)
    return x


def logits(
    rows: int, classes: int, dtype: torch.dtype, holes: tuple[str, ...] = HOLES
) -> st.SearchStrategy[Logits]:
    """Logits of one shape and dtype; mostly without holes and of the plain layout."""
    return st.builds(
        Logits,
        st.just(rows),
        st.just(classes),
        st.just(dtype),
        st.just("contiguous") | st.sampled_from(LAYOUTS),
        st.just("normal") | st.sampled_from(sorted(SPREADS)),
        st.just("none") | st.sampled_from(holes),
        seeds,
    )


@dataclass(frozen=True)
class Temperature:
    """In 0.05..100, of one kind: "number", "scalar" `[1]`, "class" `[C]`, "sample" `[N, 1]`."""

    kind: str
    rows: int
    classes: int
    middle: float
    dtype: torch.dtype
    seed: int

    def build(self) -> float | Tensor:
        if self.kind == "number":
            return self.middle
        shape = {"scalar": (1,), "class": (self.classes,), "sample": (self.rows, 1)}[self.kind]
        factor = torch.rand(shape, generator=generator(self.seed), dtype=torch.float64) + 0.5
        return (self.middle * factor).clamp(0.05, 100).to(self.dtype)


def temperatures(rows: int, classes: int) -> st.SearchStrategy[Temperature]:
    return st.builds(
        Temperature,
        st.sampled_from(["number", "number", "scalar", "class", "sample"]),
        st.just(rows),
        st.just(classes),
        st.sampled_from([1.0, 2.0, 4.0, 0.05, 100.0]) | st.floats(0.05, 100),
        st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16]),
        seeds,
    )


def vector(size: int, seed: int, low: float, high: float, zeros: bool = False) -> Tensor:
    """float32 in low..high, one of them 0 if asked."""
    x = low + (high - low) * torch.rand(size, generator=generator(seed))
    if zeros and size > 1:
        x[torch.randint(size, (), generator=generator(seed))] = 0
    return x


def class_indices(size: int, classes: int, seed: int) -> Tensor:
    return torch.randint(classes, (size,), generator=generator(seed))


def class_subset(size: int, classes: int, seed: int) -> Tensor:
    return torch.randperm(classes, generator=generator(seed))[:size]


def probabilities(rows: int, classes: int, seed: int) -> Tensor:
    x = torch.rand(rows, classes, generator=generator(seed))
    return x / x.sum(dim=1, keepdim=True)


def one_hot(rows: int, classes: int, seed: int) -> Tensor:
    return torch.nn.functional.one_hot(class_indices(rows, classes, seed), classes).float()
