import pytest
import torch

from invert3d_core import lift3d
from invert3d_core.splats import GaussianSplats
from tests.unit.lift3d.scenes import C0, rig, views

FEW = lift3d.preset("consistency", splats=120, max_splats=120, steps=40)
COUNT = 200


def ball(radius: float, color: tuple[float, float, float]) -> GaussianSplats:
    directions = torch.nn.functional.normalize(
        torch.randn(COUNT, 3, generator=torch.Generator().manual_seed(1)), dim=-1
    )
    return GaussianSplats(
        radius * directions,
        torch.full((COUNT, 3), radius / 6),
        torch.tensor([[1.0, 0, 0, 0]]).expand(COUNT, 4),
        torch.full((COUNT, 1), 0.95),
        ((torch.tensor(color) - 0.5) / C0).expand(COUNT, 1, 3),
    )


def test_views_of_one_object_score_far_above_views_of_different_ones():
    cams = rig(4, 20)
    colors = ((0.9, 0.1, 0.1), (0.1, 0.7, 0.1), (0.1, 0.1, 0.9), (0.1, 0.1, 0.1))
    one = views(ball(0.6, colors[0]), cams)[0]
    different = [views(ball(0.4 + 0.15 * i, color), cams[i])[0] for i, color in enumerate(colors)]
    consistent, mixed = (lift3d.view_consistency(images, cams, FEW) for images in (one, torch.cat(different)))
    assert consistent > mixed + 4
    assert consistent > 20


def test_it_refuses_settings_that_show_each_camera_what_it_wants():
    cams = rig(4, 20)
    images = views(ball(0.6, (0.9, 0.1, 0.1)), cams)[0]
    for changes in ({"sh_degree": 1}, {"density": "adaptive"}):
        with pytest.raises(ValueError, match="expected 0 and 'fixed'"):
            lift3d.view_consistency(images, cams, lift3d.preset("consistency", **changes))
