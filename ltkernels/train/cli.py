"""The command line: ``python -m ltkernels.train``."""

from __future__ import annotations

import argparse
import difflib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ltkernels.data import DATASETS, IMAGE_FILES, TEXTS
from ltkernels.methods import METHODS
from ltkernels.train.command import DONE, FAILED, INTERRUPTED, WRONG_USAGE
from ltkernels.train.config import (
    CONFIG_KEYS,
    Config,
    ConfigError,
    flatten,
    parse_assignment,
    parse_toml,
    recipe_names,
    resolve,
)
from ltkernels.train.distributed import World
from ltkernels.train.interrupt import Interrupted
from ltkernels.train.loop import TrainingError
from ltkernels.train.report import format_results
from ltkernels.train.run import train

__all__ = ["main"]


# Keys that only some data sets read: tables end with a dot.
_OF_TEXTS = (
    "text.",
    "model.embedding_width",
    "model.embeddings",
    "model.static_embeddings",
    "model.filter_widths",
    "model.feature_maps",
    "model.dropout",
)
_OF_IMAGES = ("model.width", "model.stem_stride", "model.expert_width", "views.")
_OF_IMAGE_FILES = ("data.image_size", "data.crop", "data.interpolation", "data.jitter")


def _parser() -> argparse.ArgumentParser:
    methods = "\n".join(f"  {name:<18}{method.summary}" for name, method in METHODS.items())
    parser = argparse.ArgumentParser(
        prog="python -m ltkernels.train",
        description="Train a long-tailed recognition method. Without METHOD: the quick "
        "demonstration, plain cross-entropy beside balanced knowledge distillation (one to two "
        "minutes on two cores).",
        epilog=f"methods:\n{methods}\n\ndata sets: {', '.join(DATASETS)}\n\n"
        f"configuration keys: {', '.join(CONFIG_KEYS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("method", nargs="?", metavar="METHOD", help="what to train, see below")
    add("--dataset", metavar="NAME", help="data set (default: glyph-lt)")
    add("--recipe", metavar="NAME", help="variant of the data set's recipe, e.g. official, paper")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a configuration key, nested ones with dots; may be repeated",
    )
    add("--config", type=Path, metavar="FILE.toml", help="configuration file, weaker than --set")
    add("--out", type=Path, metavar="DIR", help="folder of the run (default: a new one in runs/)")
    add("--resume", action="store_true", help="continue the run in --out")
    add("--seed", type=int, metavar="S", help="seed of the training (default: 0)")
    add("--device", metavar="D", help="cpu, cuda, cuda:1 ... (default: auto)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: one for every core)")
    return parser


def _overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the command line sets, by dotted key."""
    given = {
        key: getattr(arguments, key)
        for key in ("method", "dataset", "recipe", "seed", "device", "threads")
        if getattr(arguments, key) is not None
    }
    for text in arguments.set:
        key, value = parse_assignment(text)
        if key in given and given[key] != value:
            raise ConfigError(f"`{key}` is given twice: {given[key]!r} and {value!r}")
        given[key] = value
    for key in ("teacher", "start", "expert_runs", "model.weights", "model.embeddings"):
        if given.get(key):
            given[key] = str(Path(given[key]).resolve())
    return given


def _check_dataset(name: str) -> None:
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"unknown data set {name!r}{hint} (there are {', '.join(DATASETS)})")


def _new_folder(name: str) -> Path:
    """``runs/<name>``, or the first of ``runs/<name>-2``, ``-3`` ... that does not exist."""
    number, folder = 1, Path("runs", name)
    while folder.exists():
        number += 1
        folder = Path("runs", f"{name}-{number}")
    return folder


def _note_unread(config: Config, given: dict[str, Any]) -> None:
    """Say which of the given keys the method or the data set does not read."""
    if not World.from_environment().is_main:
        return
    specific = {key for method in METHODS.values() for key in method.reads} | {"experts"}
    unread = specific - METHODS[config.method].reads
    unread = {k for k in given if k in unread or k.partition(".")[0] in unread}
    foreign: tuple[str, ...] = _OF_IMAGES if config.dataset in TEXTS else _OF_TEXTS
    if config.dataset not in IMAGE_FILES:
        foreign += _OF_IMAGE_FILES
    other = {k for k in given if k in foreign or f"{k.partition('.')[0]}." in foreign} - unread
    for who, keys in ((config.method, unread), (config.dataset, other)):
        if keys:
            named = ", ".join(f"`{k}`" for k in sorted(keys))
            print(f"note: {who} does not read {named}", file=sys.stderr)
    if given.get("data.rotation") and not config.data.augment:
        print("note: `data.rotation` turns no image with `data.augment` = false", file=sys.stderr)


def _resume_command(out: Path, given: Sequence[str]) -> str:
    """The command that continues: a run's folder knows its configuration, a demonstration's not."""
    by_script = Path(sys.argv[0]).name.startswith("ltkernels-train")
    program = [sys.argv[0]] if by_script else ["python", "-m", "ltkernels.train"]
    words = [*program, "--resume", "--out", str(out)]
    if not (out / "config.toml").exists():
        old = _parser().parse_args(given)
        words += [w for text in old.set for w in ("--set", text)]
        for name in ("dataset", "recipe", "config", "seed", "device", "threads"):
            if getattr(old, name) is not None:
                words += [f"--{name}", str(getattr(old, name))]
    return shlex.join(words)


def _say(text: str) -> None:
    if World.from_environment().is_main:
        print(text, flush=True)


def _announce(config: Config, out: Path) -> None:
    _say(
        f"{config.method} on {config.dataset}, seed {config.seed}, recipe {config.recipe} -> {out}"
    )


def _train_one(config: Config, out: Path, resume: bool) -> None:
    _announce(config, out)
    results = [train(config, out, resume=resume)]
    _say(f"\n{format_results(results)}\n\nfiles: {out}")


def _demonstrate(given: dict[str, Any], file: dict[str, Any], out: Path, resume: bool) -> None:
    """Cross-entropy, then BKD with that very run as its teacher."""
    results = []
    dataset = given.get("dataset", file.get("dataset", Config.dataset))
    quick = {"recipe": "quick"} if "quick" in recipe_names(dataset) else {}
    for method in ("ce", "bkd"):
        teacher = {"teacher": str((out / "ce").resolve())} if method == "bkd" else {}
        config = resolve(quick, file, {**given, "method": method, **teacher})
        folder = out / method
        _announce(config, folder)
        results.append(train(config, folder, resume=resume))
    _say(f"\n{format_results(results)}\n\nfiles: {out / 'ce'}\n       {out / 'bkd'}")


def _run(arguments: argparse.Namespace) -> None:
    given = _overrides(arguments)
    file = flatten(parse_toml(arguments.config)) if arguments.config else {}
    _check_dataset(given.get("dataset", file.get("dataset", Config.dataset)))
    if arguments.resume and arguments.out is None:
        raise ConfigError("--resume needs --out, the folder of the run")
    if arguments.resume and not arguments.out.is_dir():
        raise ConfigError(f"{arguments.out} holds no run to resume")
    saved = arguments.out / "config.toml" if arguments.resume else None
    if saved is not None and saved.exists():
        file = flatten(parse_toml(saved)) | file
    out = arguments.out
    if "method" not in given and "method" not in file:
        out = out or _new_folder("quick")
        arguments.folder = out
        _demonstrate(given, file, out, arguments.resume)
        return
    config = resolve(file, given)
    _note_unread(config, given)
    out = out or _new_folder(f"{config.dataset}-{config.method}-seed{config.seed}")
    arguments.folder = out
    _train_one(config, out, arguments.resume)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments after the program's name; None: those of this process.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_args(argv)
    arguments.folder = None
    try:
        _run(arguments)
    except ConfigError as error:
        return _fail(str(error), WRONG_USAGE)
    except (TrainingError, OSError, ValueError, ImportError) as error:
        return _fail(" ".join(str(error).split()), FAILED)
    except torch.OutOfMemoryError as error:
        first = str(error).split(". ")[0]
        return _fail(f"{first}; a smaller `batch_size` needs less", FAILED)
    except Interrupted:
        command = _resume_command(arguments.folder, argv)
        return _fail(f"interrupted, saved; continue with\n  {command}", INTERRUPTED)
    except KeyboardInterrupt:
        kept = arguments.folder
        again = "" if kept is None else f"; continue with\n  {_resume_command(kept, argv)}"
        return _fail(f"aborted{again}", INTERRUPTED)
    finally:
        World.from_environment().stop()
    return DONE


def _fail(message: str, code: int) -> int:
    if World.from_environment().is_main:
        prefix = "" if code == INTERRUPTED else "error: "
        print(f"{prefix}{message}", file=sys.stderr, flush=True)
    return code
