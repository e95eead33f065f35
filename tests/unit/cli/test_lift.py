"""`invert3d lift`."""

import pytest
import torch
from PIL import Image

from invert3d_core import cameras, metrics, splats
from invert3d_core.cli.lift import read_picture
from tests.unit.lift3d.scenes import balls, rig, views


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """Views of a splat as `invert3d render` leaves them, transparent and opaque."""
    from invert3d_core.cli.main import main

    folder = tmp_path_factory.mktemp("views")
    splats.save(balls(), folder / "balls.ply")
    for name, options in (("clear", ["--alpha"]), ("solid", [])):
        given = [folder / "balls.ply", "--out", folder / name, "--views", 5, "--elevations", -15, 30, "--size", 24]
        assert main([str(value) for value in ("render", *given, "--up", "+y", "--front", "+z", *options)]) == 0
    return folder


def test_views_become_the_splat_they_were_made_of(run, rendered, tmp_path):
    out = tmp_path / "new" / "fit.ply"
    options = ("--steps", 90, "--max-splats", 250, "--device", "cpu", "--json")
    done = run("lift", rendered / "clear", "--out", out, *options)
    assert done.code == 0, done.err
    report = done.report
    assert (report["steps"], report["views"], report["masks"], report["resumed_from_step"]) == (90, 10, True, 0)
    assert report["psnr"] > 15
    assert [path.name for path in out.parent.iterdir()] == ["fit.ply"], "the checkpoint is gone"
    fitted = splats.load(out)
    assert len(fitted) == report["splats"] <= 250
    held = rig(2, 24, elevation=5.0, start=20.0)
    found, truth = views(fitted, held)[0], views(balls(), held)[0]
    assert float(metrics.psnr(found[None], truth[None])) > 14, "in the frame of the splat that was rendered"


def test_opaque_views_need_no_masks_and_take_given_ones(run, rendered, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in (rendered / "clear").glob("view_*.png"):
        Image.open(path).getchannel("A").save(masks / path.name)
    options = ("--steps", 2, "--max-splats", 50, "--device", "cpu", "--json")
    plain = run("lift", rendered / "solid", "--out", tmp_path / "a.ply", *options)
    masked = run("lift", rendered / "solid", "--out", tmp_path / "b.ply", "--masks", masks, *options)
    assert (plain.code, masked.code) == (0, 0), plain.err + masked.err
    assert (plain.report["masks"], masked.report["masks"]) == (False, True)


def test_cameras_from_elsewhere(run, rendered, tmp_path):
    loaded = cameras.load(rendered / "solid" / "transforms.json")
    cameras.save(loaded.cameras, tmp_path / "model", format="colmap", names=[f"deep/{name}" for name in loaded.names])
    options = ("--steps", 1, "--max-splats", 50, "--device", "cpu", "--json")
    done = run("lift", rendered / "solid", "--cameras", tmp_path / "model", "--out", tmp_path / "c.ply", *options)
    assert done.code == 0, done.err


def test_a_transparent_picture_is_colours_and_opacity(tmp_path):
    Image.new("RGBA", (3, 2), (255, 0, 51, 102)).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    torch.testing.assert_close(picture[1, 2], torch.tensor([1.0, 0.0, 0.2, 0.4]))


def test_errors(run, rendered, tmp_path):
    views_folder, out = rendered / "solid", tmp_path / "fit.ply"

    def refused(*arguments, reason):
        done = run("lift", *arguments)
        assert done.code == 2 and reason in done.err, done.err

    refused(views_folder, "--out", tmp_path / "fit.obj", reason="Splats cannot be written in a file named 'fit.obj'")
    refused(tmp_path / "none", "--out", out, reason="is no folder")
    refused(views_folder, "--out", rendered / "balls.ply", reason="exists already")
    refused(rendered, "--out", out, reason="holds no pictures")
    refused(views_folder, "--out", out, "--max-splats", 0, reason="splats is 0; expected at least 1")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "transforms.json").write_bytes((views_folder / "transforms.json").read_bytes())
    Image.new("RGB", (24, 24)).save(broken / "view_000.png")
    refused(broken, "--out", out, reason="holds no picture 'view_001.png'")
    Image.new("RGB", (20, 24)).save(broken / "view_001.png")
    refused(broken, "--out", out, reason="is 20×24, but most pictures 24×24")
    (broken / "view_001.png").write_bytes(b"nothing")
    refused(broken, "--out", out, reason="is no picture that can be read")
    refused(broken, "--out", out, "--preset", "mcmc", "--device", "cpu", reason="gsplat needs a CUDA device, not cpu")
