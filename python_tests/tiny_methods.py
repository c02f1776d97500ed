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

    def network(num_classes=6, **options):
        return build_model("resnet8", num_classes, 1, width=4, **head, **options)

    teachers = {}
    for needed, its_config in METHODS[name].prerequisites(config).items():
        if its_config.method == "subset_expert":
            index = its_config.subsets.index
            thresholds = its_config.subsets.thresholds
            keys_of = {"subsets.index": index, "subsets.thresholds": thresholds}
            teachers[needed] = build("subset_expert", **keys_of).requires_grad_(False).eval()
        else:
            teachers[needed] = build("ce").eval()
    context = Context(config, DATA, COUNTS, torch.device("cpu"), network, teachers)
    return METHODS[name](context)


def batch_of(method, n=48):
    indices = torch.arange(0, 5 * n, 5)
    generator = torch.Generator().manual_seed(0)
    return method.prepare(
        DATA.train_inputs[indices], DATA.train_labels[indices], indices, generator
    )
