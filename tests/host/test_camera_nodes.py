"""Cameras as data through /prompt: paths, files, camera_info lists, and what is drawn from them."""

import json
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from invert3d_core import cameras, rendering, splats
from invert3d_core.cameras import Orientation
from tests.host.client import Client, PromptRejected
from tests.host.scenes import in_viewer_frame, three_balls
from tests.host.server import Server

SIZE = {"width": 96, "height": 96}


def scene() -> splats.GaussianSplats:
    """Three balls off the origin in the usual frame of trained splats, which the file does not name."""
    balls = in_viewer_frame(three_balls(300))
    return splats.GaussianSplats(
        balls.positions + torch.tensor([0.3, -0.2, 0.5]), balls.scales, balls.rotations, balls.opacities, balls.sh
    )


@pytest.fixture(scope="module", autouse=True)
def files(server: Server) -> None:
    splats.save(scene(), server.base / "input" / "balls.ply")


def prompt_with(client: Client, cams: list | None, **views: object) -> dict:
    """Views of the scene from the cameras of a node's output, None for the orbit widgets."""
    inputs = {"splat": ["load", 0], **SIZE} | ({"cameras": cams} if cams else {}) | views
    return {
        "load": client.node("Invert3DLoadGaussianSplat", file="balls.ply"),
        "views": client.node("Invert3DRenderOrbitViews", **inputs),
        "images": client.node("SaveImage", images=["views", 0], filename_prefix="camera_views"),
    }


def pictures(client: Client, prompt: dict) -> np.ndarray:
    return client.images(client.succeed(prompt), "images")


def test_turntable_is_the_orbit_and_says_its_frames(client: Client) -> None:
    prompt = prompt_with(client, ["path", 0])
    prompt["path"] = client.node(
        "Invert3DCameraPath", splat=["load", 0], seconds=1.0, fps=4.0, elevation_deg=20, **SIZE
    )
    prompt["fps"] = client.node("PreviewAny", source=["path", 1])
    prompt["frames"] = client.node("PreviewAny", source=["path", 2])
    run = client.succeed(prompt)
    assert (run.text("fps"), run.text("frames")) == ("4.0", "4")
    orbit = pictures(client, prompt_with(client, None, count=4, elevations_deg="20"))
    assert np.abs(client.images(run, "images") - orbit).max() < 2.1 / 255


def test_flight_through_a_list_of_camera_info(client: Client, server: Server) -> None:
    """Orbit → camera_info, all of them as a list → keyframes: the first and the last frame are the orbit's."""
    prompt = prompt_with(client, ["path", 0])
    prompt["orbit"] = client.node(
        "Invert3DOrbitCameras", splat=["load", 0], count=3, elevations_deg="20", fov_y_deg=40, **SIZE
    )
    prompt["infos"] = client.node("Invert3DCamerasToCameraInfo", cameras=["orbit", 0], index=-1)
    prompt["path"] = client.node(
        "Invert3DCameraPath", path="keyframes", keys=["infos", 1], seconds=1.0, fps=5.0, easing="in-out", **SIZE
    )
    prompt["last"] = client.node("PreviewAny", source=["infos", 0])
    prompt["probe"] = client.node("Invert3DProbeTensors", value=["path", 0], name="flight")
    run = client.succeed(prompt)
    assert client.images(run, "images").shape[0] == 5
    flight = load_file(server.base / "output" / "flight.safetensors")
    distance = cameras.fit_radius(cameras.fit_sphere(scene()).radius, 40, 96, 96)
    keys = Orientation().into_splat_frame(cameras.orbit([0, 120, 240], 20, distance, 40, 96, 96))
    torch.testing.assert_close(flight["c2w"][[0, 2, 4]], keys.c2w, atol=1e-4, rtol=0)
    assert '"fov": 40' in run.text("last") or "'fov': 40" in run.text("last")

    closed = prompt | {"path": client.node("Invert3DCameraPath", path="keyframes", **SIZE)}
    failed = client.run(closed)
    assert failed.status == "error" and "connect cameras" in failed.error["exception_message"]


def test_camera_info_list_shows_what_the_viewer_shows(client: Client) -> None:
    """A camera_info straight into the views, and through the list of cameras, is one picture."""
    prompt = prompt_with(client, ["orbit", 1])
    prompt["orbit"] = client.node(
        "Invert3DOrbitCameras", count=1, elevations_deg="25", azimuth_start_deg=40, radius=4, **SIZE
    )
    direct = pictures(client, prompt)
    prompt["list"] = client.node("Invert3DCamerasFromCameraInfo", camera_info=["orbit", 1], **SIZE)
    prompt["views"]["inputs"]["cameras"] = ["list", 0]
    assert (direct < 0.9).mean() > 0.02
    assert np.abs(pictures(client, prompt) - direct).max() < 2.1 / 255


@pytest.mark.parametrize("kind", ["transforms", "colmap"])
def test_file_of_cameras_draws_color_depth_and_normals(client: Client, server: Server, kind: str) -> None:
    splat = scene()
    around = cameras.orbit([0, 50, 170], [0, 30, -20], 3.5, 40, 96, 96)
    cams = Orientation().into_splat_frame(around, cameras.fit_sphere(splat).center)
    folder = server.base / "input" / "scene"
    if kind == "transforms":
        cameras.save(cams, folder / "transforms.json")
        name = "scene/transforms.json"
    else:
        with zipfile.ZipFile(server.base / "input" / "model.zip", "w") as archive:
            for path in cameras.save(cams, folder / "sparse" / "0"):
                archive.write(path, f"sparse/0/{path.name}")
        name = "model.zip"
    prompt = prompt_with(client, ["cameras", 0], depth_kind="median", draw_normals=True)
    prompt["cameras"] = client.node("Invert3DLoadCameras", file=name)
    prompt["info"] = client.node("PreviewAny", source=["cameras", 1])
    prompt["normals"] = client.node("SaveImage", images=["views", 4], filename_prefix="normals")
    prompt["depth"] = client.node("Invert3DProbeTensors", value=["views", 2], name=f"median_{kind}")
    run = client.succeed(prompt)
    assert f"3 cameras ({kind})" in run.text("info") and "view_002.png" in run.text("info")
    images, normals = client.images(run, "images"), client.images(run, "normals")
    depth = load_file(server.base / "output" / f"median_{kind}.safetensors")["tensor"]
    for i, cam in enumerate(cams):
        drawn = rendering.rasterize(splat, cam, near=0.05 * 3.5, normals=True)
        assert np.abs(images[i] - drawn.color[0].clamp(0, 1).numpy()).max() < 2.1 / 255
        assert np.abs(normals[i] - (drawn.normals[0].numpy() + 1) / 2).mean() < 1 / 255
        assert (depth[i] - drawn.depth_median[0]).abs().max() < 1e-3


def test_only_files_that_may_hold_cameras_are_offered(client: Client, server: Server) -> None:
    """No splats, no points of a COLMAP model, and not the list of the built-in samples, which is JSON too."""
    folder = server.base / "input" / "offered"
    cameras.save(Orientation().into_splat_frame(cameras.orbit(0, 0, 2, 40, 8, 8)), folder)
    description = client.object_info("Invert3DLoadCameras")
    assert description is not None
    options = description["input"]["required"]["file"][1]["options"]
    assert [name for name in options if name.startswith("offered/")] == ["offered/images.bin"]
    assert not [name for name in options if "sample" in name or name.endswith(".ply")]


def test_cameras_of_a_file_around_the_object(client: Client, server: Server) -> None:
    """Loaded as object they are turned by the file's habit, and drawn around the middle of whatever they are shown."""
    around = cameras.orbit([0, 90], 10, 4.0, 40, 96, 96)
    cameras.save(Orientation("+z", "-y").into_splat_frame(around), server.base / "input" / "blender.json")
    prompt = prompt_with(client, ["cameras", 0])
    prompt["cameras"] = client.node("Invert3DLoadCameras", file="blender.json", frame="object", longest_side=48)
    images = pictures(client, prompt)
    assert images.shape[1:3] == (48, 48)
    orbit = {"count": 4, "elevations_deg": "10", "radius": 4, "width": 48, "height": 48}
    expected = pictures(client, prompt_with(client, None, **orbit))
    assert np.abs(images - expected[:2]).max() < 2.1 / 255


def test_join_and_select(client: Client) -> None:
    prompt = prompt_with(client, ["some", 0])
    ring = {"splat": ["load", 0], **SIZE}
    prompt["first"] = client.node("Invert3DOrbitCameras", count=4, elevations_deg="20", **ring)
    prompt["second"] = client.node(
        "Invert3DOrbitCameras", count=2, elevations_deg="50", **(ring | {"width": 64, "height": 64})
    )
    prompt["both"] = client.node("Invert3DJoinCameras", first=["first", 0], second=["second", 0])
    prompt["some"] = client.node("Invert3DSelectCameras", cameras=["both", 0], start=-5, count=2, every=3)
    images = pictures(client, prompt)
    orbit = pictures(client, prompt_with(client, None, count=4, elevations_deg="20"))
    assert images.shape == (2, 96, 96, 3)
    assert np.array_equal(images[0], orbit[1])
    high = pictures(client, prompt_with(client, None, count=2, elevations_deg="50"))
    assert np.abs(images[1] - high[0]).max() < 2.1 / 255, "in the first ones' size"
    for outside in (6, -7):
        prompt["some"]["inputs"]["start"] = outside
        failed = client.run(prompt)
        assert failed.status == "error" and "there are 6 cameras" in failed.error["exception_message"]


def test_more_than_memory_is_refused_before_it_is_drawn(client: Client) -> None:
    rings = ", ".join(str(angle) for angle in range(-80, 81))
    failed = client.run(prompt_with(client, None, count=256, elevations_deg=rings, width=4096, height=4096))
    assert failed.status == "error"
    assert "41,216 views of 4096×4096 pixels take" in failed.error["exception_message"]
    assert not any(node == "views" for node, _, _ in failed.progress)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"file": "nowhere.json"}, "there is no file 'nowhere.json'"),
        ({"file": "../../../etc/hostname"}, "there is no file"),
        ({"file": "balls.ply"}, "is no file of cameras"),
        ({"width": 64}, "give both, or neither"),
        ({"frame": "object", "up": "+z", "front": "-z"}, "lie on one axis"),
        ({"frame": "world"}, "value_not_in_list"),
        ({"longest_side": -1}, "value_smaller_than_min"),
    ],
)
def test_what_cannot_be_loaded_is_told(client: Client, server: Server, inputs: dict, message: str) -> None:
    pose = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 2], [0, 0, 0, 1]]
    value = {"w": 64, "h": 64, "camera_angle_x": 1.0, "frames": [{"transform_matrix": pose}]}
    (server.base / "input" / "some.json").write_text(json.dumps(value))
    prompt = {
        "cameras": client.node("Invert3DLoadCameras", **({"file": "some.json"} | inputs)),
        "probe": client.node("Invert3DProbeTensors", value=["cameras", 0], name="none"),
    }
    try:
        run = client.run(prompt)
        told = run.error["exception_message"]
    except PromptRejected as refusal:
        told = refusal.messages
    assert message in told


def test_damaged_file_of_cameras_names_file_and_cause(client: Client, server: Server) -> None:
    (server.base / "input" / "broken.json").write_text('{"frames": [')
    prompt = {
        "cameras": client.node("Invert3DLoadCameras", file="broken.json"),
        "probe": client.node("Invert3DProbeTensors", value=["cameras", 0], name="none"),
    }
    run = client.run(prompt)
    assert run.error["exception_type"].endswith("CameraError")
    assert "broken.json' is no JSON" in run.error["exception_message"]
