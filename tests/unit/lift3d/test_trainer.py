import pytest
import torch

from invert3d_core import lift3d, metrics, splats
from invert3d_core.cameras import Cameras, Orientation, concatenate
from invert3d_core.errors import TrainingError
from invert3d_core.lift3d import checkpoint, trainer
from invert3d_core.progress import Cancelled, StopAndKeep
from invert3d_core.rendering import rasterize
from tests.unit.lift3d.scenes import balls, rig, tiny, views

FIELDS = ("positions", "scales", "rotations", "opacities", "sh")


@pytest.fixture(scope="module")
def seen():
    cams = rig()
    return *views(balls(), cams), cams


def same(first, second):
    return all(torch.equal(getattr(first.splats, name), getattr(second.splats, name)) for name in FIELDS)


def stopping_at(last: int, error: type[Exception] = Cancelled):
    def progress(step, total, *, metrics=None, preview=None):
        if metrics is not None and step == last:
            raise error

    return progress


@pytest.mark.parametrize(("masked", "reached"), [(True, 30), (False, 21)])  # backgrounds that change teach more
def test_a_known_splat_is_found_again_in_views_that_were_not_shown(masked, reached):
    cams = concatenate([rig(6, 32, elevation) for elevation in (-20.0, 30.0)])
    images, masks = views(balls(), cams)
    config = lift3d.preset("recommended", splats=250, max_splats=400, steps=100, refine_from=20, refine_every=20)
    result = lift3d.fit_splats(images, masks if masked else None, cams, config)
    held = rig(3, 32, elevation=10.0, start=20.0)
    truth = views(balls(), held)[0]
    drawn = views(result.splats, held)[0]
    assert float(metrics.psnr(drawn[None], truth[None])) > reached
    assert len(result.splats) <= 400
    assert result.psnr > reached
    assert result.losses[-1] < 0.25 * result.losses[0] and len(result.losses) == 100
    assert not result.stopped_early
    assert result.picture.shape == (64, 4 * 32, 3)
    assert float((result.picture[:32] - result.picture[32:]).abs().mean()) < 0.04


def test_what_comes_out_stands_as_its_comment_says_and_is_saved_like_any_splat(seen, tmp_path):
    images, masks, cams = seen
    result = lift3d.fit_splats(images, masks, cams, tiny(sh_degree=1, sh_every=4))
    assert result.splats.degree == 1 and result.splats.sh[:, 1:].abs().max() > 0
    assert not result.splats.positions.requires_grad
    assert Orientation.from_comment(result.splats.comment) == Orientation("+y", "+z")
    splats.save(result.splats, tmp_path / "fit.ply")
    torch.testing.assert_close(splats.load(tmp_path / "fit.ply").positions, result.splats.positions)
    in_file = Cameras(cams.c2w, cams.fov_y_deg, 24, 24, frame="splat")
    assert Orientation.from_comment(lift3d.fit_splats(images, masks, in_file, tiny(steps=1)).splats.comment) is None


def test_higher_degrees_wait_for_their_turn(seen):
    images, masks, cams = seen
    early = lift3d.fit_splats(images, masks, cams, tiny(steps=4, sh_degree=2, sh_every=4))
    assert not early.splats.sh[:, 1:].any()
    later = lift3d.fit_splats(images, masks, cams, tiny(steps=6, sh_degree=2, sh_every=4))
    assert later.splats.sh[:, 1:4].any() and not later.splats.sh[:, 4:].any()


def test_fixed_keeps_the_number_and_adaptive_does_not(seen):
    images, masks, cams = seen
    assert len(lift3d.fit_splats(images, masks, cams, tiny(density="fixed")).splats) == 60
    assert 60 < len(lift3d.fit_splats(images, masks, cams, tiny()).splats) <= 90


def test_random_start_lies_in_the_region_and_learns(seen):
    images, masks, cams = seen
    result = lift3d.fit_splats(images, masks, cams, tiny(start="random", steps=30))
    assert result.losses[-1] < result.losses[0]
    assert float(result.splats.positions.norm(dim=-1).median()) < 1.3


def test_same_seed_same_bits_and_another_seed_others(seen):
    images, masks, cams = seen
    first, second = (lift3d.fit_splats(images, masks, cams, tiny()) for _ in range(2))
    assert same(first, second) and first.losses == second.losses
    assert not same(first, lift3d.fit_splats(images, masks, cams, tiny(seed=1)))


def test_the_global_generator_is_left_alone(seen):
    images, masks, cams = seen
    before = torch.get_rng_state()
    lift3d.fit_splats(images, masks, cams, tiny())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("stop", [1, 5, 8, 11])
def test_a_cancelled_fit_goes_on_to_the_same_bits(seen, tmp_path, stop):
    """Before, at and after a refinement of the number of splats."""
    images, masks, cams = seen
    whole = lift3d.fit_splats(images, masks, cams, tiny())
    path = tmp_path / "fit.safetensors"
    with pytest.raises(Cancelled):
        lift3d.fit_splats(images, masks, cams, tiny(), checkpoint=path, progress=stopping_at(stop))
    assert checkpoint.peek(path) == (stop, False)
    result = lift3d.fit_splats(images, masks, cams, tiny(), checkpoint=path)
    assert same(result, whole) and result.losses == whole.losses
    assert checkpoint.peek(path) == (12, True)


def test_a_finished_fit_returns_at_once_and_anew_only_when_asked(seen, tmp_path):
    images, masks, cams = seen
    path = tmp_path / "fit.safetensors"
    first = lift3d.fit_splats(images, masks, cams, tiny(), checkpoint=path)
    steps = []

    def progress(step, total, *, metrics=None, preview=None):
        steps.append(step)

    again = lift3d.fit_splats(images, masks, cams, tiny(checkpoint_every=3), checkpoint=path, progress=progress)
    assert same(first, again) and again.losses == first.losses and again.psnr == first.psnr
    assert set(steps) == {12}
    lift3d.fit_splats(images, masks, cams, tiny(), checkpoint=path, progress=progress, resume=False)
    assert 1 in steps


def test_a_step_can_be_left_between_its_views_and_nothing_is_lost(seen, tmp_path):
    images, masks, cams = seen
    whole = lift3d.fit_splats(images, masks, cams, tiny())
    path = tmp_path / "fit.safetensors"
    calls = []

    def progress(step, total, *, metrics=None, preview=None):
        calls.append((step, metrics is not None))
        if calls.count((6, False)) == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        lift3d.fit_splats(images, masks, cams, tiny(), checkpoint=path, progress=progress)
    assert checkpoint.peek(path) == (6, False)
    assert same(lift3d.fit_splats(images, masks, cams, tiny(), checkpoint=path), whole)


def test_stop_and_keep_ends_it_normally(seen, tmp_path):
    images, masks, cams = seen
    path = tmp_path / "fit.safetensors"
    result = lift3d.fit_splats(images, masks, cams, tiny(), checkpoint=path, progress=stopping_at(5, StopAndKeep))
    assert result.stopped_early and len(result.losses) == 5
    assert checkpoint.peek(path) == (5, True)
    assert same(lift3d.fit_splats(images, masks, cams, tiny(), checkpoint=path), result)


def test_progress_gets_numbers_and_pictures(seen):
    images, masks, cams = seen
    shown = []

    def progress(step, total, *, metrics=None, preview=None):
        if metrics is not None:
            assert metrics["loss"] > 0 and metrics["splats"] >= 60
            if preview is not None:
                shown.append((step, preview().shape))
        assert total == 12

    lift3d.fit_splats(images, masks, cams, tiny(preview_every=5), progress=progress)
    assert shown == [(5, (48, 96, 3)), (10, (48, 96, 3))]


def test_the_score_of_all_views_takes_a_few_at_a_time(monkeypatch):
    cams = rig(11)
    images, masks = views(balls(), cams)
    taken = []

    def psnr(predicted, target):
        taken.append(predicted[..., 0, 0, 0].numel())
        return metrics.psnr(predicted, target)

    monkeypatch.setattr(trainer, "psnr", psnr)
    result = lift3d.fit_splats(images, masks, cams, tiny())
    assert max(taken) <= trainer.VIEWS_AT_ONCE and sum(taken) == 11
    pooled = float(metrics.psnr(views(result.splats, cams)[0][None], images[None]))
    assert result.psnr == pytest.approx(pooled, abs=0.05)  # over the background as it was found


def test_works_in_inference_mode(seen):
    images, masks, cams = seen
    with torch.inference_mode():
        copies = images * 1, masks * 1, Cameras(cams.c2w * 1, cams.fov_y_deg * 1, 24, 24)
        result = lift3d.fit_splats(copies[0], copies[1], copies[2], tiny())
    assert same(result, lift3d.fit_splats(images, masks, cams, tiny()))


def test_a_checkpoint_of_another_fit_is_refused(seen, tmp_path):
    images, masks, cams = seen
    path = tmp_path / "fit.safetensors"
    lift3d.fit_splats(images, masks, cams, tiny(steps=1), checkpoint=path)
    with pytest.raises(TrainingError, match=r"another run: seed was 0 and is now 4; steps was 1 and is now 12"):
        lift3d.fit_splats(images, masks, cams, tiny(seed=4), checkpoint=path)
    with pytest.raises(TrainingError, match="images was"):
        lift3d.fit_splats(1 - images, masks, cams, tiny(steps=1), checkpoint=path)
    path.write_bytes(b"nothing")
    with pytest.raises(TrainingError, match="is not a fit checkpoint"):
        lift3d.fit_splats(images, masks, cams, tiny(), checkpoint=path)
    assert checkpoint.peek(path) is None


def test_a_fit_that_diverges_says_so(seen):
    images, masks, cams = seen
    with pytest.raises(TrainingError, match="diverged .* Lower the learning rates"):
        lift3d.fit_splats(images, masks, cams, tiny(scale_rate=1e4))


def test_mcmc_without_gsplat_says_what_to_choose(seen):
    images, masks, cams = seen
    lift3d.check_device(tiny(), torch.device("cpu"))
    with pytest.raises(TrainingError, match='"mcmc" cannot be used: gsplat needs a CUDA device, not cpu'):
        lift3d.check_device(tiny(density="mcmc"), torch.device("cpu"))
    with pytest.raises(TrainingError, match='"mcmc" cannot be used: gsplat needs a CUDA device, not cpu'):
        lift3d.fit_splats(images, masks, cams, tiny(density="mcmc"))


def test_more_views_a_step_than_there_are(seen):
    images, masks, cams = seen
    result = lift3d.fit_splats(images[:1], masks[:1], cams[:1], tiny(views_per_step=5, density="fixed"))
    assert result.picture.shape == (48, 24, 3)
    with torch.no_grad():
        assert rasterize(result.splats, cams[0]).alpha.max() > 0.1
