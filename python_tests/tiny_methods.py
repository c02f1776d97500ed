"""Methods built on the tiny data set, for tests of single steps."""

from __future__ import annotations

import torch

from ltkernels.methods import METHODS, Context
from ltkernels.nn import build_model
from ltkernels.train import resolve
from tiny_data import TINY, tiny_dataset

DATA = tiny_dataset()
COUNTS = DATA.class_counts


def build(name, **keys):
    torch.manual_seed(0)
    config = resolve(TINY, {"method": name, **keys})
    head = {"head": config.model.head, "scale": config.model.scale}

    def network(**options):
        return build_model("resnet8", 6, 1, width=4, **head, **options)

    teachers = {}
    if METHODS[name].prerequisites(config):
        teachers["teacher"] = build("ce").eval()
    context = Context(config, DATA, COUNTS, torch.device("cpu"), network, teachers)
    return METHODS[name](context)


def batch_of(method, n=48):
    indices = torch.arange(0, 5 * n, 5)
    generator = torch.Generator().manual_seed(0)
    return method.prepare(
        DATA.train_images[indices], DATA.train_labels[indices], indices, generator
    )
