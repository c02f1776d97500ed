"""How loss and accuracy change around trained weights: noise of the size of each filter.

Li et al., "Visualizing the loss landscape of neural nets", NeurIPS 2018, as ECL's paper shows it. A
direction is Gaussian noise whose every filter (row of a linear layer) is brought to the norm of the
weights' own; biases and the parameters of batch normalisation stay. At distance a the network has
the weights w + a d; batch-norm statistics stay those of training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ltkernels.data.sampling import derived_generator
from ltkernels.train.checkpoint import write_atomic
from ltkernels.train.distributed import World
from ltkernels.train.evaluation import predict_logits
from ltkernels.train.loop import resolve_device
from ltkernels.train.plots import new_figure
from ltkernels.train.run import load_config, load_dataset, load_method

__all__ = [
    "Landscape",
    "analyze_landscape",
    "filter_normalized",
    "plot_landscapes",
    "write_landscapes",
]


@dataclass(frozen=True)
class Landscape:
    """Loss and accuracy of a run along random directions, on the test images.

    Args:
        run: its folder.
        method: its method.
        distances: a, in norms of the filters.
        loss: cross-entropy of the predicted logits, ``[directions][distances]``.
        accuracy: in percent, likewise.
    """

    run: str
    method: str
    distances: list[float]
    loss: list[list[float]]
    accuracy: list[list[float]]

    def mean_loss(self) -> list[float]:
        """Mean over the directions, by distance."""
        return torch.tensor(self.loss, dtype=torch.float64).mean(0).tolist()

    def mean_accuracy(self) -> list[float]:
        """Mean over the directions, by distance."""
        return torch.tensor(self.accuracy, dtype=torch.float64).mean(0).tolist()


def filter_normalized(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """A random direction for every weight of two or more dimensions.

    Args:
        model: the network.
        generator: source of the noise, drawn on its device.

    Returns:
        Name -> noise of the weight's shape; each filter has the norm of the weight's.
    """
    direction = {}
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            continue
        drawn = torch.randn(weight.shape, generator=generator, device=generator.device)
        noise = drawn.to(weight)
        size, own = (x.detach().flatten(1).norm(dim=1) for x in (weight, noise))
        scale = size / own.clamp(min=1e-12)
        direction[name] = noise * scale.view(-1, *[1] * (weight.dim() - 1))
    return direction


@torch.no_grad()
def analyze_landscape(
    run: Path,
    *,
    distances: Sequence[float],
    directions: int = 3,
    seed: int = 0,
    device: str = "auto",
) -> Landscape:
    """Evaluate a finished run along random directions.

    Args:
        run: its folder.
        distances: a.
        directions: how many directions.
        seed: of the noise; runs of one network see the same.
        device: where to predict.

    Raises:
        ConfigError: no finished run.
    """
    config, world = load_config(run), World.from_environment()
    where = resolve_device(device, world)
    dataset = load_dataset(config)
    method = load_method(run, dataset, where)
    weights = dict(method.model.named_parameters())
    trained = {name: value.clone() for name, value in weights.items()}
    loss: list[list[float]] = []
    accuracy: list[list[float]] = []
    for index in range(directions):
        direction = filter_normalized(method.model, derived_generator(seed, "landscape", index))
        losses, accuracies = [], []
        for distance in distances:
            for name, noise in direction.items():
                weights[name].copy_(trained[name] + distance * noise)
            logits = predict_logits(
                method, dataset.test_inputs, dataset.transform, world, device=where
            )
            losses.append(float(cross_entropy(logits, dataset.test_labels)))
            right = logits.argmax(1) == dataset.test_labels
            accuracies.append(100 * float(right.double().mean()))
        for name in direction:
            weights[name].copy_(trained[name])
        loss.append(losses)
        accuracy.append(accuracies)
    return Landscape(str(run), config.method, [float(d) for d in distances], loss, accuracy)


def write_landscapes(out: Path, found: Sequence[Landscape]) -> Path:
    """Write ``landscape.json``."""
    path = out / "landscape.json"
    write_atomic(path, json.dumps([asdict(each) for each in found], indent=2) + "\n")
    return path


def plot_landscapes(out: Path, found: Sequence[Landscape]) -> Path:
    """Draw loss (full) and accuracy (dashed) over the distance (needs matplotlib)."""
    figure, axes = new_figure()
    twin = axes.twinx()
    twin.spines["top"].set_visible(False)
    for each in found:
        name = f"{each.method} ({Path(each.run).name})"
        (line,) = axes.plot(each.distances, each.mean_loss(), label=name)
        twin.plot(each.distances, each.mean_accuracy(), "--", color=line.get_color())
    axes.set(xlabel="distance, in norms of the filters", ylabel="test loss", ylim=(0, None))
    twin.set(ylabel="test accuracy, % (dashed)", ylim=(0, 100))
    axes.legend(frameon=False)
    path = out / "landscape.png"
    figure.savefig(path, dpi=120)
    return path
