"""When two configurations are the same run, wherever it lies and whoever asked for it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ltkernels.methods import METHODS, SubsetExpert
from ltkernels.train.config import RUNTIME_KEYS, Config, flatten
from ltkernels.train.run import load_config

__all__ = ["SHARED", "fingerprint", "given_folder", "what_counts"]

SHARED = ("teacher", "start", "expert_runs")
"""Keys whose value is a folder of other runs."""


def what_counts(config: Config) -> dict[str, Any]:
    """The keys of a configuration that make a difference to its run, apart from other runs.

    Left out are the keys of other methods, which this one does not read, and those that say where
    it runs.
    """
    specific = {key for method in METHODS.values() for key in method.reads} | {"experts"}
    unread = specific - METHODS[config.method].reads
    return {
        key: value
        for key, value in flatten(dataclasses.asdict(config)).items()
        if key not in unread
        and key.partition(".")[0] not in unread
        and key not in RUNTIME_KEYS
        and key not in SHARED
    }


def given_folder(config: Config, name: str, needed: Config) -> Path | None:
    """Folder of a run that a configuration names for one of its prerequisites; None: it does not.

    Args:
        config: of the run that has the prerequisite.
        name: of the prerequisite.
        needed: its configuration.
    """
    if name in ("teacher", "start"):
        folder: str = getattr(config, name)
        return Path(folder) if folder else None
    if config.expert_runs and issubclass(METHODS[needed.method], SubsetExpert):
        return Path(config.expert_runs) / name
    return None


def fingerprint(config: Config, read: Callable[[Path], Config] = load_config) -> str:
    """The same text for the same run: a hash of what counts, also of the runs it starts from.

    Args:
        config: a complete configuration.
        read: the configuration of a folder that it names.

    Raises:
        ConfigError: such a folder holds none.
    """
    parts: Mapping[str, Any] = what_counts(config)
    needs = {}
    for name, needed in METHODS[config.method].prerequisites(config).items():
        folder = given_folder(config, name, needed)
        needs[name] = fingerprint(needed if folder is None else read(folder), read)
    text = json.dumps([parts, needs], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
