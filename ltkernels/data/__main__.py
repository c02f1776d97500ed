"""The command line: ``python -m ltkernels.data``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ltkernels.train.command import exit_code
from ltkernels.train.config import ConfigError, parse_assignment, resolve
from ltkernels.train.run import hold_out, load_dataset

from . import DATASETS, ImageFiles, LongTailedDataset
from .listed import LISTED, published
from .packing import PackOptions, pack
from .stores import describe_missing
from .subsets import (
    SubsetRule,
    class_subsets,
    format_longtailness,
    longtailness,
    subset_names,
)

_RULES: tuple[SubsetRule, ...] = ("kang", "liu", "sharma", "wang")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ltkernels.data", description="Look at data sets, and pack image files."
    )
    names = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add = names.add_parser(
        "info",
        help="what a data set holds: images, groups of classes, split hash, long-tailness",
        description="Prints classes and images, the groups of every shot rule, the hash of the "
        "training split and the long-tailness. Of image files it checks that all of them are "
        "there; exit 1 where some are not.",
    ).add_argument
    add("name", metavar="NAME", help=f"one of {', '.join(DATASETS)}")
    add("--root", type=Path, metavar="DIR", help="folder of the data set's files")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="as for ltkernels.train")

    add = names.add_parser(
        "pack",
        help="join the image files of a data set to shards of small images",
        description="Writes images whose shorter side is SIZE, joined to files of some tens of "
        "megabytes; training reads them with data.root=DIR. What was interrupted goes on. Training "
        "on squares of S pixels (data.image_size=S) needs a SIZE of at least S * 256 / 224, "
        "rounded: 256 for 224, the default of both.",
    ).add_argument
    add("name", metavar="NAME", help=f"one of {', '.join(LISTED)}")
    add("--out", type=Path, required=True, metavar="DIR", help="the packed folder")
    add("--root", type=Path, metavar="DIR", help="folder of the lists and the images")
    add(
        "--size",
        type=int,
        default=256,
        metavar="N",
        help="pixels of the shorter side, at least data.image_size * 256 / 224 (default: 256)",
    )
    add("--quality", type=int, default=90, metavar="Q", help="of the JPEGs (default: 90)")
    add("--raw", action="store_true", help="pixels instead of JPEGs: five to ten times the bytes")
    add("--workers", type=int, default=0, metavar="N", help="processes (default: this one)")
    return parser


def _info(arguments: argparse.Namespace) -> None:
    if arguments.name not in DATASETS:
        raise ConfigError(f"unknown data set {arguments.name!r} (there are {', '.join(DATASETS)})")
    given = dict(parse_assignment(text) for text in arguments.set)
    if arguments.root is not None:
        given["data.root"] = str(arguments.root)
    # No image is loaded: what size one could be loaded in is not asked of a packed folder.
    config = resolve({"data.image_size": 1, **given, "dataset": arguments.name})
    whole = load_dataset(config)
    _check_files(whole)
    data, validation = hold_out(whole, config)
    splits = {"train": len(data.train_labels)}
    if validation is not None:
        splits["val"] = len(validation[1])
    splits["test"] = len(data.test_labels)
    counts = data.class_counts
    print(f"{data.name}: {data.num_classes:,} classes, {int(counts.max())} ... {int(counts.min())}")
    print("images: " + ", ".join(f"{split} {n:,}" for split, n in splits.items()))
    if arguments.name in LISTED and not config.data.holdout:
        print(published(arguments.name, splits.items(), data.num_classes))
    print(f"split {data.split_hash}\n")
    print("classes in the groups many / medium / few, by shot rule:")
    for rule in _RULES:
        groups = class_subsets(counts, (20, 100), rule)
        names = subset_names((20, 100), rule)
        parts = [f"{len(own)} ({name})" for own, name in zip(groups, names, strict=True)]
        print(f"  {rule:<8}{' / '.join(parts)}")
    rows = longtailness(counts, config.subsets.thresholds, config.subsets.rule)
    print(f"\nlong-tailness by subset ({config.subsets.rule}):\n{format_longtailness(rows)}")


def _check_files(data: LongTailedDataset) -> None:
    """Whether all image files of a data set are there.

    Raises:
        FileNotFoundError: some are not; the first three are named.
    """
    inputs = [data.train_inputs, data.test_inputs, *(data.validation or ())[:1]]
    stores = [part.store for part in inputs if isinstance(part, ImageFiles)]
    missing = [where for store in stores for where in store.missing()]
    if missing:
        count = sum(len(store.names) for store in stores)
        raise FileNotFoundError(describe_missing(missing, count, data.name))


def _pack(arguments: argparse.Namespace) -> None:
    if arguments.name not in LISTED:
        have = ", ".join(LISTED)
        raise ConfigError(f"{arguments.name!r} is no set of image files (there are {have})")
    for name, good, expected in (
        ("size", arguments.size >= 1, "at least 1"),
        ("quality", 1 <= arguments.quality <= 100, "1 to 100"),
        ("workers", arguments.workers >= 0, "at least 0"),
    ):
        if not good:
            raise ConfigError(f"--{name}: expected {expected}, got {getattr(arguments, name)}")
    options = PackOptions(arguments.size, arguments.quality, arguments.raw, arguments.workers)

    def say(done: int, total: int) -> None:
        print(f"{done} of {total} shards", flush=True)

    packed = pack(arguments.name, arguments.root, arguments.out, options, say)
    images = ", ".join(f"{k} {v['images']:,}" for k, v in packed.manifest["splits"].items())
    print(f"{images} images; train with --set data.root={arguments.out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments after the program's name; None: those of this process.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """
    arguments = _parser().parse_args(argv)
    return exit_code(
        lambda: {"info": _info, "pack": _pack}[arguments.command](arguments),
        interrupted="interrupted; the same command goes on",
    )


if __name__ == "__main__":
    sys.exit(main())
