"""Splats edited in a real ComfyUI: batches of different lengths, and what ComfyUI's own nodes make of the results."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from invert3d_core import splats
from tests.host.client import Client, PromptRejected
from tests.host.scenes import BLUE, GREEN, RED, in_viewer_frame, three_balls
from tests.host.server import Server

LENGTHS = [600, 900]  # of the batch's two items

# Every editing node, with widgets that change something, and how many splats are left of each item.
EDITS = {
    "Invert3DTransformSplat": ({"rotate_y": 90, "translate_x": 1, "scale": 2}, LENGTHS),
    "Invert3DCropSplat": ({"units": "scene", "center_y": -0.6, "size_y": 0.9}, [200, 300]),
    "Invert3DCleanSplat": ({}, LENGTHS),
    "Invert3DDecimateSplat": ({"percent": 50, "max_splats": 400}, [300, 400]),
    "Invert3DMergeSplats": ({}, [1500]),
    "Invert3DRecolorSplat": ({"hue_deg": 120}, LENGTHS),
    "Invert3DAdjustSplat": ({"size": 1.5, "sh_degree": "0"}, LENGTHS),
    "Invert3DNormalizeSplat": ({"radius": 2, "place": "ground", "turn": "y up"}, LENGTHS),
    "Invert3DOrientSplat": ({"choice": "2", "turn_deg": "90"}, LENGTHS),
}


@pytest.fixture(scope="module", autouse=True)
def files(server: Server) -> None:
    """The scene in the usual frame: y down."""
    for name, length in zip(("first.ply", "second.ply"), LENGTHS, strict=True):
        splats.save(in_viewer_frame(three_balls(length // 3, degree=0)), server.base / "input" / name)
    splats.save(three_balls(200, degree=1), server.base / "input" / "shiny.ply")


def batch_prompt(client: Client) -> dict:
    return {
        "first": client.node("Invert3DLoadGaussianSplat", file="first.ply"),
        "second": client.node("Invert3DLoadGaussianSplat", file="second.ply"),
        "batch": client.node("Invert3DProbeBatch", first=["first", 0], second=["second", 0]),
    }


def edited(client: Client, node_id: str, **inputs: object) -> dict:
    """A prompt that edits the batch and saves the tensors of the result as `edited`."""
    prompt = batch_prompt(client)
    prompt["edit"] = client.node(node_id, **({"splat": ["batch", 0]} | inputs))
    prompt["tensors"] = client.node("Invert3DProbeTensors", value=["edit", 0], name="edited")
    return prompt


def items_of(folder: Path) -> list[dict[str, torch.Tensor]]:
    """The items of the saved batch without their padding."""
    saved = load_file(folder / "output" / "edited.safetensors")
    counts = (
        saved.pop("counts").tolist() if "counts" in saved else [saved["positions"].shape[1]] * len(saved["positions"])
    )
    for name, values in saved.items():
        for i, count in enumerate(counts):
            assert (values[i, count:] == 0).all(), f"{name} is padded with something"
    return [{name: values[i, :count] for name, values in saved.items()} for i, count in enumerate(counts)]


def base_colors(item: dict[str, torch.Tensor]) -> torch.Tensor:
    return item["sh"][:, 0] * 0.28209479177387814 + 0.5


@pytest.mark.parametrize("node_id", EDITS)
def test_core_takes_what_the_node_makes_of_a_batch(client: Client, server: Server, node_id: str) -> None:
    inputs, lengths = EDITS[node_id]
    prompt = edited(client, node_id, **inputs)
    prompt["render"] = client.node("RenderSplat", splat=["edit", 0], width=64, height=64, frames=1)
    prompt["pictures"] = client.node("SaveImage", images=["render", 0], filename_prefix="edited")
    prompt["mesh"] = client.node("SplatToMesh", splat=["edit", 0], resolution=64, min_component=0)
    prompt["surface"] = client.node("Invert3DProbeTensors", value=["mesh", 0], name="surface")
    prompt["count"] = client.node("GetSplatCount", splat=["edit", 0])
    prompt["counted"] = client.node("PreviewAny", source=["count", 1])
    prompt["file"] = client.node("SplatToFile3D", splat=["edit", 0])
    prompt["again"] = client.node("File3DToSplat", model_3d=["file", 0])
    prompt["recount"] = client.node("GetSplatCount", splat=["again", 0])
    prompt["recounted"] = client.node("PreviewAny", source=["recount", 1])
    run = client.succeed(prompt)
    assert [len(item["positions"]) for item in items_of(server.base)] == lengths
    assert run.text("counted") == str(sum(lengths))
    assert run.text("recounted") == str(lengths[0])  # a file holds one item
    pictures = client.images(run, "pictures")
    assert len(pictures) == len(lengths)
    assert all(picture.std() > 0.05 for picture in pictures)


def test_transformed_splats_are_where_they_should_be(client: Client, server: Server) -> None:
    prompt = edited(client, "Invert3DTransformSplat", rotate_z=90, translate_z=5, scale=2, pivot="origin")
    client.succeed(prompt)
    for item, length in zip(items_of(server.base), LENGTHS, strict=True):
        given = in_viewer_frame(three_balls(length // 3))
        x, y, z = given.positions.unbind(1)
        torch.testing.assert_close(item["positions"], torch.stack([-2 * y, 2 * x, 2 * z + 5], 1), rtol=0, atol=1e-5)
        torch.testing.assert_close(item["scales"], given.scales * 2)


def test_crop_by_the_view_of_cameras(client: Client, server: Server) -> None:
    """Blue is on top: a camera that looks at it from far with a narrow view sees nothing else."""
    prompt = edited(client, "Invert3DCropSplat", shape="view", cameras=["camera", 0], view_width=64, view_height=64)
    prompt["camera"] = client.node(
        "CreateCameraInfo",
        **{"mode": "look_at", "mode.position_x": 0, "mode.position_y": 0.5, "mode.position_z": 10},
        target_x=0.0,
        target_y=0.5,
        target_z=0.0,
        fov=4.0,
    )
    client.succeed(prompt)
    for item, length in zip(items_of(server.base), LENGTHS, strict=True):
        assert len(item["positions"]) == length // 3
        torch.testing.assert_close(base_colors(item), torch.tensor(BLUE).expand(length // 3, 3), rtol=0, atol=1e-5)
    # With another up the same splats are seen from the other side: the widgets hold for a camera_info too.
    prompt["edit"]["inputs"] |= {"up": "+y", "front": "+z"}
    prompt["camera"]["inputs"] |= {"mode.position_y": -0.5, "target_y": -0.5}
    client.succeed(prompt)
    for item, length in zip(items_of(server.base), LENGTHS, strict=True):
        torch.testing.assert_close(base_colors(item), torch.tensor(BLUE).expand(length // 3, 3), rtol=0, atol=1e-5)
    prompt["camera"] = client.node("Invert3DOrbitCameras", count=2, fov_y_deg=40)
    client.succeed(prompt)  # cameras that frame the object see all of it
    assert [len(item["positions"]) for item in items_of(server.base)] == LENGTHS


def test_colors_are_turned_tinted_and_matched(client: Client, server: Server) -> None:
    client.succeed(edited(client, "Invert3DRecolorSplat", tint="#4080ff", tint_strength=1))
    for item in items_of(server.base):
        shades = base_colors(item) / torch.tensor([0x40, 0x80, 0xFF]).mul(1 / 255)
        torch.testing.assert_close(shades, shades[:, :1].expand(-1, 3), rtol=0, atol=1e-4)
        assert shades.std() > 0.1
    prompt = edited(client, "Invert3DRecolorSplat", match_image=["picture", 0])
    prompt["picture"] = client.node("EmptyImage", width=16, height=16, batch_size=1, color=0x336699)
    client.succeed(prompt)
    for item in items_of(server.base):
        weights = item["opacities"] * item["scales"][:, :2].prod(1, keepdim=True)
        mean = (base_colors(item) * weights).sum(0) / weights.sum()
        assert np.allclose(mean.numpy(), np.array([0x33, 0x66, 0x99]) / 255, atol=0.02)


def test_two_splats_of_different_degree_in_one(client: Client, server: Server) -> None:
    prompt = edited(client, "Invert3DMergeSplats", other=["shiny", 0])
    prompt["shiny"] = client.node("Invert3DLoadGaussianSplat", file="shiny.ply")
    client.succeed(prompt)
    items = items_of(server.base)
    assert [item["sh"].shape for item in items] == [(1200, 4, 3), (1500, 4, 3)]
    for item, length in zip(items, LENGTHS, strict=True):
        assert (item["sh"][:length, 1:] == 0).all()
        assert (item["sh"][length:, 2] == 0.5).all()


def test_turned_splats_are_drawn_upright_as_before(client: Client, server: Server) -> None:
    """What Normalize Splat turns it also states, so that views with up and front on auto stay as they were."""
    prompt = edited(client, "Invert3DNormalizeSplat", splat=["first", 0], turn="y up")
    for name, source in (("before", "first"), ("after", "edit")):
        prompt[f"views_{name}"] = client.node(
            "Invert3DRenderOrbitViews", splat=[source, 0], count=2, width=64, height=64
        )
        prompt[name] = client.node("SaveImage", images=[f"views_{name}", 0], filename_prefix=name)
    run = client.succeed(prompt)
    before, after = client.images(run, "before"), client.images(run, "after")
    assert np.abs(before - after).max() < 0.05
    assert before.std() > 0.1
    (item,) = items_of(server.base)
    for color, sign in ((BLUE, 1), (RED, -1), (GREEN, -1)):
        ball = (base_colors(item) - torch.tensor(color)).abs().amax(1) < 0.01
        assert item["positions"][ball, 1].mean() * sign > 0.2


def test_every_splat_of_a_batch_is_oriented_and_shown(client: Client) -> None:
    """Views with up and front on auto follow what is chosen, for both of the items."""
    chosen = {"up": "+x", "front": "-z"}
    prompt = edited(client, "Invert3DOrientSplat", **chosen)
    for name, source, widgets in (("before", "batch", {}), ("set", "batch", chosen), ("after", "edit", {})):
        prompt[f"views_{name}"] = client.node(
            "Invert3DRenderOrbitViews", splat=[source, 0], count=1, width=64, height=64, **widgets
        )
        prompt[name] = client.node("SaveImage", images=[f"views_{name}", 0], filename_prefix=name)
    prompt["info"] = client.node("PreviewAny", source=["edit", 2])
    run = client.succeed(prompt)
    before, expected, after = (client.images(run, name) for name in ("before", "set", "after"))
    assert len(after) == len(LENGTHS)
    assert np.array_equal(after, expected)
    assert (np.abs(after - before).mean((1, 2, 3)) > 0.02).all()
    lines = run.text("info").splitlines()
    assert len(lines) == len(LENGTHS) and all(line.startswith("up +x, front -z chosen") for line in lines)
    assert client.images(run, "edit").shape[::3] == (len(LENGTHS), 3), "a sheet of candidates for each"


def test_a_lone_splat_far_away_is_cleaned_off(client: Client, server: Server) -> None:
    prompt = edited(client, "Invert3DCleanSplat", splat=["joined", 0], max_size=0)
    prompt["shiny"] = client.node("Invert3DLoadGaussianSplat", file="shiny.ply")
    prompt["lone"] = client.node("Invert3DDecimateSplat", splat=["shiny", 0], max_splats=1, method="drop")
    prompt["far"] = client.node("Invert3DTransformSplat", splat=["lone", 0], translate_x=50, pivot="origin")
    prompt["joined"] = client.node("Invert3DMergeSplats", splat=["batch", 0], other=["far", 0])
    for limits, left in (({"floaters": 0}, 1), ({"floaters": 6}, 0), ({"floaters": 0, "max_size": 0.01}, None)):
        prompt["edit"]["inputs"] |= limits
        if left is None:  # the balls reach 0.9, and each of their splats 0.02
            failed = client.run(prompt)
            assert failed.status == "error" and "none of the 601 splats" in failed.error["exception_message"]
            continue
        client.succeed(prompt)
        assert [len(item["positions"]) for item in items_of(server.base)] == [length + left for length in LENGTHS]


def test_decimation_shows_its_progress(client: Client) -> None:
    run = client.succeed(edited(client, "Invert3DDecimateSplat", percent=10))
    steps = [(value, total) for node, value, total in run.progress if node == "edit"]
    assert steps[-1] == (1500, 1500)
    assert steps[0][0] < 600  # the bar moves inside an item


@pytest.mark.parametrize(
    ("node_id", "inputs", "message"),
    [
        (
            "Invert3DCropSplat",
            {"center_x": 50},
            "none of the 600 splats of item 0 is left: nothing lies inside of the box",
        ),
        ("Invert3DCropSplat", {"shape": "view"}, "connect cameras or a camera_info"),
        ("Invert3DCleanSplat", {"min_opacity": 1.0}, "lower min_opacity, or raise the other limits"),
        ("Invert3DTransformSplat", {"translate_x": float("nan")}, "translate_x is nan"),
        ("Invert3DRecolorSplat", {"match_splat": ["first", 0], "match_image": ["image", 0]}, "connect one of them"),
        ("Invert3DRecolorSplat", {"match_mask": ["mask", 0]}, "match_mask is connected without match_image"),
    ],
)
def test_impossible_edits_are_explained(client: Client, node_id: str, inputs: dict, message: str) -> None:
    prompt = edited(client, node_id, **inputs)
    prompt["image"] = client.node("EmptyImage", width=8, height=8, batch_size=1, color=0)
    prompt["mask"] = client.node("SolidMask", value=1.0, width=8, height=8)
    run = client.run(prompt)
    assert run.status == "error"
    assert run.error is not None
    assert message in run.error["exception_message"]


def test_bad_tint_is_refused_before_anything_runs(client: Client) -> None:
    with pytest.raises(PromptRejected) as refusal:
        client.queue(edited(client, "Invert3DRecolorSplat", tint="blue"))
    assert "write a color as #rrggbb" in refusal.value.messages
