"""The shared training loop, its configuration and its command line.

>>> from ltkernels.train import resolve, train
>>> result = train(resolve({"method": "bkd", "dataset": "glyph-lt", "epochs": 12}), "runs/bkd")
"""

from __future__ import annotations

from .config import Config, ConfigError, resolve
from .interrupt import Interrupted
from .loop import TrainingError
from .run import load_config, load_method, load_result, train

__all__ = [
    "Config",
    "ConfigError",
    "Interrupted",
    "TrainingError",
    "load_config",
    "load_method",
    "load_result",
    "resolve",
    "train",
]
