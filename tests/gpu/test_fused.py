"""On a real GPU: the faster layers do what the stock ones do."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from invert3d_core.mvdream import fused, joined
from tests.unit.inversion.tiny_model import make_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make_stock(*networks):
    changed = [module for network in networks for module in network.modules() if type(module) in fused.FASTER.values()]
    for network in networks:
        fused.unfuse(network)
    return len(changed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernels_work_where_triton_is(dtype):
    pytest.importorskip("triton")
    assert fused._kernels(torch.zeros(1, device="cuda", dtype=dtype)) is not None


@pytest.mark.parametrize("with_kernels", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_networks_are_as_near_to_the_exact_result_as_stock_ones(monkeypatch, dtype, with_kernels):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # three digits, in stock 1×1 convolutions
    if not with_kernels:
        monkeypatch.setattr(fused, "_kernels", lambda x: None)
    torch.manual_seed(0)
    latents, cameras, text = (torch.randn(4, *shape, device="cuda") for shape in ((4, 8, 8), (16,), (5, 64)))

    def results(model):
        leaves = [tensor.to(model.dtype).requires_grad_() for tensor in (latents, text)]
        options = {"class_labels": cameras.to(model.dtype), "cross_attention_kwargs": {"num_frames": 4}}
        # Not the leaf: products of the text are computed together only where they do not outlive the pass.
        with joined.together():
            out = model.unet(leaves[0], 500, leaves[1] * 1, **options).sample
            words = model.text_encoder(input_ids=torch.arange(12, device="cuda")[None]).last_hidden_state
        return [out.detach(), words.detach(), *torch.autograd.grad(out.float().square().sum(), leaves)]

    exact_model, model = make_model(width=64).to("cuda", torch.float64), make_model(width=64).to("cuda", dtype)
    make_stock(exact_model.unet, exact_model.text_encoder)
    exact, found = results(exact_model), results(model)
    assert make_stock(model.unet, model.text_encoder) > 20
    for ours, theirs, right in zip(found, results(model), exact, strict=True):
        error, usual = (float((x.double() - right).norm() / right.norm()) for x in (ours, theirs))
        # Eight bits go through a network by chance: what is wrong shows in float32.
        assert error < (1.2 if dtype == torch.float32 else 3) * usual + 1e-6


@pytest.fixture
def unet(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return make_model(width=64).to("cuda").unet


def predictions(unet, seed, repeats=1):
    """Predictions for inputs of a seed, and the gradients to the latents."""
    generator = torch.Generator("cuda").manual_seed(seed)
    latents, cameras, text = (
        torch.randn(4, *shape, device="cuda", generator=generator) for shape in ((4, 8, 8), (16,), (5, 64))
    )
    options = {"class_labels": cameras, "cross_attention_kwargs": {"num_frames": 4}, "return_dict": False}
    found = []
    for _ in range(repeats):
        leaf = latents.clone().requires_grad_()
        with joined.together():
            (out,) = unet(leaf, torch.tensor(500, device="cuda"), text, **options)
        out.square().sum().backward()
        found += [out.detach(), leaf.grad]
    return found


def assert_near(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() < 1e-4 * b.norm()


def test_threads_in_one_network_do_not_disturb_each_other(unet):
    repeats = 20
    expected = [repeats * predictions(unet, seed) for seed in range(2)]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda seed: predictions(unet, seed, repeats), range(2)))
    for ours, right in zip(found, expected, strict=True):
        assert_near(ours, right)


def test_a_compiler_takes_whole_networks(unet):
    expected = predictions(unet, 0)
    assert_near(predictions(torch.compile(unet, fullgraph=True, backend="aot_eager"), 0), expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_parts_may_be_computed_twice(unet, reentrant):
    expected = predictions(unet, 0)
    for module in [m for m in unet.modules() if hasattr(m, "to_q") or hasattr(m, "time_emb_proj")]:

        def again(*args, usual=module.forward, **kwargs):
            return checkpoint(lambda x: usual(x, *args[1:], **kwargs), args[0], use_reentrant=reentrant)

        module.forward = again
    assert_near(predictions(unet, 0), expected)
