"""Image files as the inputs of a data set, loaded batch by batch."""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from .images import Array, ImageOptions, centre_box, random_box, render
from .inputs import Key, StoredInputs
from .sampling import derived_seed
from .stores import ImageStore
from .workers import fill_batches

__all__ = ["ImageFiles"]


class ImageFiles(StoredInputs):
    """RGB images of which a square is loaded: a random part in training, else the centre.

    A batch is uint8 ``[n, 3, size, size]``, with the channels last in memory. What is loaded is a
    function of the image, the key and the place, so it is the same for any number of workers.

    Args:
        store: the images.
        options: how they are loaded.
        chosen: int64, positions in the store; all by default.
    """

    def __init__(
        self, store: ImageStore, options: ImageOptions, chosen: Array | None = None
    ) -> None:
        self.store, self.options = store, options
        self._chosen = np.arange(len(store.names)) if chosen is None else chosen

    @property
    def shape(self) -> torch.Size:
        """``[N, 3, size, size]``."""
        return torch.Size((len(self._chosen), 3, self.options.size, self.options.size))

    @property
    def names(self) -> Sequence[str]:
        """Path of each image in its list."""
        return [self.store.names[position] for position in self._chosen.tolist()]

    def __getitem__(self, chosen: Tensor) -> ImageFiles:
        return ImageFiles(self.store, self.options, self._chosen[chosen.cpu().numpy()])

    def load(
        self,
        batches: Sequence[Tensor],
        key: Key | None,
        places: Sequence[Tensor],
        *,
        pin_memory: bool,
    ) -> Generator[Tensor, None, None]:
        """The images of each batch; see :func:`load_batches`.

        Raises:
            ValueError: an image cannot be read; the message names it.
            ChildProcessError: a worker ended.
        """
        size, workers = self.options.size, self.options.workers
        rows = [self._chosen[batch.cpu().numpy()].tolist() for batch in batches]
        place = [numbers.tolist() for numbers in places]

        def fill(out: Array, number: int, row: int) -> None:
            seed = None if key is None else derived_seed(*key, "crop", place[number][row])
            self._fill(out, rows[number][row], seed)

        if workers:
            sizes = [len(batch) for batch in rows]
            with closing(fill_batches(fill, sizes, (size, size, 3), workers=workers)) as filled:
                for part in filled:
                    out = _empty(len(part), size, pin_memory)
                    out.copy_(torch.from_numpy(part))
                    yield out.permute(0, 3, 1, 2)
            return
        for number, batch in enumerate(rows):
            out = _empty(len(batch), size, pin_memory)
            array = out.numpy()
            for row in range(len(batch)):
                fill(array[row], number, row)
            yield out.permute(0, 3, 1, 2)

    def _fill(self, out: Array, position: int, seed: int | None) -> None:
        """Write one image, uint8 ``[size, size, 3]``; without a seed its centre."""
        options = self.options
        try:
            with self.store.open(position) as image:
                if seed is None:
                    box = centre_box(*image.size, options.size)
                else:
                    box = random_box(*image.size, options.min_area, random.Random(seed))
                gap = 2.0 if seed is None else 1.0
                out[:] = render(image, box, options.size, options.interpolation, gap=gap)
        except Exception as error:  # decoders raise whatever they like of a broken file
            where = self.store.where(position)
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            if isinstance(error, FileNotFoundError):
                reason += "; `python -m ltkernels.data info` looks for all files of a data set"
            raise ValueError(f"`ImageFiles`: cannot read {where}: {reason}") from error


def _empty(n: int, size: int, pin_memory: bool) -> Tensor:
    return torch.empty((n, size, size, 3), dtype=torch.uint8, pin_memory=pin_memory)
