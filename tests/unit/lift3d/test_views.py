import pytest
import torch

from invert3d_core.cameras import Cameras
from invert3d_core.errors import TrainingError
from invert3d_core.lift3d.views import posed_views
from tests.unit.lift3d.scenes import balls, rig, views


@pytest.mark.parametrize("background", [(1.0, 1.0, 1.0), (0.2, 0.6, 0.1)])
def test_a_rendering_is_taken_apart_exactly(background):
    """With its alpha, a picture over one colour gives the picture over any other."""
    cams = rig()
    images, masks = views(balls(), cams, background)
    taken = posed_views(images, masks, cams)
    torch.testing.assert_close(taken.background, torch.tensor(background), atol=1e-3, rtol=0)
    other = (0.9, 0.1, 0.5)
    found = taken.over(torch.arange(6), torch.tensor(other).expand(6, 3))
    torch.testing.assert_close(found, views(balls(), cams, other)[0], atol=5e-3, rtol=0)


def test_a_photograph_is_cut_out():
    """Nothing is known of what a soft edge shows of an uneven background."""
    cams = rig()
    images = torch.rand(6, 24, 24, 3, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(6, 24, 24)
    masks[:, 8:16, 8:16], masks[:, 7] = 1, 0.25
    taken = posed_views(images, masks, cams)
    torch.testing.assert_close(taken.objects, images * masks[..., None])


def test_without_masks_the_plain_background_is_found():
    cams = rig()
    images, masks = views(balls(), cams, (0.1, 0.1, 0.4))
    taken = posed_views(images, None, cams)
    assert taken.objects is None
    assert torch.equal(taken.masks, taken.masks.round())
    known = taken.certain == 1
    assert 0.6 < float(known.float().mean()) < 0.95
    torch.testing.assert_close(taken.masks[known], masks[known], atol=0.4, rtol=0)
    torch.testing.assert_close(taken.background, torch.tensor([0.1, 0.1, 0.4]))
    assert float((taken.silhouettes == (masks > 0.2)).float().mean()) > 0.95
    torch.testing.assert_close(taken.over(torch.tensor([1]), torch.zeros(1, 3))[0], images[1])


def test_without_masks_and_without_plain_background_everything_counts():
    images = torch.rand(6, 24, 24, 3, generator=torch.Generator().manual_seed(0))
    taken = posed_views(images, None, rig())
    assert taken.silhouettes.all() and not taken.certain.any() and taken.background.tolist() == [0, 0, 0]


def test_cameras_take_the_size_of_the_pictures():
    cams = rig(size=48)
    images, masks = views(balls(), rig(size=24))
    assert (posed_views(images, masks, cams).cameras.width, posed_views(images, masks, cams).cameras.height) == (24, 24)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, m, c: (i[0], m, c), r"expected \(C,H,W,3\)"),
        (lambda i, m, c: (i[:, :8, :8], None, c), "11×11"),
        (lambda i, m, c: (i[:5], m[:5], c), "5 pictures but 6 cameras"),
        (lambda i, m, c: (i[:, :, :20], None, c), "other proportions"),
        (lambda i, m, c: (i, m[:, :20], c), "masks are"),
        (lambda i, m, c: (i, m * 0, c), "masks are empty"),
        (lambda i, m, c: (i / 0, m, c), "pictures hold NaN"),
        (lambda i, m, c: (i, m / 0, c), "masks hold NaN"),
    ],
)
def test_errors(change, message):
    cams = rig()
    images, masks = views(balls(), cams)
    with pytest.raises(TrainingError, match=message):
        posed_views(*change(images, masks, cams))


def test_what_a_host_makes_in_inference_mode_can_be_differentiated_with():
    with torch.inference_mode():
        cams = rig()
        images, masks = views(balls(), cams)
        cams = Cameras(cams.c2w * 1, cams.fov_y_deg * 1, 24, 24)
    taken = posed_views(images, masks, cams)
    assert not any(
        t.is_inference() for t in (taken.images, taken.objects, taken.masks, taken.certain, taken.cameras.c2w)
    )
