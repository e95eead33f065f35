"""`invert3d render`."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


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
        (["--size", "0"], "expected a positive share and positive pixels"),
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
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, ball, tmp_path, options, reason):
    done = run("render", ball, "--device", "cpu", "--out", tmp_path, "--json", *options)
    assert (done.code, done.out) == (2, "")
    assert reason in done.err
    assert done.err.count("\n") == 1


def test_a_folder_that_is_a_file(run, ball, tmp_path):
    (tmp_path / "taken").write_text("")
    for out in (tmp_path / "taken", tmp_path / "taken" / "below"):
        done = run("render", ball, "--out", out)
        assert done.code == 2
        assert "taken" in done.err
        assert done.err.count("\n") == 1
