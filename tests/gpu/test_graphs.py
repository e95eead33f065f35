"""On a real GPU: what is replayed as a CUDA graph is what an ordinary run gives, whatever happens to the weights."""

import contextlib
import gc
import logging
import os
import subprocess
import sys

import pytest
import torch

from invert3d_core.cameras import orbit
from invert3d_core.mvdream import graphs
from invert3d_core.mvdream.graphs import Graphs, graphs_of
from invert3d_core.tokens import Token
from tests.unit.inversion.tiny_model import make_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

CAMS = orbit([0.0, 90.0, 180.0, 270.0], 10.0, 3.0, 40.0, 16, 16)


@pytest.fixture
def model():
    return make_model().to("cuda")


@pytest.fixture(autouse=True)
def nothing_announced():
    graphs._announced.clear()


def draw(model, prompt="a red cup", **options):
    return model.sample(prompt, CAMS, **{"steps": 6, "guidance_rescale": 0.5, **options})


def eagerly(model, *args, **options):
    with graphs.eager():
        return draw(model, *args, **options)


def assert_near(found, expected):
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "euler"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sampling_replays_and_gives_the_same_pictures(dtype, sampler, caplog):
    model = make_model().to("cuda", dtype)
    expected = eagerly(model, sampler=sampler)
    assert len(graphs_of(model.unet)) == 0
    with caplog.at_level(logging.WARNING, logger="invert3d"):
        first, second = draw(model, sampler=sampler), draw(model, sampler=sampler)
    assert "not replayed" not in caplog.text
    assert len(graphs_of(model.unet)) == 1
    tolerance = 2e-3 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(first, expected, atol=tolerance, rtol=0)
    torch.testing.assert_close(second, expected, atol=tolerance, rtol=0)


def test_other_prompts_tokens_seeds_and_views_share_or_get_their_own(model):
    draw(model)
    rows = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    known = model.with_token(Token("hat", rows, rows, "toy"))
    for prompt, options in (("a blue cup", {}), ("a <hat>", {"seed": 5}), ("a cup", {"guidance_scale": 1.0})):
        assert_near(draw(known, prompt, **options), eagerly(known, prompt, **options))
    assert_near(known.sample("a <hat>", None, count=3, steps=5), draw_flat(known))
    assert len(graphs_of(model.unet)) <= 2


def draw_flat(model):
    with graphs.eager():
        return model.sample("a <hat>", None, count=3, steps=5)


def test_weights_changed_in_place_count_in_a_replay(model):
    before = draw(model)
    with torch.no_grad():
        for parameter in model.unet.parameters():
            parameter.mul_(0.9)
    assert len(graphs_of(model.unet)) == 1
    after = draw(model)
    assert not torch.allclose(after, before, atol=2e-3)
    assert_near(after, eagerly(model))


def test_replaced_weights_count_too(model):
    draw(model)
    layer = model.unet.get_submodule("mid_block.resnets.0.conv1")
    layer.weight = torch.nn.Parameter(layer.weight.detach() * 3, requires_grad=False)
    assert_near(draw(model), eagerly(model))


def test_a_model_that_leaves_the_gpu_leaves_nothing_there(model):
    gc.collect()
    torch.cuda.empty_cache()
    expected = draw(model)
    assert len(graphs_of(model.unet)) == 1
    model.to("cpu")
    assert len(graphs_of(model.unet)) == 0
    gc.collect()
    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated()
    model.to("cuda")
    assert_near(draw(model), expected)
    model.to("cpu")
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() <= held + (1 << 20)


def test_sampling_in_inference_mode_and_then_outside(model):
    with torch.inference_mode():
        inside = [draw(model) for _ in range(2)]
    assert_near(draw(model), inside[0])
    assert_near(inside[1], inside[0])


def test_autocast_of_a_float32_model(model):
    with torch.autocast("cuda", torch.bfloat16):
        expected = eagerly(model)
        for _ in range(3):
            torch.testing.assert_close(draw(model), expected, atol=0.05, rtol=0)


def network():
    return torch.nn.Linear(4, 4).to("cuda").requires_grad_(False)


def test_gradients_inside_the_work_are_replayed():
    layer, kept = network(), Graphs()

    def work(x):
        leaf = x.detach().requires_grad_()
        loss = torch.tanh(layer(leaf)).square().sum()
        return loss, torch.autograd.grad(loss, leaf)[0]

    for i in range(5):
        x = torch.randn(3, 4, generator=torch.Generator().manual_seed(i)).to("cuda")
        for found, expected in zip(kept.run("A test", work, [x], [layer]), work(x), strict=True):
            torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=1e-4)
            assert not found.requires_grad
    assert len(kept) == 1


def test_results_are_not_overwritten_by_the_next_replay():
    layer, kept = network(), Graphs()
    results = [
        kept.run("A test", lambda x: (layer(x),), [torch.full((1, 4), float(i)).cuda()], [layer])[0] for i in range(5)
    ]
    for i, result in enumerate(results):
        torch.testing.assert_close(result, layer(torch.full((1, 4), float(i)).cuda()))


@pytest.mark.parametrize("kind", ["waits", "no memory"])
def test_what_cannot_be_recorded_goes_on_and_the_gpu_stays_usable(kind, caplog):
    layer, kept = network(), Graphs()

    def work(x):
        if kind == "waits":
            return (layer(x) * float(x.sum()),)
        if torch.cuda.is_current_stream_capturing():
            raise torch.OutOfMemoryError("no room for a recording")
        return (layer(x),)

    x = torch.ones(2, 4, device="cuda")
    expected = work(x)[0]
    with caplog.at_level(logging.WARNING, logger="invert3d"):
        for _ in range(4):
            torch.testing.assert_close(kept.run("A test", work, [x], [layer])[0], expected)
    assert [record.message for record in caplog.records if "A test is not replayed" in record.message]
    assert len(caplog.records) == 1 and len(kept) == 0
    assert_usable()


def assert_usable():
    """The device still computes, allocates, draws random numbers on its own generator, and records."""
    torch.cuda.empty_cache()
    torch.randn(1000, device="cuda").sum().item()
    torch.nn.functional.dropout(torch.ones(100, device="cuda"), 0.5).sum().item()
    torch.empty(1 << 22, device="cuda").fill_(1).sum().item()
    layer, kept = network(), Graphs()
    for _ in range(3):
        kept.run("Another", lambda x: (layer(x),), [torch.ones(2, 4, device="cuda")], [layer])
    assert len(kept) == 1
    torch.cuda.synchronize()


def test_a_cancel_while_recording_passes_through(model):
    class Stop(BaseException):
        pass

    def stop(*_):
        if torch.cuda.is_current_stream_capturing():
            raise Stop

    handle = model.unet.mid_block.register_forward_pre_hook(stop)
    with pytest.raises(Stop):
        draw(model)
    handle.remove()
    assert_usable()
    assert_near(draw(model), eagerly(model))


def test_another_stream_and_a_hundred_runs_hold_no_more_memory(model):
    expected = draw(model)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        assert_near(draw(model), expected)
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    for seed in range(30):
        draw(model, seed=seed, steps=2)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= held + (1 << 20)
    assert_near(draw(model), expected)


def test_another_allocator_is_announced_once_and_draws_the_same(model, tmp_path):
    """CUDA's asynchronous one, which ComfyUI takes by default."""
    code = (
        "import sys, torch; from tests.gpu.test_graphs import draw, graphs_of, make_model; "
        "model = make_model().to('cuda'); pictures = [draw(model) for _ in range(3)]; "
        "assert len(graphs_of(model.unet)) == 0; torch.save(pictures[-1].cpu(), sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "drawn.pt")],
        env={**os.environ, "PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("with which ComfyUI starts when it is given --disable-cuda-malloc") == 1
    assert_near(torch.load(tmp_path / "drawn.pt"), draw(model).cpu())
    assert graphs.hindrance(model.device) is None


def test_eager_is_eager(model):
    with contextlib.ExitStack() as stack:
        stack.enter_context(graphs.eager())
        for _ in range(2):
            draw(model)
    assert len(graphs_of(model.unet)) == 0
