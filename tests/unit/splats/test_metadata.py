"""Metadata in comments: kept whole, replaced by the next, and never taken for a statement of axes."""

import pytest

from invert3d_core.cameras import Orientation
from invert3d_core.splats.metadata import metadata_of, with_metadata, without_metadata

STATED = 'LGM, up="+y" front="+z"'
WORKFLOW = {"nodes": [{"type": "Note", "text": "line one\nup: -x front: +y, up=-z, front='-y'", "ü": 1.5}], "up": "-z"}


def test_metadata_comes_back() -> None:
    comment, left_out = with_metadata(STATED, {"prompt": {"1": {}}, "workflow": WORKFLOW}, 10_000)
    assert left_out == []
    assert comment.isascii() and comment.count("\n") == 2
    assert comment.startswith(STATED + "\n")
    assert metadata_of(comment) == {"prompt": {"1": {}}, "workflow": WORKFLOW}
    assert without_metadata(comment) == STATED


def test_only_the_comment_itself_states_axes() -> None:
    comment, _ = with_metadata(STATED, {"workflow": WORKFLOW}, 10_000)
    assert Orientation.from_comment(comment) == Orientation("+y", "+z")
    silent, _ = with_metadata("", {"workflow": WORKFLOW}, 10_000)
    assert Orientation.from_comment(silent) is None


def test_new_metadata_takes_the_place_of_the_old() -> None:
    first, _ = with_metadata(STATED, {"prompt": [1], "workflow": {"a": 1}}, 10_000)
    second, _ = with_metadata(first, {"prompt": [2]}, 10_000)
    assert second == f"{STATED}\nprompt: [2]"
    assert with_metadata("", {}, 10_000) == ("", [])


def test_what_does_not_fit_is_left_out_whole_and_named() -> None:
    values = {"prompt": ["x" * 500], "small": [1]}
    comment, left_out = with_metadata(STATED, values, 200)
    assert left_out == ["prompt"]
    assert comment == f"{STATED}\nsmall: [1]"
    exact = len(f"{STATED}\nsmall: [1]")
    assert with_metadata(STATED, {"small": [1]}, exact)[1] == []
    assert with_metadata(STATED, {"small": [1]}, exact - 1)[1] == ["small"]


def test_other_lines_are_no_metadata() -> None:
    for comment in (
        "SH degree: 3",
        "note: {not json}",
        "model: [mip",
        "a b: {}",
        f"deep: {'[' * 100_000}{']' * 100_000}",
    ):
        assert metadata_of(comment) == {}
        assert without_metadata(comment) == comment


@pytest.mark.parametrize(("name", "value"), [("two words", {}), ("number", 5), ("text", "{}")])
def test_what_no_line_can_hold_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match="is no name, or its value no JSON object or list"):
        with_metadata("", {name: value}, 10_000)
