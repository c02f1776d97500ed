"""Image files as inputs: what is cropped, and that nothing but key and place decides it."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from image_tree import write_image
from ltkernels.data import ImageFiles, ImageOptions, images, load_batches
from ltkernels.data.images import centre_box, random_box, render
from ltkernels.data.stores import FolderStore

SIZES = [(64, 48), (48, 64), (40, 40), (200, 90), (33, 57), (16, 12), (120, 120)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    stream = np.random.default_rng(1)
    for i, size in enumerate(SIZES):
        write_image(root / f"{i}.jpg", stream, size)
    return root


def files(folder, **options):
    names = [f"{i}.jpg" for i in range(len(SIZES))]
    return ImageFiles(FolderStore(folder, names), ImageOptions(size=24, **options))


ORDER = torch.split(torch.tensor([3, 1, 6, 0, 2, 5, 4, 3, 3]), 4)


def test_shape_choice_and_names(folder):
    inputs = files(folder)
    assert inputs.shape == (7, 3, 24, 24)
    assert len(inputs) == 7
    mask = torch.tensor([False, True, False, True, True, False, False])
    assert inputs[mask].names == ["1.jpg", "3.jpg", "4.jpg"]
    assert inputs[mask][torch.tensor([2, 0])].names == ["4.jpg", "1.jpg"]
    assert inputs[mask].shape == (3, 3, 24, 24)


@pytest.mark.parametrize("key", [None, (0, 0, 3)])
def test_any_number_of_workers_loads_the_same(folder, key):
    one, two, three = (
        list(load_batches(files(folder, workers=workers), ORDER, key)) for workers in (0, 1, 3)
    )
    assert [tuple(b.shape) for b in one] == [(4, 3, 24, 24), (4, 3, 24, 24), (1, 3, 24, 24)]
    assert all(b.dtype == torch.uint8 for b in one)
    for other in (two, three):
        assert all(map(torch.equal, one, other))


def test_a_batch_is_the_callers_own(folder):
    batches = list(load_batches(files(folder, workers=2), [ORDER[0]] * 12))
    assert all(torch.equal(b, batches[0]) for b in batches)
    batches[3].zero_()
    assert batches[0].any()


def test_key_and_place_decide_the_crop(folder):
    inputs = files(folder)
    places = torch.split(torch.arange(9), 4)
    whole = list(load_batches(inputs, ORDER, (0, 0, 1)))
    rest = list(load_batches(inputs, ORDER[1:], (0, 0, 1), places[1:]))
    assert all(map(torch.equal, rest, whole[1:]))
    other = list(load_batches(inputs, ORDER, (0, 0, 2)))
    assert not torch.equal(other[0], whole[0])
    # The same image three times in an epoch: three crops.
    shown = [whole[0][0], whole[1][3], whole[2][0]]
    assert not any(torch.equal(a, b) for a, b in pairwise(shown))
    # A part of the data set loads as the whole does.
    chosen = torch.tensor([3, 1, 6, 0])
    (part,) = load_batches(inputs[chosen], [torch.arange(4)], (0, 0, 1))
    assert torch.equal(part, whole[0])


def test_evaluation_takes_the_centre_of_the_scaled_image(folder):
    inputs = files(folder)
    (loaded,) = load_batches(inputs, [torch.arange(len(SIZES))])
    for i, found in enumerate(loaded):
        with Image.open(folder / f"{i}.jpg") as image:
            side, (width, height) = round(24 * 256 / 224), image.size
            scaled = [int(side * n / min(width, height)) for n in (width, height)]
            left, top = (round((n - 24) / 2) for n in scaled)
            whole = image.resize(scaled, Image.Resampling.BILINEAR)
            centre = np.asarray(whole.crop((left, top, left + 24, top + 24))).astype(int)
        difference = np.abs(found.permute(1, 2, 0).numpy().astype(int) - centre)
        # Rounding between two passes; a JPEG decoded at half its size differs a little more.
        assert difference.max() <= (1 if min(width, height) < 108 else 12)


def test_random_boxes_are_those_of_the_recipe():
    stream, seen = random.Random(0), []
    for _ in range(2000):
        left, top, right, bottom = random_box(500, 375, 0.08, stream)
        assert 0 <= left < right <= 500
        assert 0 <= top < bottom <= 375
        seen.append(
            ((right - left) * (bottom - top) / (500 * 375), (right - left) / (bottom - top))
        )
    areas, aspects = zip(*seen, strict=True)
    assert 0.079 < min(areas) < 0.1
    assert max(areas) > 0.9
    assert 0.74 < min(aspects) < 0.78
    assert 1.28 < max(aspects) < 1.34
    # Uniform, but for those above 0.5625 that did not fit: of these ln(1 / area) / ln(16 / 9) stay.
    assert np.mean(np.array(areas) < 0.3) == pytest.approx(0.323, abs=0.04)


def test_an_image_that_no_box_fits_gives_its_middle():
    assert random_box(1000, 10, 0.08, random.Random(0)) == (493, 0, 506, 10)
    assert random_box(10, 1000, 1.0, random.Random(0)) == (0, 493, 10, 506)


def test_a_large_jpeg_is_decoded_at_a_fraction(tmp_path, monkeypatch):
    write_image(tmp_path / "large.jpg", np.random.default_rng(0), (800, 600))
    sizes = Counter()
    resize = Image.Image.resize

    def spy(image, *arguments, **options):
        sizes[image.size] += 1
        return resize(image, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", spy)
    with Image.open(tmp_path / "large.jpg") as image:
        small = render(image, (100, 50, 500, 450), 50, "bilinear", gap=1.0)
    assert sizes.pop((100, 75)) == 1
    with Image.open(tmp_path / "large.jpg") as image:
        image.load()
        full = resize(image, (50, 50), Image.Resampling.BILINEAR, box=(100, 50, 500, 450))
    assert small.shape == (50, 50, 3)
    assert np.abs(small.astype(int) - np.asarray(full).astype(int)).mean() < 3


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA", "I;16"])
def test_every_mode_becomes_rgb(mode, tmp_path):
    suffix = "tif" if mode == "CMYK" else "png"
    Image.new(mode, (40, 30)).save(tmp_path / f"a.{suffix}")
    inputs = ImageFiles(FolderStore(tmp_path, [f"a.{suffix}"]), ImageOptions(size=16))
    (batch,) = load_batches(inputs, [torch.tensor([0])])
    assert batch.shape == (1, 3, 16, 16)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("broken", ["missing", "truncated", "no image", "empty"])
def test_a_broken_file_is_named(broken, workers, folder, tmp_path):
    content = (folder / "3.jpg").read_bytes()
    made = {"truncated": content[: len(content) // 2], "no image": b"hello" * 100, "empty": b""}
    if broken in made:
        (tmp_path / "bad.jpg").write_bytes(made[broken])
    (tmp_path / "good.jpg").write_bytes(content)
    inputs = ImageFiles(
        FolderStore(tmp_path, ["good.jpg", "bad.jpg"]), ImageOptions(size=16, workers=workers)
    )
    with pytest.raises(ValueError, match=r"cannot read .*bad\.jpg: ."):
        list(load_batches(inputs, [torch.tensor([0, 1])]))


def test_without_pillow_one_sentence_says_what_to_do(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(ModuleNotFoundError, match="pip install pillow"):
        images.pillow()


@pytest.mark.parametrize(
    "options",
    [{"size": 0}, {"min_area": 0}, {"interpolation": "cubic"}, {"jitter": 2}, {"workers": -1}],
)
def test_bad_options_are_named(options):
    with pytest.raises(ValueError, match=f"`{next(iter(options))}`"):
        ImageOptions(**options)


def test_the_centre_of_a_published_size():
    # 500x375: scaled to 341x256, of which 224x224 from (58, 16).
    box = centre_box(500, 375, 224)
    expected = (58 * 500 / 341, 16 * 375 / 256, 282 * 500 / 341, 240 * 375 / 256)
    assert all(map(math.isclose, box, expected))
