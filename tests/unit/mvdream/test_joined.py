"""Linear layers of one input as one matrix product: same results and gradients, weights that stay the layers' own."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.checkpoint import checkpoint

from invert3d_core.mvdream import fused, joined
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


@pytest.fixture
def cross_attention(unet):
    joined.join(unet)
    return next(m for m in unet.modules() if getattr(m, "is_cross_attention", False))


def results(unet):
    torch.manual_seed(0)
    leaves = [torch.randn(shape).requires_grad_() for shape in ((2, 4, 4, 4), (2, 5, 16))]
    views = {"num_frames": 2}
    text = leaves[1] * 1  # as of a text encoder; what waits with a leaf would outlive the pass
    out = unet(leaves[0], 500, text, class_labels=torch.randn(2, 16), cross_attention_kwargs=views).sample
    assert not vars(text)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), leaves)]


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


def joined_layers(network):
    return [module for module in network.modules() if type(module) is joined.JoinedLinear]


@pytest.mark.parametrize("with_faster_blocks", [False, True])
def test_a_joined_unet_is_the_stock_one_in_fewer_products(unet, products, monkeypatch, with_faster_blocks):
    """Stock blocks make a time embedding each: their products cannot be joined, and none may be computed in vain."""
    expected = results(unet)
    if with_faster_blocks:
        monkeypatch.setattr(fused, "_plain", lambda module, x, parts=(): not isinstance(module, fused.FusedResnetBlock))
        fused.fuse(unet)
        # Their 1×1 convolutions are products, too.
        before = [shape for shape in products if shape[1:] != (1,)]
    else:
        before = list(products)
        joined.join(unet)
    products.clear()
    assert_same(results(unet), expected)
    queries_keys_values = len([m for m in unet.modules() if getattr(m, "is_cross_attention", None) is False])
    texts = len([m for m in unet.modules() if getattr(m, "is_cross_attention", False)])
    blocks = [m for m in unet.modules() if getattr(m, "time_emb_proj", None) is not None]
    shortcuts = [m.conv_shortcut for m in blocks if with_faster_blocks and m.conv_shortcut is not None]
    assert queries_keys_values > 1 and texts > 1 and len(blocks) > 1
    fewer = 2 * queries_keys_values + 2 * texts - 1 + (len(blocks) - 1 if with_faster_blocks else 0)
    assert len(products) == len(before) - fewer + len(shortcuts)
    rows = sum(shape[0] for shape in before) + sum(layer.out_channels for layer in shortcuts)
    assert sum(shape[0] for shape in products) == rows
    fused.unfuse(unet)
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


def test_what_is_computed_twice_is_not_joined(unet, products):
    expected = results(unet)
    joined.join(unet)
    assert_same(results(unet), expected)
    unet.enable_gradient_checkpointing()
    assert_same(results(unet.train()), expected)
    unet.disable_gradient_checkpointing()
    for module in [m for m in unet.modules() if hasattr(m, "to_q")]:  # as a stranger might

        def again(*args, usual=module.forward, **kwargs):
            return checkpoint(usual, *args, use_reentrant=False, **kwargs)

        module.forward = again
    assert_same(results(unet), expected)


def test_what_a_pass_left_behind_is_not_mistaken(cross_attention, products):
    """A pass without gradients that broke off must not serve one with them."""
    text = torch.randn(2, 5, 16)
    with torch.no_grad():
        cross_attention.to_k(text)
    text.requires_grad_()
    assert cross_attention.to_v(text).requires_grad


def test_a_leaf_keeps_nothing(cross_attention, products):
    text = torch.randn(2, 5, 16).requires_grad_()
    for layer in (cross_attention.to_k, cross_attention.to_v):
        layer(text).sum().backward()
        assert not vars(text)


@pytest.mark.parametrize("what", ["input", "weight in place", "weight replaced", "weight elsewhere"])
def test_what_changes_while_a_product_waits_counts(cross_attention, products, what):
    text, layer = torch.randn(2, 5, 16), cross_attention.to_v
    with torch.no_grad():
        cross_attention.to_k(text)
        if what == "input":
            text.mul_(2)
        elif what == "weight in place":
            layer.weight.mul_(2)
        elif what == "weight replaced":
            layer.weight = nn.Parameter(layer.weight * 2, requires_grad=False)
        else:
            layer.weight.data = layer.weight * 2
        torch.testing.assert_close(layer(text), text @ layer.weight.T)


def test_threads_do_not_take_each_others_products(cross_attention, products):
    text, found = (torch.randn(2, 5, 16) * 1).detach(), []
    cross_attention.to_k(text)
    thread = threading.Thread(target=lambda: found.append(cross_attention.to_v(text)))
    thread.start()
    thread.join()
    assert len(products) == 2
    torch.testing.assert_close(cross_attention.to_v(text), found[0])
    assert len(products) == 3


def test_a_result_may_be_changed_in_place(cross_attention, products):
    leaf = torch.randn(2, 5, 16).requires_grad_()
    text = leaf * 1
    keys, values = cross_attention.to_k(text).mul_(2), cross_attention.to_v(text)
    (found,) = torch.autograd.grad((keys.sum() + values.sum()), leaf)
    torch.testing.assert_close(
        found, (2 * cross_attention.to_k.weight.sum(0) + cross_attention.to_v.weight.sum(0)).expand_as(found)
    )


def test_layers_do_not_hold_each_other(unet, products):
    joined.join(unet)
    expected = results(unet)
    layer = joined_layers(unet)[0]
    alone = copy.deepcopy(layer)
    x = torch.randn(3, layer.in_features)
    torch.testing.assert_close(alone(x), x @ layer.weight.T)
    assert len(pickle.dumps(alone)) < 4 * layer.weight.nbytes + 4096
    copy.copy(layer)  # whose weights are the layer's own
    few = len(products)
    products.clear()
    assert_same(results(unet), expected)
    assert len(products) <= few


def test_a_dropped_layer_is_freed_at_once(products):
    attention = nn.Module()
    for name in ("q_proj", "k_proj", "v_proj"):
        setattr(attention, name, nn.Linear(4, 4).requires_grad_(False))
    joined.join(attention)
    attention.k_proj(torch.ones(1, 4))
    gone = [weakref.ref(layer) for layer in attention.children()]
    gc.disable()  # nothing to wait for
    try:
        del attention
        assert [layer() for layer in gone] == [None] * 3
    finally:
        gc.enable()


def test_memory_that_is_full_is_asked_once(unet, products, monkeypatch):
    expected = results(unet)
    joined.join(unet)
    asked, stock = [], len(products)

    def lay(weights):
        asked.append(weights)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(joined, "_lay_side_by_side", lay)
    for _ in range(2):
        products.clear()
        assert_same(results(unet), expected)
        assert len(products) == stock
    groups = {layer._together for layer in joined_layers(unet) if not layer._together._shared_only}
    assert len(asked) == len(groups) > 1


def test_weights_without_an_address_are_left_alone(cross_attention, products):
    text, layer = torch.randn(2, 5, 16), cross_attention.to_v
    weight = torch.randn_like(layer.weight)
    found = torch.func.functional_call(layer, {"weight": weight}, text)
    torch.testing.assert_close(found, text @ weight.T)
    found = torch.func.vmap(lambda w: torch.func.functional_call(layer, {"weight": w}, text))(weight[None])
    torch.testing.assert_close(found[0], text @ weight.T)


def test_passes_of_two_threads_keep_their_own_pictures(unet, monkeypatch):
    monkeypatch.setattr(fused, "_plain", lambda module, x, parts=(): False)
    fused.fuse(unet)
    transformer = next(m for m in unet.modules() if type(m) is fused.FusedTransformer)
    width = transformer.norm.num_channels
    pictures = [torch.full((1, width, 2, 2), float(value)) for value in (1, 2)]
    tokens = [transformer._operate_on_continuous_inputs(picture)[0] for picture in pictures]
    for picture, of in zip(pictures, tokens, strict=True):
        sizes = dict.fromkeys(("batch_size", "height", "width", "inner_dim"), 0)
        found = transformer._get_output_for_continuous_inputs(torch.zeros_like(of), picture, **sizes)
        torch.testing.assert_close(found, picture + transformer.proj_out.bias[:, None, None])


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
