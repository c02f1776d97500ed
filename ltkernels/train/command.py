"""How every command line ends: one line says what went wrong, an exit code says how."""

from __future__ import annotations

import sys
from collections.abc import Callable

from ltkernels.train.config import ConfigError

__all__ = ["DONE", "FAILED", "INTERRUPTED", "WRONG_USAGE", "exit_code"]

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


def exit_code(
    run: Callable[[], int | None],
    *failures: type[Exception],
    interrupted: str = "",
) -> int:
    """Run a command and say in one line what stopped it.

    Args:
        run: the command; what it returns is the exit code, None is 0.
        failures: exceptions that are the user's to see, without a traceback, besides OSError,
            ValueError and ImportError; any other is a fault of the program.
        interrupted: what is said after Ctrl-C.

    Returns:
        0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """
    seen: tuple[type[Exception], ...] = (OSError, ValueError, ImportError, *failures)
    try:
        return run() or DONE
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_USAGE
    except seen as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        if interrupted:
            print(interrupted, file=sys.stderr)
        return INTERRUPTED
