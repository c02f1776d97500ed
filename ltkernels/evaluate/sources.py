"""What a RUN or a FILE on the command line means."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltkernels.methods import METHODS
from ltkernels.predictions import Source, read_logits
from ltkernels.predictions.runs import prediction_of_run
from ltkernels.train.config import ConfigError
from ltkernels.train.run import load_config, load_result

if TYPE_CHECKING:
    from ltkernels.data import LongTailedDataset

__all__ = ["facts_of_run", "read_model"]


def read_model(
    path: Path, *, device: str = "auto", dataset: LongTailedDataset | None = None
) -> tuple[Source, dict[str, Any]]:
    """The logits of a run or file, and what is known of it.

    Args:
        path: folder of a finished run, or a file of logits, see `ltkernels.predictions.files`.
        device: where a run predicts that left no logits in its folder.
        dataset: what it predicts on; by default the data set that its configuration names.

    Returns:
        ``(source, facts)``. The facts of a run are those of its ``result.json``, with ``run``, the
        folder, and ``keeps_prior``; those of a file are empty.

    Raises:
        ConfigError: there is nothing, or no finished run.
        ValueError, OSError: a file that is none of logits.
    """
    if path.is_dir():
        facts = facts_of_run(path)
        return prediction_of_run(path, device, dataset), facts
    if not path.exists():
        raise ConfigError(f"there is no run and no file {path}")
    return read_logits(path), {}


def facts_of_run(run: Path) -> dict[str, Any]:
    """What ``result.json`` says, with ``run`` and ``keeps_prior``.

    Raises:
        ConfigError: the folder holds no finished run.
    """
    result = load_result(run)
    if result is None:
        raise ConfigError(f"{run} holds no finished run: result.json is missing")
    config = load_config(run)
    keeps = METHODS[config.method].logits_keep_prior(config)
    return {**result, "run": str(run), "keeps_prior": keeps}
