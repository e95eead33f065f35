"""Files of cameras: every format through its own bytes, what cannot be kept, and damage."""

import io
import json
import math
import random
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from invert3d_core import cameras
from invert3d_core.cameras import conversions
from invert3d_core.cameras.formats import FORMATS, dtu
from invert3d_core.errors import CameraError


def rig(count=3, width=64, height=48):
    """Cameras that look about, none of them upright, with lenses of their own."""
    cams = cameras.orbit(cameras.azimuths(count, 10), torch.linspace(-40, 70, count), 3.0, 40, width, height)
    roll = torch.eye(4)
    roll[:2, :2] = torch.tensor([[0.8, -0.6], [0.6, 0.8]])
    fov = torch.linspace(30, 60, count)
    return cameras.Cameras(cams.c2w @ roll, fov, width, height, "splat")


def check_same(loaded, cams, tolerance=2e-6):
    torch.testing.assert_close(loaded.cameras.c2w, cams.c2w, atol=tolerance, rtol=0)
    torch.testing.assert_close(loaded.cameras.fov_y_deg, cams.fov_y_deg, atol=2e-5, rtol=0)
    assert (loaded.cameras.width, loaded.cameras.height, loaded.cameras.frame) == (cams.width, cams.height, "splat")


def write_json(path, value):
    path.write_text(json.dumps(value))
    return path


def nerf(**changes):
    """A transforms.json as NeRF's own, of one camera 4 units behind +y, up +z."""
    pose = [[1, 0, 0, 0], [0, 0, -1, -4], [0, 1, 0, 0], [0, 0, 0, 1]]
    return {"camera_angle_x": math.pi / 2, "frames": [{"file_path": "./r_0", "transform_matrix": pose}]} | changes


# ------------------------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("form", ["transforms", "dtu", "colmap", "colmap-text"])
def test_what_is_written_is_read_back(form, tmp_path):
    cams = rig()
    target = {"transforms": tmp_path / "deep" / "cams.json", "dtu": tmp_path / "cameras.npz"}.get(form, tmp_path / "m")
    written = cameras.save(cams, target, form)
    assert all(path.is_file() for path in written)
    loaded = cameras.load(target, size=(64, 48))
    check_same(loaded, cams)
    assert loaded.remarks == []
    assert loaded.format == form.removesuffix("-text")
    expected = ["000000", "000001", "000002"] if form == "dtu" else ["view_000.png", "view_001.png", "view_002.png"]
    assert loaded.names == expected


def test_format_follows_from_the_name(tmp_path):
    assert [path.name for path in cameras.save(rig(), tmp_path / "a.json")] == ["a.json"]
    assert [path.name for path in cameras.save(rig(), tmp_path / "a.npz")] == ["a.npz"]
    assert {path.name for path in cameras.save(rig(), tmp_path / "a")} == {"cameras.bin", "images.bin", "points3D.bin"}
    for arguments, message in (
        ((tmp_path / "a.fbx",), "no format None for 'a.fbx'"),
        ((tmp_path / "a.json", None, ["one"]), "1 names for 3 cameras"),
        ((tmp_path / "a.json", None, ["a", "b\n", "c"]), "cannot be written"),
    ):
        with pytest.raises(CameraError, match=message):
            cameras.save(rig(), *arguments)
    assert set(FORMATS) == {"colmap", "transforms", "training", "dtu"}


# --------------------------------------------------------------------------------------------------------------- COLMAP

CAMERAS_TXT = """# Camera list with one line of data per camera:
#   CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]
7 PINHOLE 64 48 60 60 32 24
3 SIMPLE_RADIAL 64 48 60 32 24 0
9 OPENCV_FISHEYE 64 48 60 60 32 24 0.1 0 0 0
"""
IMAGES_TXT = """# Image list with two lines of data per image:
#   IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME
#   POINTS2D[] as (X, Y, POINT3D_ID)
2 1 0 0 0 0 0 5 7 second picture.png

1 0 1 0 0 0 0 5 3 first.png
12.5 3.5 -1 4 5 17
"""


def colmap_text(folder, cameras_txt=CAMERAS_TXT, images_txt=IMAGES_TXT):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cameras.txt").write_text(cameras_txt)
    (folder / "images.txt").write_text(images_txt)
    return folder


def test_colmap_text_by_hand(tmp_path):
    loaded = cameras.load(colmap_text(tmp_path / "scene" / "sparse" / "0").parent.parent)
    assert loaded.names == ["first.png", "second picture.png"]
    # Second: at z = −5 of the world, looking along +z with y down. First: turned about x by 180°.
    first, second = loaded.cameras.c2w
    torch.testing.assert_close(second, torch.tensor([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, -5], [0, 0, 0, 1]]))
    torch.testing.assert_close(first, torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 5], [0, 0, 0, 1]]))
    assert loaded.cameras.fov_y_deg.tolist() == pytest.approx([2 * math.degrees(math.atan(24 / 60))] * 2)
    for file in ("images.txt", "cameras.txt"):
        assert cameras.load(tmp_path / "scene" / "sparse" / "0" / file).names == loaded.names


def test_colmap_binary_by_hand_with_points_to_skip(tmp_path):
    lens = struct.pack("<QiiQQ3d", 1, 4, 0, 64, 48, 60, 32, 24)
    pose = struct.pack("<I7dI", 1, 1, 0, 0, 0, 0, 0, 5, 4)
    points = struct.pack("<Q", 1000) + struct.pack("<ddq", 1, 2, -1) * 1000
    (tmp_path / "cameras.bin").write_bytes(lens)
    (tmp_path / "images.bin").write_bytes(
        struct.pack("<Q", 2) + pose + b"b.png\0" + points + pose + "ä.png".encode() + b"\0" + struct.pack("<Q", 0)
    )
    loaded = cameras.load(tmp_path)
    assert loaded.names == ["b.png", "ä.png"]
    assert loaded.cameras.centers.tolist() == [[0, 0, -5]] * 2
    assert loaded.cameras.fov_y_deg.tolist() == pytest.approx([2 * math.degrees(math.atan(24 / 60))] * 2)


def test_colmap_text_from_an_editor_of_windows(tmp_path):
    """A byte order mark before the first line, and other line ends."""
    expected = cameras.load(colmap_text(tmp_path / "plain"))
    for cut in (0, 1):  # with the comment as the first line, and with a camera
        folder = colmap_text(tmp_path / f"windows{cut}")
        for path in folder.iterdir():
            lines = [line for line in path.read_text().splitlines() if not (cut and line.startswith("#"))]
            path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, ""]).encode())
        loaded = cameras.load(folder)
        assert loaded.names == expected.names
        assert torch.equal(loaded.cameras.c2w, expected.cameras.c2w)


def test_archive_with_the_separator_of_windows(tmp_path):
    colmap_text(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "scene.zip", "w") as archive:
        for name in ("cameras.txt", "images.txt"):
            member = zipfile.ZipInfo()
            member.filename = f"scene\\{name}"
            archive.writestr(member, (tmp_path / "model" / name).read_bytes())
    assert cameras.load(tmp_path / "scene.zip").names == ["first.png", "second picture.png"]


def test_archive_of_a_folder_and_of_a_transforms_file(tmp_path):
    colmap_text(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "scene.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("cameras.txt", "images.txt"):
            archive.write(tmp_path / "model" / name, f"scene/sparse/0/{name}")
    assert cameras.load(tmp_path / "scene.zip").names == ["first.png", "second picture.png"]
    with zipfile.ZipFile(tmp_path / "nerf.zip", "w") as archive:
        archive.writestr("data/transforms.json", json.dumps(nerf(w=8, h=8)))
    assert cameras.load(tmp_path / "nerf.zip").names == ["./r_0"]


@pytest.mark.parametrize(
    ("cameras_txt", "images_txt", "message"),
    [
        (CAMERAS_TXT, IMAGES_TXT.replace(" 3 first", " 9 first"), "OPENCV_FISHEYE, which bends.*image_undistorter"),
        (CAMERAS_TXT.replace("24 0\n", "24 0.02\n"), IMAGES_TXT, "SIMPLE_RADIAL, which bends"),
        (CAMERAS_TXT.replace("PINHOLE", "PERISCOPE", 1), IMAGES_TXT, "PERISCOPE, which is unknown"),
        (CAMERAS_TXT, IMAGES_TXT.replace(" 3 first", " 5 first"), "'first.png' has camera 5"),
        (CAMERAS_TXT.replace(" 32 24\n", "\n"), IMAGES_TXT, "PINHOLE has 2 parameters, expected 4"),
        (CAMERAS_TXT.replace("7 PINHOLE 64", "7 PINHOLE wide"), IMAGES_TXT, "cameras.txt' is damaged.*wide"),
        (CAMERAS_TXT.replace("7 PINHOLE 64", "7 PINHOLE 0"), IMAGES_TXT, "has size"),
        (CAMERAS_TXT.replace("7 PINHOLE 64", "7 PINHOLE " + "9" * 400), IMAGES_TXT, "cameras.txt' is damaged"),
        (CAMERAS_TXT, IMAGES_TXT.replace("2 1 0 0 0", "2 0 0 0 0"), "'second picture.png' is not a rotation"),
        (CAMERAS_TXT, IMAGES_TXT.replace("0 0 5 7", "0 0 nan 7"), "'second picture.png' is not a rotation"),
        (CAMERAS_TXT, IMAGES_TXT.replace("0 0 5 7", "0 0 1e200 7"), "'second picture.png' is not a rotation"),
        (CAMERAS_TXT, IMAGES_TXT + "12.5 3.5 -1\n", "images.txt': the line '12.5 .* is no picture"),
        (
            CAMERAS_TXT,
            "1 1 0 0 0 0 0 5 7 a.png\n2 1 0 0 0 0 0 6 7 b 2.png\n",
            "the line '2 1 .* b 2.png' follows the picture 'a.png', whose points are expected there",
        ),
        (CAMERAS_TXT, "# nothing\n", "holds 0 cameras"),
        ("7 PINHOLE\n", IMAGES_TXT, "is no camera"),
    ],
)
def test_colmap_errors_name_file_and_cause(cameras_txt, images_txt, message, tmp_path):
    with pytest.raises(CameraError, match=message):
        cameras.load(colmap_text(tmp_path, cameras_txt, images_txt))


# ------------------------------------------------------------------------------------------------------ transforms.json


def test_nerf_transforms_take_the_size_from_the_picture(tmp_path):
    (tmp_path / "r_0.png").write_bytes(picture(80, 40))
    loaded = cameras.load(write_json(tmp_path / "transforms_train.json", nerf()))
    assert (loaded.cameras.width, loaded.cameras.height) == (80, 40)
    assert float(loaded.cameras.fov_y_deg) == pytest.approx(2 * math.degrees(math.atan(0.5)))
    assert cameras.load(tmp_path).names == ["./r_0"]
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "r_0.png").write_bytes(picture(60, 20))
    windows = nerf()
    windows["frames"][0]["file_path"] = ".\\train\\r_0"
    assert cameras.load(write_json(tmp_path / "windows.json", windows)).cameras.width == 60
    # Blender's world is z up and shows a thing's front to −y: the camera stands in front, upright.
    around = cameras.Orientation("+z", "-y").from_splat_frame(loaded.cameras)
    torch.testing.assert_close(around.c2w, cameras.orbit(0, 0, 4, 40, 8, 8).c2w)


def picture(width, height):
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


def test_nerf_transforms_without_a_size_need_one(tmp_path):
    file = write_json(tmp_path / "transforms.json", nerf())
    with pytest.raises(CameraError, match=r"does not say how large.*\(width and height\)"):
        cameras.load(file)
    assert cameras.load(file, size=(32, 32)).cameras.fov_y_deg.tolist() == pytest.approx([90])


def test_pictures_outside_the_folder_are_not_asked(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "r_0.png").write_bytes(picture(80, 40))
    value = nerf()
    for path in ("../r_0", "..\\r_0", str(tmp_path / "r_0.png"), "C:/r_0", "r\0"):
        value["frames"][0]["file_path"] = path
        with pytest.raises(CameraError, match="does not say how large"):
            cameras.load(write_json(tmp_path / "in" / "transforms.json", value))


def test_lenses_at_the_top_or_with_each_frame(tmp_path):
    top = nerf(fl_x=50, fl_y=50, cx=32, cy=24, w=64, h=48, camera_model="OPENCV", k1=0.0, k2=0)
    loaded = cameras.load(write_json(tmp_path / "a.json", top))
    assert float(loaded.cameras.fov_y_deg) == pytest.approx(2 * math.degrees(math.atan(24 / 50)))
    top["frames"] = [top["frames"][0] | {"fl_x": length, "fl_y": length} for length in (40, 50)]
    own = nerf(fl_x=50, fl_y=50, w=64, h=48, camera_angle_x=1.0)
    own["frames"] = [own["frames"][0], own["frames"][0] | {"camera_angle_x": 1.5}]  # goes before all at the top
    expected = [2 * math.degrees(math.atan(24 / f)) for f in (50, 32 / math.tan(0.75))]
    loaded = cameras.load(write_json(tmp_path / "b.json", own))
    assert loaded.cameras.fov_y_deg.tolist() == pytest.approx(expected)
    top["applied_transform"] = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    loaded = cameras.load(write_json(tmp_path / "a.json", top))
    assert loaded.cameras.fov_y_deg.tolist() == pytest.approx([2 * math.degrees(math.atan(24 / f)) for f in (40, 50)])
    assert "applied_transform" in loaded.remarks[0]


def test_written_transforms_hold_what_other_readers_look_for(tmp_path):
    one = cameras.Cameras(rig().c2w, torch.tensor(40.0), 64, 48)
    (path,) = cameras.save(one, tmp_path / "t.json", more={"fps": 24, "frames": [{"depth_file_path": "d"}] * 3})
    value = json.loads(path.read_text())
    assert {"camera_angle_x", "fl_x", "fl_y", "cx", "cy", "w", "h", "fps"} <= value.keys()
    assert value["fl_x"] == pytest.approx(24 / math.tan(math.radians(20)))
    assert value["camera_angle_x"] == pytest.approx(2 * math.atan(32 / value["fl_x"]))
    assert value["frames"][1].keys() == {"file_path", "transform_matrix", "depth_file_path"}
    cameras.save(rig(), path)
    value = json.loads(path.read_text())
    assert "fl_x" not in value and value["frames"][0]["fl_x"] != value["frames"][1]["fl_x"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k1": 0.1, "p2": 0.1}, r"distortion \(k1, p2\)"),
        ({"camera_model": "OPENCV_FISHEYE"}, "the model 'OPENCV_FISHEYE'"),
        ({"is_fisheye": True}, "expected a pinhole"),
        ({"camera_angle_x": None}, "no focal length"),
        ({"camera_angle_x": 3.2}, "expected radians between 0 and pi"),
        ({"camera_angle_x": "wide"}, "camera_angle_x is 'wide', expected a number"),
        ({"fl_x": -1}, "positive numbers"),
        ({"w": math.nan}, "positive numbers"),
        ({"w": 1e9}, "sides up to 65536"),
        ({"frames": []}, "holds 0 cameras"),
        ({"frames": [1]}, "no list of frames"),
        ({"frames": [{"transform_matrix": [[1, 2], [3]]}]}, r"transform_matrix of 'frame 0' is \[\[1, 2\], \[3\]\]"),
        ({"frames": [{"transform_matrix": "eye"}]}, "expected 4×4 or 3×4 numbers"),
        ({"frames": [{"transform_matrix": [[0] * 4] * 4}]}, "pose of 'frame 0' is not a rotation"),
        ({"frames": [{"transform_matrix": np.diag([-1, 1, 1, 1]).tolist()}]}, "right-handed"),
        ({"frames": [{"transform_matrix": np.diag([1, 1.2, 1, 1]).tolist()}]}, "is not a rotation"),
    ],
)
def test_transforms_errors_name_file_and_cause(changes, message, tmp_path):
    file = write_json(tmp_path / "transforms.json", nerf(w=64, h=48) | changes)
    with pytest.raises(CameraError, match=message) as refusal:
        cameras.load(file)
    assert "transforms.json" in str(refusal.value)


def test_a_scale_in_the_pose_is_taken_out(tmp_path):
    pose = np.diag([0.5, 0.5, 0.5, 1.0])
    pose[:3, 3] = 1, 2, 3
    file = write_json(tmp_path / "t.json", nerf(w=8, h=8, frames=[{"transform_matrix": pose.tolist()}]))
    c2w = cameras.load(file).cameras.c2w[0]
    torch.testing.assert_close(c2w[:3], torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 2], [0, 0, 1, 3]]))


# ----------------------------------------------------------------------------------------- training's cameras.json, DTU


def test_training_cameras_by_hand(tmp_path):
    entry = {"id": 0, "img_name": "a", "width": 64, "height": 48, "position": [1, 2, 3], "fx": 60, "fy": 60.0}
    turned = [[0, 0, 1], [1, 0, 0], [0, 1, 0]]  # right is +y, down +z, forward +x
    loaded = cameras.load(write_json(tmp_path / "cameras.json", [entry | {"rotation": turned}]))
    c2w = loaded.cameras.c2w[0]
    assert c2w[:3, 3].tolist() == [1, 2, 3]
    assert loaded.cameras.view_directions.tolist() == [[1, 0, 0]]
    assert c2w[:3, 0].tolist() == [0, 1, 0] and c2w[:3, 1].tolist() == [0, 0, -1]
    for broken, message in (([3], "entry 0 is no camera"), ([entry], "rotation of 'a' is None"), ([{}], "lacks width")):
        with pytest.raises(CameraError, match=message):
            cameras.load(write_json(tmp_path / "cameras.json", broken))


def projection(cams, scale=-3.0):
    """P = K [R | t] of any scale, (C,4,4)."""
    precise = cams.to(dtype=torch.float64)
    p = conversions.to_intrinsics(precise) @ conversions.to_viewmats(precise)[:, :3]
    return np.concatenate([scale * p.numpy(), np.tile([[[0, 0, 0, 1.0]]], (len(cams), 1, 1))], 1)


def test_projections_of_any_scale_come_apart():
    for p, expected in zip(projection(rig()), rig().c2w, strict=True):
        c2w, intrinsics = dtu.decompose(p[:3], "p")
        torch.testing.assert_close(torch.from_numpy(c2w).float(), expected, atol=1e-5, rtol=0)
        assert intrinsics[0, 0] == pytest.approx(intrinsics[1, 1])
        assert (intrinsics[0, 2], intrinsics[1, 2]) == pytest.approx((32, 24))


def test_dtu_scene_in_the_unit_sphere_or_as_measured(tmp_path):
    cams = rig()
    world = projection(cams, 1.0)
    scale = np.diag([100.0, 100, 100, 1])
    scale[:3, 3] = 10, 20, 30
    np.savez(tmp_path / "cameras.npz", **{f"world_mat_{i}": p for i, p in enumerate(world)}, scale_mat_0=scale)
    measured = cameras.load(tmp_path / "cameras.npz", size=(64, 48), normalised=False)
    check_same(measured, cams)
    unit = cameras.load(tmp_path, size=(64, 48)).cameras
    torch.testing.assert_close(unit.centers[0] * 100 + torch.tensor([10.0, 20, 30]), cams.centers[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(unit.c2w[0, :3, :3], cams.c2w[0, :3, :3], atol=1e-5, rtol=0)
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "000000.png").write_bytes(picture(64, 48))
    assert cameras.load(tmp_path, size=(32, 24)).cameras.fov_y_deg.tolist() == pytest.approx(cams.fov_y_deg.tolist())


def npz(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not 4×4 numbers"),
        (npy(np.eye(3)), r"shape \(3, 3\)"),
        (npy(np.full((4, 4), "a")), "not 4×4 numbers"),
        (npy(np.eye(4)).replace(b"(4, 4)", b"(4,1<<9)"), "not 4×4 numbers"),
        (npy(np.eye(4))[:-8], "not 4×4 numbers"),
        (npy(np.zeros((4, 4))), "no projection of a camera"),
        (npy(np.full((4, 4), np.nan)), "no projection of a camera"),
        (npy(np.eye(4)) + b"0" * 9000, "larger than"),
    ],
)
def test_dtu_errors_name_file_and_cause(content, message, tmp_path):
    with pytest.raises(CameraError, match=message) as refusal:
        cameras.load(npz(tmp_path / "cameras.npz", world_mat_0=content), size=(8, 8))
    assert "cameras.npz" in str(refusal.value)


def test_dtu_needs_a_size(tmp_path):
    with pytest.raises(CameraError, match="does not say how large"):
        cameras.load(npz(tmp_path / "cameras.npz", world_mat_0=npy(np.eye(4))))


# -------------------------------------------------------------------------------------- lenses that Cameras do not have


def lens_file(tmp_path, **lens):
    return write_json(tmp_path / "t.json", nerf(**({"w": 1600, "h": 1200, "fl_x": 2892.0} | lens)))


def test_principal_point_off_the_middle_is_answered_by_turning(tmp_path):
    """As in DTU's own cameras: 23 pixels off, and the picture moves by 2 at its border."""
    loaded = cameras.load(lens_file(tmp_path, fl_y=2883.0, cx=823.2, cy=619.1))
    (remark,) = loaded.remarks
    assert "approximated by turning the cameras" in remark
    # The worst pixel by hand: corners through both cameras.
    intrinsics = np.array([[2892.0, 0, 823.2], [0, 2883.0, 619.1], [0, 0, 1]])
    plain = nerf()["frames"][0]["transform_matrix"]
    turn = loaded.cameras.c2w[0, :3, :3].double().numpy().T @ np.array(plain)[:3, :3]
    flip = np.diag([1.0, -1, -1])
    focal = float(conversions.to_intrinsics(loaded.cameras.to(dtype=torch.float64))[0, 0, 0])
    corners = np.array([[x, y, 1] for x in (0, 800, 1600) for y in (0, 600, 1200)], float)
    rays = (flip @ turn @ flip @ np.linalg.inv(intrinsics) @ corners.T).T
    found = rays[:, :2] / rays[:, 2:] * focal + (800, 600)
    worst = np.linalg.norm(found - corners[:, :2], axis=1)
    assert worst[4] < 1e-6 + 1e-3, "the middle of the picture stays"
    assert 0.5 < worst.max() < 6
    assert f"up to {worst.max():.2g} pixels" in remark


def test_exact_lens_stays_exact(tmp_path):
    loaded = cameras.load(lens_file(tmp_path, fl_y=2892.0, cx=800, cy=600))
    assert loaded.remarks == []
    assert float(loaded.cameras.fov_y_deg) == pytest.approx(2 * math.degrees(math.atan(600 / 2892)), abs=1e-5)


@pytest.mark.parametrize("lens", [{"cx": 300}, {"fl_y": 2400}, {"cx": 1e9}, {"cy": -2000.0}])
def test_lens_far_from_ours_is_refused(lens, tmp_path):
    with pytest.raises(CameraError, match="principal point near the middle. Undistort or crop"):
        cameras.load(lens_file(tmp_path, **lens))


def test_sizes_of_one_shape_become_one(tmp_path):
    value = nerf(camera_angle_x=1.0)
    value["frames"] = [value["frames"][0] | {"w": w, "h": h} for w, h in ((64, 48), (128, 96))]
    loaded = cameras.load(write_json(tmp_path / "t.json", value))
    assert (loaded.cameras.width, loaded.cameras.height) == (64, 48)
    assert loaded.cameras.fov_y_deg[0] == pytest.approx(float(loaded.cameras.fov_y_deg[1]))
    assert "taken as 64×48" in loaded.remarks[0]
    assert cameras.load(tmp_path / "t.json", size=(32, 24)).cameras.width == 32
    with pytest.raises(CameraError, match="'./r_0' is 64×48 pixels where 32×32 is expected"):
        cameras.load(tmp_path / "t.json", size=(32, 32))


def test_of_upright_and_wide_pictures_the_commonest_stay(tmp_path):
    value = nerf(camera_angle_x=1.0)
    sides = {"wide": (64, 48), "tall": (48, 64), "tall_too": (96, 128), "long": (48, 200)}
    value["frames"] = [value["frames"][0] | {"file_path": name, "w": w, "h": h} for name, (w, h) in sides.items()]
    loaded = cameras.load(write_json(tmp_path / "t.json", value))
    assert (loaded.names, loaded.cameras.width, loaded.cameras.height) == (["tall", "tall_too"], 48, 64)
    assert len(loaded.cameras) == 2
    assert "2 of 4 pictures are left out (the first is 'wide')" in loaded.remarks[0]
    assert cameras.load(tmp_path / "t.json", size=(640, 480)).names == ["wide"]
    # Shapes that undistorting has made differ by a pixel are one.
    value["frames"] = [
        value["frames"][0] | {"file_path": str(i), "w": 906 + i % 2 if i < 6 else 800, "h": 800 if i < 6 else 906}
        for i in range(10)
    ]
    assert cameras.load(write_json(tmp_path / "t.json", value)).names == list("012345")


# --------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.json", b"", "no file of cameras"),
        ("a.json", b"{", "is no JSON"),
        ("a.json", b"[" * 100_000, "is no JSON"),
        ("a.json", b"{}", "holds no cameras"),
        ("a.json", b"[]", "holds no cameras"),
        ("a.json", b'{"frames": {"a": 1}}', "no list of frames"),
        ("a.json", b'{"frames": [{"w": 1' + b"0" * 5000 + b"}]}", "a.json"),
        ("a.zip", b"PK\x03\x04 and so on", "cannot be unpacked"),
        ("images.bin", b"\0" * 8, "no cameras.bin beside it"),
        ("images.txt", b"", "no cameras.txt beside it"),
        ("points.txt", b"1 2 3", "no images.txt beside it"),
        ("a.png", b"\x89PNG", "no file of cameras"),
    ],
)
def test_damaged_file_is_named_with_its_cause(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CameraError, match=message) as refusal:
        cameras.load(tmp_path / name)
    assert name in str(refusal.value)


def test_what_is_not_there(tmp_path):
    with pytest.raises(CameraError, match=r"There is no file or folder .*nowhere"):
        cameras.load(tmp_path / "nowhere")
    with pytest.raises(CameraError, match="holds no cameras"):
        cameras.load(tmp_path)
    with pytest.raises(CameraError, match="size is"):
        cameras.load(tmp_path, size=(0, 8))
    with pytest.raises(CameraError):
        cameras.load("a\0b")


def test_archive_that_grows_without_end_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cameras.bin", struct.pack("<Q", 0))
        archive.writestr("images.bin", b"\0" * (50 << 20))
    tracemalloc.start()
    with pytest.raises(CameraError, match="unpack the archive"):
        cameras.load(tmp_path / "bomb.zip")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def originals(folder):
    """One small file of each kind."""
    cams = rig()
    cameras.save(cams, folder / "binary")
    cameras.save(cams, folder / "text", "colmap-text")
    cameras.save(cams, folder / "a.json")
    cameras.save(cams, folder / "a.npz")
    write_json(
        folder / "t.json",
        [{"width": 64, "height": 48, "fx": 70, "fy": 70, "position": [0, 0, 1], "rotation": np.eye(3).tolist()}],
    )
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("cameras.bin", "images.bin"):
            archive.write(folder / "binary" / name, name)
    models = ["binary/images.bin", "binary/cameras.bin", "text/images.txt", "text/cameras.txt"]
    return [*models, "a.json", "a.npz", "t.json", "a.zip"]


def mutated(content: bytes, chance: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data))
        kind = chance.randrange(5)
        if kind == 0:
            data[at] = chance.randrange(256)
        elif kind == 1:
            del data[at : at + chance.randint(1, 40)]
        elif kind == 2:
            data[at:at] = data[chance.randrange(len(data)) :][: chance.randint(1, 40)]
        elif kind == 3:
            data[at : at + 8] = struct.pack("<Q", chance.choice([0, 1, 2**31, 2**63, 2**64 - 1, 10**5]))
        else:
            data[at : at + 8] = chance.choice([b"1e400", b"-1", b"NaN", b"null", b"99999999999", b"\xff" * 8, b""])
        if not data:
            return b"\0"
    return bytes(data)


@pytest.mark.parametrize("index", range(8))
def test_damage_gives_camera_error_or_cameras_and_no_huge_allocation(index, tmp_path):
    name = originals(tmp_path)[index]
    file = tmp_path / name
    whole, chance = file.read_bytes(), random.Random(index)
    refused = 0
    tracemalloc.start()
    for _ in range(250):
        file.write_bytes(mutated(whole, chance))
        tracemalloc.reset_peak()
        began = time.monotonic()
        try:
            cameras.load(file, size=(64, 48))
        except CameraError as error:
            assert file.name in str(error) or file.parent.name in str(error), error
            refused += 1
        assert time.monotonic() - began < 1
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
    assert refused > 25, "most damage shows"
    file.write_bytes(whole)
    assert len(cameras.load(file, size=(64, 48)).cameras) >= 1


def test_many_cameras_are_read_in_reasonable_time(tmp_path):
    count = 3000
    cams = cameras.paths.turntable(count, 2.0, 40, 64, 48)
    for target in (tmp_path / "m", tmp_path / "m.json", tmp_path / "m.npz"):
        cameras.save(cams, target)
        began = time.monotonic()
        assert len(cameras.load(Path(target), size=(64, 48)).cameras) == count
        assert time.monotonic() - began < 10
