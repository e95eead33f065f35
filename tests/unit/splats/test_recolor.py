import numpy as np
import pytest
import torch

from invert3d_core.rendering import rasterize
from invert3d_core.splats import recolor
from invert3d_core.splats.recolor import (
    LUMA,
    ColorStatistics,
    adjust_colors,
    apply_color_matrix,
    base_colors,
    image_statistics,
    match_colors,
    splat_statistics,
    tint,
)
from invert3d_core.splats.spherical_harmonics import evaluate
from tests.unit.rendering.scenes import built_of, cloud, one, rig, tensors_of


def color_of(g):
    return tuple(round(value, 4) for value in base_colors(g)[0].tolist())


def seen_from(g, direction):
    directions = torch.nn.functional.normalize(torch.tensor([direction]), dim=1).expand(len(g), 3)
    return evaluate(g.sh, directions, g.degree) + 0.5


def test_a_matrix_holds_from_every_direction():
    g, matrix, offset = (
        cloud(50, degree=4),
        torch.randn(3, 3, generator=torch.Generator().manual_seed(1)),
        (0.1, 0, -0.2),
    )
    changed = apply_color_matrix(g, matrix, offset)
    for direction in ((1.0, 2, 3), (-1.0, 0.5, 0), (0.0, 0, -1)):
        expected = seen_from(g, direction) @ matrix.T + torch.tensor(offset)
        torch.testing.assert_close(seen_from(changed, direction), expected, rtol=0, atol=1e-5)


def test_turning_hues_by_thirds_moves_the_primaries():
    red, green, blue = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
    assert color_of(adjust_colors(one(rgb=red), hue_deg=120)) == green
    assert color_of(adjust_colors(one(rgb=green), hue_deg=120)) == blue
    assert color_of(adjust_colors(one(rgb=red), hue_deg=-120)) == blue
    assert color_of(adjust_colors(one(rgb=(0.3, 0.3, 0.3)), hue_deg=77)) == (0.3, 0.3, 0.3)


def test_hues_compose():
    g = cloud(30, degree=2)
    twice = adjust_colors(adjust_colors(g, hue_deg=50), hue_deg=-20)
    torch.testing.assert_close(twice.sh, adjust_colors(g, hue_deg=30).sh, rtol=0, atol=1e-5)
    torch.testing.assert_close(adjust_colors(g, 360).sh, g.sh, rtol=0, atol=1e-5)


def test_saturation_and_value_by_hand():
    color = (0.8, 0.4, 0.2)
    luma = sum(part * share for part, share in zip(color, LUMA, strict=True))
    assert color_of(adjust_colors(one(rgb=color), saturation=0)) == (round(luma, 4),) * 3
    assert color_of(adjust_colors(one(rgb=color), value=0.5)) == (0.4, 0.2, 0.1)
    assert color_of(adjust_colors(one(rgb=color))) == color


def test_tint_by_hand():
    blue = (0.2, 0.4, 0.9)
    assert color_of(tint(one(rgb=(1.0, 1.0, 1.0)), blue)) == blue
    assert color_of(tint(one(rgb=(0.5, 0.5, 0.5)), blue)) == (0.1, 0.2, 0.45)
    assert color_of(tint(one(rgb=(0.0, 0.0, 0.0)), blue)) == (0, 0, 0)
    assert color_of(tint(one(rgb=(0.8, 0.4, 0.2)), blue, 0)) == (0.8, 0.4, 0.2)
    assert color_of(tint(one(rgb=(1.0, 1.0, 1.0)), blue, 0.5)) == (0.6, 0.7, 0.95)


def test_a_recolored_picture_is_the_picture_recolored():
    """Where nothing is black or cut off, the change of the splats is the change of the pixels, of every view."""
    g = cloud(60, degree=2)
    g = built_of([*tensors_of(g)[:4], 0.2 * g.sh])
    grey = torch.tensor([0.0, 0.0, 0.0])
    before, after = (rasterize(h, rig(), grey).color for h in (g, tint(g, (0.9, 0.5, 0.7), 0.8)))
    toward = torch.outer(torch.tensor([0.9, 0.5, 0.7]), torch.tensor(LUMA))
    expected = before @ (0.8 * toward + 0.2 * torch.eye(3)).T
    assert (after - before).abs().max() > 0.05
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-5)


def test_matched_splats_have_the_statistics_of_the_target():
    generator = torch.Generator().manual_seed(4)
    mixed = torch.rand(400, 3, generator=generator) @ torch.rand(3, 3, generator=generator) / 3 + 0.1
    target = ColorStatistics.of(mixed)
    g = cloud(300, degree=1)
    g = built_of([*tensors_of(g)[:4], 0.3 * g.sh])  # no colour is cut off
    found = splat_statistics(match_colors(g, target))
    torch.testing.assert_close(found.mean, target.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.covariance, target.covariance, rtol=0.02, atol=1e-4)
    half = splat_statistics(match_colors(g, target, 0.5))
    torch.testing.assert_close(half.mean, (target.mean + splat_statistics(g).mean) / 2, rtol=0, atol=1e-5)
    torch.testing.assert_close(match_colors(g, target, 0).sh, g.sh, rtol=0, atol=1e-6)
    torch.testing.assert_close(match_colors(g, splat_statistics(g)).sh, g.sh, rtol=0, atol=1e-4)


def test_one_color_takes_another_and_explodes_not():
    plain = one(rgb=(0.7, 0.2, 0.2))
    assert color_of(match_colors(plain, ColorStatistics.of(torch.tensor([[0.1, 0.5, 0.3]])))) == (0.1, 0.5, 0.3)
    colorful = ColorStatistics.of(torch.rand(100, 3, generator=torch.Generator().manual_seed(1)))
    matched = match_colors(plain, colorful)
    torch.testing.assert_close(base_colors(matched)[0].double(), colorful.mean, rtol=0, atol=1e-5)


def test_large_splats_count_more():
    g = cloud(2)
    g = built_of(
        [
            g.positions,
            torch.tensor([[3.0, 3, 1], [1, 1, 1]]),
            g.rotations,
            torch.ones(2, 1),
            torch.tensor([[[1.0] * 3], [[0.0] * 3]]),
        ]
    )
    torch.testing.assert_close(splat_statistics(g).mean.float(), base_colors(g)[0] * 0.9 + base_colors(g)[1] * 0.1)
    giant = built_of([g.positions, torch.tensor([[1.0] * 3, [1e30] * 3]), *tensors_of(g)[2:]])
    torch.testing.assert_close(splat_statistics(giant).mean.float(), base_colors(g)[1])


def test_statistics_of_many_colors_are_taken_in_parts(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    colors, weights = torch.rand(1000, 3, generator=generator), torch.rand(1000, generator=generator)
    whole = ColorStatistics.of(colors, weights)
    monkeypatch.setattr(recolor, "CHUNK", 64)
    parts = ColorStatistics.of(colors, weights)
    torch.testing.assert_close(parts.mean, whole.mean)
    torch.testing.assert_close(parts.covariance, whole.covariance)
    expected = torch.from_numpy(np.cov(colors.numpy().T.astype(float), aweights=weights.numpy(), ddof=0))
    torch.testing.assert_close(whole.covariance, expected, rtol=0, atol=1e-7)


def test_statistics_of_a_picture_are_those_of_its_masked_pixels():
    picture = torch.zeros(1, 4, 4, 3)
    picture[:, :2] = torch.tensor([0.2, 0.4, 0.6])
    mask = torch.zeros(1, 4, 4)
    mask[:, :2] = 1
    found = image_statistics(picture, mask)
    torch.testing.assert_close(found.mean.float(), torch.tensor([0.2, 0.4, 0.6]))
    assert found.covariance.abs().max() < 1e-12
    torch.testing.assert_close(image_statistics(picture).mean.float(), torch.tensor([0.1, 0.2, 0.3]))
    with pytest.raises(ValueError, match=r"the mask has shape \(1, 4, 3\), expected \(1, 4, 4\)"):
        image_statistics(picture, mask[..., :3])
    with pytest.raises(ValueError, match="of 16 colours none counts"):
        image_statistics(picture, torch.zeros(1, 4, 4))


def test_gradients_go_through():
    sh = cloud(6, degree=1).sh.clone().requires_grad_()
    g = built_of([*tensors_of(cloud(6))[:4], sh])
    target = ColorStatistics.of(torch.rand(50, 3, generator=torch.Generator().manual_seed(2)))
    match_colors(tint(adjust_colors(g, 30, 0.5, 1.2), (0.1, 0.2, 0.3), 0.4), target).sh.square().sum().backward()
    assert sh.grad.isfinite().all() and sh.grad.abs().sum() > 0
