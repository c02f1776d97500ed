"""TextCNN against its formula, text by text, and what it costs."""

from __future__ import annotations

import pytest
import torch

from ltkernels.nn import TextCNN, build_model, count_macs, count_parameters
from ltkernels.nn.expert_bank import blocks_of

V, C, D, MAPS, WIDTHS = 20, 5, 7, 4, (2, 3, 5)
LENGTHS = (0, 1, 2, 4, 5, 9)


def make(**options):
    torch.manual_seed(0)
    options = {"embedding_width": D, "feature_maps": MAPS, "filter_widths": WIDTHS, **options}
    return build_model("textcnn", C, vocabulary_size=V, **options).double().eval()


def texts(length, lengths=LENGTHS):
    ids = torch.randint(1, V, (len(lengths), length), generator=torch.Generator().manual_seed(1))
    for row, words in zip(ids, lengths, strict=True):
        row[words:] = 0
    return ids


def features_by_definition(model, words):
    """f_{h,m} of one text, an unpadded list of ids."""
    largest = []
    for conv, h in zip(model.convolutions, WIDTHS, strict=True):
        vectors = [model.embedding.weight[i] for i in words]
        vectors += [torch.zeros(D, dtype=torch.float64)] * max(0, h - len(words))
        for m in range(MAPS):
            responses = [
                sum(conv.weight[m, :, j] @ vectors[i + j] for j in range(h)) + conv.bias[m]
                for i in range(len(vectors) - h + 1)
            ]
            largest.append(max(max(responses), torch.zeros((), dtype=torch.float64)))
    return torch.stack(largest)


@torch.no_grad()
def test_features_are_the_definitions():
    model = make()
    ids = texts(9)
    expected = torch.stack(
        [
            features_by_definition(model, row[:n].tolist())
            for row, n in zip(ids, LENGTHS, strict=True)
        ]
    )
    found = model.features(ids)
    assert found.shape == (len(LENGTHS), model.num_features)
    assert model.num_features == MAPS * len(WIDTHS)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    logits = expected @ model.linear.weight.T + model.linear.bias
    assert torch.allclose(model(ids), logits, rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_padding_and_the_rest_of_the_batch_do_not_matter(dtype):
    model = make()
    ids = texts(9).to(dtype)
    together = model(ids)
    for length in (9, 12, 30):
        padded = torch.nn.functional.pad(ids, (0, length - 9))
        assert torch.allclose(model(padded), together, rtol=1e-12, atol=1e-12)
    for row, n, logits in zip(ids, LENGTHS, together, strict=True):
        alone = model(row[None, : max(n, 1)])  # shorter than the widest filter, too
        assert torch.allclose(alone[0], logits, rtol=1e-12, atol=1e-12)


def test_gradient_is_right_and_leaves_the_padding_at_zero():
    model = make()
    model.linear.weight.grad = None
    ids = texts(6, (1, 3, 6))
    loss = model(ids).square().sum()
    loss.backward()
    gradient = model.embedding.weight.grad
    assert torch.equal(gradient[0], torch.zeros(D, dtype=torch.float64))
    direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(2)).double()
    direction[0] = 0
    losses = []
    for step in (1e-6, -1e-6):
        moved = make()
        with torch.no_grad():
            moved.embedding.weight += step * direction
        losses.append(moved(ids).square().sum().item())
    slope = (losses[0] - losses[1]) / 2e-6
    assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-5)


def test_given_vectors_and_static_ones():
    ids, vectors = torch.tensor([3, 7]), torch.arange(2 * D).view(2, D).float()
    free, static = make(vectors=(ids, vectors)), make(vectors=(ids, vectors), static=True)
    for model in (free, static):
        weight = model.embedding.weight.detach()
        assert torch.equal(weight[ids], vectors.double())
        assert not weight[0].any()
        assert weight[1:].abs().amax(1).min() > 0
        assert "embedding.weight" in model.state_dict()
    assert [n for n, _ in free.named_parameters() if "embedding" in n] == ["embedding.weight"]
    assert not [n for n, _ in static.named_parameters() if "embedding" in n]
    static.requires_grad_(True)
    static(texts(6, (6,) * 6)).sum().backward()
    assert static.embedding.weight.grad is None
    assert count_parameters(free) - count_parameters(static) == V * D


def test_dropout_is_of_training_alone():
    model = make(dropout=0.5)
    ids = texts(9)
    assert torch.equal(model(ids), model(ids))
    assert not torch.equal(model.train()(ids), model(ids))
    assert torch.equal(model.features(ids), model.eval().features(ids))


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("static", [False, True])
def test_cost_by_hand(head, static):
    model = make(head=head, static=static)
    length = 9
    convolutions = sum((length - h + 1) * h * D * MAPS for h in WIDTHS)
    assert count_macs(model, (length,)) == convolutions + model.num_features * C
    filters = sum(MAPS * (h * D + 1) for h in WIDTHS)
    classifier = model.num_features * C + (C if head == "linear" else 0)
    embedding = 0 if static else V * D
    assert count_parameters(model) == embedding + filters + classifier


def test_cosine_head_scales():
    model = make(head="cosine", scale=3.0)
    logits = model(texts(9, (9,) * 6))
    assert logits.abs().max() <= 3


def test_blocks_are_embedding_filters_and_classifier():
    model = make()
    blocks = blocks_of(model)
    assert blocks == [[model.embedding], [model.convolutions], [model.linear]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary_size": 0}, "`vocabulary_size` to be >= 1, got 0"),
        ({"num_classes": 0}, "`num_classes` to be >= 1, got 0"),
        ({"embedding_width": 0}, "`embedding_width` to be >= 1"),
        ({"feature_maps": 0}, "`feature_maps` to be >= 1"),
        ({"filter_widths": ()}, "`filter_widths` to be >= 1, got 0"),
        ({"filter_widths": (3, 0)}, "`filter_widths` to be >= 1, got 0"),
        ({"dropout": 1.0}, r"`dropout` to be in \[0, 1\), got 1.0"),
        ({"head": "round"}, "`head`"),
    ],
)
def test_sizes_that_make_no_network(options, message):
    with pytest.raises(ValueError, match=message):
        TextCNN(**{"vocabulary_size": V, "num_classes": C, **options})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("textcnn", {"vocabulary_size": V, "experts": 3}, "`experts` only with an image network"),
        ("textcnn", {"vocabulary_size": V, "width": 8}, "`width` only with an image network"),
        ("resnet8", {"vocabulary_size": V}, "`vocabulary_size` only with 'textcnn'"),
    ],
)
def test_arguments_of_the_other_kind(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_model(name, C, **options)


def test_it_can_be_exported_for_any_number_of_texts():
    model = make()
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(model, (texts(9),), dynamic_shapes=(batch,))
    ids = texts(9, (3, 9))
    assert torch.equal(program.module()(ids), model(ids))
