"""What the tests of ECL and NCL share."""

from __future__ import annotations

import json

import torch
import torch.nn.functional as F

from ltkernels.train import resolve, train
from ltkernels.train.progress import SilentProgress
from tiny_data import TINY
from tiny_methods import DATA, batch_of

SMALL = {"contrast.width": 8, "contrast.queue": 64}


def run(method, out, **keys):
    config = resolve(TINY, {"method": method, "epochs": 2, "lr": 0.05, **SMALL, **keys})
    return train(config, out, dataset=DATA, progress=SilentProgress(), resume=out.exists())


def losses(out):
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def step_of(method, n=48):
    """Outputs, batch and loss of one step."""
    method.train()
    batch = batch_of(method, n)
    outputs = method(batch)
    return outputs, batch, method.loss(outputs, batch)


def contrast_of_the_paper(method, outputs):
    """Eq. 9, summed over the experts, the mean over the batch."""
    total = torch.zeros(())
    triples = zip(outputs["query"], outputs["key"], method.contrast.queue, strict=True)
    for query, key, queue in triples:
        positive = (query * key).sum(1, keepdim=True)
        logits = torch.cat([positive, query @ queue.t()], 1) / 0.2
        total = total + F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64))
    return total
