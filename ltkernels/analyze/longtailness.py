"""How long-tailed a data set and its subsets are: LFME's Table 1 for any data set.

Xiang et al., "Learning from multiple experts", ECCV 2020, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ltkernels.data.subsets import Longtailness, longtailness
from ltkernels.train.config import parse_assignment, resolve
from ltkernels.train.run import load_training_set

__all__ = ["analyze_longtailness"]


def analyze_longtailness(
    dataset: str, settings: Sequence[str] = ()
) -> tuple[str, tuple[Longtailness, ...]]:
    """The four metrics of a data set and of each of its subsets.

    Args:
        dataset: name of the data set.
        settings: ``key=value``, as of ``python -m ltkernels.train --set``:
            ``subsets.thresholds=5,20,100``, ``subsets.rule``, ``data.imbalance`` ...

    Returns:
        What the data set is, and its rows: the entire set, then the subsets from most images to
        fewest. Images held out (``data.holdout``) are not counted.

    Raises:
        ConfigError: an unknown key or an impossible value.
        FileNotFoundError: the data set's files are not there.
    """
    given: dict[str, Any] = dict(parse_assignment(text) for text in settings)
    config = resolve(given, {"dataset": dataset})
    data = load_training_set(config)
    rows = longtailness(data.class_counts, config.subsets.thresholds, config.subsets.rule)
    return f"{data.name}, split {data.split_hash}", rows
