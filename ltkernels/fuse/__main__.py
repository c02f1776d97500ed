"""The command line: ``python -m ltkernels.fuse RUN|FILE ...``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from ltkernels.fusion import STRATEGIES, correct_reject
from ltkernels.metrics import SHOT_RULES
from ltkernels.predictions import files
from ltkernels.predictions.runs import logits_of_run
from ltkernels.train.checkpoint import write_atomic
from ltkernels.train.command import check_folder, exit_code
from ltkernels.train.config import ConfigError
from ltkernels.train.loop import TrainingError

from .sources import Source, join
from .table import evaluate, format_table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ltkernels.fuse",
        description="Join trained models to one classifier, and print how good it is: accuracy in "
        "percent (mean over classes) and expected calibration error by strategy, and the accuracy "
        "of an oracle that asks an expert which is right. Strategies with parameters are fitted on "
        "the validation images, which must be held out of the training of every model.",
        epilog=files.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "sources",
        nargs="+",
        type=Path,
        metavar="RUN|FILE",
        help="folder of a finished run of ltkernels.train, or a file of logits, see below",
    )
    add(
        "--method",
        default=",".join(STRATEGIES),
        metavar="M1,M2",
        help=f"strategies, of {', '.join(STRATEGIES)} (default: all)",
    )
    add("--take-one-out", action="store_true", help="also without one RUN or FILE after another")
    add("--labels", type=Path, metavar="FILE.npy", help="labels of the test images")
    add("--val-labels", type=Path, metavar="FILE.npy", help="labels of the validation images")
    add("--class-counts", type=Path, metavar="FILE.npy", help="training images a class")
    add("--rule", choices=tuple(SHOT_RULES), help="which classes are many, medium and few")
    add(
        "--reject-shift",
        type=float,
        default=0.0,
        metavar="X",
        help="added to the reject logits of files (runs have their correction): log(r) for experts "
        "trained on r images of their own for each reject image",
    )
    add(
        "--calibrate",
        choices=("class", "expert"),
        default="class",
        help="joint calibration of every logit, or of an expert's logits together, which few "
        "validation images can settle (default: class)",
    )
    add(
        "--calibration-decay",
        type=float,
        default=5e-4,
        metavar="D",
        help="L2 penalty of joint calibration (default: 5e-4)",
    )
    add(
        "--as-is",
        action="store_true",
        help="fit on the validation images as they are; without, every class weighs the same",
    )
    add("--json", type=Path, metavar="FILE", help="write the rows of the table")
    add("--write-logits", type=Path, metavar="FILE.npz", help="write the logits of the one source")
    add("--device", default="auto", metavar="D", help="where runs predict (default: auto)")
    return parser


def _read(path: Path, arguments: argparse.Namespace) -> Source:
    if path.is_dir():
        return logits_of_run(path, arguments.device)
    if not path.exists():
        raise ConfigError(f"there is no run and no file {path}")
    source = files.read_logits(path)
    shift = arguments.reject_shift
    if not shift:
        return source
    moved = [
        replace(
            m,
            test=correct_reject([m.test], [shift])[0],
            validation=None if m.validation is None else correct_reject([m.validation], [shift])[0],
        )
        if m.rejects
        else m
        for m in source.members
    ]
    return replace(source, members=tuple(moved))


def _given(path: Path | None) -> Tensor | None:
    return None if path is None else files.read_integers(path)


def _run(arguments: argparse.Namespace) -> None:
    check_folder("--json", arguments.json)
    check_folder("--write-logits", arguments.write_logits)
    methods = arguments.method.split(",")
    unknown = [name for name in methods if name not in STRATEGIES]
    if unknown:
        raise ConfigError(f"unknown strategy {unknown[0]!r} (there are {', '.join(STRATEGIES)})")
    if arguments.calibration_decay < 0:
        raise ConfigError(f"--calibration-decay: expected >= 0, got {arguments.calibration_decay}")
    sources = [_read(path, arguments) for path in arguments.sources]
    named = Source(
        "the command line",
        (),
        labels=_given(arguments.labels),
        validation_labels=_given(arguments.val_labels),
        class_counts=_given(arguments.class_counts),
    )
    ensemble = join([named, *sources], rule=arguments.rule or "")
    ensemble = replace(ensemble, sources=tuple(sources))
    if arguments.write_logits is not None:
        if len(sources) != 1:
            raise ConfigError(f"--write-logits: expected one RUN or FILE, got {len(sources)}")
        complete = replace(
            sources[0],
            labels=ensemble.labels,
            validation_labels=ensemble.validation_labels,
            class_counts=ensemble.class_counts,
        )
        files.write_logits(arguments.write_logits, complete)
    rows = evaluate(
        ensemble,
        methods,
        take_one_out=arguments.take_one_out,
        per=arguments.calibrate,
        calibration_decay=arguments.calibration_decay,
        balanced=not arguments.as_is,
    )
    print(format_table(rows))
    validation = ensemble.validation_labels
    held = "no" if validation is None else f"{len(validation):,}"
    groups = "" if ensemble.class_counts is None else f"; groups by rule {ensemble.rule}"
    print(
        f"\n{len(ensemble.labels):,} test images, {held} validation images, "
        f"{len(ensemble.members)} experts, {ensemble.num_classes} classes{groups}. Percent, mean "
        "over classes."
    )
    if arguments.json is not None:
        write_atomic(arguments.json, json.dumps([asdict(row) for row in rows], indent=2) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, as that of ``ltkernels.train``."""
    arguments = _parser().parse_args(argv)
    return exit_code(lambda: _run(arguments), TrainingError, TypeError, IndexError)


if __name__ == "__main__":
    sys.exit(main())
