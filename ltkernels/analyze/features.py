"""Test features of a run in two dimensions: t-SNE where scikit-learn is installed, else PCA."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ltkernels.data.sampling import derived_generator
from ltkernels.metrics import shot_groups
from ltkernels.nn import MultiExpert, RoutedExperts
from ltkernels.train.distributed import World
from ltkernels.train.evaluation import GROUPS, predict_logits
from ltkernels.train.loop import resolve_device
from ltkernels.train.plots import new_figure
from ltkernels.train.run import load_config, load_dataset, load_method

__all__ = ["Embedding", "analyze_features", "can_tsne", "plot_features", "principal_components"]


@dataclass(frozen=True)
class Embedding:
    """Features of some test images in the plane.

    Args:
        title: the run and how it was embedded.
        points: ``[n, 2]``.
        labels: int64 ``[n]``.
        groups: which group each class is of, ``[C]``: 0 many, 1 medium, 2 few.
    """

    title: str
    points: Tensor
    labels: Tensor
    groups: Tensor


def can_tsne() -> bool:
    """Whether scikit-learn is installed."""
    try:
        import sklearn.manifold  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def principal_components(features: Tensor) -> Tensor:
    """The two directions of most variance: ``[n, D]`` -> ``[n, 2]``, centred.

    Each direction's sign makes its largest loading positive, so that the result is one.
    """
    centred = (features - features.mean(0)).double()
    _, _, rows = torch.linalg.svd(centred, full_matrices=False)
    rows = rows[:2]
    sign = rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()
    points: Tensor = centred @ (rows * sign).t()
    return points.float()


@torch.no_grad()
def analyze_features(
    run: Path,
    *,
    images: int = 2000,
    embedding: Literal["auto", "tsne", "pca"] = "auto",
    seed: int = 0,
    device: str = "auto",
) -> Embedding:
    """Embed the features of a finished run; of several experts, all of them side by side.

    Args:
        run: its folder.
        images: test images at most, drawn at random.
        embedding: ``"auto"`` is t-SNE with scikit-learn installed, PCA without.
        seed: of the drawn images and of t-SNE.
        device: where to predict.

    Raises:
        ConfigError: no finished run.
        ImportError: t-SNE was asked for, and scikit-learn is missing.
    """
    if embedding == "tsne" and not can_tsne():
        raise ImportError("t-SNE needs scikit-learn: `pip install scikit-learn`, or take pca")
    config, world = load_config(run), World.from_environment()
    where = resolve_device(device, world)
    dataset = load_dataset(config)
    method = load_method(run, dataset, where)
    drawn = torch.randperm(len(dataset.test_labels), generator=derived_generator(seed, "features"))[
        :images
    ]
    model: Any = method.model.network if isinstance(method.model, RoutedExperts) else method.model

    def features(x: Tensor) -> Tensor:
        found = model.features(x)
        joined: Tensor = torch.cat(found, dim=1) if isinstance(model, MultiExpert) else found
        return joined

    rows = predict_logits(
        method,
        dataset.test_inputs[drawn],
        dataset.transform,
        world,
        device=where,
        function=features,
    )
    name = "PCA" if embedding == "pca" or not can_tsne() else "t-SNE"
    points = principal_components(rows) if name == "PCA" else _tsne(rows, seed)
    return Embedding(
        f"{config.method} ({run.name}): {name} of {rows.shape[1]} features",
        points,
        dataset.test_labels[drawn],
        shot_groups(dataset.class_counts, config.shot_rule),
    )


def _tsne(features: Tensor, seed: int) -> Tensor:
    from sklearn.manifold import TSNE

    found = TSNE(random_state=seed, perplexity=min(30.0, (len(features) - 1) / 3)).fit_transform(
        features.numpy()
    )
    return torch.from_numpy(found)


def plot_features(path: Path, embedding: Embedding) -> Path:
    """Draw an embedding: a colour for each class, one plot for each group (needs matplotlib)."""
    from matplotlib import colormaps

    figure, axes = new_figure(13, 4.4)
    figure.clear()
    classes = len(embedding.groups)
    colours = colormaps["hsv"](torch.arange(classes).double().div(classes).numpy())
    group = embedding.groups[embedding.labels]
    for index, (axes, name) in enumerate(zip(figure.subplots(1, 3), GROUPS, strict=True)):
        own = group == index
        axes.plot(*embedding.points.t(), ".", color="#dddddd", markersize=2)
        axes.scatter(*embedding.points[own].t(), s=6, c=colours[embedding.labels[own].numpy()])
        axes.set(title=f"classes with {name} training images", xticks=[], yticks=[])
    figure.suptitle(embedding.title, fontsize=10)
    figure.savefig(path, dpi=120)
    return path
