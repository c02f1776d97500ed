"""Where the time of a small batch goes: each loss from call to gradient, layer by layer.

    python bench/overhead.py
    python bench/overhead.py --shape 128x100 --dtype bf16 --out bench/results/overhead

One real call is recorded; then its layers (the checks, the op, the scaling of the gradient) are
called by themselves with the recorded arguments, in one rotation with the whole call and its
halves. A layer that cannot be called alone is the difference of two calls that can, so the layers
of a loss add up to its whole. A loss without a fused op is divided into module, checks, definition
and backward pass.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from measure import (
    Quartiles,
    Usage,
    describe,
    environment,
    interleave,
    load,
    parse_shape,
    write_report,
)
from peers import CASES, DTYPES, TEMPERATURE, Case, Problem, matrices, problem, step
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

import ltkernels
from ltkernels import _backend, _checks, _ops
from ltkernels.losses import BalancedSoftmaxLoss, BKDLoss, RIDELoss

CALLS = 20  # a sample: long against the clock's resolution, short against a time slice
HOST = torch.device("cpu")  # whose time is measured, also where the kernels run elsewhere


# --- recording -----------------------------------------------------------------------------------


@dataclass
class Recorded:
    """One call of a function, to be repeated."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self) -> Any:
        return self.function(*self.args, **self.kwargs)


def recorded(places: Sequence[tuple[Any, str]], call: Callable[[], Any]) -> Recorded | None:
    """The one call that `call()` makes of any of the functions `owner.name`, if it makes one.

    Raises:
        RuntimeError: where it makes several: the layers of the package have changed.
    """
    calls: list[Recorded] = []

    def recorder(function: Callable[..., Any]) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> Any:
            calls.append(Recorded(function, args, kwargs))
            return function(*args, **kwargs)

        return record

    with ExitStack() as patches:
        for owner, name in places:
            patches.enter_context(patch.object(owner, name, recorder(getattr(owner, name))))
        call()
    if len(calls) > 1:
        raise RuntimeError(
            f"{places[0][1]} was called {len(calls)} times instead of once: "
            "the layers in bench/overhead.py are no longer those of the package"
        )
    return calls[0] if calls else None


def native_ops() -> list[tuple[Any, str]]:
    """Where the package looks up the kernels of its forward passes."""
    names = [name for name, x in vars(_ops).items() if isinstance(x, torch._ops.OpOverload)]
    return [(_ops, name) for name in names if name != "scale_gradient"]


def scalings() -> list[tuple[Any, str]]:
    """Where its backward passes look up the scaling of the gradient."""
    modules = [module for name, module in sys.modules.items() if name.startswith("ltkernels.")]
    return [(module, "scaled") for module in modules if "scaled" in vars(module)]


# --- the losses ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A loss to take apart.

    Attributes:
        op: its name in ltkernels.functional and in ltkernels._checks.
        case: the eager code it stands beside, with the same arguments.
        loss: (class counts) -> the callable under test.
        arguments: how many of the case's arguments it takes; a module holds the constants.
    """

    op: str
    case: Case
    loss: Callable[[list[int]], Callable[..., Tensor]]
    arguments: int


def _kd_loss(counts: list[int]) -> Callable[..., Tensor]:
    return lambda student, teacher: ltkernels.functional.kd_loss(student, teacher, TEMPERATURE)


def _ride_loss(counts: list[int]) -> Callable[..., Tensor]:
    """With class weights and temperatures in force, as in the last epochs."""
    return RIDELoss(counts, additional_diversity_factor=DIVERSITY, reweight_epoch=0)


DIVERSITY = -0.45


def _ride(
    experts: list[Tensor], target: Tensor, margin: Tensor, weight: Tensor, temperature: Tensor
) -> Tensor:
    """RIDE as in its official code."""
    q = softmax(sum(z.detach() for z in experts) / len(experts) / temperature, dim=1)
    loss = experts[0].new_zeros(())
    for z in experts:
        of_target = torch.zeros_like(z, dtype=torch.bool).scatter_(1, target.unsqueeze(1), True)
        shifted = torch.where(of_target, z - margin[target].unsqueeze(1), z)
        loss = loss + cross_entropy(shifted, target, weight=weight)
        divergence = kl_div(log_softmax(z / temperature, dim=1), q, reduction="batchmean")
        loss = loss + DIVERSITY * temperature.mean() ** 2 * divergence
    return loss


RIDE = Case(
    "ride",
    _ride,
    ltkernels.functional.ride_loss,
    lambda d: (d.expert_logits(), d.target(), d.margin(), d.weight(), d.uniform(1, 2, d.classes)),
    floor=matrices(6),
)

SUBJECTS = {
    "kd_loss": Subject("kd_loss", CASES["kd"], _kd_loss, 2),
    "BKDLoss": Subject("bkd_loss", CASES["bkd"], BKDLoss, 3),
    "RIDELoss": Subject("ride_loss", RIDE, _ride_loss, 2),
    "BalancedSoftmaxLoss": Subject(
        "adjusted_cross_entropy", CASES["balanced_softmax"], BalancedSoftmaxLoss, 2
    ),
}


class _Empty(torch.autograd.Function):
    """What any Python autograd function costs: a gradient saved and given back."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        ctx.save_for_backward(torch.empty_like(logits))
        return logits.new_empty(())

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        (gradient,) = ctx.saved_tensors
        return gradient


# --- taking apart --------------------------------------------------------------------------------


@dataclass
class Breakdown:
    """Microseconds of each layer; they add up to `whole`."""

    loss: str
    layers: dict[str, float]
    whole: Quartiles
    eager: Quartiles
    empty_function: Quartiles

    def to_markdown(self) -> str:
        total = self.whole.median
        lines = [f"### {self.loss}", "", "| layer | us | share |", "| --- | --- | --- |"]
        lines += [
            f"| {name} | {us:.1f} | {100 * us / total:.0f} % |" for name, us in self.layers.items()
        ]
        lines += [
            f"| **whole** | **{total:.1f}** ({self.whole.low:.1f}-{self.whole.high:.1f}) | |",
            f"| eager PyTorch | {self.eager.median:.1f} | {self.eager.median / total:.2f}x |",
            f"| an empty Python autograd function | {self.empty_function.median:.1f} | |",
        ]
        return "\n".join(lines)


def break_down(
    name: str, shape: tuple[int, int], dtype: torch.dtype, device: torch.device, rounds: int
) -> Breakdown:
    """Record and time the layers of one loss."""
    subject = SUBJECTS[name]

    def caller(rows: int, classes: int) -> tuple[Callable[[], Tensor], Problem]:
        drawn = problem(subject.case, rows, classes, dtype, device)
        loss = subject.loss([100] * classes)
        if isinstance(loss, torch.nn.Module):
            loss.to(device)
        used = drawn.args[: subject.arguments]
        return lambda: loss(*used), drawn

    outer, drawn = caller(*shape)
    outer_tiny, _ = caller(1, 1)
    student = drawn.leaves[0]

    def both(call: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            drawn.reset()
            call().backward()

        return run

    def without_gradient() -> Tensor:
        with torch.no_grad():
            return outer()

    def nothing() -> None:
        pass

    function = recorded([(ltkernels.functional, subject.op)], outer) if _is_module(name) else None
    op = recorded(native_ops(), outer)
    with_gradient: dict[str, Callable[[], Any]] = {
        "whole": both(outer),
        "outer": outer,
        "forward": function or outer,
        "checks": recorded([(_checks, subject.op)], outer) or nothing,
        "eager": lambda: step(subject.case.eager, drawn),
        "empty": both(lambda: _Empty.apply(student)),
    }
    switched_off: dict[str, Callable[[], Any]] = {}
    if op:
        with_gradient["choice"] = recorded([(_backend, "use_fused")], outer) or nothing
        # The kernel runs in forward, the scaling in backward: both where gradients are off.
        switched_off = {
            "plain": function or outer,
            "op": op,
            "op of one logit": recorded(native_ops(), outer_tiny) or nothing,
            "op without gradient": recorded(native_ops(), without_gradient) or nothing,
            "scaling": recorded(scalings(), both(outer)) or nothing,
        }
    us = {key: Quartiles.of(values) for key, values in _timed(with_gradient, switched_off, rounds)}
    t = {key: value.median for key, value in us.items()}
    layers = {
        "module: call and state": t["outer"] - t["forward"],
        "checks of the arguments": t["checks"],
    }
    if op:
        layers |= {
            "choice of the backend": t["choice"],
            "preparing the constants": t["plain"]
            - t["checks"]
            - t["choice"]
            - t["op without gradient"],
            "op: dispatch and allocation": t["op of one logit"],
            "op: kernel": t["op"] - t["op of one logit"],
            "autograd: forward": t["forward"] - t["plain"] + t["op without gradient"] - t["op"],
            "autograd: scaling of the gradient": t["scaling"],
            "autograd: backward, the rest": t["whole"] - t["outer"] - t["scaling"],
        }
    else:
        layers |= {
            "definition, no fused op": t["forward"] - t["checks"],
            "autograd: backward": t["whole"] - t["outer"],
        }
    if not _is_module(name):
        layers.pop("module: call and state")
    return Breakdown(name, layers, us["whole"], us["eager"], us["empty"])


def _timed(
    with_gradient: dict[str, Callable[[], Any]],
    switched_off: dict[str, Callable[[], Any]],
    rounds: int,
) -> Iterable[tuple[str, list[float]]]:
    """Microseconds of every call, the second group with gradients switched off."""
    samples: dict[str, list[float]] = {call: [] for call in (*with_gradient, *switched_off)}
    for i in range(rounds + 1):
        for group, enabled in ((with_gradient, True), (switched_off, False)):
            with torch.set_grad_enabled(enabled):
                calls = {key: _numbered(call) for key, call in group.items()}
                timed = interleave(calls, rounds=1, inner=CALLS, device=HOST) if calls else {}
                for key, seconds in timed.items():
                    if i:  # the first round warms up
                        samples[key] += [1e6 * x for x in seconds]
    return samples.items()


def _is_module(name: str) -> bool:
    return name[0].isupper()


def _numbered(call: Callable[[], Any]) -> Callable[[int], Any]:
    return lambda _: call()


# --- the run -------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--shape", type=parse_shape, default=(128, 100), help="rows x classes")
    add("--dtype", choices=tuple(DTYPES), default="fp32", help="of the logits")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: the host's time alone")
    add("--threads", type=int, default=1, help="of torch")
    add("--repeats", type=int, default=100, help=f"rounds, {CALLS} calls of each layer a round")
    add("--out", type=Path, metavar="STEM", help="also write STEM.json and STEM.md")
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    facts = environment(device)
    before = Usage.until_now()
    parts = [
        break_down(name, options.shape, DTYPES[options.dtype], device, options.repeats)
        for name in SUBJECTS
    ]
    usage, after = Usage.until_now() - before, load()
    rows, classes = options.shape
    title = f"{rows}x{classes} {options.dtype}, forward + backward, medians"
    lines = [*usage.describe(facts["load"], after), describe(facts), title]
    header = "\n".join(f"- {line}" for line in lines)
    text = "\n\n".join([header, *(part.to_markdown() for part in parts)]) + "\n"
    print(text)
    if options.out:
        document = {
            "environment": facts,
            "shape": options.shape,
            "dtype": options.dtype,
            "load_after": after,
            "usage": usage.to_dict(),
            "losses": [asdict(part) for part in parts],
        }
        write_report(options.out, document, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
