"""The logits of a trained run, computed again from its folder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ltkernels.data import Inputs, LongTailedDataset
from ltkernels.methods import CBE, SubsetExpert
from ltkernels.methods.cbe import expert_names
from ltkernels.train.distributed import World
from ltkernels.train.evaluation import predict_logits
from ltkernels.train.loop import resolve_device
from ltkernels.train.run import hold_out, load_config, load_dataset, load_method

from .sources import Member, Source

__all__ = ["logits_of_run"]


def logits_of_run(
    run: Path, device: str = "auto", dataset: LongTailedDataset | None = None
) -> Source:
    """The experts of a finished run: one of all classes, or those of class-balanced experts.

    Args:
        run: folder of the run.
        device: where to predict.
        dataset: the whole data set; by default the one that the run's configuration names.

    Raises:
        ConfigError: the folder holds no finished run.
    """
    config = load_config(run)
    smaller, validation = hold_out(dataset or load_dataset(config), config)
    world = World()
    where = resolve_device(device, world)
    method = load_method(run, smaller, where)

    def predict(x: Tensor) -> Tensor:
        if isinstance(method, CBE):
            return torch.cat(method.expert_logits(x), 1)
        return method.subset_logits(x) if isinstance(method, SubsetExpert) else method.predict(x)

    def logits(inputs: Inputs) -> Tensor:
        return predict_logits(
            method, inputs, smaller.transform, world, device=where, function=predict
        )

    test = logits(smaller.test_inputs)
    held = None if validation is None else logits(validation[0])
    if isinstance(method, CBE):
        classes = [own.cpu() for own in method.model.classes]
        widths = method.model.fusion.widths
        names = [f"{run}:{name}" for name in expert_names(len(classes))]
    else:
        whole = torch.arange(smaller.num_classes)
        classes = [method.classes.cpu() if isinstance(method, SubsetExpert) else whole]
        widths, names = [test.shape[1]], [str(run)]
    parts = torch.split(test, widths, 1)
    held_parts = [None] * len(widths) if held is None else torch.split(held, widths, 1)
    return Source(
        str(run),
        tuple(
            Member(name, own, z, v)
            for name, own, z, v in zip(names, classes, parts, held_parts, strict=True)
        ),
        labels=smaller.test_labels.cpu(),
        validation_labels=None if validation is None else validation[1].cpu(),
        class_counts=smaller.class_counts,
        rule=config.shot_rule,
        split=smaller.split_hash,
    )
