import logging
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from invert3d_core.errors import TokenError
from invert3d_core.tokens import prompts

WORDS = ["a", "photo", "of", "blue", "red", "on", "<", ">", ",", ".", "(", ")", "'s", "!", ":", "embedding", "b", "c"]


class WordTokenizer:
    """Splits at white space and punctuation; like CLIP's fast tokenizer it merges neighbouring marks into one id."""

    bos_id, eos_id, pad_id, vocab_size, max_length = 100, 101, 102, 103, 12

    def encode(self, text):
        return [WORDS.index(w) if w in WORDS else 50 for w in re.findall(r"[a-z]+|'s|[^\sa-z]+", text)]


TOKENIZER = WordTokenizer()
CUP, HAT = 103, 104
KNOWN = {"cup": 3, "hat": 2}


def body(prompt, known=None):
    ids, used = prompts.encode_ids(prompt, TOKENIZER, KNOWN if known is None else known)
    assert len(ids) == TOKENIZER.max_length
    assert ids[0] == TOKENIZER.bos_id
    end = ids.index(TOKENIZER.eos_id)
    assert set(ids[end + 1 :]) <= {TOKENIZER.pad_id}
    return ids[1:end], used


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("<cup>", [CUP]),
        ("a photo of <cup>", [0, 1, 2, CUP]),
        ("<cup>,", [CUP, 8]),
        ("<cup>.", [CUP, 9]),
        ("(<cup>,", [10, CUP, 8]),
        ("a <cup>'s", [0, CUP, 12]),
        ("blue<cup>red", [3, CUP, 4]),
        ("<cup><hat>", [CUP, HAT]),
        ("<hat> on <cup>", [HAT, 5, CUP]),
        ("<cup> <cup>", [CUP, CUP]),
        ("embedding:cup", [CUP]),
        ("a embedding:cup, blue", [0, CUP, 8, 3]),
        ("a embedding:cup.", [0, CUP, 9]),
        ("a (embedding:hat)", [0, 10, HAT, 11]),
        ("embedding:assets/cup.safetensors", [CUP]),
        ("embedding:cup<hat>", [CUP, HAT]),
        ("<cup> on embedding:hat", [CUP, 5, HAT]),
        ("", []),
        ("a < b > c", [0, 6, 16, 7, 17]),
        ("a <", [0, 6]),
        ("a > b", [0, 7, 16]),
        ("a:embedding:b", [0, 14, 15, 14, 16]),
    ],
)
def test_placeholders_are_found_whatever_stands_beside_them(prompt, expected):
    ids, used = body(prompt)
    assert ids == expected
    assert used == {i: {CUP: "cup", HAT: "hat"}[i] for i in expected if i >= TOKENIZER.vocab_size}


def test_ids_are_the_same_for_every_prompt():
    assert body("<hat>")[0] == [HAT]
    assert body("<hat>", {"hat": 2})[0] == [CUP]


@pytest.mark.parametrize(
    "prompt", ["a <mug>", "<Cup>", "<my cup>", "embedding:mug", "embedding:cups", "<cup2>", "<a,b>"]
)
def test_an_unknown_placeholder_lists_the_known_ones(prompt):
    with pytest.raises(TokenError, match=r"not applied to the model\. Known: <cup>, <hat>"):
        body(prompt)
    with pytest.raises(TokenError, match="No token is applied"):
        body(prompt, {})


def test_a_prompt_fits_to_the_last_place():
    ids, _ = prompts.encode_ids("<cup> <cup> a <hat> b", TOKENIZER, KNOWN)  # 3 + 3 + 1 + 2 + 1 = 10 = 12 - 2
    assert len(ids) == 12
    vectors = {CUP: torch.ones(3, 1), HAT: torch.full((2, 1), 2.0)}
    out = prompts.expand(torch.tensor([ids]), torch.tensor(ids, dtype=torch.float32)[None, :, None], vectors)
    assert out[0, :, 0].tolist() == [100, 1, 1, 1, 1, 1, 1, 0, 2, 2, 16, 101]


def test_overflow_is_an_error_with_the_number_of_free_places():
    with pytest.raises(
        TokenError, match=r"needs 11 places .* has 10: its words take 3, so 7 are free .* need 8 \(<cup> 2 x 3"
    ):
        body("a <cup> <hat> photo of <cup>")
    with pytest.raises(TokenError, match="so 0 are free"):
        body("a a a a a a a a a a a <cup>")


def test_a_long_prompt_without_placeholders_is_cut_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING, logger="invert3d"):
        ids, _ = body("a b " * 8)
    assert ids == [0, 16] * 5
    assert "the end is cut" in caplog.text


def slow_expand(ids, embeddings, vectors):
    """As the method is described: one placeholder string after the other, occurrences in descending column order."""
    length = ids.shape[1]
    rows = [list(zip(i.tolist(), e, strict=True)) for i, e in zip(ids, embeddings, strict=True)]
    for placeholder, new in vectors.items():
        for row in rows:
            for column in reversed([c for c, (i, _) in enumerate(row) if i == placeholder]):
                row[column : column + 1] = [(placeholder, v) for v in new]
                del row[length:]
    return (
        torch.stack([torch.stack([e for _, e in row]) for row in rows]),
        torch.tensor([[i for i, _ in row] for row in rows]),
    )


@given(
    ids=st.lists(st.lists(st.integers(0, 6), min_size=9, max_size=9), min_size=1, max_size=3),
    counts=st.dictionaries(st.integers(4, 6), st.integers(1, 5), max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_expansion_agrees_with_the_slow_way(ids, counts):
    ids = torch.tensor(ids)
    g = torch.Generator().manual_seed(1)
    embeddings = torch.randn(*ids.shape, 2, generator=g)
    vectors = {p: torch.randn(n, 2, generator=g) for p, n in counts.items()}
    expected, expected_ids = slow_expand(ids, embeddings, vectors)
    torch.testing.assert_close(prompts.expand(ids, embeddings, vectors), expected, rtol=0, atol=0)
    assert torch.equal(prompts.expand_ids(ids, counts), expected_ids)


def test_gradients_reach_vectors_once_per_occurrence():
    vectors = torch.zeros(2, 3, requires_grad=True)
    embeddings = torch.zeros(1, 6, 3, requires_grad=True)
    ids = torch.tensor([[0, 9, 1, 9, 2, 3]])  # becomes 0 9 9 1 9 9
    expanded = prompts.expand(ids, embeddings, {9: vectors})
    to_vectors, to_embeddings = torch.autograd.grad(expanded.sum(), [vectors, embeddings])
    assert torch.equal(to_vectors, torch.full((2, 3), 2.0))
    assert to_embeddings[0, :, 0].tolist() == [1, 0, 1, 0, 0, 0]


def test_vectors_take_the_embeddings_dtype():
    out = prompts.expand(torch.tensor([[9, 1]]), torch.zeros(1, 2, 3, dtype=torch.float64), {9: torch.ones(1, 3)})
    assert out.dtype == torch.float64


def test_wrong_shapes_are_refused():
    ids, embeddings = torch.tensor([[9, 1]]), torch.zeros(1, 2, 3)
    with pytest.raises(TokenError, match="another text encoder"):
        prompts.expand(ids, embeddings, {9: torch.zeros(2, 4)})
    with pytest.raises(TokenError, match="do not fit"):
        prompts.expand(ids, torch.zeros(1, 3, 3), {})
