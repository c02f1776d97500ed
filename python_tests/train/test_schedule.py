"""The learning rate against the official code's, and its shape in general."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from golden_vectors import ROOT
from ltkernels.train.config import resolve
from ltkernels.train.schedule import lr_factor
from ltkernels.train.tables import ScheduleConfig


@pytest.mark.parametrize("dataset", ["cifar10-lt", "cifar100-lt"])
def test_cifar_recipe_is_the_official_schedule(dataset):
    golden = np.load(ROOT / "bkd" / "lr_cifar.npz")
    config = resolve({"dataset": dataset, "method": "bkd"})
    assert config.epochs == len(golden["epoch0"])
    for step in (0, 7):
        rates = [
            config.lr * lr_factor(config.schedule, epoch, config.epochs, step, 8)
            for epoch in golden["epoch0"]
        ]
        np.testing.assert_allclose(rates, golden["lr"], rtol=1e-12)


def test_steps_warm_up_inside_an_epoch():
    schedule = ScheduleConfig(warmup=0.1, milestones=(0.5,), factors=(0.1,))
    factors = [lr_factor(schedule, e, 4, s, 10) for e in range(4) for s in range(10)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:20] == [1.0] * 16
    assert factors[20:] == [0.1] * 20


def test_cosine_falls_from_one_towards_zero():
    schedule = ScheduleConfig(kind="cosine", warmup=0.0)
    factors = [lr_factor(schedule, e, 10) for e in range(10)]
    assert factors[0] == 1.0
    assert factors[5] == pytest.approx(0.5)
    assert all(a > b > 0 for a, b in pairwise(factors))
