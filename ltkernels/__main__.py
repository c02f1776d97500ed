"""``python -m ltkernels``: what was built, and the commands there are."""

from __future__ import annotations

import ltkernels

COMMANDS = {
    "ltkernels.train": "train a method; without arguments, the quick demonstration",
    "ltkernels.compare": "many methods and seeds under one recipe, and which differences are real",
    "ltkernels.evaluate": "the card of trained models, or of saved logits of any origin",
    "ltkernels.data": "what a data set holds; image files packed for fast loading",
    "ltkernels.analyze": "of runs and data: bias and variance, long-tailness, loss landscape ...",
    "ltkernels.fuse": "join trained models, or saved logits of any origin, to one classifier",
    "ltkernels.export": "a trained model as safetensors and as a torch.export program, checked",
    "ltkernels.selftest": "compare random calls of the fused ops with their definition",
}


def main() -> None:
    """Print the build facts and the commands."""
    print(ltkernels.info())
    print("\ncommands (each has --help):")
    for module, summary in COMMANDS.items():
        print(f"  python -m {module:<18} {summary}")


if __name__ == "__main__":
    main()
