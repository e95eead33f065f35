"""The example workflows, loaded in ComfyUI's real page and queued as the page would: what their pictures show."""

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from invert3d_core import __version__, cameras, rendering, splats
from invert3d_core.cameras import Orientation
from invert3d_core.mvdream.known_models import workflow_models
from invert3d_core.splats import GaussianSplats, edit
from invert3d_core.toy import samples
from tests.host.client import Client, Run, decode_image
from tests.host.page import ComfyPage
from tests.host.server import PACK, Server
from tests.host.test_pack import NODE_IDS
from tools.graphs.tokens import CHECKPOINT
from tools.make_workflows import HOST, NOTE, OURS, lay_out_files

WORKFLOWS = sorted((PACK / "workflows").glob("*.json"))
needs_trained_weights = pytest.mark.skipif(
    not (PACK / "invert3d_core" / "toy" / "model.safetensors").is_file(),
    reason="the toy's trained weights are not in this checkout, and random ones draw nothing",
)
IMAGE_SIZE = 128  # of the toy


def shortened(prompt: dict, steps: dict[str, int]) -> dict:
    """The prompt with these numbers of steps, by node class: the story in seconds instead of minutes."""
    return changed(prompt, {class_type: {"steps": count} for class_type, count in steps.items()})


def changed(prompt: dict, inputs: dict[str, dict]) -> dict:
    """The prompt with these inputs, by node class."""
    for node in prompt.values():
        node["inputs"] |= inputs.get(node["class_type"], {})
    return prompt


def workflow(comfy_page: ComfyPage, name: str) -> dict:
    """The prompt of a workflow; the page rests afterwards."""
    prompt = comfy_page.prompt_of(PACK / "workflows" / f"{name}.json")
    comfy_page.rest()
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


def drawn(splat: GaussianSplats, cams: cameras.Cameras) -> np.ndarray:
    """Views of a splat on white as the core draws them, (C,H,W,3)."""
    return rendering.rasterize(splat, cams).color.clamp(0, 1).numpy()


def around(
    stands: Orientation, azimuths_deg: list[float], elevation_deg: float = 15, size: int = 256
) -> cameras.Cameras:
    """Cameras around an object of radius 1 at the origin that stands so."""
    distance = cameras.fit_radius(1.0, 40, size, size)
    return stands.into_splat_frame(cameras.orbit(azimuths_deg, elevation_deg, distance, 40, size, size))


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
    made = lay_out_files(server.base)
    yield
    for file in made:
        file.unlink()


@pytest.mark.usefixtures("users_files")
@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_workflow_fits_the_nodes(file: Path, client: Client, comfy_page: ComfyPage) -> None:
    """Every widget of every node has a value, of the kind and in the place that the node expects now."""
    prompt = comfy_page.prompt_of(file)
    missed = comfy_page.page.get_by_test_id("error-overlay").all_inner_texts()
    assert not missed or file.stem == "token_in_core", "the page misses something; only a user's own may be missing"
    for node in prompt.values():
        description = client.object_info(node["class_type"])
        for name, (kind, *options) in description["input"].get("required", {}).items():
            assert name in node["inputs"], f"{node['class_type']} has no {name}: run tools/make_workflows.py"
            value = node["inputs"][name]
            if isinstance(value, list):  # a link
                continue
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


@pytest.mark.parametrize(
    ("name", "model"),
    [("text_to_views", model) for model in workflow_models()] + [("token_in_core", CHECKPOINT)],
    ids=lambda value: value if isinstance(value, str) else value["name"],
)
def test_page_offers_the_download_of_a_model_that_is_not_there(name: str, model: dict, comfy_page: ComfyPage) -> None:
    graph = json.loads((PACK / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    (loader,) = (node for node in graph["nodes"] if "models" in node["properties"])
    loader["widgets_values"][0] = model["name"]
    comfy_page.prompt_of(graph)
    page = comfy_page.page
    page.get_by_test_id("error-overlay-see-errors").click()
    told = page.get_by_test_id("error-group-missing-model").inner_text()
    assert model["name"] in told and model["directory"] in told
    outside = re.compile("^https://")
    page.context.route(outside, lambda route: route.fulfill(body="the file"))  # the network must not be needed
    with page.expect_popup() as opened:
        page.get_by_test_id("missing-model-download").click(timeout=10_000)  # not there for a file without an address
    opened.value.wait_for_url(outside)
    address = opened.value.url
    opened.value.close()
    page.context.unroute(outside)
    assert address == model["url"]
    assert comfy_page.errors == []


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
        workflow(comfy_page, "invert3d_quickstart"), {"Invert3DTrainInversionToken": 60, "Invert3DMVDreamSampler": 12}
    )
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
    prompt = shortened(workflow(comfy_page, "text_to_views"), {"Invert3DMVDreamSampler": 12})
    images = client.images(client.succeed(prompt), titled(prompt, "Views"))
    check_views_of_one_object(images)
    inside = images[silhouettes(images)]
    red, green, blue = inside.mean(axis=0)
    assert red > blue + 0.1 and green > blue, "a yellow castle with a red roof"


def saved_splat(server: Server, run: Run, prompt: dict) -> GaussianSplats:
    """The file that the workflow's Save Gaussian Splat wrote last, which the node names."""
    (node_id,) = (key for key, node in prompt.items() if node["class_type"] == "Invert3DSaveGaussianSplat")
    (file,) = run.outputs[node_id]["3d"]
    assert file["type"] == "output" and file["filename"] in run.text(node_id)
    return splats.load(server.base / "output" / file["subfolder"] / file["filename"])


def scan(name: str, server: Server) -> None:
    """A sample as a scanner would give it: with haze, a giant, floaters near it and walls around it."""
    robot, generator = splats.load(samples.path("robot")), torch.Generator().manual_seed(1)

    def specks(count: int, near: float, far: float, size: float, opacity: float) -> GaussianSplats:
        ways = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
        reach = near + (far - near) * torch.rand(count, 1, generator=generator)
        return GaussianSplats(
            ways * reach,
            torch.full((count, 3), size),
            torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(count, 1),
            torch.full((count, 1), opacity),
            torch.full((count, 1, 3), -1.0),
        )

    parts = [robot, specks(1, 0.1, 0.2, 2.0, 0.2), specks(200, 0, 1, 0.05, 0.004), specks(30, 0.9, 1.1, 0.03, 0.9)]
    splats.save(edit.merge([*parts, specks(300, 1.5, 2.5, 0.05, 0.9)]), server.base / "input" / name)


def test_clean_splat_is_half_as_many_that_look_the_same(client: Client, server: Server, comfy_page: ComfyPage) -> None:
    prompt = workflow(comfy_page, "splat_convert_and_clean")
    run = client.succeed(prompt)
    before, after = (client.images(run, titled(prompt, title)) for title in ("Before", "After"))
    assert np.abs(before - after).mean() < 0.02
    assert min(map(overlap, silhouettes(before), silhouettes(after))) > 0.95
    (orient,) = (key for key, node in prompt.items() if node["class_type"] == "Invert3DOrientSplat")
    assert client.images(run, orient).std() > 0.1, "four ways to stand, and four sides"

    clean = saved_splat(server, run, prompt)
    assert 0.45 < len(clean) / len(splats.load(samples.path("robot"))) <= 0.5
    trained = around(Orientation(), [30, 120, 210, 300])  # the frame that is asked for: y down
    assert np.abs(drawn(clean, trained) - after).mean() < 0.01


def test_clean_splat_of_a_scan_has_lost_its_surroundings(client: Client, server: Server, comfy_page: ComfyPage) -> None:
    scan("scan.ply", server)
    prompt = changed(
        workflow(comfy_page, "splat_convert_and_clean"), {"Invert3DLoadGaussianSplat": {"file": "scan.ply"}}
    )
    run = client.succeed(prompt)
    clean = saved_splat(server, run, prompt)
    shown = drawn(clean, around(Orientation(), [30, 120, 210, 300]))
    robot = drawn(splats.load(samples.path("robot")), around(Orientation("+y", "+z"), [30, 120, 210, 300]))
    assert min(map(overlap, silhouettes(shown), silhouettes(robot))) > 0.9
    before = client.images(run, titled(prompt, "Before"))
    assert silhouettes(before)[:, :20].mean() > 0.05 > silhouettes(shown)[:, :20].mean()


def test_scene_shows_a_robot_and_a_hologram(client: Client, comfy_page: ComfyPage) -> None:
    prompt = workflow(comfy_page, "splat_scene")
    front, *others = client.images(client.succeed(prompt), titled(prompt, "The scene"))
    assert front.shape == (512, 512, 3) and len(others) == 3
    shape = silhouettes(front[None])[0]
    columns = np.flatnonzero(shape.any(axis=0))
    gap = columns[np.diff(columns, append=columns[-1]) > 5]
    assert len(gap) == 1, "two objects side by side, from the front"
    hologram, robot = (
        part[where] for part, where in zip(np.split(front, gap, 1), np.split(shape, gap, 1), strict=True)
    )
    assert hologram.shape[0] > 2000 and robot.shape[0] > hologram.shape[0]
    assert (hologram[:, 2] - hologram[:, 0]).mean() > 0.15, "blue"
    assert np.percentile(hologram.mean(axis=1), 10) > np.percentile(robot.mean(axis=1), 10) + 0.15, "and transparent"
    assert ((robot[:, 0] - robot[:, 2]) > 0.4).mean() > 0.05, "the robot keeps its orange head"


def test_views_become_a_splat_that_new_sides_confirm(client: Client, server: Server, comfy_page: ComfyPage) -> None:
    prompt = shortened(workflow(comfy_page, "views_to_splat"), {"Invert3DSplatFromViews": 120})
    assert not any(node["class_type"] == "Invert3DLoadCameras" for node in prompt.values()), "muted nodes do not run"
    run = client.succeed(prompt, timeout=600)
    truth, fitted = (client.images(run, titled(prompt, title)) for title in ("The robot", "The splat that was fitted"))
    assert min(map(overlap, silhouettes(truth), silhouettes(fitted))) > 0.9
    assert np.abs(truth - fitted)[silhouettes(truth)].mean() < 0.04
    (progress,) = client.images(run, titled(prompt, "Views, and below them the splat"))
    height = progress.shape[0] // 2
    assert np.abs(progress[:height] - progress[height:]).mean() < 0.05
    fit = saved_splat(server, run, prompt)
    assert len(fit) > 1000
    assert np.abs(drawn(fit, around(Orientation("+y", "+z"), [45, 135, 225, 315], 18)) - fitted).mean() < 0.01


FILM = {"seconds": 0.5, "width": 128, "height": 128}


def frames_of(server: Server, client: Client, run: Run, prompt: dict) -> np.ndarray:
    """The frames of the film that the workflow saved, as ComfyUI itself reads it; it runs at 24 frames a second."""
    (saved,) = run.outputs[titled(prompt, "The film")]["images"]
    file = server.base / "output" / saved["subfolder"] / saved["filename"]
    (server.base / "input" / file.name).write_bytes(file.read_bytes())
    reading = {
        "film": client.node("LoadVideo", file=file.name),
        "parts": client.node("GetVideoComponents", video=["film", 0]),
        "frames": client.node("SaveImage", images=["parts", 0], filename_prefix="frames"),
        "fps": client.node("PreviewAny", source=["parts", 2]),
    }
    read = client.succeed(reading)
    assert float(read.text("fps")) == pytest.approx(24)
    return client.images(read, "frames")


def test_turntable_goes_round_without_a_cut(client: Client, server: Server, comfy_page: ComfyPage) -> None:
    prompt = changed(workflow(comfy_page, "turntable_video"), {"Invert3DCameraPath": FILM})
    frames = frames_of(server, client, client.succeed(prompt), prompt)
    cams = around(Orientation("+y", "+z"), [30.0 * i for i in range(12)], 15, 128)
    expected = drawn(splats.load(samples.path("robot")), cams)
    assert frames.shape == expected.shape
    assert np.abs(frames - expected).mean() < 0.02
    assert min(map(overlap, silhouettes(frames), silhouettes(expected))) > 0.9
    steps = np.abs(frames - np.roll(frames, 1, axis=0)).mean(axis=(1, 2, 3))
    assert steps[0] < 1.5 * steps[1:].max(), "from the last frame to the first is a step like the others"


def test_flight_passes_its_keyframes(client: Client, server: Server, comfy_page: ComfyPage) -> None:
    prompt = changed(workflow(comfy_page, "camera_flight"), {"Invert3DCameraPath": FILM | {"seconds": 1.0}})
    run = client.succeed(prompt)
    frames = frames_of(server, client, run, prompt)
    guitar = splats.load(samples.path("guitar"))
    keys = drawn(guitar, around(Orientation("+y", "+z"), [0, 135, 270], 15, 128))
    shapes = silhouettes(frames)
    nearest = [np.abs(frames - key).mean(axis=(1, 2, 3)).argmin() for key in keys]
    assert nearest == sorted(nearest) and nearest[0] == 0, "one after the other"
    for index, shape in zip(nearest, silhouettes(keys), strict=True):
        assert overlap(shapes[index], shape) > 0.7
    closest = shapes.mean(axis=(1, 2)).argmax()
    assert nearest[-1] < closest < len(frames) - 1, "then it comes close, and returns"
    assert shapes[closest].mean() > 2 * shapes[0].mean()
    by_core = resized(client.images(run, titled(prompt, "The second keyframe in Render Splat")), 128)
    assert overlap(silhouettes(by_core)[0], silhouettes(keys)[1]) > 0.85
