"""Tokens in ComfyUI's own prompts: the shipped workflow to a picture, and every format by the host's own loader."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from invert3d_core import tokens
from tests.host.client import Client, PromptRejected
from tests.host.page import ComfyPage
from tests.host.server import PACK, Server
from tests.host.small_sd import row_of_word, write_checkpoint

WORKFLOW = PACK / "workflows" / "token_in_core.json"


def embedding_file(server: Server, name: str) -> Path:
    return server.base / "models" / "embeddings" / name


def token_of(rows: Tensor, name: str = "my_object") -> tokens.Token:
    return tokens.Token(name, rows, torch.zeros_like(rows), "clip_l")


@pytest.fixture(scope="module")
def word(server: Server) -> Iterator[Tensor]:  # (1,768)
    """The row of "lamp" in the checkpoint's text encoder; the checkpoint is the one that the workflow names."""
    (loader,) = (n for n in json.loads(WORKFLOW.read_text("utf-8"))["nodes"] if n["type"] == "CheckpointLoaderSimple")
    file = server.base / "models" / "checkpoints" / loader["properties"]["models"][0]["name"]
    yield row_of_word(server.comfyui, write_checkpoint(file), "lamp")
    file.unlink()  # other tests need it to be missing


def test_workflow_draws_the_token(client: Client, server: Server, comfy_page: ComfyPage, word: Tensor) -> None:
    """A token whose vector is a word's is that word, bit for bit; another one is another picture."""
    file = embedding_file(server, "my_object.safetensors")
    tokens.save(token_of(word), file, overwrite=True)
    prompt = comfy_page.prompt_of(WORKFLOW)
    comfy_page.rest()
    nodes = {node["class_type"]: (key, node["inputs"]) for key, node in prompt.items()}
    picture, _ = nodes["SaveImage"]
    nodes["KSampler"][1]["steps"] = 3
    nodes["EmptyLatentImage"][1].update(width=128, height=128)
    try:
        drawn = client.images(client.succeed(prompt), picture)
        assert drawn.shape == (1, 128, 128, 3)
        assert drawn.std() > 0.02 and np.isfinite(drawn).all()

        tokens.save(token_of(word + 0.1 * torch.randn(4, 768, generator=torch.Generator().manual_seed(1))), file, True)
        again = client.images(client.succeed(prompt), picture)
    finally:
        file.unlink()
    assert np.abs(again - drawn).max() > 0.004, "a file saved anew is read anew"

    linked = nodes["StringConcatenate"][1]
    linked["string_b"] = "lamp"
    assert np.array_equal(client.images(client.succeed(prompt), picture), drawn)


@pytest.mark.parametrize("format", tokens.FORMATS)
def test_host_reads_every_format_that_we_write(client: Client, server: Server, format: str) -> None:
    prompt = {
        "clip": client.node("Invert3DProbeClip", word="lamp"),
        "row": client.node("Invert3DProbeTensors", value=["clip", 1], name="row"),
        "encode": client.node("CLIPTextEncode", clip=["clip", 0], text="a lamp lamp on a table"),
        "result": client.node("Invert3DProbeTensors", value=["encode", 0], name="words"),
    }
    client.succeed(prompt)
    row = load_file(server.base / "output" / "row.safetensors")["tensor"]
    source = embedding_file(server, "two_lamps.safetensors")
    tokens.save(token_of(row.repeat(2, 1), "two_lamps"), source, overwrite=True)

    name = f"lamps-{format}"
    prompt |= {
        "load": client.node("Invert3DLoadInversionToken", file=source.name),
        "save": client.node("Invert3DSaveInversionToken", token=["load", 0], name=name, format=format),
        "text": client.node("StringConcatenate", string_a="a", string_b=["save", 1], delimiter=" "),
        "whole": client.node("StringConcatenate", string_a=["text", 0], string_b="on a table", delimiter=" "),
        "shown": client.node("PreviewAny", source=["save", 1]),
    }
    prompt["encode"]["inputs"]["text"] = ["whole", 0]
    prompt["result"]["inputs"]["name"] = "token"
    file = embedding_file(server, name + tokens.FORMATS[format].ending)
    try:
        run = client.succeed(prompt)
        assert file.is_file()
        assert tokens.inspect(file).format == format
        shown = file.name if file.suffix != ".safetensors" else name
        assert run.text("shown") == f"embedding:{shown}"
        results = [load_file(server.base / "output" / f"{each}.safetensors")["tensor"] for each in ("words", "token")]
        assert results[0].shape == (1, 77, 768)
        assert torch.equal(*results)

        # And back through our own loader; saving what is there already changes nothing, and is no mistake.
        back = {
            "load": client.node("Invert3DLoadInversionToken", file=file.name),
            "save": client.node("Invert3DSaveInversionToken", token=["load", 0], name="back", format="diffusers"),
        }
        client.succeed(back)
        assert torch.equal(tokens.load(embedding_file(server, "back.safetensors")).vectors, row.repeat(2, 1))
        assert not tokens.is_saved_as(token_of(row, "back"), embedding_file(server, "back.safetensors"), "diffusers")
        written = file.stat().st_mtime_ns
        prompt["save"]["inputs"]["name"] = name
        client.post("/free", {"unload_models": False, "free_memory": True})
        client.succeed(prompt)
        assert file.stat().st_mtime_ns == written
    finally:
        for left in (file, source, embedding_file(server, "back.safetensors")):
            left.unlink(missing_ok=True)


def test_files_of_others_are_offered_and_read(client: Client, server: Server) -> None:
    rows = torch.randn(3, 768, generator=torch.Generator().manual_seed(2))
    files = {
        "their cat (v2).pt": {"string_to_token": {"*": 265}, "string_to_param": {"*": rows}, "name": "cat", "step": 5},
        "theirs/dog.bin": {"<dog>": rows[:1]},
        "xl.pt": {"clip_l": rows, "clip_g": torch.zeros(3, 1280)},
        "danger.pt": {"string_to_param": {"*": shutil.rmtree}},
    }
    for name, content in files.items():
        file = embedding_file(server, name)
        file.parent.mkdir(exist_ok=True)
        torch.save(content, file)
    description = client.object_info("Invert3DLoadInversionToken")
    assert description is not None
    assert set(files) <= set(description["input"]["required"]["file"][1]["options"])

    def loaded(name: str, **inputs: str) -> dict:
        return {
            "load": client.node("Invert3DLoadInversionToken", file=name, **inputs),
            "text": client.node("PreviewAny", source=["load", 1]),
            "result": client.node("Invert3DProbeTensors", value=["load", 0], name="loaded"),
        }

    try:
        expected = {"their cat (v2).pt": (rows, ""), "theirs/dog.bin": (rows[:1], "embedding:theirs/dog.bin")}
        for name, (vectors, text) in expected.items():
            run = client.succeed(loaded(name))
            assert run.text("text") == text, "empty where the host's prompts cannot write the name"
            assert torch.equal(load_file(server.base / "output" / "loaded.safetensors")["vectors"], vectors)
        refused = client.run(loaded("xl.pt"))
        assert refused.error is not None and "choose encoder clip_l" in refused.error["exception_message"]
        client.succeed(loaded("xl.pt", encoder="clip_l"))
        assert torch.equal(load_file(server.base / "output" / "loaded.safetensors")["vectors"], rows)
        refused = client.run(loaded("danger.pt"))
        assert refused.error is not None and "could run code" in refused.error["exception_message"]
        with pytest.raises(PromptRejected, match="no token|not in"):
            client.queue(loaded("../../input/x.pt"))
    finally:
        for name in files:
            embedding_file(server, name).unlink()
