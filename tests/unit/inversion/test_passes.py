"""Steps in little memory, and that a step can be recorded."""

import logging
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from invert3d_core import inversion
from invert3d_core.errors import ModelError, TrainingError
from invert3d_core.inversion.objective import Batch
from invert3d_core.mvdream import MVDream
from tests.unit.inversion.test_trainer import objective_for, settings
from tests.unit.inversion.tiny_model import make_model, make_views


def short_of_memory(model: MVDream, fits: Any) -> list[int]:
    """Let the U-Net run out of memory where ``fits(views)`` is false; returns the views of its passes."""
    passes: list[int] = []

    def check(module: torch.nn.Module, inputs: Any) -> None:
        passes.append(len(inputs[0]))
        if not fits(passes[-1]):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore words")

    model.unet.mid_block.register_forward_pre_hook(check)
    return passes


def ours(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "invert3d"]


def test_the_sets_of_a_step_pass_a_few_at_a_time_where_memory_is_short(caplog: pytest.LogCaptureFixture) -> None:
    config = settings(sets_per_step=3, steps=4, clip_gradient=0.1)
    whole = inversion.train_token(make_model(), make_views(), config, name="cup")
    model = make_model()
    passes = short_of_memory(model, lambda views: views <= 4)
    with caplog.at_level(logging.WARNING, logger="invert3d"):
        parted = inversion.train_token(model, make_views(), config, name="cup")
    torch.testing.assert_close(parted.token.vectors, whole.token.vectors, rtol=1e-4, atol=1e-5)
    assert parted.losses == pytest.approx(whole.losses, rel=1e-5)
    assert parted.validation_losses[0] == whole.validation_losses[0]
    training = [views for views in passes if views > 4] + [views for views in passes if views <= 4]
    assert training[:2] == [12, 8]
    first, second = ours(caplog)
    assert "the 3 sets of a step now pass 2 at a time" in first and "Tried to allocate 2.00 GiB." in first
    assert "now pass 1 at a time" in second and "more words" not in second


def test_then_activations_are_computed_twice(caplog: pytest.LogCaptureFixture) -> None:
    whole = inversion.train_token(make_model(), make_views(), settings(), name="cup")
    model = make_model()
    short_of_memory(model, lambda views: model.unet.is_gradient_checkpointing or not torch.is_grad_enabled())
    saved = inversion.train_token(model, make_views(), settings(), name="cup")
    torch.testing.assert_close(saved.token.vectors, whole.token.vectors, rtol=1e-5, atol=1e-6)
    assert not model.unet.is_gradient_checkpointing  # as it was
    assert ["gradient checkpointing" in message for message in ours(caplog)] == [True]


def test_then_an_error_says_what_would_fit(tmp_path: Any) -> None:
    model = make_model()
    short_of_memory(model, lambda views: not torch.is_grad_enabled())
    with pytest.raises(TrainingError) as caught:
        inversion.train_tokens(model, [make_views(), make_views(1)], settings(sets_per_step=2), names=["cup", "mug"])
    message = str(caught.value)
    for part in ("Tried to allocate 2.00 GiB.", "memory of cpu", "fewer than 2 tokens", "in bfloat16", "GB", "close"):
        assert part in message
    assert not model.unet.is_gradient_checkpointing


def test_only_running_out_of_memory_makes_passes_smaller() -> None:
    model = make_model()

    def fail(*_: Any) -> None:
        raise RuntimeError("something else")

    model.unet.mid_block.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="something else"):
        inversion.train_token(model, make_views(), settings(sets_per_step=2), name="cup")


def test_views_pass_the_vae_a_few_at_a_time(caplog: pytest.LogCaptureFixture) -> None:
    model = make_model()
    images = make_views().images
    whole = model.encode_images(images)[0]
    decoded = model.decode_latents(whole)
    fits = 3

    def check(module: torch.nn.Module, inputs: Any) -> None:
        if len(inputs[0]) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.vae.encoder.register_forward_pre_hook(check)
    model.vae.decoder.register_forward_pre_hook(check)
    torch.testing.assert_close(model.encode_images(images)[0], whole)
    torch.testing.assert_close(model.decode_latents(whole), decoded)
    assert "now pass 4 at a time" in caplog.text and "now pass 2 at a time" in caplog.text
    fits = 0
    with pytest.raises(ModelError, match=r"too little memory on cpu for views through the VAE, even one at a time"):
        model.decode_latents(whole)


def test_sampling_takes_the_halves_of_guidance_one_after_the_other(caplog: pytest.LogCaptureFixture) -> None:
    from invert3d_core.cameras import orbit

    cams = orbit([0.0, 90.0, 180.0, 270.0], 10.0, 3.0, 40.0, 16, 16)
    whole = make_model().sample("a red cup", cams, steps=4, guidance_rescale=0.5)
    model = make_model()
    passes = short_of_memory(model, lambda views: views <= 4)
    parted = model.sample("a red cup", cams, steps=4, guidance_rescale=0.5)
    torch.testing.assert_close(parted, whole, rtol=1e-4, atol=1e-5)
    assert passes == [8] + [4] * 8
    assert ["one after the other" in message for message in ours(caplog)] == [True]
    short_of_memory(model, lambda views: False)
    with pytest.raises(ModelError, match=r"memory on cpu for 4 views.*What would fit"):
        model.sample("a red cup", cams, steps=2)
    with pytest.raises(ModelError, match="memory on cpu for 4 views"):
        model.sample("a red cup", cams, steps=2, guidance_scale=1.0)


class Watch(TorchDispatchMode):
    """Notes what of a computation a CUDA graph cannot hold: reads of values, and transfers to or from the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.count += 1
        name = str(func)
        tensors = [x for x in tree_leaves((args, kwargs or {}, out)) if isinstance(x, torch.Tensor)]
        on_cpu = any(x.device.type == "cpu" and (x.ndim > 0 or "copy" in name) for x in tensors)
        if on_cpu or "_local_scalar_dense" in name or "nonzero" in name:
            self.waits.append(name)
        return out


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_steps_work_does_not_wait_for_the_gpu(prediction_type: str) -> None:
    """On tensors without contents that say they lie on a GPU: a value that is asked for raises, a transfer is noted."""
    model = make_model(prediction_type)
    objective, vectors = objective_for(model, settings(sets_per_step=2))
    batch = objective.batch(3)
    mode = FakeTensorMode()

    def there(tensor: torch.Tensor) -> torch.Tensor:
        fake = mode.from_tensor(tensor.detach())
        with mode:
            return fake.to("cuda:0")

    for network in (model.unet, model.text_encoder):
        for module in network.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = torch.nn.Parameter(there(parameter), requires_grad=False)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = there(buffer)
    for name in ("_rows", "_places", "_snr_weights", "_device_alphas"):
        setattr(objective, name, there(getattr(objective, name)))
    model._alphas[torch.device("cuda:0")] = there(model.schedule.alphas_cumprod.float())
    leaf, parts = there(vectors).requires_grad_(), [there(part) for part in batch]
    with mode, Watch() as watch:
        losses = objective.losses_on(leaf, Batch(*parts))
    assert losses.device.type == "cuda" and losses.requires_grad
    assert watch.count > 500
    assert watch.waits == []
