"""Data-parallel training that gives the numbers of one process.

Every process prepares the same whole batch (its randomness depends on seed and position alone),
runs the network on its own part, and gathers the outputs; every process computes the loss of the
whole batch, and gradients are summed. With batch statistics shared between the processes this is
the computation of one process, up to the order of floating-point sums. Batch normalisation with
statistics of each process alone, as ``DistributedDataParallel`` leaves it, would train another
model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["SharedBatchNorm2d", "World"]


@dataclass(frozen=True)
class World:
    """The processes of a run: this one's number ``rank`` among ``size``."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @staticmethod
    def from_environment() -> World:
        """What torchrun says in its environment variables; one process without them."""
        env = os.environ
        size = int(env.get("WORLD_SIZE", 1))
        return World(
            int(env.get("RANK", 0)),
            size,
            int(env.get("LOCAL_RANK", 0)),
            int(env.get("LOCAL_WORLD_SIZE", size)),
        )

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def start(self, device: torch.device) -> None:
        """Join the process group: gloo on a CPU, NCCL on GPUs. Nothing to do for one process."""
        if self.size > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")

    def stop(self) -> None:
        """Leave the process group."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def barrier(self) -> None:
        """Wait for every process."""
        if self.size > 1:
            dist.barrier()

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        value = torch.tensor(float(flag), device=device)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return bool(value.item())

    def largest(self, number: int, device: torch.device) -> int:
        """The largest of the processes' numbers."""
        if self.size == 1:
            return number
        value = torch.tensor(number, dtype=torch.int64, device=device)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return int(value.item())

    def part(self, rows: Tensor) -> Tensor:
        """This process's rows of ``[N, ...]``: contiguous parts whose sizes differ by at most 1."""
        return rows if self.size == 1 else rows.tensor_split(self.size)[self.rank]

    def gather(self, outputs: Any, n: int) -> Any:
        """The rows of all processes, from each one's :meth:`part`; differentiable in the own rows.

        Args:
            outputs: a tensor ``[part, ...]``, or a tuple, list or dict of such.
            n: rows of the whole batch.

        Returns:
            The same structure with tensors ``[n, ...]``.
        """
        if self.size == 1:
            return outputs
        if isinstance(outputs, Tensor):
            sizes = [len(part) for part in torch.empty(n).tensor_split(self.size)]
            gathered: Tensor = _Gather.apply(outputs, sizes, self.rank)  # type: ignore[no-untyped-call]
            return gathered
        if isinstance(outputs, Mapping):
            return {key: self.gather(value, n) for key, value in outputs.items()}
        return type(outputs)(self.gather(value, n) for value in outputs)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes, in one transfer."""
        if self.size == 1:
            return
        gradients = []
        for p in parameters:
            if p.grad is None:  # unused by this process; it still takes part in the sum
                p.grad = torch.zeros_like(p)
            gradients.append(p.grad)
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        for g, total in zip(
            gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True
        ):
            g.copy_(total.view(g.shape))

    def share_batch_norm(self, module: nn.Module) -> None:
        """Turn every BatchNorm2d of a module into a :class:`SharedBatchNorm2d`, in place."""
        if self.size == 1:
            return
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, SharedBatchNorm2d.of(child))
            else:
                self.share_batch_norm(child)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int], rank: int) -> Tensor:
        ctx.sizes, ctx.rank = sizes, rank
        padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        # Every process computes the same loss, so each keeps the gradient of its own rows.
        return torch.split(gradient, ctx.sizes)[ctx.rank], None, None


class _Sum(torch.autograd.Function):
    """Sum over the processes; every process's result depends on every input, so does backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def _sum_over_processes(x: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(x)  # type: ignore[no-untyped-call]
    return total


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose batch statistics are those of all processes' images.

    Works on a CPU too, where ``torch.nn.SyncBatchNorm`` does not.
    """

    @classmethod
    def of(cls, source: nn.BatchNorm2d) -> SharedBatchNorm2d:
        """A shared layer with the parameters and buffers of ``source``."""
        shared = cls(
            source.num_features,
            source.eps,
            source.momentum,
            source.affine,
            source.track_running_stats,
        )
        for name, parameter in source.named_parameters():
            setattr(shared, name, parameter)
        for name, buffer in source.named_buffers():
            setattr(shared, name, buffer)
        return shared.train(source.training)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``[N, channels, H, W]`` by the statistics over all processes."""
        if not self.training or not dist.is_initialized():
            return super().forward(input)
        x = input.float()
        total = _sum_over_processes(x.sum((0, 2, 3)))
        count = input.new_tensor(input.numel() // self.num_features, dtype=torch.float32)
        dist.all_reduce(count)
        mean = total / count
        centred = x - mean[:, None, None]
        variance = _sum_over_processes(centred.square().sum((0, 2, 3))) / count
        if self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            with torch.no_grad():
                self.num_batches_tracked += 1
                momentum = (
                    1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                )
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * count / (count - 1), momentum)
        normal: Tensor = centred * (variance + self.eps).rsqrt()[:, None, None]
        if self.affine:
            normal = normal * self.weight[:, None, None] + self.bias[:, None, None]
        return normal.to(input.dtype)
