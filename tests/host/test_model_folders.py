"""Checkpoint folders in models/mvdream: offered as one model each, loaded, and described."""

import shutil

import numpy as np
import pytest

from invert3d_core.mvdream.conversion import convert
from tests.host.client import Client, PromptRejected
from tests.host.server import Server


def views(client: Client, **loader: object) -> dict:
    return {
        "model": client.node("Invert3DMVDreamLoader", **loader),
        "sample": client.node("Invert3DMVDreamSampler", mvdream=["model", 0], steps=2, seed=41),
        "images": client.node("SaveImage", images=["sample", 0], filename_prefix="folder"),
        "info": client.node("PreviewAny", source=["model", 1]),
    }


def test_a_folder_is_one_model_and_says_what_it_is(client: Client, server: Server) -> None:
    own = server.base / "models" / "mvdream"
    folder = convert("toy", own / "a family" / "toy folder").path
    (own / ".partial.tmp" / "unet").mkdir(parents=True)
    shutil.copy(folder / "vae" / "diffusion_pytorch_model.safetensors", own / ".partial.tmp" / "unet")
    try:
        description = client.object_info("Invert3DMVDreamLoader")
        assert description is not None
        options = description["input"]["required"]["model"][1]["options"]
        assert options == ["built-in toy", "a family/toy folder"]
        built_in = client.succeed(views(client))
        assert "layout file-clip" in built_in.text("info")
        run = client.succeed(views(client, model="a family/toy folder"))
        assert np.array_equal(client.images(run, "images"), client.images(built_in, "images"))
        text = run.text("info")
        assert "Invert3D toy model" in text and "layout folder-diffusers" in text and "licence Apache-2.0" in text
        assert "views of an object from text, 128 × 128 pixels" in text
    finally:
        for child in own.iterdir():  # the host cannot list a folder of its own that is gone
            shutil.rmtree(child)


def test_a_missing_published_model_says_where_it_is(client: Client) -> None:
    with pytest.raises(PromptRejected) as rejected:
        client.queue(views(client, model="sd-v1.5-4view.pt"))
    for part in ("there is no model 'sd-v1.5-4view.pt'", "4.27 GB", "models/mvdream", "OpenRAIL", "resolve/main/"):
        assert part in str(rejected.value)
