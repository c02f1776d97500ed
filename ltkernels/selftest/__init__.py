"""A differential fuzzer: random calls of the fused ops against their definition in float64.

``python -m ltkernels.selftest`` is for a machine the package was just installed on. A coming op is
one more entry of `cases.py`.
"""

from .cases import CASES, Case, Op
from .cli import main

__all__ = ["CASES", "Case", "Op", "main"]
