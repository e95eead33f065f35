import json
from pathlib import Path
from urllib.parse import urlparse

import pytest

from invert3d_core.errors import ModelError
from invert3d_core.mvdream import known_models, load
from invert3d_core.mvdream.known_models import KNOWN_MODELS, find_known, where_to_get, workflow_models

KEYS = Path(__file__).parents[2] / "golden" / "mvdream"


def test_a_missing_model_that_is_published_says_everything_about_it(tmp_path: Path) -> None:
    for name in ("sd-v1.5-4view.pt", "sd-v1.5-4view.safetensors", "SD-v1.5-4view.ckpt"):
        with pytest.raises(ModelError) as raised:
            load(tmp_path / name)
        for part in (name, "file sd-v1.5-4view.pt", "4.27 GB", "models/mvdream", "OpenRAIL", known_models._HUB):
            assert part in str(raised.value)
        assert "sd-v2.1" not in str(raised.value)
    text = where_to_get("some\\where\\mvdream-sd2.1-diffusers")
    assert "folder mvdream-sd2.1-diffusers (all of it), 2.59 GB" in text
    assert "size not stated" in where_to_get("mvdream-sd21-diffusers/")


def test_any_other_missing_model_gets_the_list(tmp_path: Path) -> None:
    assert find_known("nothing.pt") is None
    with pytest.raises(ModelError) as raised:
        load(tmp_path / "nothing.pt")
    for model in KNOWN_MODELS:
        assert (model.file if model.url else model.page) in str(raised.value)


def test_entries_for_workflows_are_what_a_page_downloads() -> None:
    entries = workflow_models()
    assert entries and entries == workflow_models([entry["name"] for entry in entries])
    for entry in entries:
        assert entry.keys() == {"name", "url", "directory"} and entry["directory"] == "mvdream"
        url = urlparse(entry["url"])
        # The page offers no download from elsewhere, and finds the file by the name it has there.
        assert (url.scheme, url.netloc) == ("https", "huggingface.co")
        assert url.path.endswith("/" + entry["name"])
    assert workflow_models(["sd-v1.5-4view.pt"])[0]["url"].endswith("MVDream/MVDream/resolve/main/sd-v1.5-4view.pt")
    with pytest.raises(KeyError):
        workflow_models(["mvdream-sd21-diffusers"])


@pytest.mark.parametrize("name", ["sd-v1.5-4view", "sd-v2.1-base-4view"])
def test_stated_sizes_are_those_of_the_published_tensors(name: str) -> None:
    rows = json.loads((KEYS / f"keys_{name}.json").read_text())["rows"]
    total = 0
    for key, shape, _ in rows:
        count = 1
        for size in shape:
            count *= size
        total += count * (8 if key.endswith("position_ids") else 4)
    model = find_known(name)
    assert model is not None and model.size == total
