"""The command line: ``python -m ltkernels.evaluate RUN|FILE ...``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ltkernels.metrics import SHOT_RULES
from ltkernels.predictions import Source, files
from ltkernels.train.checkpoint import write_atomic
from ltkernels.train.command import check_folder, exit_code
from ltkernels.train.config import ConfigError
from ltkernels.train.loop import TrainingError

from .card import make_card
from .posthoc import POSTHOC
from .sources import read_model
from .table import format_card

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ltkernels.evaluate",
        description="Print the card of trained runs, or of logits that any program saved: accuracy "
        "in percent (mean over classes) and expected calibration error in percent by group; what "
        "the model costs and how it came about; and what the same weights give for nothing: logits "
        "adjusted after training, temperature scaling, tau-normalisation.",
        epilog=files.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "models",
        nargs="+",
        type=Path,
        metavar="RUN|FILE",
        help="folder of a finished run of ltkernels.train, or a file of logits, see below",
    )
    add("--labels", type=Path, metavar="FILE.npy", help="labels of the test images")
    add("--val-labels", type=Path, metavar="FILE.npy", help="labels of the validation images")
    add("--class-counts", type=Path, metavar="FILE.npy", help="training images a class")
    add("--rule", choices=tuple(SHOT_RULES), help="which classes are many, medium and few")
    add(
        "--logits-keep-prior",
        action="store_true",
        help="the logits of files still carry the training prior, as those of plain cross-entropy "
        "do: adjust them (of runs it is known)",
    )
    add(
        "--posthoc",
        default=",".join(POSTHOC),
        metavar="R1,R2",
        help=f"post-hoc rows, of {', '.join(POSTHOC)}; '' for none (default: all)",
    )
    add("--json", type=Path, metavar="FILE", help="write a list of the cards, a flat object each")
    add("--device", default="auto", metavar="D", help="where runs predict (default: auto)")
    return parser


def _given(path: Path | None) -> Tensor | None:
    return None if path is None else files.read_integers(path)


def _models(path: Path, arguments: argparse.Namespace) -> list[tuple[Source, dict[str, Any]]]:
    """The model of a run, or those of a file."""
    source, facts = read_model(path, device=arguments.device)
    if facts:
        return [(source, facts)]
    labels, held = _given(arguments.labels), _given(arguments.val_labels)
    counts = _given(arguments.class_counts)
    source = replace(
        source,
        labels=source.labels if labels is None else labels,
        validation_labels=source.validation_labels if held is None else held,
        class_counts=source.class_counts if counts is None else counts,
    )
    if arguments.logits_keep_prior:
        facts = {"keeps_prior": True}
    # Experts in one file are models of their own.
    return [(replace(source, name=m.name, members=(m,)), facts) for m in source.members]


def _run(arguments: argparse.Namespace) -> None:
    check_folder("--json", arguments.json)
    posthoc = [name for name in arguments.posthoc.split(",") if name]
    unknown = [name for name in posthoc if name not in POSTHOC]
    if unknown:
        raise ConfigError(f"unknown post-hoc row {unknown[0]!r} (there are {', '.join(POSTHOC)})")
    cards: list[dict[str, Any]] = []
    for path in arguments.models:
        for source, facts in _models(path, arguments):
            card = make_card(
                source,
                facts,
                posthoc=posthoc,
                rule=arguments.rule or "",
                device=arguments.device,
            )
            separator = "\n\n" if cards else ""
            print(f"{separator}{format_card(card)}", flush=True)
            cards.append(card.to_dict())
    print(
        "\nAccuracy and expected calibration error (15 bins) in percent; accuracy is the mean over "
        "classes."
    )
    if arguments.json is not None:
        write_atomic(arguments.json, json.dumps(cards, indent=2) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, as that of ``ltkernels.train``."""
    arguments = _parser().parse_args(argv)
    return exit_code(lambda: _run(arguments), TrainingError, TypeError, IndexError)


if __name__ == "__main__":
    sys.exit(main())
