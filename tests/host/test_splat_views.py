"""From a splat file to pictures through /prompt: what the pictures show, what is cached, what is refused."""

import time
import urllib.error

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from invert3d_core import splats
from tests.host.client import Client, PromptRejected, decode_image
from tests.host.scenes import BLUE, GREEN, RED, in_viewer_frame, three_balls
from tests.host.server import Server

UP_AND_FRONT = 'up="+y" front="+z"'
WHITE = (1.0, 1.0, 1.0)


@pytest.fixture(scope="module", autouse=True)
def files(server: Server) -> None:
    """The scene as a file that says how it stands, and in the usual frame as one that does not."""
    asset = three_balls(comment=UP_AND_FRONT)
    splats.save(asset, server.base / "input" / "says.ply")
    splats.save(in_viewer_frame(three_balls()), server.base / "input" / "silent.ply")


def views_prompt(client: Client, file: str, **orbit: object) -> dict:
    orbit = {"width": 128, "height": 128, "count": 4, "elevations_deg": "0"} | orbit
    return {
        "load": client.node("Invert3DLoadGaussianSplat", file=file),
        "views": client.node("Invert3DRenderOrbitViews", splat=["load", 0], **orbit),
        "mask": client.node("MaskToImage", mask=["views", 1]),
        "images": client.node("SaveImage", images=["views", 0], filename_prefix="views"),
        "masks": client.node("SaveImage", images=["mask", 0], filename_prefix="masks"),
        "depth": client.node("Invert3DProbeTensors", value=["views", 2], name="depth"),
        "cameras": client.node("Invert3DProbeTensors", value=["views", 3], name="cameras"),
        "info": client.node("PreviewAny", source=["load", 1]),
    }


def center_of(images: np.ndarray, color: tuple[float, float, float]) -> list[tuple[float, float] | None]:
    """Where a color lies in each picture: (column, row) as shares of its size, None where it does not show."""
    centers = []
    for image in images:
        rows, columns = np.nonzero(np.abs(image - np.array(color)).max(-1) < 0.1)
        shares = (columns.mean() / image.shape[1], rows.mean() / image.shape[0]) if len(rows) > 30 else None
        centers.append(shares)
    return centers


def check_scene(images: np.ndarray) -> None:
    """The three balls from the front, from +x, from behind, from −x."""
    red, green, blue = (center_of(images, color) for color in (RED, GREEN, BLUE))
    assert red[0][0] > 0.7 and green[0][0] < 0.3  # from the front the object's +x is at the right
    assert red[2][0] < 0.3 and green[2][0] > 0.7
    assert red[1] is not None and green[1] is None  # from +x, red hides green
    assert red[3] is None and green[3] is not None
    assert all(place[1] < 0.4 for place in blue)  # blue is on top everywhere
    assert all(place[1] > 0.5 for place in (*red, *green) if place)


@pytest.mark.parametrize("file", ["says.ply", "silent.ply"])
def test_views_show_the_splat_upright_from_all_sides(client: Client, server: Server, file: str) -> None:
    run = client.succeed(views_prompt(client, file))
    images, masks = client.images(run, "images"), client.images(run, "masks")[..., 0]
    assert images.shape == (4, 128, 128, 3)
    check_scene(images)
    # The picture is the white background exactly where the mask is 0, and the mask is 1 inside the balls.
    assert np.abs(images[masks == 0] - 1).max() == 0
    assert (masks > 0.95).mean() > 0.05
    columns = np.nonzero(masks[0] > 0.5)[1]
    assert 0.75 < (columns.max() - columns.min()) / 128 < 0.95, "framed to fill the picture"

    depth = load_file(server.base / "output" / "depth.safetensors")["tensor"].numpy()
    cameras = load_file(server.base / "output" / "cameras.safetensors")
    assert depth.shape == (4, 128, 128)
    assert np.all(depth[masks == 0] == 0)
    distance = cameras["c2w"][0, :3, 3].norm().item()
    inside = depth[masks > 0.95]
    assert distance - 1 < inside.min() and inside.max() < distance + 1
    assert np.median(depth[1][np.abs(images[1] - RED).max(-1) < 0.1]) < distance - 0.5  # red is near from its side
    assert "1,800 splats" in run.text("info")
    assert ("up +y, front +z" in run.text("info")) == (file == "says.ply")


def test_bigger_splat_far_from_its_origin_is_framed_alike(client: Client, server: Server) -> None:
    small = three_balls(comment=UP_AND_FRONT)
    scale, shift = 0.01, torch.tensor([5.0, -3.0, 2.0])  # a thing of 2 cm, 6 m away from the origin
    moved = splats.GaussianSplats(
        small.positions * scale + shift, small.scales * scale, small.rotations, small.opacities, small.sh, UP_AND_FRONT
    )
    splats.save(moved, server.base / "input" / "moved.ply")
    images = [client.images(client.succeed(views_prompt(client, f)), "images") for f in ("says.ply", "moved.ply")]
    assert np.abs(images[0] - images[1]).mean() < 0.01
    check_scene(images[1])


def test_widgets_choose_orientation_background_and_rings(client: Client) -> None:
    # Lying on its back, seen from above: the front view of the standing object.
    run = client.succeed(
        views_prompt(client, "says.ply", up="+z", front="-y", elevations_deg="0, 89.9", count=1, background="#204060")
    )
    images = client.images(run, "images")
    assert images.shape[0] == 2
    (from_above_red,), (from_above_green,) = center_of(images[1:], RED), center_of(images[1:], GREEN)
    assert from_above_red[0] > 0.7 and from_above_green[0] < 0.3
    assert np.allclose(images[:, 0, 0], np.array([0x20, 0x40, 0x60]) / 255, atol=1e-3)


def test_picture_behind_the_object(client: Client) -> None:
    prompt = views_prompt(client, "says.ply", count=2, background_image=["behind", 0])
    prompt["behind"] = client.node("EmptyImage", width=64, height=64, batch_size=1, color=0x3366CC)
    run = client.succeed(prompt)
    images, masks = client.images(run, "images"), client.images(run, "masks")[..., 0]
    assert np.allclose(images[masks == 0], np.array([0x33, 0x66, 0xCC]) / 255, atol=3e-3)
    assert center_of(images, RED)[0] is not None

    prompt["behind"]["inputs"]["batch_size"] = 3
    failed = client.run(prompt)
    assert failed.status == "error"
    assert "background_image holds 3 pictures for 2 views" in failed.error["exception_message"]


def test_orbit_cameras_feed_the_views(client: Client) -> None:
    prompt = views_prompt(client, "says.ply", cameras=["orbit", 0])
    prompt["orbit"] = client.node(
        "Invert3DOrbitCameras", splat=["load", 0], count=4, elevations_deg="0", width=128, height=128
    )
    through_socket = client.images(client.succeed(prompt), "images")
    by_widgets = client.images(client.succeed(views_prompt(client, "says.ply")), "images")
    assert np.array_equal(through_socket, by_widgets)


def test_our_camera_in_the_hosts_renderer_sees_the_same(client: Client, server: Server) -> None:
    """The host's own RenderSplat, given our camera_info, covers the same pixels as our views do.

    It cuts large footprints and sits half a pixel off, so a tenth of the union may differ.
    """
    prompt = {
        "load": client.node("Invert3DLoadGaussianSplat", file="silent.ply"),
        "orbit": client.node(
            "Invert3DOrbitCameras", count=1, elevations_deg="25", azimuth_start_deg=40, radius=4, width=256, height=256
        ),
        "ours": client.node("Invert3DRenderOrbitViews", splat=["load", 0], cameras=["orbit", 1], width=256, height=256),
        "theirs": client.node(
            "RenderSplat", splat=["load", 0], camera_info=["orbit", 1], width=256, height=256, frames=1, sharpen=1.0
        ),
        "our_mask": client.node("MaskToImage", mask=["ours", 1]),
        "their_mask": client.node("MaskToImage", mask=["theirs", 1]),
        "our_file": client.node("SaveImage", images=["our_mask", 0], filename_prefix="ours"),
        "their_file": client.node("SaveImage", images=["their_mask", 0], filename_prefix="theirs"),
    }
    run = client.succeed(prompt)
    ours, theirs = (client.images(run, name)[0, ..., 0] > 0.5 for name in ("our_file", "their_file"))
    assert ours.mean() > 0.02
    assert (ours & theirs).sum() / (ours | theirs).sum() > 0.9


def test_splats_of_the_host_are_ours_and_ours_are_the_hosts(client: Client, server: Server) -> None:
    """A splat that the host's own nodes wrote and read again looks the same; the host counts what we loaded."""
    prompt = views_prompt(client, "silent.ply")
    prompt["file"] = client.node("SplatToFile3D", splat=["load", 0])
    prompt["again"] = client.node("File3DToSplat", model_3d=["file", 0])
    prompt["views"]["inputs"]["splat"] = ["again", 0]
    prompt["count"] = client.node("GetSplatCount", splat=["load", 0])
    prompt["counted"] = client.node("PreviewAny", source=["count", 1])
    run = client.succeed(prompt)
    direct = client.images(client.succeed(views_prompt(client, "silent.ply")), "images")
    assert np.abs(client.images(run, "images") - direct).max() < 0.02
    assert run.text("counted") == "1800"


def test_batch_of_splats_gives_the_views_of_each(client: Client, server: Server) -> None:
    splats.save(in_viewer_frame(three_balls(200)), server.base / "input" / "short.ply")
    prompt = views_prompt(client, "silent.ply", count=2)
    prompt["short"] = client.node("Invert3DLoadGaussianSplat", file="short.ply")
    prompt["batch"] = client.node("Invert3DProbeBatch", first=["short", 0], second=["load", 0])
    prompt["views"]["inputs"]["splat"] = ["batch", 0]
    images = client.images(client.succeed(prompt), "images")
    alone = client.images(client.succeed(views_prompt(client, "silent.ply", count=2)), "images")
    assert images.shape[0] == 4
    assert np.array_equal(images[2:], alone)
    assert np.abs(images[:2] - alone).mean() > 0.01


def test_view_dependent_color_is_drawn_up_to_the_degree_asked_for(client: Client, server: Server) -> None:
    splats.save(three_balls(degree=1, comment=UP_AND_FRONT), server.base / "input" / "shiny.ply")
    plain, base, shiny, more = (
        client.images(client.succeed(views_prompt(client, file, sh_degree=degree)), "images")
        for file, degree in (("says.ply", "all"), ("shiny.ply", "0"), ("shiny.ply", "all"), ("shiny.ply", "3"))
    )
    assert np.array_equal(base, plain)
    assert np.array_equal(more, shiny)
    assert shiny[0].mean() < plain[0].mean() - 0.01 < shiny[2].mean() - 0.02  # darker in front, brighter behind


def test_max_splats_keeps_the_most_visible(client: Client, server: Server) -> None:
    prompt = views_prompt(client, "says.ply")
    prompt["load"]["inputs"]["max_splats"] = 900
    assert "1,800 splats, the 900 most visible kept" in client.succeed(prompt).text("info")


def test_same_prompt_is_cached_until_the_file_changes(client: Client, server: Server) -> None:
    file = server.base / "input" / "changing.ply"
    splats.save(three_balls(300, comment=UP_AND_FRONT), file)
    prompt = views_prompt(client, "changing.ply")
    client.succeed(prompt)
    again = client.succeed(prompt)
    assert {"load", "views"} <= again.cached
    splats.save(three_balls(310, comment=UP_AND_FRONT), file)
    changed = client.succeed(prompt)
    assert {"load", "views"} <= set(changed.executed)
    assert "930 splats" in changed.text("info")


def test_progress_and_previews_arrive(client: Client) -> None:
    run = client.succeed(views_prompt(client, "says.ply", count=6, azimuth_start_deg=1, width=96, height=64))
    assert ("views", 6, 6) in run.progress
    nodes, pictures = zip(*run.previews, strict=True)
    assert set(nodes) == {"views"}
    assert decode_image(pictures[-1]).shape == (64, 96, 3)


def test_cancel_takes_less_than_a_second(client: Client) -> None:
    asked = []

    def cancel(event: dict) -> None:
        if event["type"] == "progress" and not asked:
            asked.append(time.monotonic())
            client.interrupt()

    run = client.run(views_prompt(client, "says.ply", count=256, width=128, height=128), on_event=cancel)
    assert run.status == "interrupted"
    assert time.monotonic() - asked[0] < 1
    assert run.progress[-1][1] < 256


@pytest.mark.parametrize(
    ("node", "inputs", "message"),
    [
        ("load", {"file": "nowhere.ply"}, "there is no file 'nowhere.ply'"),
        ("load", {"file": "../../../etc/hostname"}, "there is no file"),
        ("load", {"file": "../__init__.py [sample]"}, "there is no file"),
        ("load", {"file": "/etc/hostname [sample]"}, "there is no file"),
        ("load", {"file": "notes.txt"}, "'notes.txt' is not a splat file: expected one of .ply"),
        ("load", {"format": "obj"}, "value_not_in_list"),
        ("load", {"max_splats": -1}, "value_smaller_than_min"),
        ("views", {"elevations_deg": "high"}, "elevations_deg is 'high': write degrees separated by commas"),
        ("views", {"elevations_deg": "0, 91"}, "one or more angles between -90 and 90"),
        ("views", {"elevations_deg": ""}, "one or more angles"),
        ("views", {"background": "white"}, "write a color as #rrggbb"),
        ("views", {"background": "#12345g"}, "write a color as #rrggbb"),
        ("views", {"count": 0}, "value_smaller_than_min"),
        ("views", {"up": "y"}, "value_not_in_list"),
    ],
)
def test_bad_widget_is_refused_before_anything_runs(
    client: Client, server: Server, node: str, inputs: dict, message: str
) -> None:
    (server.base / "input" / "notes.txt").write_text("no splat")
    prompt = views_prompt(client, "says.ply")
    prompt[node]["inputs"] |= inputs
    with pytest.raises(PromptRejected) as refusal:
        client.queue(prompt)
    assert message in refusal.value.messages


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"PK\x03\x04 and so on", "zip file"),
        (b"ply\nformat binary_little_endian 1.0\nelement vertex 900000\nproperty float x\nend_header\n", "broken.ply"),
    ],
)
def test_broken_file_names_file_and_cause(client: Client, server: Server, content: bytes, message: str) -> None:
    (server.base / "input" / "broken.ply").write_bytes(content)
    run = client.run(views_prompt(client, "broken.ply"))
    assert run.status == "error"
    assert run.error["node_id"] == "load"
    assert run.error["exception_type"].endswith("FormatError")
    assert "broken.ply" in run.error["exception_message"]
    assert message in run.error["exception_message"]


def test_axes_that_do_not_fit_are_explained(client: Client) -> None:
    run = client.run(views_prompt(client, "says.ply", up="+y", front="-y"))
    assert run.status == "error"
    assert "up '+y' and front '-y' lie on one axis" in run.error["exception_message"]


def test_no_file_of_the_pack_or_beyond_is_served_by_name(client: Client, server: Server) -> None:
    with pytest.raises(urllib.error.HTTPError):
        client.file(
            {"filename": "../../custom_nodes/comfyui-invert3d/pyproject.toml", "subfolder": "", "type": "input"}
        )
