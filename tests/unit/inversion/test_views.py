import math

import pytest
import torch

from invert3d_core import inversion
from invert3d_core.cameras import Cameras, concatenate, orbit, turn
from invert3d_core.cameras.conversions import to_mvdream
from invert3d_core.cameras.orbits import Numbers
from invert3d_core.errors import TrainingError
from invert3d_core.inversion import ViewSet, orthogonal_sets
from invert3d_core.inversion.views import common_target, fingerprint, model_orbit
from tests.unit.inversion.tiny_model import make_model, make_views

TARGET = (1.0, -2.0, 0.5)


def rig(azimuths: list[float], elevations: Numbers = 10.0, radius: Numbers = 3.0) -> Cameras:
    return orbit(azimuths, elevations, radius, 40.0, 16, 16, target=TARGET)


def test_sets_of_one_ring():
    sets = orthogonal_sets(rig([0.0, 90.0, 180.0, 270.0]))
    assert sets.tolist() == [[0, 1, 2, 3]]
    sets = orthogonal_sets(rig([float(a) for a in range(5, 365, 45)]))
    assert sorted(sets.tolist()) == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_sets_are_found_in_any_order_and_at_any_radius():
    cams = rig([270.0, 0.0, 45.0, 180.0, 90.0], radius=[2.0, 3.0, 4.0, 2.5, 3.0])
    assert orthogonal_sets(cams).tolist() == [[1, 4, 3, 0]]


def test_rings_of_different_elevation_do_not_mix():
    rings = concatenate([rig([0.0, 90, 180, 270], 0.0), rig([0.0, 90, 180, 270], 20.0), rig([0.0, 90], 40.0)])
    assert sorted(orthogonal_sets(rings).tolist()) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_tolerance_of_a_few_degrees_is_allowed():
    assert orthogonal_sets(rig([1.0, 89.0, 181.5, 270.0], [10.0, 11.0, 9.0, 10.0])).tolist() == [[0, 1, 2, 3]]
    with pytest.raises(TrainingError):
        orthogonal_sets(rig([5.0, 90.0, 180.0, 270.0]))


def test_what_is_missing_is_named():
    message = r"No four of the 3 views .* view 0 at azimuth 20°, elevation 10°, lacks partners at azimuth 290°"
    with pytest.raises(TrainingError, match=message):
        orthogonal_sets(rig([20.0, 110.0, 200.0]))
    with pytest.raises(TrainingError, match="azimuth 90°, 180°, 270°"):
        orthogonal_sets(rig([0.0, 30.0, 60.0]))
    with pytest.raises(TrainingError, match="lacks partners"):
        orthogonal_sets(rig([0.0, 90.0, 180.0, 270.0], [0.0, 0.0, 0.0, 20.0]))


def test_the_target_is_where_the_cameras_look():
    torch.testing.assert_close(
        common_target(rig([0.0, 50.0, 200.0])), torch.tensor(TARGET, dtype=torch.float64), atol=1e-5, rtol=0
    )
    with pytest.raises(TrainingError, match="same direction"):
        common_target(Cameras(torch.eye(4).repeat(4, 1, 1), torch.tensor(40.0), 16, 16))


def test_a_bank_of_views_has_the_models_cameras_around_the_target():
    model, views = make_model(), make_views()
    config = inversion.preset("recommended")
    bank = inversion.encode_views(model, views, config)
    centred = orbit(torch.arange(8) * 45.0 + 7.0, 10.0, 3.0, 40.0, 16, 16)
    # The tiny model believes the front to be at azimuth 90.
    torch.testing.assert_close(bank.cameras, to_mvdream(turn(centred, 90.0)), atol=1e-5, rtol=0)
    as_published = inversion.encode_views(model, views, inversion.preset("recommended", align_front=False))
    torch.testing.assert_close(as_published.cameras, to_mvdream(centred), atol=1e-5, rtol=0)
    mean, std = model.encode_images(views.images)
    torch.testing.assert_close(bank.mean, mean)
    torch.testing.assert_close(bank.std, std)
    assert bank.masks[0].tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert sorted(bank.sets.tolist()) == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert not bank.mean.requires_grad


def test_views_of_another_size_are_resized_and_the_input_is_left_alone():
    views = make_views(size=32)
    before = views.cameras.c2w.clone()
    bank = inversion.encode_views(make_model(), views, inversion.preset("recommended"))
    assert bank.mean.shape == (8, 4, 4, 4)
    assert torch.equal(views.cameras.c2w, before)


def test_views_without_masks_are_all_object():
    views = make_views()
    bank = inversion.encode_views(make_model(), ViewSet(views.images, views.cameras), inversion.preset("recommended"))
    assert torch.equal(bank.masks, torch.ones(8, 4, 4))


def test_view_sets_that_do_not_fit_are_refused():
    views = make_views()
    with pytest.raises(TrainingError, match="8 pictures but 4 cameras"):
        ViewSet(views.images, views.cameras[:4])
    with pytest.raises(TrainingError, match="square"):
        ViewSet(views.images[:, :8], views.cameras)
    with pytest.raises(TrainingError, match="masks are"):
        ViewSet(views.images, views.cameras, torch.ones(4, 16, 16))
    with pytest.raises(TrainingError, match="NaN"):
        ViewSet(views.images * math.nan, views.cameras, views.masks)


def test_the_fingerprint_sees_every_part():
    views = make_views()
    bank = inversion.encode_views(make_model(), views, inversion.preset("recommended"))
    prints = {
        fingerprint(views),
        fingerprint(ViewSet(views.images, views.cameras)),
        fingerprint(ViewSet(views.images, turn(views.cameras, 1.0), views.masks)),
        fingerprint(ViewSet(views.images + 1e-3, views.cameras, views.masks)),
        fingerprint(ViewSet(views.images, views.cameras, torch.ones(8, 16, 16))),
        fingerprint(bank),
    }
    assert len(prints) == 6
    assert fingerprint(make_views()) == fingerprint(views)


def test_the_models_own_orbit_frames_a_unit_sphere():
    model = make_model()
    cams = model_orbit(model.info, [0.0, 90.0], 15.0)
    distance = cams.centers.norm(dim=1)
    half_angle = torch.asin(1 / distance)
    expected = model.info.fill * math.tan(math.radians(model.info.fov_y_deg / 2))
    torch.testing.assert_close(torch.tan(half_angle), torch.full((2,), expected))
