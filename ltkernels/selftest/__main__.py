"""``python -m ltkernels.selftest``; see ``--help``."""

import sys

from ltkernels.selftest.cli import main

if __name__ == "__main__":
    sys.exit(main())
