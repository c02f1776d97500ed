"""The files of an exported run."""

from __future__ import annotations

import dataclasses
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import ltkernels
from ltkernels.data import Augmentation, TextTransform, load_batches, vocabulary_of
from ltkernels.data.vocabulary import PAD, TOKENISATION, UNKNOWN
from ltkernels.methods import CBE
from ltkernels.train.checkpoint import write_atomic
from ltkernels.train.config import ConfigError
from ltkernels.train.distributed import World
from ltkernels.train.evaluation import predict_logits, score
from ltkernels.train.run import hold_out, load_config, load_dataset, load_method, load_result
from ltkernels.train.text import VOCABULARY

from .program import Check, Classifier, check_program, export_program, predicted_by_all

if TYPE_CHECKING:
    from torch import Tensor

    from ltkernels.data import LongTailedDataset, Transform

__all__ = ["ExportError", "Exported", "export_run"]


class ExportError(RuntimeError):
    """A run that cannot be exported, or whose program does not do what the model does."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        folder: holds ``model.pt2``, ``model.safetensors`` and ``model.json``; of a run on texts
            ``vocabulary.txt``, too.
        card: content of ``model.json``.
        check: the program, loaded again, beside the eager model on the test images.
    """

    folder: Path
    card: dict[str, Any]
    check: Check


def export_run(run: Path, out: Path, dataset: LongTailedDataset | None = None) -> Exported:
    """Export a finished run and check what was written.

    Args:
        run: its folder.
        out: folder of the files, made if it is not there.
        dataset: the whole data set; by default the one that the run's configuration names.

    Raises:
        ConfigError: the folder holds no finished run.
        ExportError: a program cannot hold what the run does, or does not agree with it; ``out``
            then has no ``model.json``.
    """
    config, result = load_config(run), load_result(run)
    if result is None:
        raise ConfigError(f"{run} holds no finished run: result.json is missing")
    data, _ = hold_out(dataset or load_dataset(config), config)
    device = torch.device("cpu")
    method = load_method(run, data, device)
    # A program's weights are laid out as torch's own are.
    method.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    inputs = data.test_inputs
    (example,) = load_batches(inputs, [torch.arange(min(2, len(inputs)))])
    predict, note = predicted_by_all(method)
    try:
        program = export_program(Classifier(method, data.transform), example.contiguous())
    except (ValueError, RuntimeError) as error:
        raise ExportError(f"{run}: {_first_sentence(error)}") from error
    out.mkdir(parents=True, exist_ok=True)
    (out / "model.json").unlink(missing_ok=True)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    write_atomic(out / "model.pt2", buffer.getvalue())
    expected = predict_logits(
        method, inputs, data.transform, World(), device=device, function=predict
    )
    loaded = torch.export.load(out / "model.pt2").module()
    check = check_program(loaded, inputs, expected)
    if not check.passed:
        raise ExportError(
            f"the program differs from the model: {check.max_difference:.3g} in a logit (allowed "
            f"{check.tolerance:.3g}), another class for {check.images - check.same_class} of "
            f"{check.images} test images"
        )
    scored = score(check.logits, data.test_labels, data.class_counts, config.shot_rule)
    card = {
        "format": 1,
        "method": config.method,
        "dataset": data.name,
        "classes": list(data.class_names),
        "input": _input(example, data.transform),
        "output": "log-probabilities" if isinstance(method, CBE) else "logits",
        "note": note,
        "accuracy": scored.accuracy,
        "ece": scored.ece,
        "shot_rule": scored.rule,
        "splits": scored.sizes,
        "split_hash": data.split_hash,
        "run": {key: result.get(key) for key in ("accuracy", "ece", "seed", "epochs", "selection")},
        "check": {
            "images": check.images,
            "max_difference": check.max_difference,
            "same_class": check.same_class,
        },
        "config": dataclasses.asdict(config),
        "torch": torch.__version__,
        "ltkernels": ltkernels.__version__,
    }
    write_atomic(out / "model.safetensors", (run / "model.safetensors").read_bytes())
    vocabulary = vocabulary_of(data)
    if vocabulary is not None:
        write_atomic(out / VOCABULARY, vocabulary.to_text())
    # Last: a folder with it is a whole one.
    document = json.dumps(card, indent=2, ensure_ascii=False)
    write_atomic(out / "model.json", document + "\n")
    # As a later reader of the file sees it: lists, not tuples.
    return Exported(out, json.loads(document), check)


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 400 else f"{text[:400]} ..."


def _input(example: Tensor, transform: Transform) -> dict[str, Any]:
    """What the program takes."""
    card: dict[str, Any] = {
        "dtype": str(example.dtype).removeprefix("torch."),
        "shape": list(example.shape[1:]),
    }
    if isinstance(transform, Augmentation):
        card["normalisation"] = "inside the program: (images / 255 - mean) / std"
        card |= {"mean": list(transform.mean), "std": list(transform.std)}
    if isinstance(transform, TextTransform):
        length = example.shape[1]
        card["ids"] = (
            f"line numbers of {VOCABULARY}, from 0, of a text's first {length} words; {UNKNOWN} "
            f"for a word that is not there, {PAD} fills a text up behind"
        )
        card["tokenisation"] = TOKENISATION
        card["max_length"] = length
        card["vocabulary"] = transform.vocabulary.hash
    return card
