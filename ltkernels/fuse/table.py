"""How good the strategies are, with all sources and with each left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ltkernels.fusion import balanced_weight, make_fusion, oracle
from ltkernels.metrics import class_accuracy, expected_calibration_error, shot_accuracy

from .sources import Ensemble

__all__ = ["FITTED", "Row", "evaluate", "format_table"]

FITTED = ("expert_selection", "stacking", "joint_calibration")
_SHOWN = ("many", "medium", "few", "overall")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        name: a member, a strategy, or the oracle.
        accuracy: ``many``, ``medium``, ``few``, ``overall`` in percent; None for what is not known.
        ece: expected calibration error, a fraction; None where there are no probabilities.
    """

    name: str
    accuracy: dict[str, float | None]
    ece: float | None = None


def evaluate(
    ensemble: Ensemble,
    methods: Sequence[str],
    *,
    take_one_out: bool = False,
    per: str = "class",
    calibration_decay: float = 5e-4,
    balanced: bool = True,
) -> list[Row]:
    """The members that know all classes, the strategies, the oracle; and less one source each.

    Args:
        ensemble: what is joined.
        methods: names of strategies.
        take_one_out: also every strategy without one source after another.
        per, calibration_decay: ``per`` and ``weight_decay`` of joint calibration.
        balanced: fit as if every class had the same number of validation images.

    Raises:
        ValueError: a strategy must be fitted and a member has no validation logits.
    """

    def fused(part: Ensemble, method: str) -> Row:
        fusion = make_fusion(
            method,
            [m.classes for m in part.members],
            part.num_classes,
            reject=[m.rejects for m in part.members],
            per=per,  # type: ignore[arg-type]
            calibration_decay=calibration_decay,
        )
        if method in FITTED:
            validation, labels = _validation(part, method)
            weight = balanced_weight(labels) if balanced else None
            fusion.fit(validation, labels, sample_weight=weight)
        with torch.no_grad():
            log_q = fusion([m.test for m in part.members])
        return _row(part, method, log_q)

    rows = [
        _row(ensemble, member.name, _spread(member.test, member.classes, ensemble.num_classes))
        for member in ensemble.members
        if len(member.classes) == ensemble.num_classes and not member.rejects
    ]
    rows += [fused(ensemble, method) for method in methods]
    members = ensemble.members
    best = oracle(
        [m.test for m in members],
        [m.classes for m in members],
        ensemble.labels,
        num_classes=ensemble.num_classes,
    )
    rows.append(Row("oracle", _accuracy(best, ensemble)))
    if take_one_out and len(ensemble.sources) > 1:
        for method in methods:
            for source in ensemble.sources:
                row = fused(ensemble.without(source), method)
                rows.append(Row(f"{method} without {source.name}", row.accuracy, row.ece))
    return rows


def _validation(ensemble: Ensemble, method: str) -> tuple[list[Tensor], Tensor]:
    validation = []
    for member in ensemble.members:
        if member.validation is None:
            raise ValueError(
                f"{method} is fitted on validation images, and {member.name} has none: train with "
                "data.holdout above 0, give val_logits, or take kl_min or soft_vote"
            )
        validation.append(member.validation)
    if ensemble.validation_labels is None:
        raise ValueError(f"{method} is fitted on validation images, whose labels are missing")
    return validation, ensemble.validation_labels


def _spread(logits: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Logits in the order of the classes."""
    out = logits.new_full((len(logits), num_classes), -torch.inf)
    return out.index_copy(1, classes, logits).log_softmax(1)


def _row(ensemble: Ensemble, name: str, log_q: Tensor) -> Row:
    ece = expected_calibration_error(log_q.exp(), ensemble.labels)
    return Row(name, _accuracy(log_q.argmax(1), ensemble), ece)


def _accuracy(predicted: Tensor, ensemble: Ensemble) -> dict[str, float | None]:
    known, counts = predicted >= 0, ensemble.class_counts
    # An image whose class no expert knows is a wrong one.
    guess = torch.where(known, predicted, (ensemble.labels + 1) % ensemble.num_classes)
    if counts is None or bool((counts <= 0).any()):
        of_class = class_accuracy(guess, ensemble.labels, ensemble.num_classes)
        return {**dict.fromkeys(_SHOWN), "overall": 100 * float(of_class.nanmean())}
    shots = shot_accuracy(guess, ensemble.labels, counts, ensemble.rule)  # type: ignore[arg-type]
    fractions = {name: getattr(shots, name) for name in _SHOWN}
    return {k: None if v is None else 100 * v for k, v in fractions.items()}


def format_table(rows: Sequence[Row]) -> str:
    """The rows, aligned for a terminal."""
    table = [["", *_SHOWN, "ECE"]]
    for row in rows:
        values = [_number(row.accuracy[group]) for group in _SHOWN]
        ece = _number(None if row.ece is None else 100 * row.ece)
        table.append([row.name, *values, ece])
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
