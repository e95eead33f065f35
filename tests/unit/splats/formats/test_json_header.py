import json

import pytest

from invert3d_core.errors import FormatError
from invert3d_core.splats.formats.json_header import MAX_JSON_BYTES, parse
from invert3d_core.splats.formats.source import Source, open_source


@pytest.fixture
def source():
    with open_source(b"file") as opened:
        yield opened


def fields(source: Source, **values):
    return parse(source, json.dumps(values).encode(), "the header")


def test_members_by_type(source):
    found = fields(source, a=3, b=[1, 2.5], c="x", d={"e": 1}, f=[{"g": 1}, {"g": 2}], h=-0.5)
    assert found.integer("a", 0, 3) == 3
    assert found.numbers("b", 2) == [1, 2.5]
    assert found.text("c") == "x"
    assert found.fields("d").integer("e", 0, 9) == 1
    assert [item.integer("g", 0, 9) for item in found.items("f", "part")] == [1, 2]
    assert found.number("h") == -0.5
    assert fields(source, a=[2, 0]).indices("a", 3) == [2, 0]
    assert "a" in found and "z" not in found


def test_defaults_stand_for_what_is_missing(source):
    found = fields(source)
    assert found.integer("a", 0, 3, 2) == 2
    assert found.numbers("b", 2, [0.0, 1.0]) == [0, 1]
    assert found.text("c", "y") == "y"
    assert list(found.items("f", "part")) == found.indices("i", 5) == found.values_of("j") == []


@pytest.mark.parametrize(
    ("call", "value", "message"),
    [
        (lambda f: f.integer("a", 0, 3), 4, "'a' of the header is 4; expected a whole number from 0 to 3"),
        (lambda f: f.integer("a", 0, 3), True, "'a' of the header is true; expected"),
        (lambda f: f.integer("a", 0, 3), 1.0, "'a' of the header is 1; expected a whole number"),
        (lambda f: f.integer("b", 0, 3), 0, "'b' of the header is missing; expected"),
        (lambda f: f.numbers("a", 2), [1], "'a' of the header is a list of 1; expected 2 numbers"),
        (lambda f: f.numbers("a", 1), ["1"], "expected 1 numbers"),
        (lambda f: f.number("a"), 10**400, "is a number beyond float32; expected a number"),
        (lambda f: f.number("a"), None, "is null; expected a number"),
        (lambda f: f.text("a"), {}, "is an object; expected text"),
        (lambda f: f.fields("a"), "word", "'a' of the header is the text 'word'; expected a JSON object"),
        (lambda f: f.items("a", "part")[1], [{}, 7], "part 1 is 7; expected a JSON object"),
        (lambda f: f.indices("a", 3), [0, 3], "expected whole numbers from 0 to 2"),
        (lambda f: f.values_of("a"), 5, "is 5; expected a list"),
    ],
)
def test_members_of_another_kind(source, call, value, message):
    with pytest.raises(FormatError, match=message) as error:
        call(fields(source, a=value))
    assert str(error.value).startswith("The splat data (4 bytes): ")
    assert str(error.value).endswith("export it again.")


@pytest.mark.parametrize("text", [b"", b"{", b"{}{}", b'{"a": NaN}', b'{"a": -Infinity}', b"\xff", b"[" * 9999])
def test_what_is_no_json(source, text):
    with pytest.raises(FormatError, match="the header is no valid JSON"):
        parse(source, text, "the header")


def test_what_is_too_long(source):
    assert not parse(source, b"{" + b" " * (MAX_JSON_BYTES - 2) + b"}", "the header").values
    with pytest.raises(FormatError, match="has 1048577 bytes of JSON; expected at most 1048576"):
        parse(source, b"{" + b" " * (MAX_JSON_BYTES - 1) + b"}", "the header")
