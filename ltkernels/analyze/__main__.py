"""The command line: ``python -m ltkernels.analyze``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ltkernels.data import DATASETS
from ltkernels.data.subsets import format_longtailness
from ltkernels.methods import METHODS
from ltkernels.train.command import exit_code
from ltkernels.train.config import ConfigError, parse_assignment
from ltkernels.train.plots import HOW_TO_GET_PLOTS, can_plot

from .bias_variance import (
    analyze_bias_variance,
    format_reports,
    plot_reports,
    train_draws,
    write_reports,
)
from .curves import plot_curves
from .features import analyze_features, plot_features
from .landscape import analyze_landscape, plot_landscapes, write_landscapes
from .longtailness import analyze_longtailness
from .official import evaluate_official
from .tau_norm import analyze_tau_norm


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
        "longtailness",
        help="how long-tailed a data set and its subsets are: four metrics",
        description="Ratio of the largest class to the smallest, divergence from the balanced set "
        "in bits, absolute deviation and Gini coefficient; the subsets are those of "
        "`subsets.thresholds` and `subsets.rule`.",
    ).add_argument
    add("--dataset", default="glyph-lt", metavar="NAME", help="data set (default: glyph-lt)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="as for ltkernels.train")

    add = names.add_parser(
        "curves",
        help="loss and accuracy over the epochs of several runs in one figure",
        description="Draws the runs' training loss, unweighted cross-entropy (lfme) and test "
        "accuracy beside each other: with and without a part of a method.",
    ).add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs")
    add("--out", type=Path, default=Path("curves.png"), metavar="FILE.png", help="the figure")

    add = names.add_parser(
        "landscape",
        help="loss and accuracy around the trained weights, under filter-normalised noise",
        description="Moves the weights of finished runs along random directions whose filters have "
        "the norms of the weights' own, and evaluates them on the test images.",
    ).add_argument
    add("runs", type=Path, nargs="+", metavar="RUN", help="folders of finished runs")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the report")
    add("--directions", type=int, default=3, metavar="N", help="random directions (default: 3)")
    add("--radius", type=float, default=1.0, metavar="R", help="largest distance (default: 1)")
    add("--steps", type=int, default=10, metavar="S", help="distances a side (default: 10)")

    add = names.add_parser(
        "features",
        help="a run's test features in the plane: t-SNE with scikit-learn, else PCA",
        description="Draws the features of test images, of several experts side by side, by class "
        "and group. Needs matplotlib.",
    ).add_argument
    add("run", type=Path, metavar="RUN", help="folder of a finished run")
    add("--out", type=Path, required=True, metavar="FILE.png", help="the plot")
    add("--images", type=int, default=2000, metavar="N", help="test images (default: 2000)")
    add("--embedding", default="auto", choices=("auto", "tsne", "pca"), help="default: auto")

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


def _landscape(arguments: argparse.Namespace) -> None:
    for name in ("directions", "steps"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name}: expected at least 1, got {getattr(arguments, name)}")
    steps = range(-arguments.steps, arguments.steps + 1)
    distances = [arguments.radius * i / arguments.steps for i in steps]
    found = [
        analyze_landscape(run, distances=distances, directions=arguments.directions)
        for run in arguments.runs
    ]
    for each in found:
        print(f"{each.run}: {each.method}, mean of {arguments.directions} directions\n")
        print("distance     loss  accuracy")
        for row in zip(distances, each.mean_loss(), each.mean_accuracy(), strict=True):
            print("{:8.2f} {:8.3f} {:9.1f}".format(*row))
        print()
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(write_landscapes(arguments.out, found))
    print(plot_landscapes(arguments.out, found) if can_plot() else HOW_TO_GET_PLOTS)


def _features(arguments: argparse.Namespace) -> None:
    if arguments.images < 4:
        raise ConfigError(f"--images: expected at least 4, got {arguments.images}")
    if not can_plot():
        raise ImportError("the plot needs matplotlib: `pip install matplotlib`")
    found = analyze_features(arguments.run, images=arguments.images, embedding=arguments.embedding)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    print(f"{found.title}\n{plot_features(arguments.out, found)}")


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


def _longtailness(arguments: argparse.Namespace) -> None:
    if arguments.dataset not in DATASETS:
        have = ", ".join(DATASETS)
        raise ConfigError(f"unknown data set {arguments.dataset!r} (there are {have})")
    name, rows = analyze_longtailness(arguments.dataset, arguments.set)
    print(f"{name}\n\n{format_longtailness(rows)}")


def _curves(arguments: argparse.Namespace) -> None:
    print(plot_curves(arguments.runs, arguments.out) if can_plot() else HOW_TO_GET_PLOTS)


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


_ANALYSES = {
    "bias-variance": _bias_variance,
    "curves": _curves,
    "features": _features,
    "landscape": _landscape,
    "longtailness": _longtailness,
    "official": _official,
    "tau-norm": _tau_norm,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, as that of ``ltkernels.train``."""
    arguments = _parser().parse_args(argv)
    return exit_code(
        lambda: _ANALYSES[arguments.analysis](arguments),
        RuntimeError,
        interrupted="interrupted, saved; the same command continues",
    )


if __name__ == "__main__":
    sys.exit(main())
