"""The texts of nodes, and what a translation of them lacks."""

import json
from pathlib import Path

import pytest

from tools import make_locales
from tools.make_locales import categories_of, leaves, read, texts_of, work_left, write

NODE = {
    "display_name": "Draw",
    "description": "Draws.",
    "category": "Invert3D/pictures",
    "input": {
        "required": {
            "seed": ["INT", {"tooltip": "Of the noise.", "control_after_generate": True}],
            "mode.views": ["INT", {"display_name": "views"}],
        },
        "optional": {"splat": ["SPLAT"]},
    },
    "output_name": ["image", "info"],
    "output_tooltips": [None, "In words."],
}
TEXTS = {
    "display_name": "Draw",
    "description": "Draws.",
    "inputs": {
        "seed": {"name": "seed", "tooltip": "Of the noise."},
        "control_after_generate": {"name": "control after generate"},
        "mode_views": {"name": "views"},
        "splat": {"name": "splat"},
    },
    "outputs": {"0": {"name": "image"}, "1": {"name": "info", "tooltip": "In words."}},
}


def test_texts_are_those_of_the_schema() -> None:
    assert texts_of({"Draw": NODE}) == {"Draw": TEXTS}
    assert texts_of({"Draw": NODE | {"output_tooltips": None}})["Draw"]["outputs"]["1"] == {"name": "info"}
    assert categories_of({"Draw": NODE, "Other": {"category": "Invert3D"}}) == ["Invert3D", "pictures"]


def test_work_left_names_what_is_missing_too_much_and_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_locales, "LOCALES", tmp_path)
    english = {"Draw": {"display_name": "Draw", "inputs": {"seed": {"name": "seed", "tooltip": "Of the noise."}}}}
    assert read("zh", "nodeDefs.json") == {}
    write("zh", "nodeDefs.json", {"Draw": {"display_name": "绘制", "inputs": {"seed": {"name": "种子", "old": "旧"}}}})
    assert json.loads((tmp_path / "zh" / "nodeDefs.json").read_text(encoding="utf-8")) == read("zh", "nodeDefs.json")
    assert make_locales.languages() == ["zh"]
    assert work_left("zh", english, {"Draw/inputs/seed/name", "Draw/inputs/seed/tooltip"}) == [
        "missing: Draw/inputs/seed/tooltip: Of the noise.",
        "not in the nodes: Draw/inputs/seed/old",
        "look again: Draw/inputs/seed/name: seed",
    ]
    write("zh", "nodeDefs.json", english)
    assert work_left("zh", english, set()) == []
    assert next(leaves(english)) == ("Draw/display_name", "Draw")
