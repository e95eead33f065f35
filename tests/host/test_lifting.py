"""Views to splat in a real host: pictures with cameras become a splat that the host's own nodes take."""

import json

import numpy as np
import pytest
from safetensors.torch import load_file

from invert3d_core import splats
from tests.host.client import Client, PromptRejected
from tests.host.scenes import three_balls
from tests.host.server import Server
from tests.host.test_chain import at_step, seconds_to_cancel, steps_of

SIZE = 48
STEPS = 40


@pytest.fixture(scope="module", autouse=True)
def balls(server: Server) -> None:
    """An object to take views of, in the input folder."""
    splats.save(three_balls(200, comment='up="+y", front="+z"'), server.base / "input" / "balls.ply")


def lifting(client: Client, masked: bool = True, **fit: object) -> dict:
    """Views of the balls, a splat fitted to them, and what the host makes of it."""
    fit = {"max_splats": 400, "steps": STEPS, "preview_every": 10} | fit
    masks = {"masks": ["views", 1]} if masked else {}
    return {
        "splat": client.node("Invert3DLoadGaussianSplat", file="balls.ply"),
        "views": client.node(
            "Invert3DRenderOrbitViews", splat=["splat", 0], count=8, elevations_deg="-10, 30", width=SIZE, height=SIZE
        ),
        "fit": client.node("Invert3DSplatFromViews", images=["views", 0], cameras=["views", 3], **masks, **fit),
        "loss": client.node("PreviewAny", source=["fit", 1]),
        "preview": client.node("SaveImage", images=["fit", 2], filename_prefix="lifted"),
        "tensors": client.node("Invert3DProbeTensors", value=["fit", 0], name="lifted"),
        "render": client.node("RenderSplat", splat=["fit", 0], width=64, height=64, frames=1),
        "picture": client.node("SaveImage", images=["render", 0], filename_prefix="lifted_by_core"),
    }


def test_views_become_a_splat_that_core_draws(client: Client, server: Server) -> None:
    run = client.succeed(lifting(client))
    losses = json.loads(run.text("loss"))["loss"]
    assert len(losses) == STEPS and losses[-1] < 0.5 * losses[0]
    assert steps_of(run, "fit")[-1] == STEPS
    assert any(node == "fit" for node, _ in run.previews)
    (picture,) = client.images(run, "preview")
    assert picture.shape == (2 * SIZE, 4 * SIZE, 3)
    assert np.abs(picture[:SIZE] - picture[SIZE:]).mean() < 0.06, "below the views the splat, which looks like them"
    fitted = load_file(server.base / "output" / "lifted.safetensors")
    assert fitted["positions"].shape[:1] == (1,) and 100 < fitted["positions"].shape[1] <= 400
    drawn = client.images(run, "picture")
    assert drawn.std() > 0.02, "core draws something"


def test_a_cancelled_fit_goes_on_and_a_finished_one_is_found_again(client: Client, server: Server) -> None:
    long, short = lifting(client, seed=1, steps=2000), lifting(client, masked=False, seed=2, steps=5)
    cancelled = client.run(long, on_event=at_step(3, client.interrupt, "fit"))
    assert cancelled.status == "interrupted"
    assert steps_of(client.succeed(short), "fit")[-1] == 5

    reached = max(steps_of(cancelled, "fit"))
    before = len(server.log())
    again = client.run(long, on_event=at_step(reached + 1, client.interrupt, "fit"))
    assert min(steps_of(again, "fit")) >= reached
    assert "The fit is found again and goes on from step" in server.log()[before:]
    client.succeed(lifting(client, seed=3, steps=2))  # the host drops what this one does not use
    found = client.succeed(short)
    assert "fit" in found.executed and set(steps_of(found, "fit")) == {5}
    assert "The splat is found again, with all its 5 steps: " in server.log()[before:]
    assert len(list((server.base / "user" / "__invert3d" / "fits").glob("splat-*.safetensors"))) >= 2


def test_cancelled_fit_ends_within_a_second(client: Client) -> None:
    """Of views as large as the node renders them, so that its steps and its start take their time."""
    prompt = lifting(client, max_splats=0, steps=2000, resume=False)
    prompt["views"]["inputs"] |= {"count": 4, "width": 256, "height": 256}
    for step in (0, 3):
        assert seconds_to_cancel(client, prompt, "fit", step) <= 1


def test_what_cannot_be_is_refused_before_anything_runs(client: Client) -> None:
    with pytest.raises(PromptRejected, match="max_splats"):
        client.queue(lifting(client, max_splats=-1))
    with pytest.raises(PromptRejected, match="preset is 'consistency': choose one of recommended"):
        client.queue(lifting(client, preset="consistency"))
    with pytest.raises(PromptRejected, match="gsplat needs a CUDA device, not cpu"):
        client.queue(lifting(client, density="mcmc"))
