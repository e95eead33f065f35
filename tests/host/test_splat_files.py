"""Splats saved in every format, loaded again, oriented, and handed on to ComfyUI's own nodes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from invert3d_core import splats
from invert3d_core.cameras import Orientation
from invert3d_core.splats.formats import FORMATS
from invert3d_core.splats.metadata import metadata_of
from tests.host.client import Client, PromptRejected
from tests.host.page import ComfyPage
from tests.host.scenes import in_viewer_frame, three_balls
from tests.host.server import Server

LENGTHS = [600, 900]  # of the batch's two items
STATED = 'up="+y" front="+z"'
WRITABLE = [form.name for form in FORMATS.values() if form.write]
KEEP_COMMENT = ["ply", "compressed_ply", "sog", "gltf"]
SHOWN_BY_CORE = ["ply", "compressed_ply", "splat", "spz", "ksplat"]
READ_BY_CORE = ["ply", "splat", "spz", "ksplat"]
WORKFLOW = {"nodes": [], "note": "up=-z, front=+x"}


@pytest.fixture(scope="module", autouse=True)
def files(server: Server) -> None:
    for name, length in zip(("first.ply", "second.ply"), LENGTHS, strict=True):
        splats.save(three_balls(length // 3, degree=1, comment=STATED), server.base / "input" / name)
    splats.save(in_viewer_frame(three_balls(200)), server.base / "input" / "plain.ply")


def batch_prompt(client: Client, format: str, prefix: str, **widgets: object) -> dict:
    """A batch of two items, of which the second carries no comment of a file, saved."""
    return {
        "first": client.node("Invert3DLoadGaussianSplat", file="first.ply"),
        "second": client.node("Invert3DLoadGaussianSplat", file="second.ply"),
        "batch": client.node("Invert3DProbeBatch", first=["first", 0], second=["second", 0]),
        "save": client.node(
            "Invert3DSaveGaussianSplat", splat=["batch", 0], format=format, filename_prefix=prefix, **widgets
        ),
        "info": client.node("PreviewAny", source=["save", 1]),
    }


def saved_files(server: Server, run) -> list[Path]:
    """The files that the save node showed in the page."""
    entries = run.outputs["save"]["3d"]
    assert all(entry["type"] == "output" for entry in entries)
    return [server.base / "output" / entry["subfolder"] / entry["filename"] for entry in entries]


@pytest.mark.parametrize("format", WRITABLE)
def test_batch_is_saved_and_flows_on_into_core(client: Client, server: Server, format: str) -> None:
    prompt = batch_prompt(client, format, f"3d/%year%/{format}")
    if format in SHOWN_BY_CORE:
        prompt["preview"] = client.node("PreviewGaussianSplat", model_3d=["save", 0], viewport_state=None)
    if format in READ_BY_CORE:
        prompt["read"] = client.node("File3DToSplat", model_3d=["save", 0])
        prompt["count"] = client.node("GetSplatCount", splat=["read", 0])
        prompt["counted"] = client.node("PreviewAny", source=["count", 1])
    run = client.succeed(prompt)
    paths = saved_files(server, run)
    ending = FORMATS[format].extensions[0]
    assert [path.name for path in paths] == [f"{format}_0000{i}_{ending}" for i in (1, 2)]
    assert paths[0].parent.name.isdigit() and paths[0].parent.parent.name == "3d"
    for path, length in zip(paths, LENGTHS, strict=True):
        loaded = splats.load(path)
        assert len(loaded) == length
        assert loaded.degree == (0 if format == "splat" else 1)
        assert f"{path.parent.name}/{path.name} · {length:,} splats" in run.text("info")
    assert run.text("save") == run.text("info")
    assert ("not kept: view-dependent colour (SH degree" in run.text("info")) == (format == "splat")
    if format == "ply":
        assert "not kept" not in run.text("info")
    if format in READ_BY_CORE:
        assert run.outputs["counted"]["text"][-1] == str(LENGTHS[1])
    if format in SHOWN_BY_CORE:
        shown = run.outputs["preview"]["result"][0]
        assert shown.endswith(Path(ending).suffix or ending)

    again = {
        "load": client.node("Invert3DLoadGaussianSplat", file=f"3d/{paths[0].parent.name}/{paths[0].name} [output]"),
    }
    again["render"] = client.node("RenderSplat", splat=["load", 0], width=64, height=64, frames=1)
    again["pictures"] = client.node("SaveImage", images=["render", 0], filename_prefix=format)
    again["mesh"] = client.node("SplatToMesh", splat=["load", 0], resolution=64, min_component=0)
    again["surface"] = client.node("Invert3DProbeTensors", value=["mesh", 0], name="surface")
    run = client.succeed(again)
    (picture,) = client.images(run, "pictures")
    assert picture.std() > 0.05
    assert load_file(server.base / "output" / "surface.safetensors")["faces"].shape[1] > 100
    assert run.text("load").startswith("600 splats · SH degree ")


@pytest.mark.parametrize("format", WRITABLE)
def test_files_hold_what_made_them_beside_how_they_stand(client: Client, server: Server, format: str) -> None:
    prompt = {
        "load": client.node("Invert3DLoadGaussianSplat", file="first.ply"),
        "save": client.node(
            "Invert3DSaveGaussianSplat", splat=["load", 0], format=format, filename_prefix=f"made_{format}"
        ),
    }
    answer = client.post("/prompt", {"prompt": prompt, "extra_data": {"extra_pnginfo": {"workflow": WORKFLOW}}})
    history = client.wait(answer["prompt_id"])
    assert history["status"]["status_str"] == "success"
    (path,) = (server.base / "output").glob(f"made_{format}_*")
    comment = splats.load(path).comment
    if format in KEEP_COMMENT:
        metadata = metadata_of(comment)
        assert metadata["workflow"] == WORKFLOW
        assert {name: node["inputs"] for name, node in metadata["prompt"].items()} == {
            name: node["inputs"] for name, node in prompt.items()
        }
        assert comment.startswith(STATED)
        assert Orientation.from_comment(comment) == Orientation("+y", "+z")
    else:
        assert "made_" not in comment
        lost = history["outputs"]["save"]["text"][0]
        assert all(
            f"not kept: the {name}, for which this format has no place" in lost for name in ("prompt", "workflow")
        )


def test_workflow_too_long_for_a_header_is_left_out_and_said(client: Client, server: Server) -> None:
    """ComfyUI's viewer gives up on a header of 64 KB, others on one of 10 KB."""
    prompt = {
        "load": client.node("Invert3DLoadGaussianSplat", file="first.ply"),
        "save": client.node("Invert3DSaveGaussianSplat", splat=["load", 0], filename_prefix="long"),
    }
    big = {"workflow": {"note": "x" * 20_000}}
    answer = client.post("/prompt", {"prompt": prompt, "extra_data": {"extra_pnginfo": big}})
    history = client.wait(answer["prompt_id"])
    assert "not kept: the workflow, which is too long" in history["outputs"]["save"]["text"][0]
    (path,) = (server.base / "output").glob("long_*")
    assert b"end_header\n" in path.read_bytes()[:10_000]
    assert list(metadata_of(splats.load(path).comment)) == ["prompt"]


def test_options_reach_the_writers(client: Client, server: Server) -> None:
    sizes = {}
    for name, widgets in {
        "spz2": {"format": "spz", "spz_version": "2"},
        "spz3": {"format": "spz"},
        "spz3_degree0": {"format": "spz", "sh_degree": "0"},
        "ksplat0": {"format": "ksplat", "ksplat_level": "0"},
        "ksplat1": {"format": "ksplat"},
        "sog": {"format": "sog", "keep_order": True},
    }.items():
        run = client.succeed(batch_prompt(client, prefix=name, **widgets))
        sizes[name] = sum(path.stat().st_size for path in saved_files(server, run))
        loaded = splats.load(saved_files(server, run)[0])
        assert loaded.degree == (0 if name.endswith("degree0") else 1)
        if name == "sog":
            ordered = three_balls(LENGTHS[0] // 3, degree=1).positions
            torch.testing.assert_close(loaded.positions, ordered, rtol=0, atol=1e-3)
    assert sizes["spz2"] < sizes["spz3"]
    assert sizes["spz3_degree0"] < sizes["spz3"]
    assert sizes["ksplat1"] < sizes["ksplat0"]


@pytest.mark.parametrize(
    ("prefix", "message"),
    [("../out", "leads out of ComfyUI's output folder"), ("/etc/out", "leads out of"), ("", "write a name"),
     ("..", "write a name"), ("a\0b", "write a name")],
)  # fmt: skip
def test_prefix_stays_in_the_output_folder(client: Client, prefix: str, message: str) -> None:
    with pytest.raises(PromptRejected) as refusal:
        client.queue(batch_prompt(client, "ply", prefix))
    assert message in refusal.value.messages


def test_without_metadata_nothing_of_the_graph_is_written(host: tuple[Path, Path], tmp_path: Path) -> None:
    quiet = Server(*host, tmp_path, arguments=("--disable-metadata",))
    quiet.start()
    try:
        client = Client(quiet.url)
        old = three_balls(100, comment=f'{STATED}\nworkflow: {{"old":1}}')
        splats.save(old, quiet.base / "input" / "old.ply")
        run = client.succeed(
            {
                "load": client.node("Invert3DLoadGaussianSplat", file="old.ply"),
                "save": client.node("Invert3DSaveGaussianSplat", splat=["load", 0], filename_prefix="quiet"),
            }
        )
        assert splats.load(saved_files(quiet, run)[0]).comment == STATED
    finally:
        quiet.stop()


def test_chosen_stance_is_seen_stated_and_followed(client: Client, server: Server) -> None:
    prompt = {
        "load": client.node("Invert3DLoadGaussianSplat", file="plain.ply"),
        "orient": client.node("Invert3DOrientSplat", splat=["load", 0], up="+y", front="+z"),
        "info": client.node("PreviewAny", source=["orient", 2]),
        "sheet": client.node("SaveImage", images=["orient", 1], filename_prefix="orient"),
        "views": client.node("Invert3DRenderOrbitViews", splat=["orient", 0], count=1, width=64, height=64),
        "view": client.node("SaveImage", images=["views", 0], filename_prefix="oriented"),
        "save": client.node("Invert3DSaveGaussianSplat", splat=["orient", 0], filename_prefix="oriented"),
    }
    run = client.succeed(prompt)
    assert "up +y, front +z chosen; guessed" in run.text("info")
    assert Orientation.from_comment(splats.load(saved_files(server, run)[0]).comment) == Orientation("+y", "+z")
    (sheet,), (upside_down,) = client.images(run, "sheet"), client.images(run, "view")
    assert sheet.shape[1] == 1024
    assert len(run.outputs["orient"]["images"]) == 1
    for column in range(4):
        assert sheet[:256, 256 * column : 256 * (column + 1)].std() > 0.05

    prompt["orient"]["inputs"] |= {"choice": "1", "turn_deg": "180", "up": "as chosen", "front": "as chosen"}
    run = client.succeed(prompt)
    assert "up -y, front +z chosen; guessed" in run.text("info")
    (turned,) = client.images(run, "view")
    assert np.abs(turned - upside_down).max() > 0.3  # blue is above again
    blue = turned[:, :, 2] - turned[:, :, 0] > 0.5
    assert np.nonzero(blue)[0].mean() < 32


def test_stance_on_one_axis_is_refused(client: Client) -> None:
    prompt = {
        "load": client.node("Invert3DLoadGaussianSplat", file="plain.ply"),
        "orient": client.node("Invert3DOrientSplat", splat=["load", 0], up="+x", front="-x"),
    }
    run = client.run(prompt)
    assert run.error is not None
    assert "up is '+x', on the same axis: choose another front or up" in run.error["exception_message"]


BUILD = """() => {
    app.graph.clear()
    const load = LiteGraph.createNode("Invert3DLoadGaussianSplat")
    const save = LiteGraph.createNode("Invert3DSaveGaussianSplat")
    app.graph.add(load)
    app.graph.add(save)
    save.pos = [500, 0]
    save.widgets.find(widget => widget.name === "filename_prefix").value = "page/%date:yyyy%_%Load.max_splats%"
    load.title = "Load"
    load.connect(0, save, 0)
}"""


def notes_after_a_run(comfy_page: ComfyPage) -> list[str]:
    """What the load node and the save node say, once the graph in the page has run."""
    page = comfy_page.page
    page.evaluate(
        "() => { app.api.addEventListener('execution_success', () => window.splatSaved = true); app.queuePrompt(0) }"
    )
    page.wait_for_function("window.splatSaved", timeout=60_000)
    page.locator(".invert3d.note").nth(1).wait_for(timeout=20_000, state="attached")
    return sorted(page.locator(".invert3d.note").all_text_contents(), key=lambda note: "/" in note)


def test_page_uploads_any_format_and_shows_what_it_is(
    comfy_page: ComfyPage, client: Client, server: Server, tmp_path: Path
) -> None:
    splats.save(three_balls(100, comment=STATED), tmp_path / "from_home.sog")
    page = comfy_page.page
    page.evaluate(BUILD)
    with page.expect_file_chooser() as chooser:
        page.evaluate("app.graph.nodes[0].widgets.find(widget => widget.name === 'invert3d_upload').callback()")
    assert ".sog" in chooser.value.element.get_attribute("accept").split(",")
    chooser.value.set_files(tmp_path / "from_home.sog")
    page.wait_for_function(
        "app.graph.nodes[0].widgets.find(widget => widget.name === 'file').value === '3d/from_home.sog'", timeout=30_000
    )
    workflow = comfy_page.workflow_of()
    (node,) = (node for node in workflow["nodes"] if node["type"] == "Invert3DLoadGaussianSplat")
    assert node["widgets_values"] == ["3d/from_home.sog", "auto", 0]
    texts = notes_after_a_run(comfy_page)
    assert texts[0].startswith("300 splats · SH degree 0 · radius ")
    assert texts[0].endswith("up +y, front +z")
    (path,) = (server.base / "output" / "page").iterdir()
    assert path.name[4:] == "_0_00001_.ply"
    assert path.name[:4].isdigit()
    assert texts[1].startswith(f"page/{path.name} · 300 splats")
    assert json.dumps(node["widgets_values"][0]) in splats.load(path).comment

    comfy_page.open()
    comfy_page.prompt_of(workflow)  # puts it into the page
    assert notes_after_a_run(comfy_page) == texts  # though nothing ran: all results were kept
    assert len(list((server.base / "output" / "page").iterdir())) == 1
    assert comfy_page.errors == []
