"""The grids of bench/accuracy.py name configurations that exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltkernels.train import resolve
from ltkernels.train.config import flatten, parse_toml

GRIDS = sorted((Path(__file__).parents[2] / "bench" / "grids").glob("*.toml"))


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_every_line_resolves_to_a_configuration_of_its_own(path):
    grid = {name: flatten(table) for name, table in parse_toml(path).items()}
    configs = [resolve({"method": name, **settings}) for name, settings in grid.items()]
    assert all(a != b for i, a in enumerate(configs) for b in configs[:i])
    shared = {
        settings[k] for settings in grid.values() for k in ("teacher", "start") if k in settings
    }
    assert shared <= grid.keys()


def test_there_are_grids():
    assert {"methods", "ride", "ride_ablation"} <= {path.stem for path in GRIDS}
