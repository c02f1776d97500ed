"""Logits as `evaluate`, `compare` and `fuse` see them: of a run, or of a file of any origin.

:mod:`ltkernels.predictions.runs` reads them from the folder of a run; it is not imported here,
since training itself writes them.
"""

from __future__ import annotations

from .files import read_array, read_logits, write_logits
from .source import Member, Source

__all__ = ["Member", "Source", "read_array", "read_logits", "write_logits"]
