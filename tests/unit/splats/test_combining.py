import pytest
import torch

from invert3d_core.errors import FormatError
from invert3d_core.rendering import rasterize
from invert3d_core.splats.combining import gain, merge, with_degree
from tests.unit.rendering.scenes import built_of, cloud, one, rig, tensors_of


def test_merged_splats_are_all_of_them_in_order():
    parts = [cloud(20, 1, degree=1), cloud(30, 2, degree=3), cloud(10, 3)]
    g = merge(parts)
    assert (len(g), g.degree) == (60, 3)
    assert torch.equal(g.positions, torch.cat([part.positions for part in parts]))
    assert torch.equal(g.sh[:20, :4], parts[0].sh) and (g.sh[:20, 4:] == 0).all()
    assert torch.equal(g.sh[50:, :1], parts[2].sh)
    assert merge(parts[:1]).sh is not None and len(merge(parts[:1])) == 20
    first = type(g)(*tensors_of(parts[0]), comment="first")
    assert merge([first, parts[1]]).comment == "first"
    with pytest.raises(ValueError, match="no splats were given"):
        merge([])


def test_zeros_of_higher_degree_show_nothing():
    g = cloud(40, degree=1)
    torch.testing.assert_close(rasterize(with_degree(g, 4), rig()).color, rasterize(g, rig()).color)


def test_truncated_splats_look_as_drawn_to_that_degree():
    g = cloud(40, degree=3)
    for degree in range(3):
        lower = with_degree(g, degree)
        assert lower.degree == degree
        assert torch.equal(rasterize(lower, rig()).color, rasterize(g, rig(), sh_degree=degree).color)
    assert with_degree(g, 3) is g
    assert lower.sh.untyped_storage().nbytes() == lower.sh.nbytes, "the memory of what was left out is free"
    with pytest.raises(FormatError, match="degree 5 are not supported"):
        with_degree(g, 5)


def test_gain_by_hand():
    g = gain(one(scale=0.2, opacity=0.4), opacity=2.0, scale=0.5)
    assert (float(g.opacities), float(g.scales[0, 0])) == (pytest.approx(0.8), pytest.approx(0.1))
    assert float(gain(g, opacity=100).opacities) == 1
    assert float(gain(g, opacity=0).opacities) == 0
    for wrong in ({"opacity": -1.0}, {"scale": -0.1}, {"scale": float("nan")}, {"opacity": float("inf")}):
        with pytest.raises(ValueError, match="expected finite factors of at least 0"):
            gain(g, **wrong)


def test_gradients_go_through():
    leaves = [tensor.clone().requires_grad_() for tensor in tensors_of(cloud(5, degree=1))]
    factor = torch.tensor(0.5, requires_grad=True)
    g = gain(with_degree(merge([built_of(leaves), cloud(3)]), 2), factor, factor)
    torch.stack([tensor.sum() for tensor in tensors_of(g)]).sum().backward()
    assert all(tensor.grad is not None for tensor in (*leaves, factor))
