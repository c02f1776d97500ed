"""The logits of a trained run: those it left in its folder, or computed again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ltkernels.train.distributed import World
from ltkernels.train.evaluation import predict_logits
from ltkernels.train.loop import resolve_device
from ltkernels.train.run import (
    EXPERT_LOGITS,
    LOGITS,
    hold_out,
    load_config,
    load_dataset,
    load_method,
    load_result,
)

from .files import read_logits
from .of_method import source_of_method
from .source import Source

if TYPE_CHECKING:
    from ltkernels.data import Inputs, LongTailedDataset

__all__ = ["logits_of_run", "prediction_of_run"]


def prediction_of_run(
    run: Path, device: str = "auto", dataset: LongTailedDataset | None = None
) -> Source:
    """What a finished run predicts, as one model.

    Args:
        run: folder of the run.
        device: where to predict, if the run left no logits.
        dataset: the whole data set, if the run left no logits; by default the one that the run's
            configuration names.

    Raises:
        ConfigError: the folder holds no finished run.
    """
    return _stored(run, LOGITS) or _computed(run, device, dataset, experts=False)


def logits_of_run(
    run: Path, device: str = "auto", dataset: LongTailedDataset | None = None
) -> Source:
    """The experts of a finished run: one of all classes, or those of class-balanced experts.

    Args, Raises: as :func:`prediction_of_run`.
    """
    apart = _stored(run, EXPERT_LOGITS)
    if apart is None and not (run / EXPERT_LOGITS).exists() and not _joins_experts(run):
        apart = _stored(run, LOGITS)
    return apart or _computed(run, device, dataset, experts=True)


def _joins_experts(run: Path) -> bool:
    result = load_result(run)
    return result is not None and "fusion" in result


def _stored(run: Path, name: str) -> Source | None:
    if load_result(run) is None or not (run / name).exists():
        return None
    source = read_logits(run / name)
    members = tuple(
        replace(m, name=str(run) + m.name.removeprefix(str(run / name))) for m in source.members
    )
    return replace(source, name=str(run), members=members)


def _computed(run: Path, device: str, dataset: LongTailedDataset | None, experts: bool) -> Source:
    config = load_config(run)
    smaller, validation = hold_out(dataset or load_dataset(config), config)
    world = World()
    where = resolve_device(device, world)
    method = load_method(run, smaller, where)
    rows = partial(predict_logits, transform=smaller.transform, world=world, device=where)

    def predict(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Tensor:
        return rows(method, inputs, channels_last=config.channels_last, function=function)

    return source_of_method(
        str(run), method, smaller, validation, predict, rule=config.shot_rule, experts=experts
    )
