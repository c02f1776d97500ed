"""Networks: names, shapes, parameter counts, initialisation, memory outputs, compilation."""

import pytest
import torch

from ltkernels.nn import (
    MODELS,
    BasicBlock,
    Bottleneck,
    CifarBlock,
    NormedLinear,
    PadShortcut,
    build_model,
    cifar_stage,
    count_parameters,
    resnet_stage,
)

SMALL = ("resnet8", "resnet20", "resnet32")


def image_of(name, n=2, channels=3):
    side = 16 if name in SMALL else 64
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", [name for name in MODELS if name != "textcnn"])
@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_forward_is_the_head_on_the_features(name, head):
    model = build_model(name, 7, in_channels=1, head=head, scale=12.0, width=8).eval()
    x = image_of(name, channels=1)
    features, logits = model.features(x), model(x)
    assert features.shape == (2, model.num_features)
    assert logits.shape == (2, 7)
    last = model.linear if name in SMALL else model.fc
    assert torch.equal(last(features), logits)
    if head == "cosine":
        assert isinstance(last, NormedLinear)
        assert last.scale == 12.0
        assert logits.abs().max() <= 12.0 + 1e-4


@pytest.mark.parametrize(
    ("name", "head", "parameters"),
    [
        ("resnet8", "linear", 74_640 + 6_500),
        ("resnet20", "linear", 269_072 + 6_500),
        ("resnet32", "linear", 463_504 + 6_500),
        # RIDE's baseline of 469,904 parameters: its cosine head has no bias.
        ("resnet32", "cosine", 469_904),
    ],
)
def test_parameters_of_the_cifar_networks(name, head, parameters):
    assert count_parameters(build_model(name, 100, head=head)) == parameters


def test_parameters_of_the_large_networks():
    assert count_parameters(build_model("resnet50", 1000)) == 25_557_032
    assert count_parameters(build_model("resnet10", 1000)) == 5_418_792


def batch_norm(prefix, channels):
    shapes = {f"{prefix}.{key}": (channels,) for key in ("weight", "bias")}
    shapes |= {f"{prefix}.{key}": (channels,) for key in ("running_mean", "running_var")}
    return {**shapes, f"{prefix}.num_batches_tracked": ()}


def torchvision_resnet50():
    """Keys and shapes of torchvision's resnet50().state_dict(), in order."""
    shapes = {"conv1.weight": (64, 3, 7, 7), **batch_norm("bn1", 64)}
    channels = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for index in range(blocks):
            block = f"layer{stage + 1}.{index}"
            shapes[f"{block}.conv1.weight"] = (width, channels, 1, 1)
            shapes |= batch_norm(f"{block}.bn1", width)
            shapes[f"{block}.conv2.weight"] = (width, width, 3, 3)
            shapes |= batch_norm(f"{block}.bn2", width)
            shapes[f"{block}.conv3.weight"] = (4 * width, width, 1, 1)
            shapes |= batch_norm(f"{block}.bn3", 4 * width)
            if index == 0:
                shapes[f"{block}.downsample.0.weight"] = (4 * width, channels, 1, 1)
                shapes |= batch_norm(f"{block}.downsample.1", 4 * width)
            channels = 4 * width
    return {**shapes, "fc.weight": (1000, 2048), "fc.bias": (1000,)}


def test_resnet50_has_torchvisions_state_dict():
    state = build_model("resnet50", 1000).state_dict()
    expected = torchvision_resnet50()
    assert len(expected) == 320
    assert {key: tuple(value.shape) for key, value in state.items()} == expected
    assert list(state) == list(expected)


def test_resnet10_keys():
    keys = list(build_model("resnet10", 3).state_dict())
    for stage in (1, 2, 3, 4):
        assert f"layer{stage}.0.conv2.weight" in keys
        assert (f"layer{stage}.0.downsample.0.weight" in keys) == (stage > 1)
        assert f"layer{stage}.1.conv1.weight" not in keys


def test_cifar_resnet_has_the_fields_keys():
    keys = list(build_model("resnet32", 10).state_dict())
    assert [key for key in keys if key.startswith("layer3.4.") and key.endswith(".weight")] == [
        f"layer3.4.{layer}.weight" for layer in ("conv1", "bn1", "conv2", "bn2")
    ]
    assert not any("shortcut" in key or "layer1.5" in key for key in keys)
    outside = {key.split(".")[0] for key in keys}
    assert outside == {"conv1", "bn1", "layer1", "layer2", "layer3", "linear"}


@pytest.mark.parametrize(("old", "new"), [(16, 32), (16, 24), (4, 7), (5, 5)])
def test_pad_shortcut_is_option_a(old, new):
    x = torch.randn(2, old, 6, 5)
    out = PadShortcut(old, new, 2)(x)
    before = (new - old) // 2
    assert out.shape == (2, new, 3, 3)
    assert torch.equal(out[:, before : before + old], x[:, :, ::2, ::2])
    assert out.count_nonzero() == x[:, :, ::2, ::2].count_nonzero()
    with pytest.raises(ValueError, match="`out_channels`"):
        PadShortcut(new + 1, new, 2)


@pytest.mark.parametrize("stride", [1, 2])
def test_blocks_reduce_to_their_shortcut_when_the_branch_is_zero(stride):
    x = torch.rand(2, 8, 6, 6)
    small = CifarBlock(8, 12, stride).eval()
    basic, bottleneck = BasicBlock(8, 12, stride).eval(), Bottleneck(8, 3, stride).eval()
    for block, last in ((small, small.bn2), (basic, basic.bn2), (bottleneck, bottleneck.bn3)):
        torch.nn.init.zeros_(last.weight)
        shortcut = block.shortcut if block is small else block.downsample
        assert torch.equal(block(x), shortcut(x).relu())


def test_stages_take_other_widths():
    """Private stages of expert networks have 3/4 of the width, behind a shared full stem."""
    x = torch.randn(2, 16, 8, 8)
    assert cifar_stage(24, 48, 2, 2)(cifar_stage(16, 24, 3, 2)(x)).shape == (2, 48, 2, 2)
    assert resnet_stage(Bottleneck, 16, 12, 2, 2)(x).shape == (2, 48, 4, 4)


def test_stem_stride_halves_the_map():
    x = torch.randn(1, 1, 28, 28)
    plain = build_model("resnet8", 5, 1)
    strided = build_model("resnet8", 5, 1, stem_stride=2)
    assert plain.layer1(plain.conv1(x)).shape == (1, 16, 28, 28)
    assert strided.layer1(strided.conv1(x)).shape == (1, 16, 14, 14)
    assert count_parameters(plain) == count_parameters(strided)


@pytest.mark.parametrize(("name", "fan"), [("resnet32", "in"), ("resnet10", "out")])
def test_convolutions_start_kaiming_normal(name, fan):
    torch.manual_seed(0)
    weight = build_model(name, 10).layer3[0].conv1.weight.detach()
    out_channels, in_channels = weight.shape[:2]
    expected = (2 / (9 * (in_channels if fan == "in" else out_channels))) ** 0.5
    assert weight.std() == pytest.approx(expected, rel=0.05)
    assert abs(weight.mean()) < 0.01


@pytest.mark.parametrize("name", ["resnet8", "resnet10"])
def test_channels_last_gives_the_same_and_stays(name):
    torch.manual_seed(0)
    model = build_model(name, 5, width=16).eval()
    x = image_of(name)
    expected = model(x)
    outputs = []
    for module in model.modules():
        if isinstance(module, (CifarBlock, BasicBlock)):
            module.register_forward_hook(lambda _module, _input, out: outputs.append(out))
    model = model.to(memory_format=torch.channels_last)
    got = model(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert outputs
    assert all(out.is_contiguous(memory_format=torch.channels_last) for out in outputs)


@pytest.mark.parametrize("name", ["resnet8", "resnet10"])
@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_compiles_in_one_graph_with_the_same_gradients(name, head):
    torch.manual_seed(0)
    model = build_model(name, 5, head=head, width=8).double()
    x = image_of(name, n=4).double()
    model(x).square().sum().backward()
    expected = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    model.zero_grad()
    torch.compile(model, fullgraph=True, backend="aot_eager")(x).square().sum().backward()
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[key])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet9"}, "one of resnet8, resnet20, resnet32, resnet10, resnet50, resnext50"),
        ({"head": "mlp"}, "`head`"),
        ({"num_classes": 0}, "`num_classes` to be >= 1, got 0"),
        ({"in_channels": 0}, "`in_channels`"),
        ({"width": 0}, "`width`"),
        ({"stem_stride": 0}, "`stem_stride`"),
        ({"name": "resnet50", "stem_stride": 2}, "small-image"),
        ({"head": "cosine", "scale": 0.0}, "`scale`"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_model(**{"name": "resnet8", "num_classes": 5, **arguments})
