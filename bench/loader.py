"""Images a second that the loader of image files gives, beside a plain DataLoader with Pillow.

    python bench/loader.py [--images 256] [--rounds 3] [--width 500 --height 375] [--out FILE.md]

Writes a tree of JPEGs with the spectrum of photographs (500x375 as in ImageNet), packs it twice
(JPEG and plain pixels), then loads all of it for training (random crop, 224 pixels, uint8, batches
of 64) from each, with several numbers of worker processes, in turns. Starting the processes counts.
The DataLoader's side is what training codes do: `Image.open(...).convert("RGB")`, crop, resize, to
a uint8 tensor, collated. Every side decodes every image in every round.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from measure import Quartiles, Usage, describe, environment, interleave, load
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ltkernels.data import ImageFiles, ImageOptions, load_batches
from ltkernels.data import load as load_dataset
from ltkernels.data.images import random_box, render
from ltkernels.data.packing import PackOptions, pack
from ltkernels.data.sampling import derived_seed

SIZE, BATCH = 224, 64


def photograph(width: int, height: int, stream: np.random.Generator) -> Image.Image:
    """Random colours whose amplitude falls with the frequency, as photographs' do."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(width), np.fft.fftfreq(height)))
    frequency[0, 0] = 1
    channels = []
    for strength in (1.0, 0.3, 0.3):  # luma varies more than colours do
        noise = np.fft.fft2(stream.standard_normal((height, width))) / frequency
        plane = np.fft.ifft2(noise).real
        channels.append(np.clip(128 + 50 * strength * plane / plane.std(), 0, 255))
    pixels = np.stack(channels, 2).astype(np.uint8)
    return Image.fromarray(pixels, "YCbCr").convert("RGB")


def write_tree(root: Path, images: int, width: int, height: int, quality: int) -> float:
    """A tree with the lists of ImageNet-LT; the mean kilobytes of a file."""
    stream, lines = np.random.default_rng(0), []
    for i in range(images):
        path = root / f"train/n{i % 10:08d}/{i}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(width, height, stream).save(path, quality=quality)
        lines.append(f"{path.relative_to(root)} {i % 10}\n")
    Image.new("RGB", (8, 8)).save(root / "other.JPEG")
    Image.new("RGB", (8, 8)).save(root / "another.JPEG")
    (root / "ImageNet_LT_train.txt").write_text("".join(lines))
    (root / "ImageNet_LT_val.txt").write_text("other.JPEG 0\n")
    (root / "ImageNet_LT_test.txt").write_text("another.JPEG 0\n")
    return float(np.mean([p.stat().st_size for p in (root / "train").rglob("*.JPEG")])) / 1024


class PlainDataset(Dataset[Tensor]):
    """Images as training codes decode them."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            rgb = image.convert("RGB")
        box = random_box(*rgb.size, 0.08, random.Random(index))
        square = rgb.crop(box).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def inputs_of(root: Path, workers: int) -> ImageFiles:
    """The training images of a tree or a pack."""
    data = load_dataset("imagenet-lt", root=root, images=ImageOptions(workers=workers))
    assert isinstance(data.train_inputs, ImageFiles)
    return data.train_inputs


def run_ours(inputs: ImageFiles, passes: int, epoch: int) -> None:
    batches = torch.randperm(len(inputs) * passes).remainder(len(inputs)).split(BATCH)
    seen = sum(len(x) for x in load_batches(inputs, batches, (0, 0, epoch)))
    assert seen == len(inputs) * passes


def timed(side: Callable[[int], None], seconds: list[float], epoch: int) -> None:
    """Also note the processor time, that of ended workers included."""
    before = sum(os.times()[:4])
    side(epoch)
    gc.collect()  # the DataLoader's workers end with its iterator
    seconds.append(sum(os.times()[:4]) - before)


def run_plain(loader: DataLoader[Tensor], images: int, epoch: int) -> None:
    assert sum(len(x) for x in loader) == images


def stages(root: Path, packed: Path, raw: Path, images: int) -> dict[str, dict[str, float]]:
    """Milliseconds an image of each stage, in one process; medians."""
    stores = {
        "files": inputs_of(root, 0).store,
        "packed": inputs_of(packed, 0).store,
        "packed --raw": inputs_of(raw, 0).store,
    }
    times: dict[str, dict[str, list[float]]] = {}
    out = np.empty((SIZE, SIZE, 3), np.uint8)
    for i in range(images):
        for name, store in stores.items():
            rows = times.setdefault(name, {})
            began = time.perf_counter()
            image = store.open(i)
            opened = time.perf_counter()
            image.load()
            decoded = time.perf_counter()
            box = random_box(*image.size, 0.08, random.Random(derived_seed(0, 0, 0, "crop", i)))
            square = render(image, box, SIZE, "bilinear", gap=1.0)
            scaled = time.perf_counter()
            out[:] = square
            copied = time.perf_counter()
            for stage, span in (
                ("open, read, check", opened - began),
                ("decode", decoded - opened),
                ("crop and scale", scaled - decoded),
                ("copy to the batch", copied - scaled),
            ):
                rows.setdefault(stage, []).append(1e3 * span)
    return {name: {k: median(v) for k, v in rows.items()} for name, rows in times.items()}


def _usage() -> Usage:
    """With the processor time of the workers that have ended."""
    usage, times = Usage.until_now(), os.times()
    return Usage(usage.wall, sum(times[:4]), usage.busy)


def main() -> None:
    """Measure, print, and write the report where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--passes", type=int, default=4, help="over all images in a sample")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--quality", type=int, default=90)
    parser.add_argument("--workers", default="0,1,2", help="numbers of processes")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    passes = arguments.passes
    counts = [int(n) for n in arguments.workers.split(",")]
    before = load()
    lines = []

    def say(text: str = "") -> None:
        lines.append(text)
        print(text, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        root, packed, raw = (Path(folder) / name for name in ("tree", "packed", "raw"))
        kilobytes = write_tree(
            root, arguments.images, arguments.width, arguments.height, arguments.quality
        )
        began = time.perf_counter()
        pack("imagenet-lt", root, packed, PackOptions())
        pack_rate = arguments.images / (time.perf_counter() - began)
        pack("imagenet-lt", root, raw, PackOptions(raw=True))
        sides: dict[str, Callable[[int], None]] = {}
        paths = sorted((root / "train").rglob("*.JPEG"))
        for n in counts:
            loader = DataLoader(PlainDataset(paths * passes), BATCH, shuffle=True, num_workers=n)
            sides[f"DataLoader and Pillow|{n}"] = partial(run_plain, loader, len(paths) * passes)
            for name, where in (("files", root), ("packed", packed), ("packed --raw", raw)):
                sides[f"{name}|{n}"] = partial(run_ours, inputs_of(where, n), passes)
        processor: dict[str, list[float]] = {name: [] for name in sides}
        for name, side in sides.items():
            sides[name] = partial(timed, side, processor[name])
        usage = _usage()
        samples = interleave(sides, rounds=arguments.rounds, device=torch.device("cpu"))
        usage = _usage() - usage
        parts = stages(root, packed, raw, min(arguments.images, 200))
        size = {p.name: sum(f.stat().st_size for f in p.glob("*.shard")) for p in (packed, raw)}
    say(describe(environment(torch.device("cpu"))))
    for line in usage.describe(before, load()):
        say(line)
    say()
    say(
        f"{arguments.images} JPEGs of {arguments.width}x{arguments.height}, "
        f"{kilobytes:.0f} KiB each; packed with a shorter side of 256: "
        f"{size['packed'] / arguments.images / 1024:.0f} KiB each, --raw "
        f"{size['raw'] / arguments.images / 1024:.0f}; packing: {pack_rate:.0f} images a second, "
        f"one process. {arguments.rounds} rounds of {passes} passes over them, all sides in turns; "
        "medians (quartiles)."
    )
    say()
    for title, seconds in (
        ("Images a second", samples),
        ("Images a second of processor time, all processes together", processor),
    ):
        say(f"{title}, random crops of 224 pixels:")
        say()
        say("| from | " + " | ".join(f"{n} workers" for n in counts) + " |")
        say("|---|" + "---|" * len(counts))
        for name in dict.fromkeys(side.split("|")[0] for side in sides):
            cells = []
            for n in counts:
                q = Quartiles.of([arguments.images * passes / s for s in seconds[f"{name}|{n}"]])
                cells.append(f"{q.median:.0f} ({q.low:.0f}-{q.high:.0f})")
            say(f"| {name} | " + " | ".join(cells) + " |")
        say()
    say("Milliseconds an image in one process, by stage (medians):")
    say()
    names = list(parts)
    say("| stage | " + " | ".join(names) + " |")
    say("|---|" + "---|" * len(names))
    for stage in parts["files"]:
        say(f"| {stage} | " + " | ".join(f"{parts[name][stage]:.2f}" for name in names) + " |")
    totals = {name: sum(parts[name].values()) for name in names}
    say("| sum | " + " | ".join(f"{totals[name]:.2f}" for name in names) + " |")
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
