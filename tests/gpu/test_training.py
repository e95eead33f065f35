"""On a real GPU: a replayed training step is an ordinary one, and memory that runs out makes steps smaller."""

import contextlib
import dataclasses
import logging

import pytest
import torch

from invert3d_core import inversion
from invert3d_core.errors import TrainingError
from invert3d_core.mvdream import graphs, joined
from tests.unit.inversion.tiny_model import make_model, make_views

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(autouse=True)
def nothing_announced():
    graphs._announced.clear()


def settings(**changes):
    base = {"steps": 12, "vectors": 3, "initial_words": "red cup", "validation_every": 4, "validation_sets": 3}
    return inversion.preset("recommended", **{**base, **changes})


def train(model=None, config=None, **options):
    model = model or make_model().to("cuda")
    return inversion.train_token(model, make_views(), config or settings(), name="cup", **options)


def assert_near(found, expected, tolerance=2e-3):
    torch.testing.assert_close(
        torch.tensor(found.losses), torch.tensor(expected.losses), rtol=10 * tolerance, atol=1e-4
    )
    moved = (expected.token.vectors - expected.token.initial).norm()
    assert float((found.token.vectors - expected.token.vectors).norm() / moved) < 50 * tolerance


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "fp32"},
        {"precision": "fp32", "sets_per_step": 4},
        {"precision": "fp32", "gradient_checkpointing": True},
        {"precision": "fp32", "clip_gradient": 0.05, "norm_control": False, "weight_decay": 0.1},
        {"precision": "bf16"},
    ],
    ids=str,
)
def test_replayed_training_is_ordinary_training(changes, caplog):
    config = settings(**changes)
    # In bfloat16 the sums of joined layers, rounded otherwise, may make another step the best.
    alike = joined.together() if config.precision == "bf16" else contextlib.nullcontext()
    with graphs.eager(), alike:
        expected = train(config=config)
    with caplog.at_level(logging.DEBUG, logger="invert3d"):
        found = train(config=config)
    assert "not replayed" not in caplog.text
    assert "The training step is replayed" in caplog.text and "The validation is replayed" in caplog.text
    assert_near(found, expected, 2e-3 if config.precision == "fp32" else 1e-2)


def test_a_gpu_trains_what_a_cpu_trains():
    config = settings(precision="fp32", steps=6)
    assert_near(train(config=config), train(make_model(), config))


def test_a_model_in_bfloat16_trains(caplog):
    with caplog.at_level(logging.WARNING, logger="invert3d"):
        result = train(make_model().to("cuda", torch.bfloat16))
    assert "not replayed" not in caplog.text
    assert all(torch.isfinite(torch.tensor(result.losses)))


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path):
    class Stop(BaseException):
        pass

    def stop(step, total, **_):
        if step == 7:
            raise Stop

    config = settings(precision="fp32")
    whole = train(config=config)
    path = tmp_path / "run.safetensors"
    with pytest.raises(Stop):
        train(config=config, checkpoint=path, progress=stop)
    assert_near(train(config=config, checkpoint=path), whole)


def test_tokens_that_stop_early_stay_where_they_were():
    config = settings(precision="fp32", steps=24, learning_rate=5.0, validation_every=2, patience=3)
    views = [make_views(seed) for seed in range(3)]
    results = inversion.train_tokens(make_model().to("cuda"), views, config, names=list("abc"))
    for result in results:
        losses = [loss for _, loss in result.validation_losses]
        assert result.best_step == result.validation_losses[losses.index(min(losses))][0]


def test_previews_inside_training_do_not_disturb_it():
    config = settings(precision="fp32", preview_every=2)
    pictures = []

    def look(step, total, *, metrics=None, preview=None):
        if preview is not None:
            pictures.append(preview())

    assert_near(train(config=config, progress=look), train(config=config))
    assert len(pictures) == 6 and all(float(picture.std()) > 0.01 for picture in pictures)


def test_training_inside_a_hosts_inference_mode():
    expected = train(config=settings(precision="fp32"))
    with torch.inference_mode():
        model = make_model().to("cuda")
        found = train(model, settings(precision="fp32"))
    assert_near(found, expected)


def short_of_memory(model, fits):
    def check(module, inputs):
        if not fits(len(inputs[0])):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    model.unet.mid_block.register_forward_pre_hook(check)


def test_memory_that_runs_out_makes_steps_smaller(caplog):
    config = settings(precision="fp32", sets_per_step=4)
    model = make_model().to("cuda")
    device = next(model.vae.parameters()).device

    def fits(views):
        if not torch.is_grad_enabled():
            return True
        away = next(model.vae.parameters()).device.type == "cpu"
        return views <= 4 and model.unet.is_gradient_checkpointing and away

    short_of_memory(model, fits)
    with caplog.at_level(logging.WARNING, logger="invert3d"):
        found = train(model, config)
    assert_near(found, train(config=config))
    for words in ("2 at a time", "1 at a time", "computed twice", "the VAE now waits"):
        assert words in caplog.text
    assert "not replayed" not in caplog.text
    assert next(model.vae.parameters()).device == device and not model.unet.is_gradient_checkpointing


def test_memory_that_is_too_small_in_every_way_is_said():
    model = make_model().to("cuda")
    short_of_memory(model, lambda views: not torch.is_grad_enabled())
    with pytest.raises(TrainingError, match=r"memory of cuda:0 .*GB, .* are free .*bfloat16"):
        train(model, settings(sets_per_step=2))
    assert next(model.vae.parameters()).device.type == "cuda"


def test_real_lack_of_memory_steps_down_and_the_result_is_the_same(caplog):
    """A share of the device's memory in which the sets of a step cannot pass together."""
    config = settings(precision="fp32", sets_per_step=1024, steps=2, validation_every=0)
    expected = train(config=dataclasses.replace(config))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with graphs.eager():
        train(config=config)
    needed = torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((held + 0.6 * (needed - held)) / total)
    try:
        with graphs.eager(), caplog.at_level(logging.WARNING, logger="invert3d"):
            found = train(config=config)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "Memory ran out in training" in caplog.text
    assert_near(found, expected)
