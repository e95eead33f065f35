import dataclasses
from typing import Any

import pytest
import torch
from torch.nn import functional

from invert3d_core.errors import FormatError
from invert3d_core.splats import GaussianSplats


def fields(count=5, degree=1, seed=0) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    return {
        "positions": torch.randn(count, 3, generator=g),
        "scales": torch.rand(count, 3, generator=g),
        "rotations": functional.normalize(torch.randn(count, 4, generator=g), dim=1),
        "opacities": torch.rand(count, 1, generator=g),
        "sh": torch.randn(count, (degree + 1) ** 2, 3, generator=g),
    }


@pytest.mark.parametrize("degree", range(5))
def test_what_it_says_of_itself(degree):
    g = GaussianSplats(**fields(degree=degree))
    assert (len(g), g.degree, g.device.type) == (5, degree, "cpu")
    assert repr(g) == f"GaussianSplats(5 splats, SH degree {degree}, cpu)"


def test_flat_opacities_become_a_column_and_doubles_become_floats():
    given = fields()
    g = GaussianSplats(**(given | {"opacities": given["opacities"][:, 0].double()}))
    assert g.opacities.shape == (5, 1)
    assert g.opacities.dtype == torch.float32
    assert torch.equal(g.opacities, given["opacities"])


def test_no_splats_are_splats():
    g = GaussianSplats(**{name: t[:0] for name, t in fields().items()})
    assert len(g) == 0
    assert g.covariances().shape == (0, 3, 3)


def test_it_is_frozen():
    g = GaussianSplats(**fields())
    with pytest.raises(dataclasses.FrozenInstanceError):
        g.positions = torch.zeros(5, 3)  # type: ignore[misc]


def test_a_gradient_reaches_every_field():
    given = {name: t.requires_grad_() for name, t in fields().items()}
    g = GaussianSplats(**given)
    loss = g.covariances().square().sum() + g.positions.sum() + g.opacities.sum() + g.sh.sum()
    loss.backward()
    for name, t in given.items():
        assert t.grad is not None, name
        assert t.grad.abs().sum() > 0, name


def test_covariance_by_hand():
    g = GaussianSplats(
        torch.zeros(1, 3),
        torch.tensor([[0.1, 0.2, 0.3]]),
        torch.tensor([[0.8, 0.2, -0.4, 0.4]]),
        torch.ones(1, 1),
        torch.zeros(1, 1, 3),
    )
    xx, xy, xz, yy, yz, zz = 0.047632, 0.010176, -0.023040, 0.053568, -0.030720, 0.038800
    expected = torch.tensor([[[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]])
    torch.testing.assert_close(g.covariances(), expected, rtol=0, atol=1e-7)


def test_to_another_device_and_nowhere():
    g = GaussianSplats(**fields(), comment="kept")
    assert g.to("cpu") is g
    moved = g.to("meta")
    assert moved.device.type == moved.sh.device.type == "meta"
    assert (len(moved), moved.comment) == (5, "kept")


@pytest.mark.parametrize(
    ("comment", "axes"),
    [
        ('a cup, up="+y", front="+z"', ("+y", "+z")),
        ('front="-x"\nwritten by hand\nup="-y"', ("-y", "-x")),
        ('up="+y"', None),
        ('up="+y", front="-y"', None),
        ('group="+y", affront="+z"', None),
        ("Vertical Axis: y", None),
        ("", None),
    ],
)
def test_stated_axes(comment, axes):
    assert GaussianSplats(**fields(), comment=comment).stated_axes == axes


def changed(name, value) -> dict[str, Any]:
    return {**fields(), name: value}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (changed("positions", torch.zeros(5, 2)), r"positions have shape \(5, 2\); expected \(N,3\)"),
        (changed("positions", torch.tensor(1.0)), r"positions have shape \(\); expected \(N,3\)"),
        (changed("scales", torch.zeros(4, 3)), r"scales have shape \(4, 3\); expected \(5,3\)"),
        (changed("rotations", torch.zeros(5, 3)), r"rotations have shape \(5, 3\); expected \(5,4\)"),
        (changed("opacities", torch.zeros(5, 2)), r"opacities have shape \(5, 2\); expected \(5,1\)"),
        (
            changed("sh", torch.zeros(5, 3, 4)),
            r"sh have shape \(5, 3, 4\); expected \(5,K,3\) with K = 1, 4, 9, 16, 25",
        ),
        (changed("sh", torch.zeros(5, 3)), r"sh have shape \(5, 3\)"),
        (changed("positions", [[0.0, 0, 0]] * 5), "positions must be a floating-point torch tensor, found list"),
        (
            changed("scales", torch.ones(5, 3).int()),
            "scales must be a floating-point torch tensor, found of torch.int32",
        ),
        (changed("sh", torch.zeros(5, 4, 3, device="meta")), "spread over cpu, meta. Move them to one device"),
        (changed("comment", None), "comment of splats must be text, found NoneType"),
    ],
)
def test_wrong_shapes_and_types(given, message):
    with pytest.raises(FormatError, match=message):
        GaussianSplats(**given)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["positions", "scales", "rotations", "opacities", "sh"])
def test_values_that_are_not_finite(name, value):
    given = fields()
    given[name].view(5, -1)[3, 0] = value
    with pytest.raises(FormatError, match=f"The {name} of 1 of 5 splats hold NaN or infinite .* first is splat 3"):
        GaussianSplats(**given)
    assert len(GaussianSplats(**given, check_values=False)) == 5


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("scales", -4.0, "scales of 1 of 5 splats hold negative values; the first is splat 2. They are linear"),
        ("opacities", -0.1, r"opacities of 1 of 5 splats hold values outside \[0,1\].* not logits"),
        ("opacities", 1.1, r"opacities of 1 of 5 splats hold values outside \[0,1\]"),
    ],
)
def test_values_that_are_not_activated(name, value, message):
    given = fields()
    given[name][2, 0] = value
    with pytest.raises(FormatError, match=message):
        GaussianSplats(**given)


def test_finite_values_whose_sum_is_not_are_fine():
    assert len(GaussianSplats(**changed("positions", torch.full((5, 3), 3e38)))) == 5
