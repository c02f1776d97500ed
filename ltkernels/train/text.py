"""What a run on texts has of its own: the network's arguments, word vectors, the vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ltkernels.data import TextOptions, read_word_vectors, vocabulary_of
from ltkernels.methods import METHODS
from ltkernels.train.config import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from ltkernels.data import LongTailedDataset
    from ltkernels.train.config import Config

__all__ = [
    "VOCABULARY",
    "check_inputs",
    "network_arguments",
    "text_options",
    "vocabulary_hash",
    "vocabulary_record",
    "word_vectors",
]

VOCABULARY = "vocabulary.txt"
"""In a run's folder: the words of the token ids, one a line; see ``data.Vocabulary.from_text``."""

Vectors: TypeAlias = "tuple[Tensor, Tensor]"

_TEXT_MODEL = "textcnn"


def check_inputs(config: Config, dataset: LongTailedDataset) -> None:
    """Whether method and network can take what the data set has.

    Raises:
        ConfigError: texts and something that needs images, or the other way round.
    """
    name, texts = config.model.name, vocabulary_of(dataset) is not None
    if texts != (name == _TEXT_MODEL):
        expected = _TEXT_MODEL if texts else "a network for images"
        what = "texts" if texts else "images"
        raise ConfigError(
            f"`model.name`: expected {expected}, {dataset.name} has {what}; got {name!r}"
        )
    if not texts:
        return
    if METHODS[config.method].needs_images:
        others = ", ".join(name for name, method in METHODS.items() if not method.needs_images)
        raise ConfigError(
            f"`method`: {config.method} needs images, {dataset.name} has texts; for texts there "
            f"are {others}"
        )
    if config.mixup_alpha:
        raise ConfigError(
            f"`mixup_alpha`: expected 0, the texts of {dataset.name} cannot be mixed; got "
            f"{config.mixup_alpha}"
        )


def text_options(config: Config) -> TextOptions:
    """How texts become token ids."""
    text = config.text
    return TextOptions(text.max_length, text.min_count, text.max_words)


def network_arguments(
    config: Config, dataset: LongTailedDataset, vectors: Vectors | None = None
) -> dict[str, Any]:
    """The arguments of ``build_model`` that depend on the kind of the inputs."""
    model, vocabulary = config.model, vocabulary_of(dataset)
    if vocabulary is None:
        return {
            "in_channels": dataset.input_shape[0],
            "width": model.width,
            "stem_stride": model.stem_stride,
            "expert_width": model.expert_width,
        }
    return {
        "vocabulary_size": len(vocabulary),
        "embedding_width": model.embedding_width,
        "filter_widths": model.filter_widths,
        "feature_maps": model.feature_maps,
        "dropout": model.dropout,
        "static": model.static_embeddings,
        "vectors": vectors,
    }


def word_vectors(config: Config, dataset: LongTailedDataset) -> Vectors | None:
    """The vectors that the embedding begins with; None for random ones.

    Raises:
        ConfigError: the file is not there, or its vectors do not fit.
    """
    vocabulary, file = vocabulary_of(dataset), config.model.embeddings
    if vocabulary is None or not file:
        return None
    try:
        return read_word_vectors(Path(file), vocabulary, config.model.embedding_width)
    except OSError as error:
        raise ConfigError(f"`model.embeddings`: cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"`model.embeddings`: {error}") from error


def vocabulary_hash(dataset: LongTailedDataset) -> str:
    """Hash of the vocabulary; empty for images."""
    vocabulary = vocabulary_of(dataset)
    return "" if vocabulary is None else vocabulary.hash


def vocabulary_record(dataset: LongTailedDataset, vectors: Vectors | None) -> dict[str, Any]:
    """Entry of ``result.json``: words with an id, their hash, words with a given vector."""
    vocabulary = vocabulary_of(dataset)
    if vocabulary is None:
        return {}
    found = 0 if vectors is None else len(vectors[0])
    return {"vocabulary": {"words": len(vocabulary), "hash": vocabulary.hash, "with_vector": found}}
