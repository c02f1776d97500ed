"""The CIFAR policy: every operation against Pillow, and how often each is taken."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ltkernels.data import CIFAR_POLICY, Augmentation, PolicyView, auto_augment, make_view
from ltkernels.data.autoaugment import OPERATIONS, apply_operation

pytest.importorskip("PIL")
from PIL import Image, ImageEnhance, ImageOps


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_images(n=12, height=17, width=14):
    """Smooth images of few colours and images of noise."""
    noise = torch.rand(n, 3, height, width, generator=generator(1))
    smooth = torch.nn.functional.interpolate(noise[:, :, :4, :4], (height, width), mode="bilinear")
    images = torch.where(torch.arange(n)[:, None, None, None] % 2 == 0, noise, 0.2 + 0.5 * smooth)
    images[0] = 0.4  # one colour only: nothing to stretch
    return (255 * images).byte()


def to_pillow(image):
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def by_pillow(image, name, magnitude, sign):
    strength = magnitude / 9
    factor = 1 + 0.9 * strength * sign
    return {
        "brightness": lambda x: ImageEnhance.Brightness(x).enhance(factor),
        "color": lambda x: ImageEnhance.Color(x).enhance(factor),
        "contrast": lambda x: ImageEnhance.Contrast(x).enhance(factor),
        "sharpness": lambda x: ImageEnhance.Sharpness(x).enhance(factor),
        "invert": ImageOps.invert,
        "solarize": lambda x: ImageOps.solarize(x, 256 - 256 * strength),
        "posterize": lambda x: ImageOps.posterize(x, round(8 - 4 * strength)),
        "auto_contrast": ImageOps.autocontrast,
        "equalize": ImageOps.equalize,
    }[name](to_pillow(image))


VALUES = sorted(set(OPERATIONS) - {"shear_x", "shear_y", "translate_x", "translate_y", "rotate"})


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("magnitude", [0, 3, 7, 9])
def test_colours_are_pillows(name, magnitude):
    images = random_images()
    sign = torch.tensor([1, -1]).repeat_interleave(6)
    out = apply_operation(images, name, magnitude, sign)
    assert out.dtype == torch.uint8
    worst = 0
    for image, s, got in zip(images, sign.tolist(), out, strict=True):
        expected = np.asarray(by_pillow(image, name, magnitude, s)).astype(int)
        difference = abs(got.permute(1, 2, 0).numpy().astype(int) - expected)
        worst = max(worst, difference.max())
        # A blend is cut off to an integer; a rounding error before it may cross one.
        assert (difference > 0).mean() <= 0.02
    exact = ("invert", "solarize", "posterize", "auto_contrast", "equalize")
    assert worst <= (0 if name in exact else 1)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("axis", ["x", "y"])
def test_translation(sign, axis):
    images = random_images(height=16, width=20)
    out = apply_operation(images, f"translate_{axis}", 9, torch.full((12,), sign), fill=128)
    size = 20 if axis == "x" else 16
    pixels = round(150 / 331 * size)
    dim = 3 if axis == "x" else 2
    away, stays = (pixels, size - pixels)
    if sign > 0:  # the colour of x + pixels comes to x
        assert torch.equal(out.narrow(dim, 0, stays), images.narrow(dim, away, stays))
        assert (out.narrow(dim, stays, away) == 128).all()
    else:
        assert torch.equal(out.narrow(dim, away, stays), images.narrow(dim, 0, stays))
        assert (out.narrow(dim, 0, away) == 128).all()


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y"])
@pytest.mark.parametrize("sign", [1, -1])
def test_rotation_and_shear_are_pillows_about_the_centre(name, sign):
    height, width, magnitude = 31, 25, 8
    rows = torch.arange(height)[:, None].expand(height, width)
    columns = torch.arange(width).expand(height, width)
    image = torch.stack([8 * rows, 8 * columns, 4 * (rows + columns)]).byte()  # smooth
    out = apply_operation(image[None], name, magnitude, torch.tensor([sign]), fill=128)[0]
    strength, (cx, cy) = sign * magnitude / 9, ((width) / 2, (height) / 2)
    if name == "rotate":
        expected = to_pillow(image).rotate(30 * strength, fillcolor=(128,) * 3)
    else:
        k = 0.3 * strength
        matrix = (1, k, -k * cy, 0, 1, 0) if name == "shear_x" else (1, 0, 0, k, 1, -k * cx)
        expected = to_pillow(image).transform(
            (width, height), Image.Transform.AFFINE, matrix, fillcolor=(128,) * 3
        )
    difference = abs(out.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected).astype(int))
    # Pillow's rotation is in fixed-point numbers: a pixel on an edge may come from its neighbour.
    assert (difference.max(2) > 0).mean() < 0.03


def test_policy_is_the_published_one():
    assert len(CIFAR_POLICY) == 25
    assert CIFAR_POLICY[0] == (("invert", 0.1, 7), ("contrast", 0.2, 6))
    assert CIFAR_POLICY[24] == (("translate_y", 0.7, 9), ("auto_contrast", 0.9, 1))
    assert {name for pair in CIFAR_POLICY for name, _, _ in pair} <= set(OPERATIONS)


def test_every_image_goes_through_one_pair(monkeypatch):
    """With operations that write what they are, the pairs and their probabilities show."""
    n = 20000

    def mark(name):
        place = sorted(OPERATIONS).index(name) + 1
        return lambda images, strength, sign, fill: images * 15 + place

    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, mark(name))
    out = auto_augment(torch.zeros(n, 3, 1, 1, dtype=torch.uint8), generator())[:, 0, 0, 0]
    expected = torch.zeros(256)
    for pair in CIFAR_POLICY:
        (first, p, _), (second, q, _) = pair
        a, b = (sorted(OPERATIONS).index(name) + 1 for name in (first, second))
        for value, chance in (
            (0, (1 - p) * (1 - q)),
            (a, p * (1 - q)),
            (b, (1 - p) * q),
            ((15 * a + b) % 256, p * q),
        ):
            expected[value] += chance / 25
    share = out.long().bincount(minlength=256) / n
    deviation = (expected * (1 - expected) / n).sqrt()
    assert ((share - expected).abs() <= 5 * deviation + 1e-9).all()


def test_images_depend_on_the_generator_alone():
    images = random_images(64, 16, 16)
    first = auto_augment(images, generator(3))
    assert torch.equal(first, auto_augment(images, generator(3)))
    assert not torch.equal(first, auto_augment(images, generator(4)))
    assert torch.equal(images, random_images(64, 16, 16)), "the input is left alone"


def test_view():
    base = Augmentation((0.5,) * 3, (0.25,) * 3, shift=4, flip=True)
    view = make_view("autoaugment", base, cutout=8)
    assert view == PolicyView((0.5,) * 3, (0.25,) * 3, 4, True, 8)
    out = view(random_images(50, 32, 32), generator())
    assert out.dtype == torch.float32
    assert ((out == 0).all(1).flatten(1).sum(1) >= 16).all(), "a quarter of the square at least"


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda x: auto_augment(x[:, :1], generator()), ValueError, r"\[N, 3, H, W\]"),
        (lambda x: auto_augment(x.float(), generator()), TypeError, "torch.uint8"),
        (lambda x: apply_operation(x, "blur", 1, torch.ones(12)), ValueError, "`name`"),
        (lambda x: apply_operation(x, "rotate", 10, torch.ones(12)), ValueError, "`magnitude`"),
        (
            lambda x: make_view("autoaugment", Augmentation((0.5,), (0.5,))),
            ValueError,
            "3 channels",
        ),
    ],
)
def test_bad_arguments_are_named(call, error, named):
    with pytest.raises(error, match=named):
        call(random_images())
