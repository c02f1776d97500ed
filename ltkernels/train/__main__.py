"""``python -m ltkernels.train``; see ``--help``."""

from __future__ import annotations

import os
import sys

# Waiting threads of GNU OpenMP spin 300,000 times before they sleep. Beside busy processes that
# makes two threads far slower than they need be (measured with two others: 800 images a second and,
# at times, below 100, against 2,300 to 4,200 with 10,000 spins). On an idle machine 10,000 spins
# cost nothing, whereas OMP_WAIT_POLICY=PASSIVE costs a third of the speed and more. The library
# reads the variable when torch loads it, so the process starts itself once more.
SPINS = "10000"


def _limit_spinning() -> None:
    decided = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys()
    if sys.platform != "linux" or decided or os.environ.get("OMP_NUM_THREADS") == "1":
        return
    os.environ["GOMP_SPINCOUNT"] = SPINS
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def run() -> int:
    """The command line, in a process of its own."""
    _limit_spinning()
    from ltkernels.train.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(run())
