"""The training loop that all methods share."""

from __future__ import annotations

import json
import math
import os
import time
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ltkernels.data.inputs import load_batches
from ltkernels.data.sampling import derived_generator
from ltkernels.methods.method import Batch
from ltkernels.train.checkpoint import load_checkpoint, save_checkpoint, write_atomic
from ltkernels.train.evaluation import in_layout, predict_logits, score
from ltkernels.train.interrupt import Interrupted, Interruption
from ltkernels.train.memory import peak_memory, restart_peak
from ltkernels.train.randomness import seed_global
from ltkernels.train.schedule import lr_factor

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from ltkernels.data import Inputs, LongTailedDataset
    from ltkernels.methods import Method
    from ltkernels.methods.method import Stage
    from ltkernels.train.config import Config
    from ltkernels.train.distributed import World
    from ltkernels.train.progress import Progress

__all__ = ["Trainer", "TrainingError", "resolve_device", "use_threads"]

# Reading a loss from a GPU waits for it; there the loss is checked once in so many steps.
_CHECK_EVERY = 50


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what was kept."""


def resolve_device(name: str, world: World) -> torch.device:
    """The device that a configuration means.

    Args:
        name: ``auto`` or a torch device.
        world: the processes of the run; each takes the GPU of its local rank.

    Returns:
        The device, also made the current one where it is a GPU.

    Raises:
        TrainingError: the device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise TrainingError(
            f"unknown device {name!r}: expected auto, cpu, cuda or cuda:1 ..."
        ) from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise TrainingError(f"device {name!r} was asked for, but torch sees no CUDA device")
        index = world.local_rank if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise TrainingError(f"no device cuda:{index}: there are {torch.cuda.device_count()}")
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    return device


def use_threads(threads: int, world: World) -> int:
    """Set the CPU threads of this process; 0 means its share of the cores it may run on.

    Returns:
        The number of threads now used.
    """
    if threads == 0:
        available = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
        threads = max(1, available // world.local_size)
    torch.set_num_threads(threads)
    return threads


@dataclass
class _Position:
    """The next step to make, and what the steps of its epoch added up to so far."""

    stage: int = 0
    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    seen: int = 0

    def next_epoch(self) -> None:
        self.epoch, self.step, self.loss_sum, self.seen = self.epoch + 1, 0, 0.0, 0

    def next_stage(self) -> None:
        self.next_epoch()
        self.stage, self.epoch = self.stage + 1, 0


class Trainer:
    """Runs a method's stages from wherever its checkpoint stands to the end.

    Args:
        method: what is trained, already on the device.
        config: the resolved configuration.
        dataset: training and test inputs.
        validation: inputs and labels held out of training; None for none.
        device: where to train.
        out: folder of ``checkpoint.pt`` and ``metrics.jsonl``.
        progress: told about every step.
        world: the processes of the run.
    """

    def __init__(
        self,
        method: Method,
        config: Config,
        dataset: LongTailedDataset,
        validation: tuple[Inputs, Tensor] | None,
        *,
        device: torch.device,
        out: Path,
        progress: Progress,
        world: World,
    ) -> None:
        self.method, self.config, self.dataset = method, config, dataset
        self.device = device
        self.checkpoint, self.metrics = out / "checkpoint.pt", out / "metrics.jsonl"
        self.progress, self.world = progress, world
        self.history: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.best: dict[str, Any] | None = None
        self.peak_memory: int | None = None
        """Bytes at the most, of the process that took most; see ``memory.peak_memory``."""
        restart_peak(device)
        self._class_counts = dataset.class_counts
        # What is in memory lives on the device as it is stored; a step then only indexes it.
        self._inputs = dataset.train_inputs
        if isinstance(self._inputs, Tensor):
            self._inputs = self._inputs.to(device)
        self._labels = dataset.train_labels.to(device)
        self._held_out: dict[str, tuple[Inputs, Tensor]] = {
            "test": (dataset.test_inputs, dataset.test_labels)
        }
        if validation is not None:
            self._held_out["validation"] = validation
        self._layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self._amp_dtype = self._choose_amp()
        self._scaler = torch.amp.GradScaler(
            device.type, enabled=self._amp_dtype is torch.float16 and device.type == "cuda"
        )
        self._at = _Position()
        method.to(memory_format=self._layout)  # type: ignore[call-overload]
        world.share_batch_norm(method)

    def _choose_amp(self) -> torch.dtype | None:
        if self.config.amp == "auto":
            if self.device.type != "cuda":
                return None
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.config.amp]

    def autocast(self) -> AbstractContextManager[Any]:
        """The autocast context of a forward pass."""
        if self._amp_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self._amp_dtype)

    # -- the loop ---------------------------------------------------------------------------------

    def fit(self) -> None:
        """Train every stage to its end, continuing from the checkpoint where there is one.

        Raises:
            Interrupted: Ctrl-C was pressed; the state is saved.
            TrainingError: the loss is not finite; the last checkpoint stands.
        """
        saved = load_checkpoint(self.checkpoint) if self.checkpoint.exists() else None
        if saved is not None:
            self._at = _Position(**saved["position"])
            self.history, self.seconds = saved["history"], saved["seconds"]
            self.best = saved["best"]
            self.peak_memory = saved.get("peak_memory")
        stages = self.method.stages()
        if saved is not None and self._at.stage == len(stages):
            self.method.load_state_dict(saved["method"])
        with Interruption() as interruption:
            for stage in stages[self._at.stage :]:
                self._fit_stage(stage, len(stages), saved, interruption)
                saved = None
        if self.best is not None:
            self.method.load_state_dict(self.best["method"])

    def _fit_stage(
        self,
        stage: Stage,
        stages: int,
        saved: dict[str, Any] | None,
        interruption: Interruption,
    ) -> None:
        config, method, at = self.config, self.method, self._at
        index = at.stage
        method.on_stage_start(stage)
        trained = [p for p in method.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(
            trained,
            lr=stage.lr,
            momentum=config.optimizer.momentum,
            weight_decay=stage.weight_decay,
            nesterov=config.optimizer.nesterov,
            fused=True,
        )
        if saved is not None:
            method.load_state_dict(saved["method"])
            if saved["optimizer"] is not None:
                optimizer.load_state_dict(saved["optimizer"])
                self._scaler.load_state_dict(saved["scaler"])
        steps = math.ceil(len(method.order(stage, 0)) / stage.batch_size)
        title = config.method if stages == 1 else f"{config.method}, {stage.name}"
        self.progress.start(title, stage.epochs * steps, at.epoch * steps + at.step)
        try:
            while at.stage == index:
                rate = self._fit_epoch(stage, optimizer, trained, interruption)
                self._check_weights(trained)
                if at.epoch + 1 == stage.epochs:
                    method.on_stage_end(stage)
                self._end_epoch(stage, optimizer.param_groups[0]["lr"], rate)
                last = at.epoch + 1 == stage.epochs
                at.next_stage() if last else at.next_epoch()
                self._save(None if last else optimizer)
                if at.stage < stages and self.world.any(interruption.requested, self.device):
                    raise Interrupted
        finally:
            self.progress.stop()

    def _fit_epoch(
        self,
        stage: Stage,
        optimizer: torch.optim.Optimizer,
        trained: list[nn.Parameter],
        interruption: Interruption,
    ) -> float:
        """The rest of the epoch; returns images a second."""
        method, at = self.method, self._at
        method.train()
        method.on_epoch_start(stage, at.epoch)
        order = method.order(stage, at.epoch)
        batches = torch.split(order.to(self.device), stage.batch_size)
        loss_sum = torch.tensor(at.loss_sum, dtype=torch.float64, device=self.device)
        on_cpu = self.device.type == "cpu"
        began, seconds_before, seen_before = time.perf_counter(), self.seconds, at.seen
        left = batches[at.step :]
        with closing(self._load(order, stage.batch_size)) as loaded:
            for step, (indices, inputs) in enumerate(zip(left, loaded, strict=True), at.step):
                factor = lr_factor(stage.schedule, at.epoch, stage.epochs, step, len(batches))
                for group in optimizer.param_groups:
                    group["lr"] = stage.lr * factor
                loss = self._step(inputs, indices, optimizer, trained)
                loss_sum += loss.double() * len(indices)
                at.seen += len(indices)
                at.step = step + 1
                stop = self.world.any(interruption.requested, self.device)
                check = on_cpu or stop or step % _CHECK_EVERY == 0 or at.step == len(batches)
                if check:
                    at.loss_sum = float(loss_sum)
                    self._check_loss(float(loss))
                self.seconds = seconds_before + time.perf_counter() - began
                self.progress.step(len(indices), float(loss) if check else None)
                if stop and at.step < len(batches):
                    self._check_weights(trained)
                    self._save(optimizer)
                    raise Interrupted
        return (at.seen - seen_before) / max(self.seconds - seconds_before, 1e-9)

    def _load(self, order: Tensor, batch_size: int) -> Generator[Tensor, None, None]:
        """The inputs of the epoch's batches from the current step on.

        Of inputs in memory every process has the whole batch; the rest is work to be shared, and
        each loads its own part.
        """
        at, part = self._at, self.world.part
        key = (self.config.seed, at.stage, at.epoch)
        if isinstance(self._inputs, Tensor):
            batches = torch.split(order.to(self.device), batch_size)
            return load_batches(self._inputs, batches[at.step :], key)
        batches = torch.split(order.cpu(), batch_size)
        places = torch.split(torch.arange(len(order)), batch_size)
        return load_batches(
            self._inputs,
            [part(batch) for batch in batches[at.step :]],
            key,
            [part(place) for place in places[at.step :]],
            pin_memory=self.device.type == "cuda",
        )

    def _end_epoch(self, stage: Stage, lr: float, rate: float) -> None:
        """Evaluate, tell the method, write the epoch's row."""
        at = self._at
        row: dict[str, Any] = {
            "stage": stage.name,
            "epoch": at.epoch + 1,
            "lr": lr,
            "loss": at.loss_sum / at.seen,
            "images_per_second": rate,
            "seconds": self.seconds,
        }
        if self._evaluates(stage, at.epoch):
            for split, (inputs, labels) in self._held_out.items():
                row[split] = self._score(inputs, labels)
        accuracy = {k: v for k, v in row.get("validation", {}).items() if k != "ece"}
        row |= self.method.on_epoch_end(stage, at.epoch, accuracy) or {}
        self.history.append(row)
        self._select(row)
        self.progress.epoch(row, stage.epochs)

    def _step(
        self,
        inputs: Tensor,
        indices: Tensor,
        optimizer: torch.optim.Optimizer,
        trained: list[nn.Parameter],
    ) -> Tensor:
        """One step of gradient descent; returns its loss. All randomness is of (seed, position)."""
        method, world, seed = self.method, self.world, self.config.seed
        position = (self._at.stage, self._at.epoch, self._at.step)
        seed_global(seed, "step", *position)
        inputs = inputs.to(self.device, non_blocking=True)
        if not isinstance(self._inputs, Tensor):
            inputs = world.gather(inputs, len(indices))
        with torch.no_grad():
            batch = method.prepare(
                inputs,
                self._labels[indices],
                indices,
                derived_generator(seed, "augment", *position),
            )
        own = self._own_part(batch)
        with self.autocast():
            outputs = world.gather(method(own), len(indices))
        loss = method.loss(outputs, batch)
        optimizer.zero_grad()
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        world.sum_gradients(trained)
        self._scaler.step(optimizer)
        self._scaler.update()
        with torch.no_grad():
            method.on_step_end(outputs, batch)
        return loss.detach()

    def _own_part(self, batch: Batch) -> Batch:
        """This process's inputs of a batch, in the memory layout of the run."""
        part = self.world.part
        return Batch(
            in_layout(part(batch.inputs), self.config.channels_last),
            part(batch.labels),
            part(batch.indices),
            None if batch.labels_b is None else part(batch.labels_b),
            batch.lam,
            None
            if batch.second is None
            else in_layout(part(batch.second), self.config.channels_last),
        )

    def _check_loss(self, loss: float) -> None:
        at = self._at
        if not math.isfinite(at.loss_sum):
            raise self._diverged(f"the loss is {loss} in epoch {at.epoch + 1}, step {at.step}")

    def _check_weights(self, trained: list[nn.Parameter]) -> None:
        """A checkpoint of weights that are not finite would be of no use."""
        if not all(bool(p.isfinite().all()) for p in trained):
            raise self._diverged(f"the weights are not finite in epoch {self._at.epoch + 1}")

    def _diverged(self, what: str) -> TrainingError:
        kept = (
            f"the last checkpoint is kept in {self.checkpoint}"
            if self.checkpoint.exists()
            else "there is no checkpoint yet"
        )
        return TrainingError(
            f"{what}; {kept}. A lower `lr`, a longer `schedule.warmup` or `amp=off` usually helps"
        )

    # -- evaluation, selection, checkpoint --------------------------------------------------------

    def _evaluates(self, stage: Stage, epoch: int) -> bool:
        every = self.config.eval_every
        if every == 0:
            every = 1 if self.config.selection != "last" else max(1, stage.epochs // 10)
        return (epoch + 1) % every == 0 or epoch + 1 == stage.epochs

    def logits(self, inputs: Inputs, function: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Logits ``[M, C]`` of inputs on the CPU, or what `function` says of them."""
        return predict_logits(
            self.method,
            inputs,
            self.dataset.transform,
            self.world,
            device=self.device,
            amp=self.autocast(),
            channels_last=self.config.channels_last,
            function=function,
        )

    def _score(self, inputs: Inputs, labels: Tensor) -> dict[str, Any]:
        logits = self.logits(inputs)
        return score(logits, labels, self._class_counts, self.config.shot_rule).row()

    def _select(self, row: dict[str, Any]) -> None:
        split = {"best_val": "validation", "best_test": "test"}.get(self.config.selection)
        if split is None or split not in row:
            return
        accuracy = row[split]["overall"]
        if self.best is None or accuracy > self.best["accuracy"]:
            state = {k: v.detach().clone() for k, v in self.method.state_dict().items()}
            self.best = {"epoch": row["epoch"], "accuracy": accuracy, "method": state}

    def _save(self, optimizer: torch.optim.Optimizer | None) -> None:
        peak = peak_memory(self.device)
        if peak is not None:
            here = self.world.largest(peak, self.device)
            self.peak_memory = max(here, self.peak_memory or 0)
        if not self.world.is_main:
            return
        save_checkpoint(
            self.checkpoint,
            {
                "position": asdict(self._at),
                "method": self.method.state_dict(),
                "optimizer": None if optimizer is None else optimizer.state_dict(),
                "scaler": self._scaler.state_dict(),
                "history": self.history,
                "seconds": self.seconds,
                "best": self.best,
                "peak_memory": self.peak_memory,
            },
        )
        # Rewritten from the checkpoint's own rows: the two files never disagree.
        write_atomic(self.metrics, "".join(json.dumps(row) + "\n" for row in self.history))
