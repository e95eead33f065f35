"""On a real GPU: the faster layers do what the stock ones do."""

import pytest
import torch

from invert3d_core.mvdream import fused
from tests.unit.inversion.tiny_model import make_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernels_work_where_triton_is(dtype):
    pytest.importorskip("triton")
    assert fused._tried(torch.device("cuda", 0), dtype) is not None


@pytest.mark.parametrize("with_kernels", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_networks_are_the_stock_ones(monkeypatch, dtype, with_kernels):
    if not with_kernels:
        monkeypatch.setattr(fused, "_kernels", lambda x: None)
    model = make_model(width=64).to("cuda", dtype)
    torch.manual_seed(0)
    latents, cameras = (torch.randn(4, n, device="cuda", dtype=dtype) for n in (4 * 8 * 8, 16))
    text = torch.randn(4, 5, 64, device="cuda", dtype=dtype)

    def drawn():
        leaves = [tensor.clone().requires_grad_() for tensor in (latents.view(4, 4, 8, 8), text)]
        options = {"class_labels": cameras, "cross_attention_kwargs": {"num_frames": 4}}
        out = model.unet(leaves[0], 500, leaves[1], **options).sample
        words = model.text_encoder(input_ids=torch.arange(12, device="cuda")[None]).last_hidden_state
        return [out.detach(), words.detach(), *torch.autograd.grad((out.float() ** 3).sum(), leaves)]

    found = drawn()
    stock = {faster: kind for kind, faster in fused.FASTER.items()}
    changed = 0
    for network in (model.unet, model.text_encoder):
        for module in network.modules():
            if type(module) in stock:
                module.__class__ = stock[type(module)]
                changed += 1
    assert changed > 20
    for a, b in zip(found, drawn(), strict=True):
        assert float((a - b).float().norm() / b.float().norm()) < (1e-4 if dtype == torch.float32 else 0.05)
