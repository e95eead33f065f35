import dataclasses

import pytest
import torch

from invert3d_core import tokens
from invert3d_core.errors import TokenError
from invert3d_core.tokens import Token
from tests.unit.tokens.some_tokens import make, same_bits


def test_strength_zero_is_the_initial_words_and_one_the_token_bit_for_bit():
    token = make()
    token.initial[0, 0] = -0.0  # adding 0 · x would turn it into +0.0
    assert same_bits(token.at_strength(0.0), token.initial)
    assert same_bits(token.at_strength(1.0), token.vectors)
    torch.testing.assert_close(token.at_strength(0.25), 0.75 * token.initial + 0.25 * token.vectors)
    torch.testing.assert_close(token.at_strength(-1.0), 2 * token.initial - token.vectors)


def test_a_token_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(make(), "name", "hat")  # noqa: B010 (a type checker refuses the plain form)


@pytest.mark.parametrize("name", ["cup", "my_cup-2", "a.b", "Tasse_für_Tee", "杯", "7"])
def test_names_a_prompt_can_address(name):
    assert make(name=name).name == name


@pytest.mark.parametrize(
    "name", ["", "my cup", "<cup>", "cup[1]", "a<b", "cup.", ".cup", "a/b", "a:b", "(a)", "a,", "x" * 101]
)
def test_other_names_are_refused(name):
    with pytest.raises(TokenError, match="cannot be written in a prompt"):
        make(name=name)


@pytest.mark.parametrize(
    ("vectors", "initial", "base", "message"),
    [
        (torch.zeros(3), torch.zeros(3), "toy", r"expected \(n,d\)"),
        (torch.zeros(0, 8), torch.zeros(0, 8), "toy", "at least 1"),
        (torch.zeros(3, 8).half(), torch.zeros(3, 8), "toy", "float16"),
        (torch.full((3, 8), torch.nan), torch.zeros(3, 8), "toy", "NaN"),
        (torch.zeros(3, 8), torch.full((3, 8), torch.inf), "toy", "initial vectors .* infinite"),
        (torch.zeros(3, 8), torch.zeros(2, 8), "toy", "same shape"),
        (torch.zeros(3, 1024), torch.zeros(3, 1024), "clip_l", "width is 768"),
        (torch.zeros(3, 768), torch.zeros(3, 768), "toy", "belongs to a real encoder"),
        (torch.zeros(3, 8), torch.zeros(3, 8), "a b", "name of the text encoder"),
    ],
)
def test_impossible_tokens_are_refused(vectors, initial, base, message):
    with pytest.raises(TokenError, match=message):
        Token("cup", vectors, initial, base)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("cup", "cup"),
        ("my cup (v2)", "my_cup_v2"),
        ("<cup>", "cup"),
        ("杯 子", "杯_子"),
        ("...", "token"),
        ("", "token"),
    ],
)
def test_any_name_has_a_form_that_prompts_can_address(name, plain):
    assert tokens.addressable(name) == plain
    for long in (name + "x" * 300, name + "杯 " * 300):
        assert tokens.is_name(tokens.addressable(long))
