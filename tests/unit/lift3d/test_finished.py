import pytest
import torch

from invert3d_core import lift3d
from invert3d_core.lift3d import checkpoint
from invert3d_core.lift3d.finished import FitStore, fit_key
from invert3d_core.progress import Cancelled
from tests.unit.lift3d.scenes import balls, rig, tiny, views
from tests.unit.storage_faults import full_disk


@pytest.fixture(scope="module")
def seen():
    cams = rig()
    return *views(balls(), cams), cams


def test_a_key_is_of_all_that_decides_a_fit(seen):
    images, masks, cams = seen
    key = fit_key(tiny(), images, masks, cams)
    assert key == fit_key(tiny(preview_every=9, checkpoint_every=3), images.clone(), masks, cams)
    others = [
        fit_key(tiny(seed=1), images, masks, cams),
        fit_key(tiny(), images * 0.99, masks, cams),
        fit_key(tiny(), images, None, cams),
        fit_key(tiny(), images, masks, rig(start=1.0)),
    ]
    assert len({key, *others}) == 5


def test_a_fit_is_kept_found_and_done_again_when_damaged(seen, tmp_path):
    images, masks, cams = seen
    store, key = FitStore(tmp_path), fit_key(tiny(), images, masks, cams)
    with store.training("splat", key) as kept:
        assert (kept.step, kept.finished) == (0, False)
        lift3d.fit_splats(images, masks, cams, tiny(), checkpoint=kept.checkpoint)
    with store.training("splat", key) as kept:
        assert (kept.step, kept.finished) == (12, True)
    kept.checkpoint.write_bytes(kept.checkpoint.read_bytes()[:-9])
    with store.training("splat", key) as kept:
        assert (kept.step, kept.finished) == (0, False) and not kept.checkpoint.exists()


def test_a_finished_fit_stays_until_the_one_that_is_done_anew_is_finished(seen, tmp_path):
    images, masks, cams = seen
    store, key = FitStore(tmp_path), fit_key(tiny(), images, masks, cams)

    def fit(anew, progress=None):
        with store.training("splat", key, anew=anew) as kept:
            config = tiny(checkpoint_every=2)
            lift3d.fit_splats(
                images, masks, cams, config, checkpoint=kept.checkpoint, resume=not anew, progress=progress
            )

    def cancel(step, total, *, metrics=None, preview=None):
        if metrics is not None and step == 7:
            raise Cancelled

    fit(anew=False)
    (path,) = tmp_path.glob("*.safetensors")
    first = path.stat().st_ino
    with pytest.raises(Cancelled):
        fit(anew=True, progress=cancel)
    assert checkpoint.peek(path) == (12, True) and path.stat().st_ino == first
    fit(anew=True)
    assert checkpoint.peek(path) == (12, True) and path.stat().st_ino != first
    assert list(tmp_path.glob("*.safetensors")) == [path]


def test_a_finished_fit_keeps_the_splats_alone(seen, tmp_path):
    images, masks, cams = seen
    path = tmp_path / "fit.safetensors"

    def cancel(step, total, *, metrics=None, preview=None):
        if metrics is not None and step == 12:
            raise Cancelled

    with pytest.raises(Cancelled):
        lift3d.fit_splats(images, masks, cams, tiny(density="fixed"), checkpoint=path, progress=cancel)
    before = path.stat().st_size
    lift3d.fit_splats(images, masks, cams, tiny(density="fixed"), checkpoint=path)
    assert path.stat().st_size < 0.5 * before


def test_a_full_disk_ends_no_fit(seen, tmp_path, caplog):
    images, masks, cams = seen
    path = tmp_path / "fit.safetensors"
    with full_disk():
        result = lift3d.fit_splats(images, masks, cams, tiny(checkpoint_every=6), checkpoint=path)
    assert len(result.losses) == 12
    assert "Step 6 of the fit is not on disk, and the fit goes on" in caplog.text
    assert not path.exists()


def test_a_state_comes_back_as_it_was(tmp_path):
    values = {name: torch.rand(4, 3) for name in ("means", "scales", "quats", "opacities", "sh0")}
    state = checkpoint.FitState(
        3, values, {"means.step": torch.tensor(3.0)}, {"grad2d": torch.rand(4)}, torch.rand(3, dtype=torch.float64)
    )
    path = tmp_path / "deep" / "fit.safetensors"
    checkpoint.save(path, state, {"a": (1, 2)}, finished=False)
    loaded = checkpoint.load(path, {"a": [1, 2]}, torch.device("cpu"))
    assert loaded is not None and loaded[1] is False and loaded[0].step == 3
    for group in ("params", "moments", "stats"):
        found, expected = getattr(loaded[0], group), getattr(state, group)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(loaded[0].losses, state.losses)
    assert checkpoint.load(tmp_path / "none", {}, torch.device("cpu")) is None
