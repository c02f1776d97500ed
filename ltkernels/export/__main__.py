"""The command line: ``python -m ltkernels.export RUN --out DIR``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import ltkernels.export
from ltkernels.train.command import exit_code
from ltkernels.train.config import ConfigError
from ltkernels.train.text import VOCABULARY

from .run import export_run

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ltkernels.export",
        description="Export a finished run, load what was written again and compare it with the "
        "model on the test images; exit 1 where they differ.",
        epilog=ltkernels.export.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    if not arguments.run.is_dir():
        raise ConfigError(f"there is no run {arguments.run}")
    done = export_run(arguments.run, arguments.out)
    check, card = done.check, done.card
    print(
        f"{card['method']} on {card['dataset']}: {card['accuracy']['overall']:.2f} % overall "
        f"({card['run']['accuracy']['overall']:.2f} % in the run)"
    )
    if card["note"]:
        print(f"note: {card['note']}")
    print(
        f"program and model on {check.images} test images: largest difference "
        f"{check.max_difference:.3g}, the same class for {check.same_class}"
    )
    words = [VOCABULARY] if "vocabulary" in card["input"] else []
    for name in ("model.pt2", "model.safetensors", *words, "model.json"):
        print(done.folder / name)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, as that of ``ltkernels.train``."""
    arguments = _parser().parse_args(argv)
    return exit_code(lambda: _run(arguments), RuntimeError)


if __name__ == "__main__":
    sys.exit(main())
