"""The command line: ``python -m ltkernels.analyze``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ltkernels.methods import METHODS
from ltkernels.train.config import ConfigError, parse_assignment
from ltkernels.train.plots import HOW_TO_GET_PLOTS, can_plot

from .bias_variance import (
    analyze_bias_variance,
    format_reports,
    plot_reports,
    train_draws,
    write_reports,
)
from .official import evaluate_official
from .tau_norm import analyze_tau_norm

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ltkernels.analyze", description=__doc__)
    names = parser.add_subparsers(dest="analysis", required=True, metavar="NAME")
    add = names.add_parser(
        "bias-variance",
        help="0-1 bias and variance of methods over draws of the training set, by group",
        description="Trains every method on M draws of the long-tailed set (what is finished is "
        "kept, what was interrupted goes on) and splits its error into bias and variance.",
    ).add_argument
    add("--methods", default="ce,ride", metavar="M1,M2", help="methods (default: ce,ride)")
    add("--dataset", default="glyph-lt", metavar="NAME", help="data set (default: glyph-lt)")
    add("--models", type=int, default=20, metavar="M", help="draws of each method (default: 20)")
    add("--jobs", type=int, default=1, metavar="J", help="trainings at a time (default: 1)")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the runs and the report")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="as for ltkernels.train")

    add = names.add_parser(
        "tau-norm",
        help="accuracy after tau-normalisation of the classifier, by group and tau",
        description="Divides the weight vector of each class by its length to the power tau, "
        "without training, and evaluates the run for tau from 0 to 1.",
    ).add_argument
    add("run", type=Path, metavar="RUN", help="folder of a finished run with linear heads")

    add = names.add_parser(
        "official",
        help="accuracy of a published checkpoint of RIDE's released code, by group",
        description="Reads experts, heads and routers off the file's weights and evaluates them. "
        "No code that the file names is run.",
    ).add_argument
    add("checkpoint", type=Path, metavar="FILE", help="as published, e.g. model_best.pth")
    add("--dataset", default="cifar100-lt", metavar="NAME", help="data set (default: cifar100-lt)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="as for ltkernels.train")
    return parser


def _official(arguments: argparse.Namespace) -> None:
    settings = dict(parse_assignment(text) for text in arguments.set)
    found = evaluate_official(arguments.checkpoint, {"dataset": arguments.dataset, **settings})
    rows = {found.config.method: found.accuracy}
    experts = found.report.get("experts", {"alone": [], "first": []})
    rows |= {f"expert {i} alone": row for i, row in enumerate(experts["alone"], 1)}
    rows |= {f"first {i}": row for i, row in enumerate(experts["first"], 1)}
    print(f"accuracy in percent; ECE {100 * found.ece:.1f} %\n\n{_by_group(rows)}")
    routing = found.report.get("routing")
    if routing:
        cost = routing["macs"] / routing["macs_of_all"]
        print(f"\nexperts asked: {routing['experts']:.2f}; {100 * cost:.0f} % of all experts' MACs")


def _by_group(rows: Mapping[str, Mapping[str, float | None]]) -> str:
    groups = list(next(iter(rows.values())))
    width = max(map(len, rows)) + 1
    lines = [" " * width + "".join(group.rjust(9) for group in groups)]
    for name, row in rows.items():
        values = ["-" if row[group] is None else f"{row[group]:.1f}" for group in groups]
        lines.append(name.ljust(width) + "".join(value.rjust(9) for value in values))
    return "\n".join(lines)


def _tau_norm(arguments: argparse.Namespace) -> None:
    found = analyze_tau_norm(arguments.run)
    rows = {"as trained": found.trained} | {f"tau {t:g}": row for t, row in found.by_tau.items()}
    print(f"{found.method}, accuracy in percent\n\n{_by_group(rows)}")


def _bias_variance(arguments: argparse.Namespace) -> None:
    methods = arguments.methods.split(",")
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise ConfigError(f"unknown method {unknown[0]!r} (there are {', '.join(METHODS)})")
    if arguments.models < 2:
        raise ConfigError(f"--models: expected at least 2, got {arguments.models}")
    settings = [word for text in arguments.set for word in ("--set", text)]
    runs = train_draws(
        methods,
        arguments.models,
        arguments.out,
        ["--dataset", arguments.dataset, *settings],
        arguments.jobs,
        say=lambda text: print(text, flush=True),
    )
    reports = [analyze_bias_variance(runs[name]) for name in methods]
    print(f"\n{format_reports(reports)}\n\nPercent of test images, mean over classes.\n")
    print(write_reports(arguments.out, reports))
    print(plot_reports(arguments.out, reports) if can_plot() else HOW_TO_GET_PLOTS)


ANALYSES = {"bias-variance": _bias_variance, "tau-norm": _tau_norm, "official": _official}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, as that of ``ltkernels.train``."""
    arguments = _parser().parse_args(argv)
    try:
        ANALYSES[arguments.analysis](arguments)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_USAGE
    except (RuntimeError, OSError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("interrupted, saved; the same command continues", file=sys.stderr)
        return INTERRUPTED
    return DONE


if __name__ == "__main__":
    sys.exit(main())
