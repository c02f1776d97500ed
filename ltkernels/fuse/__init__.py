"""Join trained models to one classifier: ``python -m ltkernels.fuse``.

A diverse ensemble of class-balanced experts, a baseline and whatever else there is, from runs of
``ltkernels.train`` or from logits that any program saved.
"""

from __future__ import annotations

from ltkernels.predictions import read_logits, write_logits
from ltkernels.predictions.runs import logits_of_run

from .sources import Member, Source, join
from .table import Row, evaluate, format_table

__all__ = [
    "Member",
    "Row",
    "Source",
    "evaluate",
    "format_table",
    "join",
    "logits_of_run",
    "read_logits",
    "write_logits",
]
