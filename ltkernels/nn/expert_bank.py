"""Networks of their own for parts of the classes, joined to one classifier."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ltkernels.fusion import LearnedFusion, correct_reject

__all__ = ["ExpertBank", "blocks_of"]


def blocks_of(network: nn.Module) -> list[list[nn.Module]]:
    """The blocks of a network in their order: the stem or embedding, each stage, the classifier.

    Args:
        network: one of :func:`build_model`'s, a single one.

    Returns:
        Modules of each block.
    """
    children = dict(network.named_children())
    stem = [children.pop(name) for name in ("conv1", "bn1", "embedding") if name in children]
    return [stem, *([child] for child in children.values())]


class ExpertBank(nn.Module):
    """Experts and their fusion: a classifier of all classes.

    Args:
        networks: one an expert; expert e gives ``[N, S_e]`` or ``[N, S_e + 1]``.
        fusion: joins their logits; knows the experts' classes.
        corrections: what is added to each expert's reject logit; empty without reject classes.

    Shape:
        images ``[N, channels, H, W]`` -> log-probabilities ``[N, C]``.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        fusion: LearnedFusion,
        corrections: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.fusion = fusion
        self.corrections = tuple(corrections)
        # Which classes the experts are of is part of what was learnt.
        for e, own in enumerate(fusion.subsets.classes):
            self.register_buffer(f"classes{e}", own.clone())

    @property
    def classes(self) -> list[Tensor]:
        """The classes of each expert, int64 ``[S_e]``."""
        return [self.get_buffer(f"classes{e}") for e in range(len(self.networks))]

    def expert_logits(self, x: Tensor) -> list[Tensor]:
        """The experts' logits of images, reject logits corrected, float32."""
        logits = [network(x).float() for network in self.networks]
        return correct_reject(logits, self.corrections) if self.corrections else logits

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities ``[N, C]`` of images."""
        fused: Tensor = self.fusion(self.expert_logits(x))
        return fused

    def freeze_below(self, expert: int, learnable: int) -> list[nn.Module]:
        """Let the last blocks of one expert learn, and nothing else of the bank.

        Args:
            expert: which expert.
            learnable: blocks that learn, from the classifier on; -1 for all.

        Returns:
            The modules of that expert that stand still.
        """
        self.requires_grad_(False)
        blocks = blocks_of(self.networks[expert])
        first = 0 if learnable == -1 else max(0, len(blocks) - learnable)
        for block in blocks[first:]:
            for module in block:
                module.requires_grad_(True)
        return [module for block in blocks[:first] for module in block]
