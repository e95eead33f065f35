"""`invert3d render`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from invert3d_core import cameras, splats
from invert3d_core.rendering import rasterize
from invert3d_core.splats import GaussianSplats


def pixels(path: Path | str) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(float) / 255


def test_rings_of_views_and_what_the_report_says(run, ball, tmp_path):
    options = ("--views", 4, "--elevations", -10, 30, "--size", 48)
    done = run("render", ball, "--out", tmp_path / "new" / "views", *options, "--json")
    assert done.code == 0, done.err
    report = done.report
    angles = [(view["elevation_deg"], view["azimuth_deg"]) for view in report["views"]]
    assert angles == [(e, a) for e in (-10, 30) for a in (0, 90, 180, 270)]
    pictures = [pixels(view["file"]) for view in report["views"]]
    assert all(picture.shape == (48, 48, 3) for picture in pictures)
    assert sorted(path.name for path in (tmp_path / "new" / "views").iterdir()) == [
        "contact_sheet.png",
        "transforms.json",
        *(f"view_00{i}.png" for i in range(8)),
    ]
    # The ball fills the view, is red in front and blue behind, and stands before a white background.
    front, _, back, _ = (picture[24, 24] for picture in pictures[:4])
    assert front[0] > 0.8 > 0.3 > front[2]
    assert back[2] > 0.8 > 0.3 > back[0]
    assert pictures[0][0, 0].tolist() == [1, 1, 1]
    assert (pictures[0].min(-1) < 0.9).any(0).mean() > 0.8


def test_transparent_views_laid_over_a_background_are_the_opaque_ones(run, ball, tmp_path):
    options = ("--azimuths", 0, 200, "--size", 40)
    assert run("render", ball, "--out", tmp_path / "solid", "--background", "#3060c0", *options).code == 0
    assert run("render", ball, "--out", tmp_path / "clear", "--alpha", *options).code == 0
    for index in range(2):
        solid, clear = (pixels(tmp_path / name / f"view_00{index}.png") for name in ("solid", "clear"))
        assert clear.shape == (40, 40, 4)
        assert clear[0, 0, 3] == 0
        assert clear[20, 20, 3] > 0.9
        over = clear[..., :3] * clear[..., 3:] + np.array([0x30, 0x60, 0xC0]) / 255 * (1 - clear[..., 3:])
        assert np.abs(over - solid).max() < 2.1 / 255


def test_orientation_is_the_file_s_unless_another_is_asked_for(run, ball, tmp_path):
    base = ("render", ball, "--azimuths", 0, "--elevations", 0, "--size", 32, "--json")
    stated = run(*base, "--out", tmp_path / "stated").report
    assert stated["orientation"] == {"up": "+y", "front": "+z"}
    turned = run(*base, "--out", tmp_path / "turned", "--front", "-z").report
    assert turned["orientation"] == {"up": "+y", "front": "-z"}
    red, blue = (pixels(report["views"][0]["file"])[16, 16] for report in (stated, turned))
    assert red[0] > 0.8 > 0.3 > blue[0]


def test_distance_and_field_of_view(run, ball, tmp_path):
    def covered(*options: object) -> float:
        base = ("render", ball, "--azimuths", 0, "--size", 40, "--alpha", "--out", tmp_path)
        assert run(*base, *options).code == 0
        return float(pixels(tmp_path / "view_000.png")[..., 3].mean())

    assert covered("--radius", 8) < 0.6 * covered()
    assert covered("--radius", 8, "--fov", 20) > 2 * covered("--radius", 8, "--fov", 40)
    assert covered("--fov", 20) == pytest.approx(covered("--fov", 60), abs=0.05)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--views", "0"], "--views is 0"),
        (["--views", "100001"], "--views is 100001; expected 1 to 100000"),
        (["--size", "0"], "--size is 0; expected 1 to 16384 pixels"),
        (["--size", "20000"], "--size is 20000"),
        (["--size", "0", "--cameras", "any.json"], "--size is 0"),
        (["--fov", "180"], "expected degrees between 0 and 180"),
        (["--elevations", "91"], "elevation 91° is out of range"),
        (["--elevations"], "There are no elevations"),
        (["--background", "reddish"], "--background is 'reddish'"),
        (["--up", "+z"], "lie on one axis"),
        (["--sh-degree", "2"], "sh_degree is 2"),
        (["--device", "abacus"], "device 'abacus' cannot be used here"),
        (["--backend", "gsplat"], "gsplat backend cannot be used"),
        (["--size", "large"], "--size"),
        (["--sideways"], "Unrecognized options: --sideways"),
        (["--frames", "4"], "--frames is for --path turntable, spiral or keyframes"),
        (["--frames", "4", "--cameras", "any.json"], "--frames is for --path turntable, spiral or keyframes"),
        (["--depth-kind", "median"], "--depth-kind is for a depth that is written"),
        (["--path", "keyframes"], "--path keyframes flies through the cameras of a file"),
        (["--loop"], "--rest-at-keys and --loop are for --path keyframes"),
        (["--path", "spiral", "--rest-at-keys"], "--rest-at-keys and --loop are for --path keyframes"),
        (["--path", "turntable", "--frames", "0"], "path of 0 frames"),
        (["--path", "turntable", "--frames", "1000000"], "path of 1,000,000 frames"),
        (["--path", "turntable", "--fps", "0"], "--fps is 0; expected a number from 0.001"),
        (["--path", "turntable", "--frames", "4", "--fps", "1e-310"], "--fps is 1e-310; expected a number from 0.001"),
        (["--path", "spiral", "--frames", "4", "--fps", "nan"], "--fps is nan"),
        (["--path", "turntable", "--elevations", "0", "30"], "--path turntable has one elevation, found 2"),
        (["--path", "spiral", "--cameras", "any.json"], "--path spiral goes round the object"),
        (["--fov", "30", "--cameras", "any.json"], "--fov is for cameras round the object"),
        (["--path", "keyframes", "--azimuths", "10", "--cameras", "any.json"], "--azimuths is for cameras round"),
        (["--cameras", "nowhere.json"], "There is no file or folder 'nowhere.json'"),
        (["--cameras", ".", "--width", "8"], "--width and --height belong together"),
        (["--background", "white", "red"], "--background names 2 colors for 8 views; expected 1, or 8"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, ball, tmp_path, options, reason):
    done = run("render", ball, "--device", "cpu", "--out", tmp_path, "--json", *options)
    assert (done.code, done.out) == (2, "")
    assert reason in done.err
    assert done.err.count("\n") == 1


def test_a_turntable_with_depth_normals_and_its_cameras(run, ball, tmp_path):
    options = ("--path", "turntable", "--frames", 6, "--fps", 12, "--elevations", 0, "--size", 40)
    done = run("render", ball, "--out", tmp_path, *options, "--depth", "png", "--normals", "--json")
    assert done.code == 0, done.err
    report, told = done.report, json.loads((tmp_path / "transforms.json").read_text())
    assert [view["seconds"] for view in report["views"]] == pytest.approx([i / 12 for i in range(6)], abs=1e-6)
    assert (told["fps"], told["depth_unit_scale_factor"]) == (12, report["depth_unit"])
    loaded = cameras.load(tmp_path / "transforms.json")
    assert loaded.names == [f"view_00{i}.png" for i in range(6)]
    # The ball of radius 1 lies around (2, −1, 0.5); its nearest point is one unit before its middle.
    middle = torch.tensor([2.0, -1.0, 0.5])
    distance = float((loaded.cameras.centers - middle).norm(dim=-1).mean())
    depth = np.asarray(Image.open(tmp_path / told["frames"][2]["depth_file_path"]))
    assert depth.dtype == np.uint16 and depth[0, 0] == 0
    assert depth[20, 20] * report["depth_unit"] == pytest.approx(distance - 1, abs=0.15)
    normals = pixels(tmp_path / told["frames"][2]["normal_file_path"])[..., :3] * 2 - 1
    assert np.abs(normals[0, 0]).max() < 0.01
    assert (normals[np.asarray(depth) > 0][:, 2] > -0.05).all(), "what is seen faces the camera"
    assert np.abs(np.linalg.norm(normals[20, 20]) - 1) < 0.02


@pytest.mark.parametrize(("given", "ends"), [([], (15, 60)), ([70], (70, 60)), ([-20, 0, 40], (-20, 40))])
def test_a_spiral_climbs(run, ball, tmp_path, given, ends):
    elevations = ["--elevations", *given] if given else []
    done = run("render", ball, "--path", "spiral", "--frames", 3, *elevations, "--size", 8, "--out", tmp_path)
    assert done.code == 0, done.err
    offsets = cameras.load(tmp_path / "transforms.json").cameras.centers - torch.tensor([2.0, -1.0, 0.5])
    found = torch.rad2deg(torch.asin(offsets[:, 1] / offsets.norm(dim=-1)))[[0, 2]]
    torch.testing.assert_close(found, torch.tensor(ends).float(), rtol=0, atol=3)


def test_depth_as_numbers_is_the_depth(run, ball, tmp_path):
    base = ("render", ball, "--path", "spiral", "--frames", 3, "--turns", 0.5, "--size", 32)
    for kind in ("png", "npy"):
        assert run(*base, "--out", tmp_path / kind, "--depth", kind).code == 0
    unit = json.loads((tmp_path / "png" / "transforms.json").read_text())["depth_unit_scale_factor"]
    for i in range(3):
        exact = np.load(tmp_path / "npy" / f"depth_00{i}.npy")
        levels = np.asarray(Image.open(tmp_path / "png" / f"depth_00{i}.png")).astype(float)
        assert exact.dtype == np.float32 and exact.shape == (32, 32)
        assert np.abs(levels * unit - exact).max() <= unit
        assert ((levels == 0) == (exact == 0)).all()


def test_median_depth_is_the_renderer_s(run, ball, tmp_path):
    base = ("render", ball, "--views", 1, "--size", 32, "--backend", "torch", "--depth", "npy", "--json")
    for kind in ("expected", "median"):
        assert run(*base, "--out", tmp_path / kind, "--depth-kind", kind).report["depth_kind"] == kind
        assert json.loads((tmp_path / kind / "transforms.json").read_text())["depth_kind"] == kind
    cams = cameras.load(tmp_path / "median" / "transforms.json").cameras
    drawn = rasterize(splats.load(ball), cams, near=0.01)
    for kind, depth in (("expected", drawn.depth), ("median", drawn.depth_median)):
        found = torch.from_numpy(np.load(tmp_path / kind / "depth_000.npy"))
        torch.testing.assert_close(found, depth[0], rtol=0, atol=1e-4)
    assert (drawn.depth - drawn.depth_median).abs().max() > 0.01, "or the test could not tell them apart"


def test_a_flight_through_the_cameras_of_a_file(run, ball, tmp_path):
    keys = cameras.orbit([0, 90, 180], 15, 6, 40, 24, 24)
    cameras.save(keys, tmp_path / "keys.json")
    base = ("render", ball, "--cameras", tmp_path / "keys.json", "--path", "keyframes", "--fps", 8)
    done = run(*base, "--frames", 5, "--out", tmp_path / "there", "--json")
    assert done.code == 0, done.err
    assert [view["seconds"] for view in done.report["views"]] == [0, 0.125, 0.25, 0.375, 0.5]
    told = cameras.load(tmp_path / "there" / "transforms.json")
    torch.testing.assert_close(told.cameras.c2w[::2], keys.c2w, rtol=0, atol=1e-4)
    torch.testing.assert_close(told.cameras.centers.norm(dim=-1), torch.full((5,), 6.0), rtol=0, atol=1e-3)
    assert json.loads((tmp_path / "there" / "transforms.json").read_text())["fps"] == 8
    assert run(*base, "--frames", 4, "--loop", "--out", tmp_path / "round").code == 0
    looped = cameras.load(tmp_path / "round" / "transforms.json").cameras
    torch.testing.assert_close(looped.c2w[0], keys.c2w[0], rtol=0, atol=1e-4)
    for key in (0, 2):
        assert (looped.centers[3] - keys.centers[key]).norm() > 1, "on its way back, and not there yet"
    resting = ("--frames", 9, "--easing", "in-out", "--rest-at-keys")
    assert run(*base, *resting, "--out", tmp_path / "resting").code == 0
    steps = cameras.load(tmp_path / "resting" / "transforms.json").cameras.centers.diff(dim=0).norm(dim=-1)
    assert steps[[0, 3, 4, 7]].max() < 0.5 * steps[[1, 2, 5, 6]].min(), "slow at each of the three"
    assert len(run(*base, "--out", tmp_path / "long", "--size", 4, "--json").report["views"]) == 32  # 4 seconds


@pytest.mark.parametrize("given", ["transforms.json", "."])
def test_a_flight_does_not_replace_its_keyframes(run, ball, tmp_path, given):
    cameras.save(cameras.orbit([0, 90], 15, 6, 40, 24, 24), tmp_path / "transforms.json")
    before = (tmp_path / "transforms.json").read_bytes()
    options = ("--path", "keyframes", "--frames", 2, "--out", tmp_path)
    done = run("render", ball, "--cameras", tmp_path / given, *options)
    assert done.code == 2 and "would replace the file of its keyframes" in done.err
    assert (tmp_path / "transforms.json").read_bytes() == before
    elsewhere = run("render", ball, "--cameras", tmp_path / given, *options[:-1], tmp_path / "film")
    assert elsewhere.code == 0, elsewhere.err


@pytest.mark.parametrize("kind", ["transforms", "colmap", "dtu"])
def test_views_from_a_file_are_those_it_was_written_for(run, ball, tmp_path, kind):
    assert run("render", ball, "--views", 3, "--size", 40, "--out", tmp_path / "first").code == 0
    file = tmp_path / "first" / "transforms.json"
    options = []
    if kind != "transforms":
        target = tmp_path / ("model" if kind == "colmap" else "cameras.npz")
        cameras.save(cameras.load(file).cameras, target)
        file, options = target, ["--width", 40, "--height", 40]
    done = run("render", ball, "--cameras", file, *options, "--out", tmp_path / "again", "--json")
    assert done.code == 0, done.err
    for i in range(3):
        one, other = (pixels(tmp_path / name / f"view_00{i}.png") for name in ("first", "again"))
        assert np.abs(one - other).max() < 2.1 / 255
    assert run("render", ball, "--cameras", file, *options, "--size", 20, "--out", tmp_path / "small").code == 0
    assert pixels(tmp_path / "small" / "view_000.png").shape == (20, 20, 3)


def test_a_background_for_each_view(run, ball, tmp_path):
    done = run("render", ball, "--views", 2, "--size", 24, "--background", "black", "#ff0000", "--out", tmp_path)
    assert done.code == 0, done.err
    assert pixels(tmp_path / "view_000.png")[0, 0].tolist() == [0, 0, 0]
    assert pixels(tmp_path / "view_001.png")[0, 0].tolist() == [1, 0, 0]


def test_many_frames_take_the_memory_of_few(tmp_path):
    """Each in a process of its own: 120 more frames of 256² would be 94 MB if they were kept."""

    corners = torch.tensor([[x, y, 0.0] for x in (-1, 1) for y in (-1, 1)])
    few = GaussianSplats(corners, corners * 0 + 0.1, torch.eye(4), torch.ones(4, 1), torch.ones(4, 1, 3))
    splats.save(few, tmp_path / "few.ply")

    def peak(frames: int) -> float:
        options = ["--path", "turntable", "--frames", str(frames), "--size", "256", "--device", "cpu", "--json"]
        command = [sys.executable, "-m", "invert3d_core", "render", "few.ply", "--out", str(frames)]
        root = Path(__file__).resolve().parents[3]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
        done = subprocess.run([*command, *options], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert len(list((tmp_path / str(frames)).glob("view_*.png"))) == frames
        return json.loads(done.stdout)["peak_memory_mb"]

    short, long = peak(40), peak(160)
    assert long - short < 40, f"{short} MB for 40 frames, {long} MB for 160"


def test_a_folder_that_is_a_file(run, ball, tmp_path):
    (tmp_path / "taken").write_text("")
    for out in (tmp_path / "taken", tmp_path / "taken" / "below"):
        done = run("render", ball, "--out", out)
        assert done.code == 2
        assert "taken" in done.err
        assert done.err.count("\n") == 1
