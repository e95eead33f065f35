"""The GPU kernels, in triton's interpreter, against PyTorch's operations: forward, and gradients in the activations."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="triton, which comes with PyTorch for Linux, is not installed")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the process that test_in_the_interpreter starts")


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_in_the_interpreter():
    """In a process of its own, since triton decides when it is imported whether it interprets."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", __file__]
    # Without a GPU, where a new model's layers are stock.
    done = subprocess.run(
        command,
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def kernels():
    from invert3d_core.mvdream import kernels

    return kernels


def both_ways(function, *inputs):
    """Results of a function and the gradients of a weighted sum of them in its inputs."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    results = function(*leaves)
    results = results if isinstance(results, tuple) else (results,)
    weights = [torch.linspace(-1, 1, r.numel()).reshape(r.shape) for r in results]
    total = sum((r.float() * w).sum() for r, w in zip(results, weights, strict=True))
    return [r.detach() for r in results] + list(torch.autograd.grad(total, leaves))


def assert_alike(ours, theirs, *inputs, dtype=torch.float32):
    tolerance = {"rtol": 2e-5, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.05}
    for found, expected in zip(both_ways(ours, *inputs), both_ways(theirs, *inputs), strict=True):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        torch.testing.assert_close(found, expected, **tolerance)


def pictures(*shape, dtype=torch.float32):
    return (torch.randn(*shape) * 2 + 0.5).to(dtype).to(memory_format=torch.channels_last)


@interpreted
@pytest.mark.parametrize(
    ("shape", "silu", "added", "dtype"),
    [
        ((2, 64, 4, 4), False, False, torch.float32),
        ((1, 320, 17, 32), True, True, torch.float32),  # more pixels than are taken at once
        ((3, 96, 5, 3), True, False, torch.float32),
        ((3, 96, 5, 3), False, True, torch.float32),
        ((2, 64, 4, 4), True, True, torch.bfloat16),
    ],
)
def test_group_norm(kernels, shape, silu, added, dtype):
    torch.manual_seed(0)
    x, (weight, shift, bias) = pictures(*shape, dtype=dtype), torch.randn(3, shape[1]).to(dtype)
    rows = torch.randn(shape[:2]).to(dtype)

    def ours(x):
        more = {"rows": rows, "bias": bias} if added else {}
        out = kernels.group_norm(x, 32, weight, shift, 1e-5, silu=silu, **more)
        assert out.is_contiguous(memory_format=torch.channels_last)
        return out

    def theirs(x):
        whole = x + rows[:, :, None, None] + bias[:, None, None] if added else x
        out = F.group_norm(whole, 32, weight, shift, 1e-5)
        return F.silu(out) if silu else out

    assert_alike(ours, theirs, x, dtype=dtype)


@interpreted
def test_a_group_norm_adds_up_the_gradients_of_what_it_was_given(kernels):
    torch.manual_seed(6)
    x, (weight, shift) = pictures(2, 64, 4, 4), torch.randn(2, 64)

    def ours(x):
        carried, normal = kernels.carried_group_norm(x, 32, weight, shift, 1e-5, silu=True)
        return carried * 3, normal

    assert_alike(ours, lambda x: (x * 3, F.silu(F.group_norm(x, 32, weight, shift, 1e-5))), x)
    assert_alike(lambda x: ours(x)[0], lambda x: x * 3, x)  # nobody asks for the norm's gradient


@interpreted
def test_rows_of_a_group_norm_may_lie_apart(kernels):
    torch.manual_seed(7)
    x, rows, (weight, shift, bias) = pictures(2, 64, 4, 4), torch.randn(2, 200)[:, 10:74], torch.randn(3, 64)
    found = kernels.group_norm(x, 32, weight, shift, 1e-5, rows=rows, bias=bias)
    expected = F.group_norm(x + (rows + bias)[:, :, None, None], 32, weight, shift, 1e-5)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


@interpreted
def test_group_norm_far_from_zero(kernels):
    """Sums of squares would have no digits left."""
    x = pictures(1, 64, 8, 8) + 5000
    exact = F.group_norm(x.double(), 32, eps=1e-5).float()
    torch.testing.assert_close(
        kernels.group_norm(x, 32, torch.ones(64), torch.zeros(64), 1e-5), exact, atol=2e-3, rtol=0
    )


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [7, 128, 1280])
def test_gelu_gate(kernels, width, dtype):
    torch.manual_seed(1)

    def theirs(x):
        value, gate = x.chunk(2, dim=-1)
        return value * F.gelu(gate)

    assert_alike(kernels.gelu_gate, theirs, torch.randn(2, 3, 2 * width).to(dtype) * 2, dtype=dtype)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quick_gelu(kernels, dtype):
    torch.manual_seed(5)
    x = torch.randn(3, 700).to(dtype) * 3
    assert_alike(kernels.quick_gelu, lambda x: x * torch.sigmoid(1.702 * x), x, dtype=dtype)


@interpreted
def test_sum_with_a_bias(kernels):
    torch.manual_seed(2)
    x, y, bias = pictures(2, 10, 3, 5), pictures(2, 10, 3, 5), torch.randn(10)
    assert_alike(lambda x, y: kernels.add(x, y, bias), lambda x, y: x + y + bias[:, None, None], x, y)
    mixed = y.bfloat16()  # as under autocast
    assert_alike(lambda x, y: kernels.add(x, y, bias), lambda x, y: x + y + bias[:, None, None], x, mixed)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [6, 320, 1280])
def test_sum_and_layer_norm(kernels, size, dtype):
    torch.manual_seed(3)
    x, y = torch.randn(2, 2, 5, size).to(dtype)
    weight, shift = torch.randn(2, size).to(dtype)

    def theirs(x, y):
        return x + y, F.layer_norm(x + y, (size,), weight, shift, 1e-5)

    assert_alike(lambda x, y: kernels.add_norm(x, y, weight, shift, 1e-5), theirs, x, y, dtype=dtype)

    def alone(x):
        return x * 2, F.layer_norm(x, (size,), weight, shift, 1e-5)

    def carried(x):
        same, normal = kernels.add_norm(x, None, weight, shift, 1e-5)
        return same * 2, normal

    assert_alike(carried, alone, x, dtype=dtype)


@interpreted
@pytest.mark.parametrize("with_kernels", [False, True])
def test_a_fused_unet_is_the_stock_one(monkeypatch, with_kernels):
    from invert3d_core.mvdream import fused, kernels
    from tests.unit.inversion.tiny_model import make_model

    monkeypatch.setattr(fused, "_plain", lambda module, x, parts=(): False)
    monkeypatch.setattr(fused, "_kernels", lambda x: kernels if with_kernels else None)
    unet = make_model().unet.to(memory_format=torch.channels_last)
    torch.manual_seed(4)
    latents, text, cameras = torch.randn(2, 4, 4, 4), torch.randn(2, 5, 16), torch.randn(2, 16)

    def drawn(latents, text):
        views = {"num_frames": 2}
        return unet(latents, 500, text, class_labels=cameras, cross_attention_kwargs=views).sample

    assert not {type(module) for module in unet.modules()} & set(fused.FASTER.values())
    expected = both_ways(drawn, latents, text)
    names = set(unet.state_dict())
    fused.fuse(unet)
    kinds = {type(module) for module in unet.modules()}
    assert set(fused.FASTER.values()) - {fused.FusedQuickGELU} <= kinds and set(unet.state_dict()) == names
    for a, b in zip(both_ways(drawn, latents, text), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    fused.unfuse(unet)
    assert not {type(module) for module in unet.modules()} & set(fused.FASTER.values())


@interpreted
def test_a_fused_text_encoder_is_the_stock_one(monkeypatch):
    from invert3d_core.mvdream import fused, kernels
    from tests.unit.inversion.tiny_model import make_model

    monkeypatch.setattr(fused, "_kernels", lambda x: kernels)
    encoder, ids = make_model().text_encoder, torch.arange(12)[None]
    expected = encoder(input_ids=ids).last_hidden_state
    fused.fuse(encoder)
    assert any(type(module) is fused.FusedQuickGELU for module in encoder.modules())
    torch.testing.assert_close(encoder(input_ids=ids).last_hidden_state, expected)
