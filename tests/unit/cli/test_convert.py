"""`invert3d convert`."""

import gzip
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from invert3d_core import splats
from invert3d_core.splats import formats
from invert3d_core.splats.formats import sog
from invert3d_core.toy import samples


@pytest.fixture
def shiny(ball, tmp_path):
    """The ball with view-dependent colour."""
    g = splats.load(ball)
    rest = 0.1 * torch.randn(len(g), 15, 3, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "shiny.ply"
    splats.save(
        splats.GaussianSplats(*(g.positions, g.scales, g.rotations, g.opacities), torch.cat([g.sh, rest], 1)), path
    )
    return path


@pytest.mark.parametrize("name", [name for name, form in formats.FORMATS.items() if form.write])
def test_every_format_by_its_ending(run, ball, tmp_path, name):
    form = formats.FORMATS[name]
    target = tmp_path / "new" / f"ball{form.extensions[0]}"
    done = run("convert", ball, target, "--json")
    assert done.code == 0, done.err
    report = done.report
    assert (report["command"], report["source_format"], report["format"]) == ("convert", "ply", name)
    assert report["limits"] == form.limits
    assert (report["splats"], report["left_out"], report["sh_degree"]) == (300, 0, 0)
    assert (report["source_bytes"], report["bytes"]) == (ball.stat().st_size, target.stat().st_size)
    assert len(splats.load(target)) == 300
    told = [line for line in done.err.splitlines() if "not kept by the format" in line]
    assert len(told) == bool(report["not_kept"])
    assert all(words in told[0] for words in report["not_kept"])


def test_what_a_person_is_told(run, ball, tmp_path):
    done = run("convert", ball, tmp_path / "ball.glb")
    assert done.out == f"wrote 300 splats to {tmp_path / 'ball.glb'} (gltf, 0.02 MB), everything kept\n"
    assert done.err == ""
    splats.save(replace(splats.load(ball), comment=""), tmp_path / "silent.ply")
    done = run("convert", tmp_path / "silent.ply", tmp_path / "silent.glb")
    assert "Viewers of glTF take +y for up. These splats do not state theirs: look how they stand; --up" in done.out
    splats.save(replace(splats.load(ball), comment='up="-y" front="-z"'), tmp_path / "down.ply")
    assert "These splats state -y; --up" in run("convert", tmp_path / "down.ply", tmp_path / "down.glb").out
    assert "glTF" not in run("convert", tmp_path / "silent.ply", tmp_path / "up.glb", "--upright").out
    done = run("convert", ball, tmp_path / "ball.splat")
    assert done.out.endswith("(splat, 0.01 MB)\n")
    assert done.err.startswith(f"invert3d: '{tmp_path / 'ball.splat'}': not kept by the format splat: ")


def test_what_has_no_place_in_splats_is_told(run, ball, tmp_path):
    head, rows = ball.read_bytes().split(b"end_header\n")
    count = 300
    table = np.frombuffer(rows, np.uint8).reshape(count, -1)
    labelled = np.hstack([table, np.ones((count, 1), np.uint8)])
    (tmp_path / "labelled.ply").write_bytes(head + b"property uchar label\nend_header\n" + labelled.tobytes())
    words = "the PLY columns label have no place in splats and were left out"
    assert run("info", tmp_path / "labelled.ply", "--json").report["not_read"] == [words]
    done = run("convert", tmp_path / "labelled.ply", tmp_path / "plain.ply")
    assert "everything kept" not in done.out
    assert words in done.err
    assert run("info", tmp_path / "plain.ply", "--json").report["not_read"] == []


def test_versions_of_formats(run, ball, tmp_path):
    for version in (2, 3):
        run("convert", ball, tmp_path / f"{version}.spz", "--spz-version", version)
        with gzip.open(tmp_path / f"{version}.spz") as file:
            assert file.read(8)[4] == version
    sizes = []
    for level in (0, 1, 2):
        run("convert", ball, tmp_path / f"{level}.ksplat", "--ksplat-level", level)
        sizes.append((tmp_path / f"{level}.ksplat").stat().st_size)
    assert sizes[0] > sizes[1] >= sizes[2]
    assert run("convert", ball, tmp_path / "1.spz", "--spz-version", 1).code == 2


def test_a_format_by_its_name(run, ball, tmp_path):
    report = run("convert", ball, tmp_path / "ball.bin", "--format", "gltf", "--json").report
    assert report["format"] == "gltf"
    assert (tmp_path / "ball.bin").read_bytes()[:4] == b"glTF"


def test_less_of_a_splat(run, shiny, tmp_path):
    report = run("convert", shiny, tmp_path / "a.glb", "--sh-degree", 1, "--max-splats", 100, "--json").report
    assert (report["splats"], report["left_out"], report["sh_degree"], report["not_kept"]) == (100, 200, 1, [])
    g = splats.load(tmp_path / "a.glb")
    assert (len(g), g.degree) == (100, 1)
    more = run("convert", shiny, tmp_path / "b.glb", "--sh-degree", 4, "--json").report
    assert more["sh_degree"] == 3  # what there is


def test_the_order_may_be_kept(run, shiny, tmp_path):
    lost = run("convert", shiny, tmp_path / "a.sog", "--json").report["not_kept"]
    kept = run("convert", shiny, tmp_path / "a.sog", "--overwrite", "--keep-order", "--json").report["not_kept"]
    assert [words for words in lost if words not in kept] == ["the order of the splats (along a Morton curve)"]
    assert (splats.load(tmp_path / "a.sog").positions - splats.load(shiny).positions).abs().max() < 1e-3
    assert run("convert", shiny, tmp_path / "a.ply", "--keep-order").code == 0


def test_upright(run, shiny, tmp_path):
    """What faces −z and has −y up, as nothing else is said, is turned by 180 degrees about x."""
    before = splats.load(shiny)
    assert run("convert", shiny, tmp_path / "a.glb", "--upright").code == 0
    after = splats.load(tmp_path / "a.glb")
    turn = torch.diag(torch.tensor([1.0, -1, -1]))
    torch.testing.assert_close(after.positions, before.positions @ turn)
    torch.testing.assert_close(after.sh, splats.spherical_harmonics.rotate(before.sh, turn))
    assert after.stated_axes == ("+y", "+z")
    assert run("convert", shiny, tmp_path / "b.glb", "--upright", "--up", "+y", "--front", "+z").code == 0
    assert torch.equal(splats.load(tmp_path / "b.glb").positions, before.positions)


def test_a_sample_and_a_folder(run, tmp_path):
    name = samples.names()[0]
    assert run("convert", name, tmp_path / "a.sog").code == 0
    zipfile.ZipFile(tmp_path / "a.sog").extractall(tmp_path / "a")
    size = sum(path.stat().st_size for path in (tmp_path / "a").iterdir())
    report = run("convert", tmp_path / "a", tmp_path / "b.ply", "--json").report
    assert report["source_bytes"] == size
    assert (report["source_format"], report["not_kept"]) == ("sog", [])
    assert splats.load(tmp_path / "b.ply").stated_axes == ("+y", "+z")
    report = run("convert", tmp_path / "b.ply", tmp_path / "c" / "meta.json", "--json").report
    assert (report["format"], report["bytes"]) == ("sog", sum(p.stat().st_size for p in (tmp_path / "c").iterdir()))


def test_the_long_step_shows_a_bar(run, shiny, tmp_path, monkeypatch):
    assert "compressing" not in run("convert", shiny, tmp_path / "a.sog").err  # few splats keep their own coefficients
    monkeypatch.setitem(sog.write.__kwdefaults__, "palette", 64)
    done = run("convert", shiny, tmp_path / "b.sog")
    assert done.code == 0
    assert "compressing: 100%" in done.err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["{ball}", "{tmp}/a.obj"], "Splats cannot be written in a file named 'a.obj'. Expected .ply or"),
        (["{ball}", "{tmp}/a.ply", "--format", "obj"], "There is no splat format 'obj'"),
        (["{ball}", "{tmp}/taken.glb"], "taken.glb' is already there. Name another file, or add --overwrite"),
        (["{tmp}/taken.glb", "{tmp}/taken.glb", "--overwrite"], "taken.glb' is the source itself"),
        (["{tmp}/none.ply", "{tmp}/a.glb"], "There is no file"),
        (["{tmp}", "{tmp}/a.glb"], "There is no file"),
        (["{tmp}/taken.glb", "{tmp}/a.glb"], "taken.glb' is not a supported Gaussian-splat file"),
        (["{ball}", "{tmp}/a.glb", "--sh-degree", "5"], "--sh-degree is 5; expected 0 to 4"),
        (["{ball}", "{tmp}/a.glb", "--max-splats", "0"], "--max-splats is 0; expected at least 1"),
        (["{ball}", "{tmp}/taken.glb/a.ply"], "taken.glb"),
        (["{ball}"], "Missing from invert3d convert: PATH"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, ball, tmp_path, arguments, reason):
    (tmp_path / "taken.glb").write_text("not a glb")
    done = run("convert", *(argument.format(ball=ball, tmp=tmp_path) for argument in arguments), "--json")
    assert (done.code, done.out) == (2, "")
    assert reason in done.err
    assert done.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["taken.glb"]
