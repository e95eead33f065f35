"""What goes wrong around a host (folders, files, browsers, strings of strangers) ends in words and loses no work."""

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest

from invert3d_core import tokens
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

NAN = float("nan")
REFUSED = [
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
    ("train", "name", "物" * 90, "200 bytes at most"),
    ("train", "name", "a" * 101, "cannot be written in a prompt"),
    ("train", "name", "a\0b", "cannot be written in a prompt"),
    ("train", "name", "\ud800", "cannot be written in a prompt"),
    ("train", "name", "cup\n", "cannot be written in a prompt"),
    ("train", "name", {"a": 1}, "cannot be written in a prompt"),
    ("train", "seed", NAN, "invalid_input_type"),
    ("train", "seed", 2**64, "value_bigger_than_max"),
    ("train", "steps", float("inf"), "invalid_input_type"),
    ("train", "vectors", "abc", "invalid_input_type"),
    ("train", "preset", "../reference", "value_not_in_list"),
    ("train", "up", "+w", "value_not_in_list"),
    ("save", "name", "..", "cannot be written in a prompt"),
    ("save", "name", "C:\\cup", "cannot be written in a prompt"),
    ("sample", "views", 1e9, "value_bigger_than_max"),
    ("apply", "strength", float("inf"), "value_bigger_than_max"),
]


@pytest.mark.parametrize(("node", "widget", "value", "message"), REFUSED)
def test_hostile_widget_is_refused(client: Client, node: str, widget: str, value: object, message: str) -> None:
    prompt = chain(client, "shared", **SHARED)
    prompt[node]["inputs"][widget] = value
    with pytest.raises(PromptRejected) as refusal:
        client.queue(prompt)
    assert message in refusal.value.messages


@pytest.mark.parametrize(
    ("node", "widget", "value", "message"),
    [
        ("train", "initial_words", "\ud800", "'\\ud800' hold ?, which the model does not know"),
        ("train", "initial_words", "\0", "which the model does not know"),
        ("apply", "strength", NAN, "strength is nan: give it a finite number"),
        ("sample", "guidance_scale", NAN, "guidance_scale is nan: give it a finite number"),
        ("sample", "guidance_rescale", NAN, "guidance_rescale is nan: give it a finite number"),
        ("sample", "elevation_deg", NAN, "elevation nan° is out of range"),
        ("sample", "azimuth_start_deg", NAN, "holds NaN or infinity"),
    ],
)
def test_hostile_widget_is_explained(client: Client, node: str, widget: str, value: object, message: str) -> None:
    prompt = chain(client, "shared", **SHARED)
    prompt[node]["inputs"][widget] = value
    run = client.run(prompt)
    assert run.status == "error" and run.error["node_id"] == node
    assert message in run.error["exception_message"]


def test_longest_texts_and_odd_characters_are_only_text(client: Client, server: Server) -> None:
    client.succeed(training_only(client, "shared", **SHARED))
    folders = [server.base, server.base / "models" / "embeddings"]
    before = [sorted(path.name for path in folder.iterdir()) for folder in folders]
    for text in ("chair " * 5000, "<" * 2000, "a\0b \ud800 \u202e"):
        prompt = chain(client, "shared", sampling={"steps": 1}, **SHARED)
        prompt["sample"]["inputs"]["prompt"] = text
        client.succeed(prompt)
    assert [sorted(path.name for path in folder.iterdir()) for folder in folders] == before
