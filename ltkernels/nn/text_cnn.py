"""The convolutional network for texts that the BKD paper takes.

Kim, "Convolutional Neural Networks for Sentence Classification", EMNLP 2014.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .heads import build_head

__all__ = ["TextCNN", "WordEmbedding"]

_PAD = 0


class WordEmbedding(nn.Module):
    """A vector for each word; that of id 0, which fills texts up, is 0 and stays 0.

    Vectors are drawn from U(-0.25, 0.25), as Kim does for words without a given one.

    Args:
        words: V.
        width: D.
        vectors: ``(ids, vectors)`` int64 ``[F]`` and float32 ``[F, D]`` to begin with.
        static: the vectors do not learn: they are a buffer, not a parameter.

    Shape:
        ids ``[N, L]`` -> ``[N, L, D]``.
    """

    weight: Tensor

    def __init__(
        self,
        words: int,
        width: int,
        *,
        vectors: tuple[Tensor, Tensor] | None = None,
        static: bool = False,
    ) -> None:
        super().__init__()
        weight = torch.empty(words, width).uniform_(-0.25, 0.25)
        if vectors is not None:
            weight[vectors[0]] = vectors[1]
        weight[_PAD] = 0
        if static:
            self.register_buffer("weight", weight)
        else:
            self.weight = nn.Parameter(weight)

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors ``[N, L, D]`` of ids int32 or int64 ``[N, L]``."""
        return F.embedding(ids, self.weight, padding_idx=_PAD)

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        words, width = self.weight.shape
        static = not isinstance(self.weight, nn.Parameter)
        return f"{words}, {width}, static={static}"


class TextCNN(nn.Module):
    r"""Filters over successive words, the largest response of each over the text, one classifier.

    .. math::
        f_{h,m} = \max_{0 \le i \le \max(n-h, 0)} \mathrm{relu}(w_{h,m} \cdot x_{i:i+h} + b_{h,m})

    for each width h and map m, over the vectors x of a text of n words. A text shorter than a
    filter has one window, filled up with zeros; otherwise padding has no part in the result. Kim's
    bound on the length of the class weights is left to weight decay.

    Dropout draws from the global generator, in each process of a data-parallel run for itself.

    Args:
        vocabulary_size: V, words that have an id; id 0 pads, behind the last word only.
        num_classes: number of classes C.
        embedding_width: D, width of a word's vector.
        filter_widths: words h that a filter sees.
        feature_maps: filters of each width.
        dropout: probability with which a feature is dropped before the classifier.
        vectors: word vectors to begin with, see :class:`WordEmbedding`.
        static: word vectors do not learn.
        head: ``"linear"`` or ``"cosine"``.
        scale: factor on the cosines of the cosine head.

    Shape:
        ids int32 or int64 ``[N, L]`` -> logits ``[N, C]``.

    Raises:
        ValueError: a size is below 1, or `dropout` outside of [0, 1).
    """

    def __init__(
        self,
        vocabulary_size: int,
        num_classes: int,
        *,
        embedding_width: int = 300,
        filter_widths: Sequence[int] = (3, 4, 5),
        feature_maps: int = 100,
        dropout: float = 0.5,
        vectors: tuple[Tensor, Tensor] | None = None,
        static: bool = False,
        head: str = "linear",
        scale: float = 30.0,
    ) -> None:
        super().__init__()
        sizes = {
            "vocabulary_size": vocabulary_size,
            "num_classes": num_classes,
            "embedding_width": embedding_width,
            "feature_maps": feature_maps,
            "filter_widths": min(filter_widths, default=0),
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"`TextCNN`: expected `{name}` to be >= 1, got {size}")
        if not 0 <= dropout < 1:
            raise ValueError(f"`TextCNN`: expected `dropout` to be in [0, 1), got {dropout}")
        self.dropout = dropout
        self.num_features = feature_maps * len(filter_widths)
        self.embedding = WordEmbedding(
            vocabulary_size, embedding_width, vectors=vectors, static=static
        )
        self.convolutions = nn.ModuleList(
            nn.Conv1d(embedding_width, feature_maps, width) for width in filter_widths
        )
        self.linear = build_head(head, self.num_features, num_classes, scale)

    def features(self, ids: Tensor) -> Tensor:
        """Largest responses ``[N, D]`` of texts ``[N, L]``, D = feature maps * filter widths."""
        filters = [conv for conv in self.convolutions if isinstance(conv, nn.Conv1d)]
        missing = max(conv.kernel_size[0] for conv in filters) - ids.shape[1]
        if missing > 0:
            ids = F.pad(ids, (0, missing))
        words = (ids != _PAD).sum(1, keepdim=True)
        x = self.embedding(ids).transpose(1, 2)
        largest = []
        for conv in filters:
            response = conv(x)
            window = torch.arange(response.shape[2], device=ids.device)
            beyond = window > (words - conv.kernel_size[0]).clamp(min=0)
            response = response.masked_fill(beyond.unsqueeze(1), -torch.inf)
            largest.append(response.max(2).values)
        # relu grows with its argument: after the maximum it is the same, on fewer numbers.
        return F.relu(torch.cat(largest, 1))

    def forward(self, ids: Tensor) -> Tensor:
        """Logits ``[N, C]`` of texts ``[N, L]``."""
        feature = F.dropout(self.features(ids), self.dropout, self.training)
        logits: Tensor = self.linear(feature)
        return logits
