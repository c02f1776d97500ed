"""MoCo v2's transforms: each against a plain definition of one image."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import torch

from ltkernels.data import (
    Augmentation,
    ContrastView,
    color_jitter,
    gaussian_blur,
    grayscale,
    make_view,
    random_resized_crop,
)
from ltkernels.data.contrast_view import _turn_hue


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_images(n=16, channels=3, height=9, width=11):
    return torch.rand(n, channels, height, width, generator=generator(9))


def ramps(n, height=20, width=30):
    """Images whose two channels are the row and the column of a pixel's centre."""
    rows = torch.arange(height).float()[:, None].expand(height, width)
    columns = torch.arange(width).float().expand(height, width)
    return torch.stack([rows, columns]).expand(n, 2, height, width)


def test_crops_are_boxes_of_the_drawn_sizes():
    n, scale, ratio = 400, (0.2, 0.5), (3 / 4, 4 / 3)
    out = random_resized_crop(ramps(n), generator(), scale=scale, ratio=ratio)
    inner = out[:, :, 5:15, 5:25]  # away from the border, where bilinear samples are cut off
    down = (inner[:, 0].diff(dim=1)).mean((1, 2))  # source pixels a step: height of the box / H
    right = (inner[:, 1].diff(dim=2)).mean((1, 2))
    torch.testing.assert_close(
        inner[:, 0].diff(dim=1), down[:, None, None].expand(-1, 9, 20), rtol=1e-3, atol=1e-4
    )
    area, aspect = down * right, right / down
    assert scale[0] - 1e-3 < area.min() < 0.23
    assert 0.47 < area.max() < scale[1] + 1e-3
    assert ratio[0] - 1e-2 < aspect.min()
    assert aspect.max() < ratio[1] + 1e-2
    centre = out[:, :, 9:11, 14:16].mean((2, 3))
    for axis, (size, side) in enumerate(((20, down), (30, right))):
        reach = (size - side * size) / 2  # how far the centre of the box can lie from the image's
        offset = (centre[:, axis] - (size - 1) / 2) / reach
        assert -1.01 < offset.min() < -0.9
        assert 0.9 < offset.max() < 1.01


def test_the_whole_image_is_left_as_it_is():
    images = random_images()
    out = random_resized_crop(images, generator(), scale=(1, 1), ratio=(1, 1))
    torch.testing.assert_close(out, images, rtol=0, atol=1e-5)


def test_hue_is_turned_as_colorsys_does():
    images, turn = random_images(8), torch.linspace(-0.5, 0.5, 8)[:, None, None, None]
    images[0] = 0.3  # no hue
    out = _turn_hue(images, turn)
    for n, image in enumerate(images):
        for pixel, got in zip(image.flatten(1).t(), out[n].flatten(1).t(), strict=True):
            h, s, v = colorsys.rgb_to_hsv(*pixel.tolist())
            expected = colorsys.hsv_to_rgb((h + float(turn[n])) % 1, s, v)
            np.testing.assert_allclose(got.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("which", ["brightness", "contrast", "saturation"])
def test_jitter_blends_with_its_origin(which):
    images = 0.2 + 0.4 * random_images(200)
    strengths = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0)
    out = color_jitter(images, generator(), **{**strengths, which: 0.4})
    luma = (images * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    origin = {
        "brightness": torch.zeros_like(luma),
        "contrast": luma.mean((1, 2, 3), keepdim=True),
        "saturation": luma,
    }[which]
    ratio = (out - origin) / (images - origin)
    factor = ratio.flatten(1).median(1).values
    torch.testing.assert_close(out, origin + factor[:, None, None, None] * (images - origin))
    assert 0.6 <= factor.min() < 0.63
    assert 1.37 < factor.max() <= 1.4


def test_jitter_is_another_one_for_every_image_and_in_range():
    images = random_images(1).expand(300, 3, 9, 11)
    strengths = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    out = color_jitter(images, generator(), **strengths)
    assert out.min() >= 0
    assert out.max() <= 1
    assert len(torch.unique(out.flatten(1), dim=0)) == 300


def test_greys_stay_grey():
    images = random_images(channels=1)
    assert torch.equal(grayscale(images, generator()), images)
    kept = color_jitter(images, generator(), brightness=0, contrast=0, saturation=0.4, hue=0.1)
    torch.testing.assert_close(kept, images)


def test_grayscale_takes_the_luma_of_some_images():
    images = random_images(500)
    out = grayscale(images, generator(), p=0.2)
    grey = (out[:, 0] == out[:, 2]).flatten(1).all(1)
    assert 70 < grey.sum() < 130
    luma = 0.299 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2]
    torch.testing.assert_close(out[grey, 1], luma[grey])
    assert torch.equal(out[~grey], images[~grey])


def test_blur_is_a_gaussian():
    sigma = 1.3
    image = torch.zeros(1, 1, 41, 41)
    image[0, 0, 20, 20] = 1
    out = gaussian_blur(image, generator(), sigma=(sigma, sigma), p=1.0)[0, 0]
    at = torch.arange(41) - 20.0
    bell = (-at.square() / (2 * sigma**2)).exp() / (sigma * math.sqrt(2 * math.pi))
    torch.testing.assert_close(out, bell[:, None] * bell, rtol=1e-3, atol=1e-6)
    flat = torch.full((3, 2, 8, 8), 0.7)
    torch.testing.assert_close(gaussian_blur(flat, generator(), p=1.0), flat)


@pytest.mark.parametrize("channels", [1, 3])
def test_view_is_a_function_of_the_generator(channels):
    images = (255 * random_images(40, channels)).byte()
    view = ContrastView((0.5,) * channels, (0.25,) * channels)
    first, again = view(images, generator(3)), view(images, generator(3))
    assert torch.equal(first, again)
    assert not torch.equal(first, view(images, generator(4)))
    assert first.shape == images.shape
    assert first.dtype == torch.float32
    assert first.min() >= -2 - 1e-5
    assert first.max() <= 2 + 1e-5


def test_view_without_its_parts_is_the_normalised_image():
    images = (255 * random_images(10)).byte()
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    view = ContrastView(mean, std, flip=False, crop=1.0, jitter_p=0, grayscale_p=0, blur=0)
    base = Augmentation(mean, std)
    with_ratio = view(images, generator())
    assert with_ratio.shape == images.shape
    plain = random_resized_crop(images.float() / 255, generator(), scale=(1, 1))
    expected = (plain - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(with_ratio, expected)
    assert make_view("dataset", base) == base


def test_views_by_name():
    base = Augmentation((0.5,), (0.5,), shift=2, flip=True)
    assert make_view("dataset", base, cutout=8).cutout == 8
    assert make_view("contrast", base, crop=0.5) == ContrastView((0.5,), (0.5,), True, 0.5)
    with pytest.raises(ValueError, match="`make_view`: expected `name`"):
        make_view("other", base)


@pytest.mark.parametrize(
    ("function", "options", "named"),
    [
        (random_resized_crop, {"scale": (0.5, 0.2)}, "scale"),
        (random_resized_crop, {"ratio": (0.0, 1.0)}, "ratio"),
        (color_jitter, {"hue": 0.6}, "hue"),
        (color_jitter, {"contrast": 2}, "contrast"),
        (gaussian_blur, {"sigma": (0.0, 1.0)}, "sigma"),
    ],
)
def test_bad_arguments_are_named(function, options, named):
    with pytest.raises(ValueError, match=f"expected `{named}`"):
        function(random_images(), generator(), **options)
    with pytest.raises(ValueError, match="expected `images`"):
        function(random_images()[0], generator())
