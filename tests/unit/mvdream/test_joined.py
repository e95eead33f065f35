"""Linear layers of one input as one matrix product: same results and gradients, weights that stay the layers' own."""

import copy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from invert3d_core.mvdream import joined
from tests.unit.inversion.tiny_model import make_model


@pytest.fixture
def products(monkeypatch):
    """Shapes of the weights that `F.linear` is called with, on a device where joining is worth it."""
    monkeypatch.setattr(joined, "_worth_it", lambda x: True)
    shapes = []
    usual = F.linear

    def linear(x, weight, bias=None):
        shapes.append(tuple(weight.shape))
        return usual(x, weight, bias)

    monkeypatch.setattr(F, "linear", linear)
    return shapes


@pytest.fixture
def unet():
    return make_model().unet


def results(unet):
    torch.manual_seed(0)
    leaves = [torch.randn(shape).requires_grad_() for shape in ((2, 4, 4, 4), (2, 5, 16))]
    views = {"num_frames": 2}
    out = unet(leaves[0], 500, leaves[1], class_labels=torch.randn(2, 16), cross_attention_kwargs=views).sample
    return [out.detach(), *torch.autograd.grad(out.square().sum(), leaves)]


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


def joined_layers(network):
    return [module for module in network.modules() if type(module) is joined.JoinedLinear]


def test_a_joined_unet_is_the_stock_one_in_fewer_products(unet, products):
    expected, stock = results(unet), len(products)
    joined.join(unet)
    products.clear()
    assert_same(results(unet), expected)
    queries_keys_values = len([m for m in unet.modules() if getattr(m, "is_cross_attention", None) is False])
    texts = len([m for m in unet.modules() if getattr(m, "is_cross_attention", False)])
    times = len([m for m in unet.modules() if hasattr(m, "time_emb_proj")])
    assert queries_keys_values > 1 and texts > 1 and times > 1
    assert len(products) == stock - 2 * queries_keys_values - (2 * texts - 1)
    joined.separate(unet)
    assert not joined_layers(unet)
    assert_same(results(unet), expected)


def test_a_joined_text_encoder_is_the_stock_one(products):
    encoder, ids = make_model().text_encoder, torch.arange(12)[None]
    expected, stock = encoder(input_ids=ids).last_hidden_state, len(products)
    joined.join(encoder)
    products.clear()
    torch.testing.assert_close(encoder(input_ids=ids).last_hidden_state, expected)
    assert len(products) == stock - 2 * encoder.config.num_hidden_layers


def test_weights_stay_the_layers_own(unet, products, tmp_path):
    expected = results(unet)
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    joined.join(unet)
    results(unet)
    layer = joined_layers(unet)[0]
    assert layer.weight.untyped_storage().nbytes() > layer.weight.numel() * 4
    assert all(torch.equal(weight, before[name]) for name, weight in unet.state_dict().items())
    save_file(unet.state_dict(), tmp_path / "unet.safetensors")
    assert all(torch.equal(weight, before[name]) for name, weight in load_file(tmp_path / "unet.safetensors").items())
    with torch.no_grad():  # as a host's patches do
        layer.weight.mul_(2)
    assert not torch.allclose(results(unet)[0], expected[0])
    layer.weight.data = before[next(n for n, m in unet.named_modules() if m is layer) + ".weight"].clone()
    assert_same(results(unet), expected)


def test_networks_that_are_moved_or_copied_are_joined_again(unet, products):
    joined.join(unet)
    expected = results(unet)
    few = len(products)
    for other in (copy.deepcopy(unet), unet.double().float()):
        products.clear()
        assert_same(results(other), expected)
        assert len(products) == few
    copied = copy.deepcopy(unet)
    with torch.no_grad():
        joined_layers(copied)[0].weight.zero_()
    assert_same(results(unet), expected)


def test_weights_that_train_are_left_alone(unet, products):
    expected = results(unet)
    joined.join(unet)
    stock = len(products)
    products.clear()
    unet.requires_grad_(True)
    assert_same(results(unet), expected)
    assert len(products) == stock
    layer = joined_layers(unet)[0]
    out = layer(torch.ones(1, layer.in_features)).sum()
    assert torch.autograd.grad(out, layer.weight)[0].abs().sum() > 0


def test_layers_of_blocks_that_are_computed_twice_are_joined_within_them_alone(unet, products):
    expected = results(unet)
    joined.join(unet)
    unet.enable_gradient_checkpointing()
    assert_same(results(unet.train()), expected)


def test_what_a_pass_left_behind_is_not_mistaken(unet, products):
    """A pass without gradients that broke off must not serve one with them."""
    joined.join(unet)
    attention = next(m for m in unet.modules() if getattr(m, "is_cross_attention", False))
    text = torch.randn(2, 5, 16)
    with torch.no_grad():
        attention.to_k(text)
    text.requires_grad_()
    assert attention.to_v(text).requires_grad


def test_layers_of_different_kinds_are_not_joined():
    class Attention(nn.Module):
        def __init__(self, **kinds):
            super().__init__()
            for name in ("to_q", "to_k", "to_v"):
                setattr(self, name, kinds.get(name, nn.Linear(4, 4)))

    for layer in (nn.Linear(4, 4, bias=False), nn.Linear(6, 4), nn.Identity()):
        network = Attention(to_k=layer)
        joined.join(network)
        assert not joined_layers(network)
