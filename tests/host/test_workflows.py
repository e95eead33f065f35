"""The example workflows, loaded in ComfyUI's real page and queued as the page would: what their pictures show."""

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from invert3d_core import __version__
from tests.host.client import Client, decode_image
from tests.host.page import ComfyPage
from tests.host.server import PACK, Server
from tests.host.test_pack import NODE_IDS
from tools.make_workflows import HOST, NOTE, OURS, lay_out_files

WORKFLOWS = sorted((PACK / "workflows").glob("*.json"))
needs_trained_weights = pytest.mark.skipif(
    not (PACK / "invert3d_core" / "toy" / "model.safetensors").is_file(),
    reason="the toy's trained weights are not in this checkout, and random ones draw nothing",
)
IMAGE_SIZE = 128  # of the toy


def shortened(prompt: dict, steps: dict[str, int]) -> dict:
    """The prompt with these numbers of steps, by node class: the story in seconds instead of minutes."""
    for node in prompt.values():
        if node["class_type"] in steps:
            node["inputs"]["steps"] = steps[node["class_type"]]
    return prompt


def titled(prompt: dict, title: str) -> str:
    """The id of the node with this title."""
    (found,) = (node_id for node_id, node in prompt.items() if node["_meta"]["title"] == title)
    return found


def silhouettes(images: np.ndarray, threshold: float = 0.15) -> np.ndarray:
    """Where something else than the white background shows, (B,H,W) bool."""
    return (1 - images).max(axis=-1) > threshold


def resized(images: np.ndarray, size: int) -> np.ndarray:
    """Pictures whose size is a multiple, brought to a size by averaging."""
    factor = images.shape[1] // size
    return images.reshape(len(images), size, factor, size, factor, 3).mean(axis=(2, 4))


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of silhouettes."""
    return float((one & other).sum() / (one | other).sum())


def check_views_of_one_object(images: np.ndarray) -> None:
    """Four views of something in the middle of white, not four times the same picture."""
    assert images.shape == (4, IMAGE_SIZE, IMAGE_SIZE, 3)
    shape = silhouettes(images)
    for view in shape:
        assert 0.03 < view.mean() < 0.75, "neither empty nor full"
        assert view[32:96, 32:96].mean() > 3 * view[:, :4].mean(), "in the middle, with white at the sides"
    assert all(np.abs(images[i] - images[j]).mean() > 0.005 for i in range(4) for j in range(i))


def test_every_node_is_in_a_workflow() -> None:
    types = {node["type"] for file in WORKFLOWS for node in json.loads(file.read_text(encoding="utf-8"))["nodes"]}
    assert set(NODE_IDS) <= types


@pytest.fixture
def users_files(server: Server) -> Iterator[None]:
    """What a user brings to the workflows is there, if only in name."""
    made = lay_out_files(server.base / "models")
    yield
    for file in made:
        file.unlink()


@pytest.mark.usefixtures("users_files")
@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_workflow_fits_the_nodes(file: Path, client: Client, comfy_page: ComfyPage) -> None:
    """Every widget of every node has a value, of the kind and in the place that the node expects now."""
    prompt = comfy_page.prompt_of(file)
    for node in prompt.values():
        description = client.object_info(node["class_type"])
        for name, (kind, *options) in description["input"].get("required", {}).items():
            assert name in node["inputs"], f"{node['class_type']} has no {name}: run tools/make_workflows.py"
            value = node["inputs"][name]
            if kind in ("INT", "FLOAT"):
                assert options[0]["min"] <= value <= options[0]["max"]
            elif kind == "COMBO":
                assert value in options[0]["options"]
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|tmp|Users)/|localhost|127\.0\.0\.1", text)
    templates = client.get("/api/workflow_templates")
    assert file.stem in templates["comfyui-invert3d"]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_workflow_says_which_packs_and_models_it_needs(file: Path) -> None:
    """In the words by which installers of missing packs, and the page's download of missing models, find them."""
    for node in json.loads(file.read_text(encoding="utf-8"))["nodes"]:
        properties = node["properties"]
        if node["type"] != NOTE:
            assert properties["cnr_id"] == (OURS if node["type"] in NODE_IDS else HOST)
            assert properties["ver"] == __version__ or node["type"] not in NODE_IDS
        if node["type"].endswith(("MVDreamLoader", "CheckpointLoaderSimple")):
            assert properties["models"]
            for model in properties["models"]:
                assert set(model) == {"name", "url", "directory"}
                assert model["url"].startswith("https://") and model["url"].endswith("/" + model["name"])


@needs_trained_weights
@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_workflow_comes_with_a_picture(file: Path, client: Client) -> None:
    address = f"{client.url}/api/workflow_templates/comfyui-invert3d/{file.stem}.jpg"
    with urllib.request.urlopen(address, timeout=30) as answer:
        picture = decode_image(answer.read())
    assert picture.shape[0] == picture.shape[1] >= 512
    assert picture.std() > 0.1


@needs_trained_weights
def test_quickstart_learns_the_splat_and_draws_it(client: Client, comfy_page: ComfyPage) -> None:
    prompt = shortened(
        comfy_page.prompt_of(PACK / "workflows" / "invert3d_quickstart.json"),
        {"Invert3DTrainInversionToken": 60, "Invert3DMVDreamSampler": 12},
    )
    comfy_page.rest()
    assert not any("SaveInversionToken" in node["class_type"] for node in prompt.values()), "muted nodes do not run"
    run = client.succeed(prompt)
    truth = resized(client.images(run, titled(prompt, "The splat")), IMAGE_SIZE)
    token = client.images(run, titled(prompt, "The token"))
    edited = client.images(run, titled(prompt, "The edited token"))
    for images in (truth, token, edited):
        check_views_of_one_object(images)
    # After a tenth of the training the token is already the robot in shape, and not one view for another.
    same = np.mean([overlap(silhouettes(one), silhouettes(other)) for one, other in zip(truth, token, strict=True)])
    assert same > 0.5
    redness = [images[silhouettes(images)] @ np.array([1, -0.5, -0.5]) for images in (token, edited)]
    assert redness[1].mean() > redness[0].mean() + 0.1, "the edit is red"


@needs_trained_weights
def test_text_to_views_draws_what_it_says(client: Client, comfy_page: ComfyPage) -> None:
    prompt = shortened(comfy_page.prompt_of(PACK / "workflows" / "text_to_views.json"), {"Invert3DMVDreamSampler": 12})
    images = client.images(client.succeed(prompt), titled(prompt, "Views"))
    check_views_of_one_object(images)
    inside = images[silhouettes(images)]
    red, green, blue = inside.mean(axis=0)
    assert red > blue + 0.1 and green > blue, "a yellow castle with a red roof"
