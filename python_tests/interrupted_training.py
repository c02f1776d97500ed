"""Training that is interrupted at a chosen step."""

from ltkernels.train.interrupt import Interruption
from ltkernels.train.progress import SilentProgress


class InterruptAt(SilentProgress):
    """Asks for an interruption after so many steps, as Ctrl-C does."""

    def __init__(self, steps, monkeypatch):
        self.left = steps
        self.interruption = None
        enter = Interruption.__enter__

        def remember(interruption):
            self.interruption = interruption
            return enter(interruption)

        monkeypatch.setattr(Interruption, "__enter__", remember)

    def step(self, images, loss):
        self.left -= 1
        if self.left == 0:
            self.interruption.requested = True
