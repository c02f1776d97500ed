"""The card of a model: how good it is, what it cost, how it came about.

:meth:`Card.to_dict`, which ``--json`` writes (a list, one object a model), is flat but for
``posthoc``, ``seconds_before`` and ``absent``. What is not known is null.

| key | what |
|---|---|
| ``name``, ``kind`` | path; ``"run"`` or ``"file"`` |
| ``method``, ``dataset``, ``recipe``, ``seed``, ``epochs``, ``selection``, ``selected_epoch`` | of the training |
| ``test_set_leak`` | whether training or selection saw the test set |
| ``classes``, ``train_images``, ``validation_images``, ``test_images`` | numbers of them |
| ``split_hash`` | hash of the training images |
| ``shot_rule``, ``classes_many``, ``classes_medium``, ``classes_few`` | groups of the classes |
| ``accuracy_overall``, ``accuracy_many``, ``accuracy_medium``, ``accuracy_few`` | mean of the classes' accuracies in percent |
| ``ece_overall``, ``ece_many``, ``ece_medium``, ``ece_few`` | expected calibration error, 15 bins, a fraction |
| ``parameters``, ``macs`` | of the network; multiply-accumulates of an image |
| ``seconds``, ``seconds_before``, ``seconds_total`` | of the training; ``{name: seconds}`` of the runs it needed (teacher, start, experts, each with what it needed itself); the sum |
| ``peak_memory_bytes``, ``peak_memory_kind`` | during training: ``"cuda_allocated"`` tensors, or the whole process, ``"process_rss"`` |
| ``torch``, ``ltkernels``, ``backend``, ``device``, ``threads``, ``processes`` | what it was trained with |
| ``posthoc`` | a list of rows of the same weights with other logits: ``row``, the accuracies and errors as above, and ``setting``: ``tau``, ``temperature``, ``fitted_on`` |
| ``absent`` | ``{row: why}`` of the rows that there are not |
| ``notes`` | a list of what else must be said |
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ltkernels.metrics import shot_groups
from ltkernels.predictions import Source

from .grouped import GROUPS, Grouped, grouped
from .posthoc import POSTHOC, fit_temperature, tau_normalized

if TYPE_CHECKING:
    from ltkernels.data import LongTailedDataset

__all__ = ["Card", "PosthocRow", "make_card"]

# Keys of result.json that a card repeats as they are.
_REPEATED = (
    "method",
    "dataset",
    "recipe",
    "seed",
    "epochs",
    "selection",
    "selected_epoch",
    "test_set_leak",
    "train_images",
    "parameters",
    "macs",
    "seconds",
    "peak_memory_bytes",
    "peak_memory_kind",
    "torch",
    "ltkernels",
    "backend",
    "device",
    "threads",
    "processes",
)


@dataclass(frozen=True)
class PosthocRow:
    """The same weights with other logits.

    Args:
        name: one of ``POSTHOC``.
        accuracy, ece: by group, as :class:`Card`'s.
        setting: ``tau``, ``temperature``, and what each was fitted or chosen on.
        logits: ``[M, C]`` of the test images.
    """

    name: str
    accuracy: dict[str, float | None]
    ece: dict[str, float | None]
    setting: dict[str, Any]
    logits: Tensor = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON takes it."""
        return {
            "row": self.name,
            **_prefixed("accuracy", self.accuracy),
            **_prefixed("ece", self.ece),
            "setting": dict(self.setting),
        }


@dataclass(frozen=True)
class Card:
    """How good a model is, what it cost and how it came about; None: not known.

    Args:
        name: of the model.
        accuracy: ``overall``, ``many``, ``medium``, ``few``: mean of the classes' accuracies, in
            percent.
        ece: the same groups: expected calibration error, 15 bins, a fraction.
        groups: classes in ``many``, ``medium``, ``few``; None where not known.
        facts: every other key of :meth:`to_dict`.
        posthoc: rows by name.
        absent: why a row is not there, by its name.
        notes: what else must be said.
        logits: ``[M, C]`` of the test images, -inf where a class is impossible.
        labels: int64 ``[M]``.
        class_counts: int64 ``[C]``, training images a class; None where not known.
    """

    name: str
    accuracy: dict[str, float | None]
    ece: dict[str, float | None]
    groups: dict[str, int | None]
    facts: dict[str, Any]
    posthoc: dict[str, PosthocRow]
    absent: dict[str, str]
    notes: tuple[str, ...]
    logits: Tensor = field(repr=False, compare=False)
    labels: Tensor = field(repr=False, compare=False)
    class_counts: Tensor | None = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The card as JSON takes it; the keys stand at the head of this module."""
        return {
            "name": self.name,
            **self.facts,
            **_prefixed("classes", self.groups),
            **_prefixed("accuracy", self.accuracy),
            **_prefixed("ece", self.ece),
            "posthoc": [row.to_dict() for row in self.posthoc.values()],
            "absent": dict(self.absent),
            "notes": list(self.notes),
        }


def make_card(
    source: Source,
    facts: Mapping[str, Any] | None = None,
    *,
    posthoc: Sequence[str] = POSTHOC,
    rule: str = "",
    name: str = "",
    device: str = "auto",
    dataset: LongTailedDataset | None = None,
) -> Card:
    """Make the card of one model.

    Args:
        source: its logits, one member.
        facts: what ``result.json`` says of the run, as :func:`~.sources.read_model` gives it: also
            ``run``, its folder (for tau-normalisation), and ``keeps_prior``, whether its logits
            still carry the training prior. None: a file of which nothing is known.
        posthoc: the post-hoc rows wanted.
        rule: which classes are many, medium and few; by default what the source says, else "kang".
        name: by default the source's.
        device: where tau-normalisation predicts.
        dataset: what it predicts on; by default the data set that the run's configuration names.

    Raises:
        ValueError: several experts, one that does not know all classes and has a reject class, no
            test labels, or shapes that do not fit.
    """
    facts = facts or {}
    unknown = [row for row in posthoc if row not in POSTHOC]
    if unknown:
        raise ValueError(
            f"`make_card`: expected `posthoc` of {', '.join(POSTHOC)}, got {unknown[0]!r}"
        )
    logits, held, labels = _of_one_model(source)
    counts = source.class_counts
    if counts is not None and bool((counts <= 0).any()):
        counts = None
    rule = rule or source.rule or str(facts.get("shot_rule") or "kang")
    measured = grouped(logits, labels, counts, rule)
    groups: dict[str, int | None] = dict.fromkeys(GROUPS[1:])
    if counts is not None:
        sizes = torch.bincount(shot_groups(counts, rule), minlength=3)  # type: ignore[arg-type]
        groups = dict(zip(GROUPS[1:], sizes.tolist(), strict=True))
    before = _seconds_before(facts)
    own = facts.get("seconds")
    known = {
        "kind": "run" if facts.get("run") else "file",
        **{key: facts.get(key) for key in _REPEATED},
        "classes": logits.shape[1],
        "validation_images": None if held is None else len(held[1]),
        "test_images": len(labels),
        "split_hash": facts.get("split_hash") or source.split or None,
        "shot_rule": rule if counts is not None else None,
        "seconds_before": before if facts.get("run") else None,
        "seconds_total": None if own is None else own + sum(before.values()),
    }
    if known["train_images"] is None and counts is not None:
        known["train_images"] = int(counts.sum())
    rows, absent = _posthoc(posthoc, logits, held, labels, counts, rule, facts, device, dataset)
    return Card(
        name=name or source.name,
        accuracy=measured.accuracy,
        ece=measured.ece,
        groups=groups,
        facts=known,
        posthoc=rows,
        absent=absent,
        notes=_notes(source, facts, measured, rule),
        logits=logits,
        labels=labels,
        class_counts=counts,
    )


def _prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}_{group}": value for group, value in values.items()}


def _of_one_model(source: Source) -> tuple[Tensor, tuple[Tensor, Tensor] | None, Tensor]:
    """Test logits of all classes; validation logits and labels, or None; test labels."""
    if len(source.members) != 1:
        raise ValueError(
            f"{source.name} holds {len(source.members)} experts; `python -m ltkernels.fuse` joins "
            "them to one model"
        )
    member, labels = source.members[0], source.labels
    if labels is None:
        raise ValueError(f"{source.name}: there are no test labels")
    if member.rejects:
        raise ValueError(f"{source.name} has a reject class; `python -m ltkernels.fuse` joins such")
    if len(labels) != len(member.test):
        raise ValueError(
            f"{source.name}: logits of {len(member.test)} test images, labels of {len(labels)}"
        )
    largest = 1 + max(int(member.classes.max()), int(labels.max()))
    classes = largest if source.class_counts is None else len(source.class_counts)
    if classes < largest:
        raise ValueError(
            f"{source.name}: training images of {classes} classes, logits or labels of {largest}"
        )

    def spread(z: Tensor) -> Tensor:
        if torch.equal(member.classes, torch.arange(classes)):
            return z
        out = z.new_full((len(z), classes), -torch.inf)
        return out.index_copy(1, member.classes, z)

    held = None
    if member.validation is not None and source.validation_labels is not None:
        if len(member.validation) != len(source.validation_labels):
            raise ValueError(
                f"{source.name}: logits of {len(member.validation)} validation images, labels of "
                f"{len(source.validation_labels)}"
            )
        held = spread(member.validation), source.validation_labels
    return spread(member.test), held, labels


def _seconds_before(facts: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of the runs that a run needed, by name, each with what it needed itself."""
    records = {
        name: record
        for name, record in facts.items()
        if isinstance(record, Mapping) and "run" in record
    }
    return {
        name: float(record.get("seconds_total", record["seconds"]))
        for name, record in records.items()
        if "seconds" in record
    }


def _notes(
    source: Source, facts: Mapping[str, Any], measured: Grouped, rule: str
) -> tuple[str, ...]:
    notes = []
    if facts.get("test_set_leak"):
        notes.append("trained or selected by accuracies on the test set: a leak")
    split = facts.get("split_hash")
    if split and source.split and split != source.split:
        notes.append(f"trained on split {split}, predicted with the statistics of {source.split}")
    reported = (facts.get("accuracy") or {}).get("overall")
    overall = measured.accuracy["overall"]
    if reported is not None and overall is not None and abs(reported - overall) > 0.05:
        notes.append(f"result.json says {reported:.2f} % overall, these logits {overall:.2f} %")
    if source.class_counts is not None and bool((source.class_counts <= 0).any()):
        notes.append("a class has no training image, so that there are no groups")
    if source.labels is not None and source.class_counts is not None:
        unseen = len(source.class_counts) - len(set(source.labels.tolist()))
        if unseen:
            notes.append(
                f"{unseen} of {len(source.class_counts)} classes have no test image: "
                "they are in no mean"
            )
    if source.rule and rule != source.rule:
        notes.append(f"groups by rule {rule}, the model's own is {source.rule}")
    return tuple(notes)


def _posthoc(
    wanted: Sequence[str],
    logits: Tensor,
    held: tuple[Tensor, Tensor] | None,
    labels: Tensor,
    counts: Tensor | None,
    rule: str,
    facts: Mapping[str, Any],
    device: str,
    dataset: LongTailedDataset | None,
) -> tuple[dict[str, PosthocRow], dict[str, str]]:
    from ltkernels.train.evaluation import adjust_logits

    rows: dict[str, PosthocRow] = {}
    absent: dict[str, str] = {}

    def add(name: str, other: Tensor, setting: dict[str, Any]) -> None:
        scored = grouped(other, labels, counts, rule)
        rows[name] = PosthocRow(name, scored.accuracy, scored.ece, setting, other)

    no_adjustment = ""
    if not facts.get("keeps_prior"):
        no_adjustment = (
            "the logits do not carry the training prior"
            if "keeps_prior" in facts
            else "not known whether the logits still carry the training prior"
        )
    elif counts is None:
        no_adjustment = "the training images a class are not known"
    no_temperature = "" if held is not None else "no validation images held out of training"
    tau = float((facts.get("logit_adjusted") or {}).get("tau", 1.0))
    for name in wanted:
        if name == "tau_norm":
            run = facts.get("run")
            found = (
                tau_normalized(Path(run), device, dataset)
                if run
                else "the weights of a file of logits are not there"
            )
            if isinstance(found, str):
                absent[name] = found
            else:
                add(name, found.logits, found.setting)
            continue
        parts = name.split("+")
        why = (no_adjustment if "logit_adjustment" in parts else "") or (
            no_temperature if "temperature" in parts else ""
        )
        if why:
            absent[name] = why
            continue
        setting: dict[str, Any] = {}
        z, validation = logits, held
        if "logit_adjustment" in parts:
            assert counts is not None
            setting["tau"] = tau
            z = adjust_logits(z, counts, tau)
            if validation is not None:
                validation = adjust_logits(validation[0], counts, tau), validation[1]
        if "temperature" in parts:
            assert validation is not None
            temperature = fit_temperature(*validation)
            z = z / temperature
            images = len(validation[1])
            setting |= {"temperature": temperature, "fitted_on": f"{images} validation images"}
        add(name, z, setting)
    return rows, absent
