"""Cards of models: ``python -m ltkernels.evaluate``.

>>> source, facts = read_model(Path("runs/bkd"))
>>> card = make_card(source, facts)
>>> card.accuracy["few"], card.ece["overall"], card.posthoc["temperature"].ece["overall"]
"""

from __future__ import annotations

from .card import Card, PosthocRow, make_card
from .posthoc import POSTHOC, fit_temperature
from .sources import read_model
from .table import format_card

__all__ = [
    "POSTHOC",
    "Card",
    "PosthocRow",
    "fit_temperature",
    "format_card",
    "make_card",
    "read_model",
]
