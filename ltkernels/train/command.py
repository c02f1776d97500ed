"""How every command line ends: one line says what went wrong, an exit code says how."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from ltkernels.train.config import ConfigError

__all__ = ["DONE", "FAILED", "INTERRUPTED", "WRONG_USAGE", "check_folder", "exit_code"]

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


def check_folder(option: str, file: Path | None) -> None:
    """See before the work, not after it, that the folder of a file to be written is there.

    Raises:
        ConfigError: it is not.
    """
    if file is not None and not file.parent.is_dir():
        raise ConfigError(f"{option}: there is no folder {file.parent}")


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
