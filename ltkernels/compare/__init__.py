"""Many methods and seeds under one recipe and one split: ``python -m ltkernels.compare``.

Trains what is missing, each configuration once, and says which differences are real; also of logits
that any program saved.

>>> plan = make_plan(method_grid(["ce", "bkd"]), 3, {"dataset": "digits-lt"}, Path("runs/digits"))
>>> run_all(plan.jobs)
>>> print(summary(compare(gather(plan.rows, {}))))
"""

from __future__ import annotations

from .contestants import Contestant, Entry, Field, gather
from .plan import Job, Plan, make_plan, method_grid, read_grid
from .report import Comparison, compare, summary, write_report
from .runner import Outcome, run_all
from .statistics import Difference, differences, holm, image_weights

__all__ = [
    "Comparison",
    "Contestant",
    "Difference",
    "Entry",
    "Field",
    "Job",
    "Outcome",
    "Plan",
    "compare",
    "differences",
    "gather",
    "holm",
    "image_weights",
    "make_plan",
    "method_grid",
    "read_grid",
    "run_all",
    "summary",
    "write_report",
]
