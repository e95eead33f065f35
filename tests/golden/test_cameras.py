import json
import math
from pathlib import Path

import pytest
import safetensors.torch
import torch

from invert3d_core import cameras
from invert3d_core.cameras import conversions

DATA = Path(__file__).parent


def golden(system, name):
    return safetensors.torch.load_file(DATA / system / f"{name}.safetensors")


def close(found, expected, tolerance):
    torch.testing.assert_close(found.double(), expected.double(), atol=tolerance, rtol=0)


def test_orbit_is_the_formula_and_the_reference():
    data = golden("invert3d", "orbit_cameras")
    rig = cameras.orbit(
        data["azimuth_deg"], data["elevation_above_deg"], data["radius"], 49.1, 256, 256, data["target"]
    )
    close(rig.c2w, data["c2w_f64"], 1e-6)
    close(rig.c2w, data["c2w"], 1e-6)


def test_viewmats_and_intrinsics_in_float64():
    data = golden("invert3d", "renderer_cameras")
    for i, (width, height) in enumerate(data["width_height"].tolist()):
        rig = cameras.Cameras(data["c2w_f64"][i : i + 1], data["fov_y_deg"][i : i + 1], width, height)
        viewmats, intrinsics = conversions.to_viewmats(rig), conversions.to_intrinsics(rig)
        close(viewmats[0], data["w2c_opencv_f64"][i], 1e-9)
        close(intrinsics[0], data["K_f64"][i], 1e-9)
        close(rig.centers[0], data["camera_center_f64"][i], 1e-9)
        seen = data["points"][i] @ viewmats[0, :3, :3].mT + viewmats[0, :3, 3]
        close(seen, data["points_camera"][i], 1e-9)
        pixels = seen @ intrinsics[0].mT
        close(pixels[:, :2] / pixels[:, 2:], data["points_pixel"][i], 1e-7)
        back = conversions.from_viewmats(viewmats, intrinsics, width, height)
        close(back.c2w, rig.c2w, 1e-9)
        close(back.fov_y_deg, rig.fov_y_deg, 1e-9)


def test_viewmats_where_the_reference_is_right():
    data = golden("invert3d", "renderer_cameras")
    for i in data["ref_agrees"].nonzero()[:, 0].tolist():
        width, height = data["width_height"][i].tolist()
        rig = cameras.Cameras(data["c2w_f64"][i : i + 1], data["fov_y_deg"][i : i + 1], width, height)
        radius = float(data["c2w_f64"][i, :3, 3].norm())
        close(conversions.to_viewmats(rig)[0].mT, data["ref_world_view_transform"][i], 2e-6 * radius)
    assert data["ref_agrees"].sum() == 8


@pytest.mark.parametrize("k", range(7))
def test_camera_vectors_of_invert3d(k):
    data = golden("invert3d", "mvdream_cameras")
    count, elevation, start, span = data[f"get_camera_{k}_args"].tolist()
    rig = cameras.orbit(cameras.azimuths(int(count), start, span), elevation, 1.0, 50, 256, 256)
    close(conversions.to_mvdream(rig), data[f"get_camera_{k}"], 1e-6)
    close(conversions.normalize_translation(rig.c2w).flatten(1), data[f"get_camera_{k}_no_blender"], 1e-6)


def test_camera_vectors_that_the_trainer_feeds():
    data = golden("invert3d", "mvdream_cameras")
    names = ("poses_base_elevation_azimuth", "poses_c2w_opengl", "poses_c2w_blender", "poses_camera16")
    for (below, azimuth), poses, blender, vectors in zip(*(data[name] for name in names), strict=True):
        rig = cameras.Cameras(poses, torch.full((4,), 49.1), 256, 256)
        close(cameras.orbit(cameras.azimuths(4, float(azimuth)), -below, 2.5, 49.1, 256, 256).c2w, poses, 1e-6)
        close(conversions.y_up_to_z_up(poses), blender, 1e-6)
        close(conversions.to_mvdream(rig), vectors, 1e-6)
    before = data["normalize_in"].clone()
    close(conversions.normalize_translation(data["normalize_in"]).flatten(1), data["normalize_out16"], 1e-6)
    assert torch.equal(data["normalize_in"], before), "the input must not be written to"


@pytest.mark.parametrize("entry", json.loads((DATA / "mvdream/cameras.json").read_text()), ids=lambda e: e["tensor"])
def test_camera_vectors_of_mvdream(entry):
    arguments = {"elevation": 15, "azimuth_start": 0, "azimuth_span": 360, "blender_coord": True} | entry["args"]
    azimuths = cameras.azimuths(arguments["num_frames"], arguments["azimuth_start"], arguments["azimuth_span"])
    rig = cameras.orbit(azimuths, arguments["elevation"], 3.7, 40, 256, 256)
    expected = golden("mvdream", "cameras")[entry["tensor"]]
    if entry["args"].get("extra_view"):
        expected = expected[:-1]  # the last row stands for the image prompt: zeros, no camera
    found = conversions.to_mvdream(rig)
    if not arguments["blender_coord"]:
        found = conversions.normalize_translation(rig.c2w).flatten(1)
    close(found, expected, 1e-6)


def test_world_axes_of_mvdream():
    data = golden("mvdream", "cameras")
    rig = cameras.orbit(data["azim"], data["elev"], 1.0, 50, 256, 256)
    close(rig.c2w, data["c2w_opengl"], 1e-6)
    close(conversions.y_up_to_z_up(rig.c2w), data["c2w_blender"], 1e-6)
    close(conversions.y_up_to_z_up(data["affine"]), data["affine_blender"], 1e-6)
    close(conversions.normalize_translation(data["affine"]).flatten(1), data["affine_normalized"], 1e-6)


def test_front_azimuth_is_mvdream_s_azimuth_start():
    """An asset seen from its front by a model with its front at 90 is what get_camera(azimuth_start=90) describes."""
    data = golden("mvdream", "cameras")
    rig = cameras.orbit(cameras.azimuths(4), 15, 2.0, 40, 256, 256)
    close(conversions.to_mvdream(rig, front_azimuth_deg=90), data["get_camera_1"], 1e-6)


HALF = math.sqrt(0.5)
# azimuth, elevation, distance -> position, quaternion (x,y,z,w) of three.js, by hand: half-angle formulas
CAMERA_INFOS = [
    (0, 0, 2.0, (0, 0, 2), (0, 0, 0, 1)),
    (90, 0, 2.0, (2, 0, 0), (0, HALF, 0, HALF)),
    (180, 0, 3.0, (0, 0, -3), (0, 1, 0, 0)),
    (-90, 0, 1.5, (-1.5, 0, 0), (0, -HALF, 0, HALF)),
    (0, 90, 2.0, (0, 2, 0), (-HALF, 0, 0, HALF)),
    (0, -30, 2.0, (0, -1, math.sqrt(3)), (math.sin(math.pi / 12), 0, 0, math.cos(math.pi / 12))),
    (
        90,
        30,
        2.0,
        (math.sqrt(3), 1, 0),
        (-0.18301270189221933, 0.6830127018922193, 0.18301270189221933, 0.6830127018922193),
    ),
]


@pytest.mark.parametrize(("azimuth", "elevation", "distance", "position", "quaternion"), CAMERA_INFOS)
def test_camera_info_by_hand(azimuth, elevation, distance, position, quaternion):
    rig = cameras.orbit(azimuth, elevation, distance, 40, 64, 64)
    (info,) = conversions.to_camera_info(rig)
    assert [info["position"][k] for k in "xyz"] == pytest.approx(position, abs=1e-6)
    assert [info["target"][k] for k in "xyz"] == pytest.approx((0, 0, 0), abs=1e-6)
    found = torch.tensor([info["quaternion"][k] for k in "xyzw"], dtype=torch.float64)
    assert abs(float(found @ torch.tensor(quaternion, dtype=torch.float64))) == pytest.approx(1, abs=1e-6)
    assert info["fov"] == pytest.approx(40)
    assert (info["cameraType"], info["zoom"]) == ("perspective", 1.0)
    x, y, z, w = quaternion
    given = {
        "position": dict(zip("xyz", position, strict=True)),
        "target": {"x": 0, "y": 0, "z": 0},
        "quaternion": {"x": x, "y": y, "z": z, "w": w},
        "fov": 40,
    }
    close(conversions.from_camera_info(given, 64, 64).c2w, rig.c2w, 1e-6)
    del given["quaternion"]
    close(conversions.from_camera_info(given, 64, 64).c2w, rig.c2w, 1e-6)
