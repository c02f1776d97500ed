"""The command line: ``python -m ltkernels.compare``."""

from __future__ import annotations

import argparse
import fcntl
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ltkernels.evaluate import POSTHOC
from ltkernels.metrics import SHOT_RULES
from ltkernels.train.command import DONE, FAILED, INTERRUPTED, exit_code
from ltkernels.train.config import RUNTIME_KEYS, Config, ConfigError, parse_assignment
from ltkernels.train.loop import TrainingError
from ltkernels.train.plots import can_plot
from ltkernels.train.run import load_result

from .checks import check_before_training
from .contestants import entry_name, gather, parse_logits
from .plan import Plan, grid_names, make_plan, method_grid, read_grid
from .report import NO_PLOTS, compare, summary, write_report
from .runner import run_all
from .statistics import RESAMPLES

__all__ = ["main"]

_NOT_COMMON = {"method", "seed", "teacher", "start", "start_experts", "expert_runs"}


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ltkernels.compare",
        description="Train many methods and seeds under one recipe and one split (what is finished "
        "stays, what was interrupted goes on, runs that several need are trained once), and write "
        "report.md, report.html and report.json: accuracy by group, calibration, cost, and the "
        "difference of each to a baseline with a bootstrap interval over test images and seeds.",
        epilog=f"grids: {', '.join(grid_names())}",
    )
    add = parser.add_argument
    add("--dataset", default=Config.dataset, metavar="NAME", help=f"default: {Config.dataset}")
    add("--methods", type=_names, metavar="M1,M2", help="methods, each as its recipe has it")
    add("--grid", metavar="NAME|FILE.toml", help="configurations of a TOML file, a table each")
    add("--only", type=_names, metavar="A,B", help="of the grid, with what they name")
    add("--seeds", type=int, default=3, metavar="S", help="seeds 0 ... S - 1 (default: 3)")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of every configuration, as for ltkernels.train; weaker than a grid's",
    )
    add("--jobs", type=int, default=1, metavar="J", help="runs at a time (default: 1)")
    add(
        "--threads",
        type=int,
        default=0,
        metavar="N",
        help="CPU threads of a run (default: the cores by --jobs)",
    )
    add("--device", metavar="D", help="cpu, cuda, cuda:1 ... (default: auto)")
    add(
        "--logits",
        action="append",
        default=[],
        metavar="NAME=FILE[,FILE]",
        help="saved logits (.npz, .npy, .safetensors) or run folders, a seed each; may be repeated",
    )
    add(
        "--logits-keep-prior",
        action="store_true",
        help="the files' logits still carry the training prior: adjust them, too",
    )
    add("--baseline", default="", metavar="NAME", help="default: ce, or the first")
    add(
        "--rule",
        choices=tuple(SHOT_RULES),
        default="",
        help="many, medium, few; default: the runs'",
    )
    add(
        "--posthoc",
        type=_names,
        default=list(POSTHOC),
        metavar="R1,R2",
        help=f"post-hoc rows, of {', '.join(POSTHOC)}; '' for none (default: all)",
    )
    add("--resamples", type=int, default=RESAMPLES, metavar="R", help=f"default: {RESAMPLES}")
    add("--report-only", action="store_true", help="train nothing: report on what is finished")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the runs and the report")
    return parser


def _grid(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    methods, only = arguments.methods, arguments.only
    for key, names in (("methods", methods), ("only", only)):
        if names == []:
            raise ConfigError(f"--{key}: expected names, got none")
    if methods and arguments.grid is not None:
        raise ConfigError("--methods and --grid: expected one of the two")
    if only and methods:
        raise ConfigError("--only chooses from a grid; with --methods name those you want")
    if methods:
        return method_grid(methods)
    if arguments.grid is not None or not arguments.logits:
        return read_grid("methods" if arguments.grid is None else arguments.grid, only or ())
    return {}


def _common(arguments: argparse.Namespace) -> dict[str, Any]:
    common: dict[str, Any] = {"dataset": arguments.dataset}
    for text in arguments.set:
        key, value = parse_assignment(text)
        if key in _NOT_COMMON:
            raise ConfigError(f"--set {key}: this differs from run to run; a grid can name it")
        if key == "dataset" and value != arguments.dataset:
            raise ConfigError(f"`dataset` is given twice: {arguments.dataset!r} and {value!r}")
        if key in ("device", "threads"):
            raise ConfigError(f"--set {key}: give it as --{key}")
        common[key] = value
    return common


def _check(arguments: argparse.Namespace, names: Sequence[str]) -> None:
    """What would only be found wrong after the training."""
    for key, least in (("seeds", 1), ("jobs", 1), ("threads", 0), ("resamples", 1000)):
        if getattr(arguments, key) < least:
            raise ConfigError(f"--{key}: expected at least {least}, got {getattr(arguments, key)}")
    unknown = [row for row in arguments.posthoc if row not in POSTHOC]
    if unknown:
        raise ConfigError(f"unknown post-hoc row {unknown[0]!r} (there are {', '.join(POSTHOC)})")
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ConfigError(f"--logits {min(twice)}: a configuration has this name")
    rows = [entry_name(name, row) for name in names for row in ("", *arguments.posthoc)]
    if arguments.baseline and arguments.baseline not in rows:
        raise ConfigError(f"unknown baseline {arguments.baseline!r} (there are {', '.join(names)})")


def _training_arguments(arguments: argparse.Namespace, common: dict[str, Any]) -> list[str]:
    threads = arguments.threads
    if not threads and arguments.jobs > 1:
        threads = max(1, len(os.sched_getaffinity(0)) // arguments.jobs)
    words = ["--threads", str(threads)] if threads else []
    words += ["--device", arguments.device] if arguments.device else []
    for key in sorted(RUNTIME_KEYS & common.keys()):
        words += ["--set", f"{key}={common[key]}"]
    return words


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Nobody else trains in this folder."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another comparison is at work in {out}") from None
        yield


def _say(text: str) -> None:
    print(text, flush=True)


def _left_out(out: Path, used: Iterable[Path]) -> list[str]:
    """One line on the finished runs of a folder that are not in its report; none where all are."""
    known = {path.resolve() for path in used}
    there = [file.parent for file in out.glob("*/result.json") if not file.parent.is_symlink()]
    names = sorted(folder.name for folder in there if folder.resolve() not in known)
    return [f"in this folder, but not in this report: {', '.join(names)}"] if names else []


def _run(arguments: argparse.Namespace, command: str) -> int:
    grid, files = _grid(arguments), parse_logits(arguments.logits)
    common = _common(arguments)
    _check(arguments, [*grid, *files])
    with _alone(arguments.out):
        plan = Plan({}, [], {}, {})
        failed: dict[Path, str] = {}
        if grid:
            plan = make_plan(grid, arguments.seeds, common, arguments.out)
            for note in plan.notes:
                _say(f"note: {note}")
        if grid and not arguments.report_only:
            left = sum(load_result(job.folder) is None for job in plan.jobs)
            if left:
                check_before_training(
                    plan,
                    files,
                    baseline=arguments.baseline,
                    rule=arguments.rule,
                    posthoc=arguments.posthoc,
                    files_keep_prior=arguments.logits_keep_prior,
                )
            _say(f"{len(plan.jobs)} runs in {arguments.out}, {left} to train")
            outcome = run_all(
                plan.jobs,
                at_a_time=arguments.jobs,
                arguments=_training_arguments(arguments, plan.common),
                say=_say,
            )
            if outcome.interrupted:
                print(f"interrupted, saved; continue with\n  {command}", file=sys.stderr)
                return INTERRUPTED
            failed = outcome.failed
        there: dict[str, dict[int, Path]] = {}
        missing: list[tuple[str, int, str]] = []
        for name, runs in plan.rows.items():
            for seed, folder in runs.items():
                if load_result(folder) is None:
                    missing.append((name, seed, failed.get(folder, "not trained yet")))
                else:
                    there.setdefault(name, {})[seed] = folder
        for name, seed, why in missing:
            print(f"missing: {name}, seed {seed}: {why}", file=sys.stderr)
        found = gather(
            there,
            files,
            rule=arguments.rule,
            posthoc=arguments.posthoc,
            files_keep_prior=arguments.logits_keep_prior,
            device=arguments.device or "auto",
        )
        used = [job.folder for job in plan.jobs]
        used += [path for paths in files.values() for path in paths]
        comparison = compare(
            found,
            arguments.baseline,
            resamples=arguments.resamples,
            command=command,
            settings=plan.settings,
            common=plan.common,
            missing=missing,
            notes=[*plan.notes, *_left_out(arguments.out, used)],
        )
        written = write_report(arguments.out, comparison)
    _say(f"\n{summary(comparison)}\n")
    if not can_plot():
        _say(NO_PLOTS)
    _say("\n".join(map(str, written)))
    return FAILED if missing else DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 (a run is missing), 2, 130."""
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = _parser().parse_args(argv)
    command = shlex.join(["python", "-m", "ltkernels.compare", *argv])
    return exit_code(
        lambda: _run(arguments, command),
        TrainingError,
        TypeError,
        IndexError,
        interrupted=f"interrupted; continue with\n  {command}",
    )


if __name__ == "__main__":
    sys.exit(main())
