"""What goes wrong around a host (folders, files, browsers, strings of strangers) ends in words and loses no work."""

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest

from invert3d_core import cameras, tokens
from tests.host.client import Client, PromptRejected
from tests.host.server import Server
from tests.host.test_chain import SHARED, at_step, chain, steps_of, token_file, training_only, write_chair


@pytest.fixture(scope="module", autouse=True)
def chair(server: Server) -> None:
    """An object to learn, in the input folder."""
    write_chair(server)


@contextmanager
def no_folder(folder: Path) -> Iterator[None]:
    """Inside, nothing can be written to the folder, not even by root: a file stands in its place."""
    aside = folder.with_name(folder.name + " aside")
    folder.mkdir(parents=True, exist_ok=True)
    folder.rename(aside)
    folder.touch()
    try:
        yield
    finally:
        folder.unlink()
        aside.rename(folder)


# -------------------------------------------------------------------------------------------------------------- folders


def test_no_folder_for_trainings_is_an_error_before_the_work(client: Client, server: Server) -> None:
    prompt = training_only(client, "nowhere")
    with no_folder(server.base / "user" / "__invert3d" / "runs"):
        run = client.run(prompt)
    assert run.status == "error" and run.error["node_id"] == "train"
    assert steps_of(run) == []
    message = run.error["exception_message"]
    assert "cannot be written: there is a file where its folder should be" in message and "runs" in message
    client.succeed(prompt)


def test_no_folder_for_tokens_is_an_error_that_costs_no_training(client: Client, server: Server) -> None:
    prompt = training_only(client, "homeless")
    with no_folder(server.base / "models" / "embeddings"):
        run = client.run(prompt)
    assert run.status == "error" and run.error["node_id"] == "save"
    assert "homeless.safetensors' cannot be written: there is a file where" in run.error["exception_message"]
    assert steps_of(client.succeed(prompt)) == []
    assert tokens.load(token_file(server, "homeless")).name == "homeless"


# -------------------------------------------------------------------------------------------- files that are taken away


@pytest.mark.parametrize("what", ["model", "splat", "token"])
def test_file_that_vanishes_between_queueing_and_running(client: Client, server: Server, what: str) -> None:
    client.succeed(training_only(client, "shared", **SHARED))
    toy = server.pack / "invert3d_core" / "toy"
    folder = server.base / "models" / "mvdream" / "unplugged"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_bytes((toy / "tokenizer.json").read_bytes())
    file, content, name = {
        "model": (folder / "model.safetensors", toy / "model.safetensors", "unplugged/model.safetensors"),
        "splat": (server.base / "input" / "unplugged.ply", server.base / "input" / "chair.ply", "unplugged.ply"),
        "token": (token_file(server, "unplugged"), token_file(server, "shared"), "unplugged.safetensors"),
    }[what]
    file.write_bytes(content.read_bytes())
    prompt = {
        "model": lambda: {
            "it": client.node("Invert3DMVDreamLoader", model=name),
            "end": client.node("PreviewAny", source=["it", 1]),
        },
        "splat": lambda: {
            "it": client.node("Invert3DLoadGaussianSplat", file=name),
            "end": client.node("PreviewAny", source=["it", 1]),
        },
        "token": lambda: {
            "it": client.node("Invert3DLoadInversionToken", file=name),
            "end": client.node("PreviewAny", source=["it", 1]),
        },
    }[what]()
    queued: list[str] = []

    def queue_and_unplug() -> None:
        queued.append(client.queue(prompt))
        file.unlink()

    busy = training_only(client, f"busy_{what}", steps=4)
    assert client.run(busy, on_event=at_step(1, queue_and_unplug)).status == "success"
    status = client.wait(queued[0])["status"]
    assert status["status_str"] == "error"
    (error,) = [data for kind, data in status["messages"] if kind == "execution_error"]
    assert error["node_id"] == "it"
    assert f"there is no {'file' if what == 'splat' else what} {name!r}" in error["exception_message"]
    file.write_bytes(content.read_bytes())
    client.succeed(prompt)
    file.unlink()


# -------------------------------------------------------------------------------------------------- a browser is closed


async def queue_and_disconnect(client: Client, prompt: dict, step: int) -> str:
    """Queue as a browser does, and end the connection without a word when the training reports this step."""
    address = f"{client.url}/ws?clientId={client.client_id}"
    async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
        prompt_id = await asyncio.to_thread(client.queue, prompt)
        while True:
            message = await socket.receive(timeout=120)
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue
            event = json.loads(message.data)
            if event["type"] == "progress" and event["data"]["node"] == "train" and event["data"]["value"] >= step:
                socket._response.connection.transport.abort()  # no closing handshake
                return prompt_id


def test_training_goes_on_when_the_browser_disconnects(client: Client, server: Server) -> None:
    prompt = training_only(client, "alone", steps=6, preview_every=3)
    with ThreadPoolExecutor(1) as thread:  # a browser driver may keep an event loop running in this one
        prompt_id = thread.submit(asyncio.run, queue_and_disconnect(client, prompt, 2)).result()
    assert not token_file(server, "alone").exists(), "it was over before the browser was closed"
    assert client.wait(prompt_id)["status"]["status_str"] == "success"
    assert tokens.load(token_file(server, "alone")).provenance["config"]["steps"] == 6
    assert steps_of(Client(server.url).succeed(prompt)) == []


# ------------------------------------------------------------------------------------------------------ hostile strings

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def bench(server: Server, chair: None) -> dict:
    """A prompt in which every node of the pack that has a number widget is at work on something small."""
    cameras.save(cameras.orbit([0, 120, 240], 20, 3.0, 40, 32, 32), server.base / "input" / "poses.json")
    client, size = Client(server.url), {"width": 32, "height": 32}
    more = {
        "poses": client.node("Invert3DLoadCameras", file="poses.json"),
        "orbit": client.node("Invert3DOrbitCameras", count=2, **size),
        "path": client.node("Invert3DCameraPath", path="spiral", seconds=0.1, **size),
        "select": client.node("Invert3DSelectCameras", cameras=["orbit", 0]),
        "infos": client.node("Invert3DCamerasToCameraInfo", cameras=["orbit", 0]),
        "again": client.node("Invert3DCamerasFromCameraInfo", camera_info=["infos", 1]),
        "views": client.node("Invert3DRenderOrbitViews", splat=["splat", 0], count=2, **size),
        "fit": client.node(
            "Invert3DSplatFromViews", images=["views", 0], cameras=["views", 3], max_splats=100, steps=2
        ),
    }
    for name in ("transform", "crop", "clean", "decimate", "normalize", "recolor", "adjust", "orient"):
        more[name] = client.node(f"Invert3D{name.capitalize()}Splat", splat=["splat", 0])
    ends = {f"{name} end": client.node("PreviewAny", source=[name, 0]) for name in more}
    return chain(client, "shared", sampling={"steps": 1}, **SHARED) | more | ends


def with_widget(prompt: dict, node: str, widget: str, value: object) -> dict:
    """A copy of a prompt with another value in one widget."""
    changed = prompt[node] | {"inputs": prompt[node]["inputs"] | {widget: value}}
    return prompt | {node: changed}


def only(prompt: dict, node: str) -> dict:
    """What a node of a prompt needs, and an end for it."""
    needed, waiting = {}, [node]
    while waiting:
        name = waiting.pop()
        needed[name] = prompt[name]
        waiting += [value[0] for value in prompt[name]["inputs"].values() if isinstance(value, list)]
    return needed | {"end": {"class_type": "PreviewAny", "inputs": {"source": [node, 0]}}}


def number_widgets(client: Client, prompt: dict) -> dict[tuple[str, str], str]:
    """INT or FLOAT, for every number widget of the pack; each of its nodes that has one must be in the prompt."""
    pack = {name: info for name, info in client.get("/object_info").items() if info["category"].startswith("Invert3D")}
    found = {
        (name, widget, kind)
        for name, info in pack.items()
        for section in ("required", "optional")
        for widget, (kind, *_) in info["input"].get(section, {}).items()
        if kind in ("INT", "FLOAT")
    }
    nodes = {node["class_type"]: name for name, node in prompt.items()}
    return {(nodes[name], widget): kind for name, widget, kind in sorted(found)}


@pytest.mark.parametrize("value", [INF, -INF, 1e308, -1e308, "abc", {"a": 1}, None])
def test_no_number_widget_takes_what_is_far_out_or_no_number(client: Client, bench: dict, value: object) -> None:
    widgets, prompt = number_widgets(client, bench), bench
    for node, widget in widgets:
        prompt = with_widget(prompt, node, widget, value)
    with pytest.raises(PromptRejected) as refusal:
        client.queue(prompt)
    told = {
        (node, error["extra_info"]["input_name"])
        for node, refused in refusal.value.body["node_errors"].items()
        for error in refused["errors"]
    }
    assert not widgets.keys() - told
    assert "exception_during" not in refusal.value.messages


def test_no_number_widget_takes_nan(client: Client, bench: dict) -> None:
    """The host's own limits let it pass where fractions are allowed."""
    client.succeed(bench)
    for (node, widget), kind in number_widgets(client, bench).items():
        prompt = only(with_widget(bench, node, widget, NAN), node)
        if kind == "INT":
            with pytest.raises(PromptRejected, match=f"invalid_input_type.*: {widget}, nan"):
                client.queue(prompt)
            continue
        run = client.run(prompt)
        assert run.status == "error" and run.error is not None, f"{widget} of {node} is accepted"
        assert run.error["node_id"] == node
        assert run.error["exception_message"] == f"{widget} is nan: give it a finite number\n"


@pytest.mark.parametrize(
    ("node", "widget", "value", "message"),
    [
        ("model", "model", "toy\0.safetensors", "there is no model"),
        ("model", "model", "\ud800", "there is no model"),
        ("model", "model", "x" * 5000, "there is no model"),
        ("model", "model", "..\\..\\x.pt", "there is no model"),
        ("splat", "file", "/etc/passwd", "there is no file"),
        ("splat", "file", "../../../etc/passwd [input]", "there is no file"),
        ("splat", "file", "chair.ply\0 [sample]", "there is no file"),
        ("splat", "file", "x" * 5000 + " [sample]", "there is no file"),
        ("splat", "file", "../assets.py [sample]", "there is no file"),
        ("splat", "file", "\ud800.ply", "there is no file"),
        ("splat", "file", 5, "there is no file"),
        ("poses", "file", "/etc/passwd", "there is no file"),
        ("poses", "file", "../../../etc/passwd [input]", "there is no file"),
        ("poses", "file", "poses.json\0", "there is no file"),
        ("poses", "file", "poses.json\0 [input]", "there is no file"),
        ("poses", "file", "x" * 5000, "there is no file"),
        ("poses", "file", "../samples.json [sample]", "there is no file"),
        ("poses", "file", "\ud800.json", "there is no file"),
        ("poses", "file", {"a": 1}, "there is no file"),
        ("train", "name", "物" * 90, "200 bytes at most"),
        ("train", "name", "a" * 101, "cannot be written in a prompt"),
        ("train", "name", "a\0b", "cannot be written in a prompt"),
        ("train", "name", "\ud800", "cannot be written in a prompt"),
        ("train", "name", "cup\n", "cannot be written in a prompt"),
        ("train", "name", {"a": 1}, "cannot be written in a prompt"),
        ("train", "seed", 2**64, "value_bigger_than_max"),
        ("train", "preset", "../reference", "value_not_in_list"),
        ("train", "up", "+w", "value_not_in_list"),
        ("save", "name", "..", "cannot be written in a prompt"),
        ("save", "name", "C:\\cup", "cannot be written in a prompt"),
        ("views", "elevations_deg", "0, nan", "elevations_deg is '0, nan': write one or more angles between -90 and"),
        ("views", "elevations_deg", "\ud800", "elevations_deg is '\\ud800': write degrees separated by commas"),
        ("views", "background", 5, "background is 5: write a color as #rrggbb"),
        ("views", "background", "#ffffff\n", "write a color as #rrggbb"),
        ("views", "backend", "\0", "value_not_in_list"),
        ("orbit", "elevations_deg", "0\0", "write degrees separated by commas"),
        ("orbit", "elevations_deg", "0, " * 2000, "elevations_deg holds 2,000 angles: write at most 1,000"),
        ("path", "easing", "\ud800", "value_not_in_list"),
        ("fit", "preset", "../recommended", "preset is '../recommended': choose one of"),
        ("fit", "density", {"a": 1}, "density is {'a': 1}: choose one of"),
        ("normalize", "place", "\0", "value_not_in_list"),
        ("recolor", "tint", {"a": 1}, "tint is {'a': 1}: write a color as #rrggbb"),
        ("adjust", "sh_degree", NAN, "value_not_in_list"),
        ("decimate", "method", "\ud800", "value_not_in_list"),
        ("orient", "choice", "5", "value_not_in_list"),
        ("orient", "turn_deg", NAN, "value_not_in_list"),
    ],
)
def test_hostile_widget_is_refused(
    client: Client, bench: dict, node: str, widget: str, value: object, message: str
) -> None:
    with pytest.raises(PromptRejected) as refusal:
        client.queue(with_widget(bench, node, widget, value))
    assert message in refusal.value.messages


@pytest.mark.parametrize(
    ("node", "widget", "value", "message"),
    [
        ("train", "initial_words", "\ud800", "'\\ud800' hold ?, which the model does not know"),
        ("train", "initial_words", "\0", "which the model does not know"),
        ("poses", "file", None, "there is no file None: put it into ComfyUI's input folder"),
        ("views", "background", None, "background is None: write a color as #rrggbb"),
        ("fit", "preset", None, "There is no preset 'None'. Expected one of recommended"),
    ],
)
def test_hostile_widget_is_explained(
    client: Client, bench: dict, node: str, widget: str, value: object, message: str
) -> None:
    run = client.run(only(with_widget(bench, node, widget, value), node))
    assert run.status == "error" and run.error is not None and run.error["node_id"] == node
    assert message in run.error["exception_message"]


def test_cameras_outside_the_hosts_folders_are_not_read(client: Client, server: Server, bench: dict) -> None:
    outside = server.base / "outside.json"
    outside.write_bytes((server.base / "input" / "poses.json").read_bytes())
    client.succeed(only(bench, "poses"))
    for name in ("../outside.json", "../outside.json [output]", "3d/../../outside.json", str(outside)):
        with pytest.raises(PromptRejected, match="there is no file"):
            client.queue(only(with_widget(bench, "poses", "file", name), "poses"))


def test_longest_texts_and_odd_characters_are_only_text(client: Client, server: Server) -> None:
    client.succeed(training_only(client, "shared", **SHARED))
    folders = [server.base, server.base / "models" / "embeddings"]
    before = [sorted(path.name for path in folder.iterdir()) for folder in folders]
    for text in ("chair " * 5000, "<" * 2000, "a\0b \ud800 \u202e"):
        prompt = chain(client, "shared", sampling={"steps": 1}, **SHARED)
        prompt["sample"]["inputs"]["prompt"] = text
        client.succeed(prompt)
    assert [sorted(path.name for path in folder.iterdir()) for folder in folders] == before
