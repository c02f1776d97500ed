"""Bias and variance of training methods on long-tailed data, by group of classes.

The analysis of RIDE's Fig. 1 (Wang et al., ICLR 2021, section 1): M models of one method are
trained on M draws of the long-tailed set; on the common test set the most frequent prediction of an
image is right or not (bias), and single models differ from it or not (variance), Domingos' 0-1
decomposition. Rare classes are where variance is large, and what several experts are to lower.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltkernels.metrics import bias_variance, shot_groups
from ltkernels.train.checkpoint import write_atomic
from ltkernels.train.config import ConfigError
from ltkernels.train.distributed import World
from ltkernels.train.evaluation import GROUPS, predict_logits
from ltkernels.train.loop import resolve_device
from ltkernels.train.run import load_config, load_dataset, load_method, load_result

__all__ = [
    "BiasVarianceReport",
    "analyze_bias_variance",
    "format_reports",
    "plot_reports",
    "train_draws",
    "write_reports",
]

_SHOWN = ("overall", *GROUPS)


@dataclass(frozen=True)
class BiasVarianceReport:
    """Of one method, in percent, by ``overall``, ``many``, ``medium``, ``few``; None: no class.

    Args:
        method: the method.
        models: M.
        error: mean error of a model.
        bias: share of images whose most frequent prediction is wrong.
        variance: mean share of models that differ from the most frequent prediction.
        variance_unbiased: the part of the variance on images whose bias is 0, where it costs.
        variance_biased: the part on the others, where differing may mend; it is taken off.
    """

    method: str
    models: int
    error: dict[str, float | None]
    bias: dict[str, float | None]
    variance: dict[str, float | None]
    variance_unbiased: dict[str, float | None]
    variance_biased: dict[str, float | None]


def train_draws(
    methods: Sequence[str],
    models: int,
    out: Path,
    arguments: Sequence[str] = (),
    jobs: int = 1,
    say: Callable[[str], None] = print,
) -> dict[str, list[Path]]:
    """Train every method on every draw; what is finished stays, what was interrupted goes on.

    Model m is trained with ``data.seed=m`` and ``--seed m``, each in a process of its own.

    Args:
        methods: what to train.
        models: M.
        out: folder of the runs, ``OUT/<method>/draw-<m>``.
        arguments: more arguments of ``python -m ltkernels.train``.
        jobs: processes at a time, with one CPU thread each.
        say: told about every finished model.

    Returns:
        Method -> folders of its runs.

    Raises:
        RuntimeError: a training failed; the message is its last line.
        KeyboardInterrupt: was pressed; running models save their state first.
    """
    runs = {m: [out / m / f"draw-{i}" for i in range(models)] for m in methods}
    waiting = [
        (method, i, run)
        for i in range(models)
        for method in methods
        if load_result(run := runs[method][i]) is None
    ]

    def train_one(job: tuple[str, int, Path]) -> None:
        method, seed, run = job
        command = [sys.executable, "-m", "ltkernels.train"]
        if (run / "config.toml").exists():
            command += ["--resume", "--out", str(run)]
        else:
            command += [method, "--out", str(run), "--seed", str(seed)]
            command += ["--set", f"data.seed={seed}", "--threads", "1", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 130:
            raise KeyboardInterrupt
        if done.returncode != 0:
            reason = (done.stderr.strip() or "no message").splitlines()[-1].removeprefix("error: ")
            raise RuntimeError(f"{method}, draw {seed}: {reason}")
        say(f"{method}, draw {seed}: done")

    with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
        futures = [pool.submit(train_one, job) for job in waiting]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return runs


def analyze_bias_variance(runs: Sequence[Path], device: str = "auto") -> BiasVarianceReport:
    """Bias and variance of the models in some runs' folders.

    Args:
        runs: finished runs of one method on draws of one data set, at least 2.
        device: where to predict.

    Raises:
        ConfigError: fewer than 2 runs, or of more than one method or data set.
    """
    if len(runs) < 2:
        raise ConfigError(f"bias and variance need at least 2 models, got {len(runs)}")
    configs = [load_config(run) for run in runs]
    for key in ("method", "dataset", "shot_rule"):
        values = sorted({str(getattr(c, key)) for c in configs})
        if len(values) > 1:
            raise ConfigError(f"the runs differ in `{key}`: {', '.join(values)}")
    world = World.from_environment()
    where = resolve_device(device, world)
    votes = []
    for run, config in zip(runs, configs, strict=True):
        dataset = load_dataset(config)
        method = load_method(run, dataset, where)
        logits = predict_logits(method, dataset.test_inputs, dataset.transform, world, device=where)
        votes.append(logits.argmax(1))
    config = configs[0]
    predictions = torch.stack(votes)
    found = bias_variance(predictions, dataset.test_labels)
    wrong = (predictions != dataset.test_labels).double().mean(0)
    # The groups of the profile all draws share; single draws have the same counts.
    group = shot_groups(dataset.class_counts, config.shot_rule)[dataset.test_labels]

    def by_group(of_image: Tensor) -> dict[str, float | None]:
        rows: dict[str, float | None] = {"overall": _class_mean(of_image, dataset.test_labels)}
        for i, name in enumerate(GROUPS):
            own = group == i
            rows[name] = _class_mean(of_image[own], dataset.test_labels[own])
        return rows

    return BiasVarianceReport(
        config.method,
        len(runs),
        error=by_group(wrong),
        bias=by_group(found.bias),
        variance=by_group(found.variance),
        variance_unbiased=by_group(found.variance * (1 - found.bias)),
        variance_biased=by_group(found.variance * found.bias),
    )


def _class_mean(of_image: Tensor, labels: Tensor) -> float | None:
    """Percent: the mean over classes of the means over a class's images."""
    if len(labels) == 0:
        return None
    _, which, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    sums = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, which, of_image.double())
    return float(100 * (sums / counts).mean())


def format_reports(reports: Sequence[BiasVarianceReport]) -> str:
    """The reports as a table."""
    table = [["method", "models", "", *_SHOWN]]
    for report in reports:
        for quantity in ("error", "bias", "variance"):
            values = [_number(getattr(report, quantity)[group]) for group in _SHOWN]
            table.append([report.method, str(report.models), quantity, *values])
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = ["  ".join(map(str.rjust, row, widths)) for row in table]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def write_reports(out: Path, reports: Sequence[BiasVarianceReport]) -> Path:
    """Write ``bias_variance.json``."""
    path = out / "bias_variance.json"
    rows: list[dict[str, Any]] = [asdict(report) for report in reports]
    write_atomic(path, json.dumps(rows, indent=2) + "\n")
    return path


def plot_reports(out: Path, reports: Sequence[BiasVarianceReport]) -> Path:
    """Draw bias and variance by group beside each other, as in Fig. 1 (needs matplotlib)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    width = 0.8 / len(reports)
    for axes, quantity in zip(figure.subplots(1, 2), ("bias", "variance"), strict=True):
        for i, report in enumerate(reports):
            values = [getattr(report, quantity)[group] for group in _SHOWN]
            there = [k for k, value in enumerate(values) if value is not None]
            places = [k + (i - (len(reports) - 1) / 2) * width for k in there]
            axes.bar(places, [values[k] for k in there], width, label=report.method)
        axes.set_xticks(range(len(_SHOWN)), _SHOWN)
        axes.set(title=quantity, ylabel="% of test images")
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path = out / "bias_variance.png"
    figure.savefig(path, dpi=120)
    return path
