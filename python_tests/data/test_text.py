"""Tokeniser, vocabulary, word vectors and the transform of texts."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ltkernels.data import (
    Augmentation,
    TextOptions,
    TextTransform,
    Vocabulary,
    read_word_vectors,
    tokenize,
    vocabulary_of,
)
from ltkernels.data.vocabulary import PAD, UNKNOWN
from tiny_data import tiny_dataset
from tiny_text import tiny_text_dataset


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The Cat sat.", "the cat sat"),
        ("don't can't WON'T isn't want", "do n't ca n't wo n't is n't want"),
        ("it's they've we're he'll I'd I'm", "it 's they 've we 're he 'll i 'd i 'm"),
        ("it\N{RIGHT SINGLE QUOTATION MARK}s", "it 's"),
        ("a 'quoted' word", "a quoted word"),
        ("rock'n'roll O'Neill", "rock n roll o neill"),
        ("what, really?! (yes)", "what , really ? ! ( yes )"),
        ("3.5% of x_1; state-of-the-art", "3 5 of x 1 state of the art"),
        ("Žluťoučký KŮŇ", "žluťoučký kůň"),
        ("", ""),
        ("... -- ;", ""),
    ],
)
def test_tokens(text, words):
    assert tokenize(text) == words.split()


@given(st.text())
def test_any_text_gives_words_that_are_tokens_again(text):
    for word in tokenize(text):
        assert word
        assert not any(c.isspace() for c in word)
        assert word not in ("<pad>", "<unk>")


def test_vocabulary_is_ordered_by_count_and_alphabet():
    texts = [["b", "a", "c"], ["b", "d", "c"], ["b", "e"]]
    vocabulary = Vocabulary.count(texts)
    assert vocabulary.words == ("<pad>", "<unk>", "b", "c", "a", "d", "e")
    assert Vocabulary.count(texts, min_count=2).words[2:] == ("b", "c")
    assert Vocabulary.count(texts, max_words=3).words[2:] == ("b", "c", "a")
    assert Vocabulary.count(reversed(texts)) == vocabulary
    assert vocabulary["b"] == 2
    assert vocabulary["z"] == UNKNOWN
    assert "e" in vocabulary
    assert "z" not in vocabulary


def test_vocabulary_survives_its_file():
    vocabulary = Vocabulary.count([["ü", "a"], ["a"]])
    assert vocabulary.to_text() == "<pad>\n<unk>\na\nü\n"
    assert Vocabulary.from_text(vocabulary.to_text()) == vocabulary
    expected = hashlib.sha256(vocabulary.to_text().encode()).hexdigest()[:12]
    assert vocabulary.hash == expected
    assert Vocabulary.count([["a"]]).hash != expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a", "b"), "begin with <pad>, <unk>, got a, b"),
        (("<unk>", "<pad>"), "begin with"),
        (("<pad>", "<unk>", "a", "a"), "'a' twice"),
    ],
)
def test_a_vocabulary_that_is_none(words, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary(words)


def test_ids_are_padded_behind_and_cut():
    vocabulary = Vocabulary.count([["a", "a", "b"]])
    ids = vocabulary.encode([["b"], ["z", "a", "b", "a"], []], 3)
    assert ids.dtype == torch.int32
    assert ids.tolist() == [[3, PAD, PAD], [UNKNOWN, 2, 3], [PAD, PAD, PAD]]
    assert vocabulary.encode([], 3).shape == (0, 3)


@pytest.mark.parametrize("name", ["max_length", "min_count", "max_words"])
def test_options_below_one(name):
    with pytest.raises(ValueError, match=f"`{name}` to be >= 1, got 0"):
        TextOptions(**{name: 0})


def test_transform_leaves_ids_as_they_are():
    data = tiny_text_dataset()
    ids = data.train_inputs[:5]
    assert torch.equal(data.transform(ids, torch.Generator()), ids)
    assert torch.equal(data.transform.normalize(ids), ids)
    assert vocabulary_of(data) is data.transform.vocabulary
    assert vocabulary_of(tiny_dataset()) is None
    with pytest.raises(TypeError, match=r"int32, got torch\.float32"):
        data.transform.normalize(ids.float())
    with pytest.raises(ValueError, match=r"\[N, L\], got \[8\]"):
        data.transform.normalize(ids[0])


def test_holding_out_keeps_the_vocabulary():
    data = tiny_text_dataset()
    smaller, inputs, labels = data.holdout(fraction=0.2, seed=0)
    assert isinstance(smaller.transform, TextTransform)
    assert not isinstance(smaller.transform, Augmentation)
    assert smaller.transform.vocabulary is data.transform.vocabulary
    assert smaller.split_hash != data.split_hash
    assert inputs.dtype == torch.int32
    assert len(inputs) == len(labels) == len(data.train_labels) - len(smaller.train_labels)


# -- word vectors ---------------------------------------------------------------------------------

WORDS = Vocabulary.count([["cat", "dog", "the", "the"]])  # the cat dog


def read(tmp_path, content, width=2):
    path = tmp_path / "vectors.txt"
    path.write_text(content, encoding="utf-8")
    return read_word_vectors(path, WORDS, width)


@pytest.mark.parametrize("header", ["", "4 2\n"])
def test_vectors_of_the_vocabularys_words_alone(tmp_path, header):
    lines = "dog 1.5 -2\nzebra 9 9\n. . . 7 7\nthe 0.25 1e-3 \n"
    ids, vectors = read(tmp_path, header + lines)
    assert ids.tolist() == [WORDS["the"], WORDS["dog"]]
    assert vectors.dtype == torch.float32
    assert torch.equal(vectors, torch.tensor([[0.25, 1e-3], [1.5, -2]]))


@pytest.mark.parametrize(
    ("content", "width", "message"),
    [
        ("dog 1 2\n", 3, r"vectors.txt, line 1: expected 3 numbers \(`embedding_width`\), got 2"),
        ("dog 1 2 3\n", 2, "line 1: expected 2 numbers"),
        ("zebra 1 2\ndog 1\n", 2, "line 2: expected 2 numbers"),
        ("dog 1 x\n", 2, "line 1: could not convert"),
        (
            "zebra 1 nan\ndog 1 nan\n",
            2,
            "vectors.txt, line 2: expected finite .* got nan for 'dog'",
        ),
        ("dog -inf 1\n", 2, "line 1: expected finite numbers, got -inf"),
        ("dog 1 1e39\n", 2, "line 1: expected finite numbers, got 1e39"),
        ("zebra 1 2\n", 2, "none of the vocabulary's 3 words"),
        ("", 2, "none of the vocabulary's 3 words"),
    ],
)
def test_vectors_that_do_not_fit(tmp_path, content, width, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, content, width)
