import dataclasses
import math

import pytest
import torch

from invert3d_core import inversion, tokens
from invert3d_core.cameras import Orientation, orbit
from invert3d_core.cameras.conversions import to_mvdream
from invert3d_core.errors import ModelError, TokenError, TrainingError
from invert3d_core.inversion import SplatViews
from invert3d_core.inversion.objective import Objective
from invert3d_core.inversion.sources import view_source
from invert3d_core.progress import StopAndKeep
from invert3d_core.rendering import rasterize
from invert3d_core.splats import GaussianSplats
from invert3d_core.tokens import Token
from tests.unit.inversion.tiny_model import make_model, make_views


def settings(**changes):
    base = {"steps": 6, "vectors": 3, "initial_words": "red cup", "validation_every": 3, "validation_sets": 2}
    return inversion.preset("recommended", **{**base, **changes})


def make_splat(count=40, radius=0.4, **fields):
    g = torch.Generator().manual_seed(2)
    return GaussianSplats(
        positions=radius * torch.randn(count, 3, generator=g),
        scales=torch.full((count, 3), 0.2 * radius),
        rotations=torch.nn.functional.normalize(torch.randn(count, 4, generator=g), dim=1),
        opacities=torch.full((count, 1), 0.9),
        sh=torch.randn(count, 1, 3, generator=g),
        **fields,
    )


class Stop(BaseException):
    """What a host raises to cancel is no Exception."""


def stop_after(last):
    def progress(step, total, *, metrics=None, preview=None):
        if step == last:
            raise Stop

    return progress


def bits(tensor):
    return tensor.numpy().tobytes()


def test_training_lowers_the_validation_loss():
    config = settings(steps=40, learning_rate=0.3, validation_every=40, validation_sets=6, min_timestep=300)
    result = inversion.train_token(make_model(), make_views(), config, name="cup")
    (first, start), *_, (last, end) = result.validation_losses
    assert (first, last) == (0, 40)
    assert end < start - 0.03
    assert result.best_step > 0
    assert len(result.losses) == 40
    assert not result.stopped_early


def test_the_token_knows_where_it_came_from():
    model = make_model()
    result = inversion.train_token(model, make_views(), settings(), name="cup")
    token = result.token
    assert (token.name, token.base, token.model_hash) == ("cup", "toy", "0" * 64)
    table = model.text_encoder.get_input_embeddings().weight
    assert bits(token.initial) == bits(table[[5, 7, 5]])  # red cup red
    assert token.vectors.shape == (3, 16)
    assert token.provenance["config"]["initial_words"] == "red cup"
    assert token.provenance["config"]["seed"] == 0
    assert token.provenance["step"] == result.best_step
    assert not any("time" in key or "date" in key for key in token.provenance)


def test_strength_zero_is_the_prompt_with_the_initial_words():
    model = make_model()
    token = inversion.train_token(model, make_views(), settings(validation_every=0), name="cup").token
    words = model.encode_prompt("a red cup red, 3d asset")
    assert torch.equal(model.with_token(token, 0.0).encode_prompt("a <cup>, 3d asset"), words)
    assert not torch.allclose(model.with_token(token, 1.0).encode_prompt("a <cup>, 3d asset"), words)


def test_equal_runs_give_equal_files_and_leave_the_global_generator_alone(tmp_path):
    for name in ("a", "b"):
        model = make_model()
        torch.rand(3)
        state = torch.get_rng_state()
        result = inversion.train_token(model, make_views(), settings(), name="cup")
        assert torch.equal(torch.get_rng_state(), state)
        tokens.save(result.token, tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_another_seed_gives_another_token():
    config = settings(validation_every=0)
    results = [
        inversion.train_token(make_model(), make_views(), dataclasses.replace(config, seed=seed), name="cup")
        for seed in (0, 1)
    ]
    assert not torch.equal(results[0].token.vectors, results[1].token.vectors)


@pytest.mark.parametrize("last", [1, 3, 6])
def test_cancelling_keeps_the_work_and_resuming_gives_the_same_bits(tmp_path, last):
    model, views, path = make_model(), make_views(), tmp_path / "run.safetensors"
    whole = inversion.train_token(model, views, settings(), name="cup")
    with pytest.raises(Stop):
        inversion.train_token(model, views, settings(), name="cup", checkpoint=path, progress=stop_after(last))
    steps = []
    resumed = inversion.train_token(
        model, views, settings(), name="cup", checkpoint=path, progress=lambda step, *_, **__: steps.append(step)
    )
    assert [step for step in steps if step > last] == list(range(last + 1, 7))
    assert bits(resumed.token.vectors) == bits(whole.token.vectors)
    assert resumed.losses == whole.losses
    assert resumed.validation_losses == whole.validation_losses
    assert resumed.token.provenance == whole.token.provenance


def test_preparing_the_views_can_be_cancelled():
    model = make_model()
    encoded = []
    model.vae.encoder.register_forward_hook(lambda *_: encoded.append(1))
    for views in (make_views(), make_splat()):
        encoded.clear()
        with pytest.raises(Stop):
            inversion.train_token(model, views, settings(), name="cup", progress=stop_after(0))
        assert len(encoded) == 1


def test_an_interruption_inside_a_step_keeps_the_step_before(tmp_path):
    model, views, path = make_model(), make_views(), tmp_path / "run.safetensors"
    whole = inversion.train_token(model, views, settings(validation_every=0), name="cup")
    calls = 0

    def interrupt(*_):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt

    handle = model.unet.mid_block.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        inversion.train_token(model, views, settings(validation_every=0), name="cup", checkpoint=path)
    handle.remove()
    steps = []
    resumed = inversion.train_token(
        model,
        views,
        settings(validation_every=0),
        name="cup",
        checkpoint=path,
        progress=lambda step, *_, **__: steps.append(step),
    )
    assert [step for step in steps if step > 3] == [4, 5, 6]
    assert bits(resumed.token.vectors) == bits(whole.token.vectors)


def test_a_finished_checkpoint_returns_at_once(tmp_path):
    path = tmp_path / "run.safetensors"
    first = inversion.train_token(make_model(), make_views(), settings(), name="cup", checkpoint=path)
    before = path.read_bytes()
    model = make_model()
    model.unet.register_forward_hook(lambda *_: pytest.fail("the network ran"))
    model.vae.encoder.register_forward_hook(lambda *_: pytest.fail("the VAE ran"))
    again = inversion.train_token(
        model,
        make_views(),
        settings(),
        name="cup",
        checkpoint=path,
        progress=lambda *_, **__: pytest.fail("a step ran"),
    )
    assert bits(again.token.vectors) == bits(first.token.vectors)
    assert (again.losses, again.best_step) == (first.losses, first.best_step)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": settings(steps=7)}, "config.steps was 6 and is now 7"),
        ({"initial_words": "blue cup"}, "initial_words was 'red cup' and is now 'blue cup'"),
        ({"name": "mug"}, r"names was \['cup'\]"),
        ({"views": make_views(seed=1)}, "inputs was"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, changes, message):
    path = tmp_path / "run.safetensors"
    with pytest.raises(Stop):
        inversion.train_token(
            make_model(), make_views(), settings(), name="cup", checkpoint=path, progress=stop_after(1)
        )
    call = {"views": make_views(), "config": settings(), "name": "cup", **changes}
    with pytest.raises(TrainingError, match=message):
        inversion.train_token(make_model(), checkpoint=path, **call)
    # Settings that change nothing of the result may differ, and resume=False starts anew.
    free = settings(checkpoint_every=1, preview_every=2)
    inversion.train_token(make_model(), make_views(), free, name="cup", checkpoint=path)
    inversion.train_token(make_model(), checkpoint=path, resume=False, **call)


def test_only_the_vectors_are_trained():
    model = make_model()
    model.unet.train()
    model.vae.requires_grad_(True)
    networks = (model.unet, model.vae, model.text_encoder)
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in networks]
    seen = {}

    def look(*_):
        seen["frozen"] = not any(p.requires_grad for m in networks for p in m.parameters())
        seen["evaluation"] = not model.unet.mid_block.training

    handle = model.unet.mid_block.register_forward_hook(look)
    inversion.train_token(model, make_views(), settings(steps=2), name="cup")
    handle.remove()
    assert seen == {"frozen": True, "evaluation": True}
    for module, weights in zip(networks, before, strict=True):
        assert all(torch.equal(v, weights[k]) for k, v in module.state_dict().items())
        assert all(p.grad is None for p in module.parameters())
    assert model.unet.mid_block.training
    assert all(p.requires_grad for p in model.vae.parameters())
    assert not any(p.requires_grad for p in model.unet.parameters())


def test_training_works_inside_inference_mode():
    outside = inversion.train_token(make_model(), make_views(), settings(), name="cup")
    with torch.inference_mode():
        model, views = make_model(), make_views()
        for module in (model.unet, model.vae, model.text_encoder):
            for parameter in module.parameters():
                parameter.data = parameter.data.clone()
        assert next(model.unet.parameters()).is_inference()
        assert views.images.is_inference()
        inside = inversion.train_token(model, views, settings(), name="cup")
        assert torch.is_inference_mode_enabled()
        bank = inversion.encode_views(model, views, settings())
        assert bank.mean.is_inference()
        banked = inversion.train_token(model, bank, settings(), name="cup")
    assert bits(inside.token.vectors) == bits(outside.token.vectors)
    assert bits(banked.token.vectors) == bits(outside.token.vectors)


def test_training_works_under_no_grad():
    with torch.no_grad():
        inside = inversion.train_token(make_model(), make_views(), settings(steps=2), name="cup")
    outside = inversion.train_token(make_model(), make_views(), settings(steps=2), name="cup")
    assert bits(inside.token.vectors) == bits(outside.token.vectors)


def test_tokens_trained_together_are_those_trained_alone():
    config = settings(steps=8, learning_rate=0.2, validation_every=2, clip_gradient=0.05, sets_per_step=2)
    views, words = [make_views(seed) for seed in range(3)], ["red cup", "blue", "object"]
    together = inversion.train_tokens(make_model(), views, config, names=["a", "b", "c"], initial_words=words)
    for result, view, name, start in zip(together, views, "abc", words, strict=True):
        alone = inversion.train_token(make_model(), view, config, name=name, initial_words=start)
        assert result.token.name == name
        assert bits(result.token.initial) == bits(alone.token.initial)
        torch.testing.assert_close(result.token.vectors, alone.token.vectors, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(torch.tensor(result.losses), torch.tensor(alone.losses), rtol=1e-4, atol=1e-5)
        assert result.best_step == alone.best_step
        assert result.token.provenance["config"] == alone.token.provenance["config"]
    assert not torch.allclose(together[0].token.vectors, together[1].token.vectors)


def test_each_token_stops_for_itself(tmp_path):
    """With far too high a rate the best loss is met early; which validation is the last is up to each token."""
    config = settings(steps=24, learning_rate=5.0, validation_every=2, validation_sets=3, patience=3)
    views = [make_views(seed) for seed in range(4)]
    path = tmp_path / "run.safetensors"
    together = inversion.train_tokens(make_model(), views, config, names=list("abcd"), checkpoint=path)
    assert len({len(result.losses) for result in together}) > 1
    for result in together:
        steps = [step for step, _ in result.validation_losses]
        losses = [loss for _, loss in result.validation_losses]
        best = losses.index(min(losses))
        assert result.best_step == steps[best]
        if result.stopped_early:
            assert len(losses) - 1 - best == 3
            assert len(result.losses) == steps[-1] < 24
    stopped = min(together, key=lambda result: len(result.losses))
    index = "abcd".index(stopped.token.name)
    alone = inversion.train_token(make_model(), views[index], config, name=stopped.token.name)
    assert alone.stopped_early
    assert len(alone.losses) == len(stopped.losses)
    again = inversion.train_tokens(make_model(), views, config, names=list("abcd"), checkpoint=path)
    assert [r.losses for r in again] == [r.losses for r in together]


def test_norm_control_keeps_vectors_as_long_as_words():
    model = make_model()
    norm = model.text_encoder.get_input_embeddings().weight.norm(dim=1).mean()
    config = settings(validation_every=0)
    held = inversion.train_token(model, make_views(), config, name="cup").token.vectors
    torch.testing.assert_close(held.norm(dim=1), norm.expand(3))
    free = inversion.train_token(
        model, make_views(), dataclasses.replace(config, norm_control=False), name="cup"
    ).token.vectors
    assert not torch.allclose(free.norm(dim=1), norm.expand(3), rtol=1e-3)


def test_the_learning_rate_follows_the_vocabularys_scale():
    rates = []
    for scale in (1.0, 10.0):
        model = make_model()
        model.text_encoder.get_input_embeddings().weight.data *= scale

        def progress(step, total, *, metrics=None, preview=None):
            if metrics is not None:
                rates.append(metrics["learning_rate"])

        config = settings(steps=1, validation_every=0, warmup_steps=0)
        inversion.train_token(model, make_views(), config, name="cup", progress=progress)
    assert rates[1] == pytest.approx(10 * rates[0])


def test_progress_reports_losses_and_pictures():
    calls = []

    def progress(step, total, *, metrics=None, preview=None):
        calls.append((step, total, set(metrics or {}), None if preview is None else preview()))

    result = inversion.train_token(make_model(), make_views(), settings(preview_every=2), name="cup", progress=progress)
    assert [(step, total) for step, total, *_ in calls] == [(0, 6)] * 2 + [(k, 6) for k in range(1, 7)]
    preparing, calls = calls[:2], calls[2:]
    assert preparing == [(0, 6, set(), None)] * 2
    assert [s for s, _, metrics, _ in calls if "validation_loss" in metrics] == [3, 6]
    assert all({"loss", "learning_rate"} <= metrics for *_, metrics, _ in calls)
    pictures = {step: picture for step, _, _, picture in calls if picture is not None}
    assert list(pictures) == [2, 4, 6]
    assert [step for step, _ in result.previews] == [2, 4, 6]
    for picture in pictures.values():
        assert picture.shape == (16, 64, 3)
        assert 0 <= float(picture.min()) <= float(picture.max()) <= 1
        assert float(picture.std()) > 0.01
    quiet = inversion.train_token(make_model(), make_views(), settings(preview_every=2), name="cup")
    assert quiet.previews == []
    assert bits(quiet.token.vectors) == bits(result.token.vectors)


def test_gradient_checkpointing_changes_memory_and_nothing_else():
    model = make_model()
    plain = inversion.train_token(model, make_views(), settings(steps=3), name="cup")
    entered = []
    block = model.unet.get_submodule("up_blocks.0.resnets.0")
    block.register_forward_pre_hook(lambda *_: entered.append(torch.is_grad_enabled()))
    inversion.train_token(model, make_views(), settings(steps=3), name="cup")
    once = len(entered)
    saved = inversion.train_token(model, make_views(), settings(steps=3, gradient_checkpointing=True), name="cup")
    assert len(entered) - once == once + 3  # each training step computes the block again
    assert not model.unet.is_gradient_checkpointing
    torch.testing.assert_close(saved.token.vectors, plain.token.vectors, rtol=1e-5, atol=1e-6)


def test_captions_may_use_tokens_already_applied():
    model = make_model()
    rows = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    applied = model.with_token(Token("hat", rows, rows, "toy"))
    config = settings(captions=("a {} of <hat>",), suffix_use="never", validation_every=0)
    with_hat = inversion.train_token(applied, make_views(), config, name="cup")
    rows2 = rows + 1
    other = inversion.train_token(model.with_token(Token("hat", rows2, rows2, "toy")), make_views(), config, name="cup")
    assert not torch.equal(with_hat.token.vectors, other.token.vectors)
    with pytest.raises(TokenError, match="<hat>"):
        inversion.train_token(model, make_views(), config, name="cup")
    # A token of the same name is trained anew, not on top of the old one.
    plain = settings(validation_every=0)
    renewed = inversion.train_token(applied, make_views(), plain, name="hat")
    fresh = inversion.train_token(model, make_views(), plain, name="hat")
    assert bits(renewed.token.vectors) == bits(fresh.token.vectors)


def objective_for(model, config, views=None):
    source = view_source([views or make_views()], model, config)
    rows = model.text_encoder.get_input_embeddings().weight.detach()[[5, 7, 5]].float()
    return Objective(model, source, config, [Token("cup", rows, rows, "toy", "0" * 64)]), rows[None]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_loss_is_that_of_the_models_own_prompt_encoder(prediction_type):
    """The batched path against the public one: apply the token, encode the prompt, predict, compare."""
    model = make_model(prediction_type)
    config = settings(snr_gamma=None, foreground_weight=1.0, suffix_use="never", seed=4)
    objective, vectors = objective_for(model, config)
    source = view_source([make_views()], model, config)
    from invert3d_core.inversion.draws import draw_step

    draw = draw_step(config, 9, source.pick_ranges, 1, source.latent_shape)
    sets = source.sets(draw.picks, draw.posterior)
    text = model.with_token(Token("cup", vectors[0], vectors[0], "toy")).encode_prompt("a <cup>")
    expected = inversion.denoising_loss(
        lambda x, t: model.predict_noise(x, t, text, sets.cameras[0, 0]),
        sets.latents[0, 0],
        draw.noise[0],
        draw.timesteps[0],
        alphas_cumprod=model.schedule.alphas_cumprod,
    )
    torch.testing.assert_close(objective.losses(vectors, 9)[0], expected)


def test_gradients_are_those_of_finite_differences():
    model = make_model()
    for module in (model.unet, model.text_encoder):
        module.double()
    objective, vectors = objective_for(model, settings())
    vectors = vectors.double().requires_grad_()
    assert objective.losses(vectors, 0).dtype == torch.float32
    (gradient,) = torch.autograd.grad(objective.losses(vectors, 0).sum(), vectors)
    direction = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = 1e-3
    with torch.no_grad():
        rise = objective.losses(vectors + step * direction, 0) - objective.losses(vectors - step * direction, 0)
    assert gradient.abs().max() > 1e-4
    torch.testing.assert_close((gradient * direction).sum(), rise[0].double() / (2 * step), rtol=2e-2, atol=1e-6)


def test_a_bank_from_a_splat_fills_the_models_view():
    model = make_model()
    config = settings(azimuths_per_ring=8, ring_elevations_deg=(0.0, 20.0))
    # The same asset far from the origin, much smaller: only the framing differs.
    small = make_splat(radius=0.004)
    moved = dataclasses.replace(small, positions=small.positions + torch.tensor([3.0, -1.0, 2.0]))
    big = inversion.render_bank(model, SplatViews(make_splat(), Orientation("+y", "+z")), config)
    bank = inversion.render_bank(model, SplatViews(moved, Orientation("+y", "+z")), config)
    torch.testing.assert_close(bank.mean, big.mean, atol=5e-3, rtol=0)
    assert bank.sets.tolist() == [[0, 2, 4, 6], [1, 3, 5, 7], [8, 10, 12, 14], [9, 11, 13, 15]]
    assert bank.masks.amax(dim=(1, 2)).min() > 0.5
    elevation = torch.rad2deg(torch.asin(bank.cameras.reshape(-1, 4, 4)[:, 2, 3]))
    torch.testing.assert_close(elevation, torch.tensor([0.0] * 8 + [20.0] * 8), atol=1e-3, rtol=0)


def test_the_files_comment_says_how_a_splat_stands():
    spoken = SplatViews(make_splat(comment="up=+y front=+z"))
    assert spoken.stands == Orientation("+y", "+z")
    assert SplatViews(make_splat()).stands == Orientation()
    assert SplatViews(spoken.splat, Orientation("+z", "+x")).stands == Orientation("+z", "+x")


def test_reference_renders_the_published_cameras():
    """Picks are whole degrees; radius 2.5, fov 49.1, no framing, no turning of the front, a new posterior draw."""
    model, splat = make_model(), make_splat()
    config = inversion.preset("reference", vectors=4, initial_words="object")
    source = view_source([SplatViews(splat, Orientation("+y", "+z"))], model, config)
    assert source.pick_ranges == [(-29, 30), (-180, 179)]
    posterior = torch.randn(1, 4, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    sets = source.sets(torch.tensor([[-12, 33]]), posterior)
    cams = orbit([33.0, 123.0, 213.0, 303.0], -12.0, 2.5, 49.1, 16, 16)
    torch.testing.assert_close(sets.cameras[0, 0], to_mvdream(cams))
    drawn = rasterize(splat, cams, background=(1.0, 1.0, 1.0)).color.clamp(0, 1)
    mean, std = model.encode_images(drawn)
    torch.testing.assert_close(sets.latents[0, 0], mean + std * posterior[0])


def test_reference_trains_from_a_splat_and_from_nothing_else(tmp_path):
    model, splat = make_model(), make_splat(comment="up=+y front=+z")
    config = inversion.preset("reference", vectors=4, steps=3)
    result = inversion.train_token(model, splat, config, name="cup", checkpoint=tmp_path / "run.safetensors")
    embeddings = model.text_encoder.get_input_embeddings().weight
    position = next(m for n, m in model.text_encoder.named_modules() if n.endswith("position_embedding")).weight[0]
    assert bits(result.token.initial) == bits((embeddings[13] + position).expand(4, 16).contiguous())
    assert result.validation_losses == []
    assert result.best_step == 3
    assert len(set(result.losses)) == 3
    with pytest.raises(TrainingError, match="'reference' renders new views at every step, so it needs a splat"):
        inversion.train_token(model, make_views(), config, name="cup")


def test_a_model_in_bfloat16_trains_and_one_in_float16_is_refused():
    result = inversion.train_token(make_model().to(dtype=torch.bfloat16), make_views(), settings(steps=2), name="cup")
    assert result.token.vectors.dtype == torch.float32
    assert all(math.isfinite(loss) for loss in result.losses)
    with pytest.raises(TrainingError, match="bfloat16 or float32"):
        inversion.train_token(make_model().to(dtype=torch.float16), make_views(), settings(), name="cup")


def test_divergence_is_reported_and_the_sound_state_kept(tmp_path):
    path = tmp_path / "run.safetensors"
    config = settings(learning_rate=1e38, norm_control=False, validation_every=0, warmup_steps=4)
    with pytest.raises(TrainingError, match="diverged at step"):
        inversion.train_token(make_model(), make_views(), config, name="cup", checkpoint=path)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"initial_words": "red teapot"}, TrainingError, "hold teapot, which the model does not know"),
        ({"initial_words": " "}, TrainingError, "are empty"),
        ({"initial_words": "a red cup photo"}, TrainingError, "4 pieces, but the token has 3 vectors"),
        ({"name": "my cup"}, TokenError, "cannot be written"),
        ({"config": settings(vectors=15)}, TokenError, r"are free for tokens"),
        ({"config": settings(max_timestep=1000)}, TrainingError, "schedule has 1000 timesteps"),
    ],
)
def test_impossible_runs_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        inversion.train_token(make_model(), make_views(), **{"config": settings(), "name": "cup", **changes})


def test_batches_that_do_not_fit_are_refused():
    model, views = make_model(), make_views()
    with pytest.raises(TrainingError, match="2 views, 1 names"):
        inversion.train_tokens(model, [views, views], settings(), names=["a"])
    with pytest.raises(TrainingError, match="1 different"):
        inversion.train_tokens(model, [views, views], settings(), names=["a", "a"])
    with pytest.raises(TrainingError, match="banks of one shape"):
        inversion.train_tokens(model, [views, make_views(azimuths=4)], settings(), names=["a", "b"])
    bank = inversion.encode_views(model, views, settings())
    wrong = dataclasses.replace(bank, mean=bank.mean[..., :2], std=bank.std[..., :2])
    with pytest.raises(TrainingError, match="model's latents are"):
        inversion.train_token(model, wrong, settings(), name="cup")


def test_stop_and_keep_ends_with_the_best_of_what_was_learned(tmp_path):
    """Between two validations, too: the last vectors are validated, and the run counts as finished."""

    def progress(step, total, *, metrics=None, preview=None):
        if step == 4 and metrics is not None:
            raise StopAndKeep

    config, checkpoint = settings(), tmp_path / "run.safetensors"
    kept = inversion.train_token(make_model(), make_views(), config, progress=progress, checkpoint=checkpoint)
    assert len(kept.losses) == 4 and kept.stopped_early
    assert [step for step, _ in kept.validation_losses] == [0, 3, 4]
    best, _ = min(kept.validation_losses, key=lambda pair: pair[1])
    assert kept.best_step == best
    again = inversion.train_token(make_model(), make_views(), config, checkpoint=checkpoint)
    assert bits(again.token.vectors) == bits(kept.token.vectors)
    assert len(again.losses) == 4


def test_stop_and_keep_without_validation_keeps_the_last_vectors():
    def progress(step, total, *, metrics=None, preview=None):
        if step == 2:
            raise StopAndKeep

    config = settings(validation_every=0)
    kept = inversion.train_token(make_model(), make_views(), config, progress=progress)
    whole = inversion.train_token(make_model(), make_views(), config)
    assert kept.best_step == 2 and kept.validation_losses == []
    assert kept.losses == whole.losses[:2]
    assert bits(kept.token.vectors) != bits(kept.token.initial)


def test_stopped_after_the_last_step_it_is_finished_by_the_next_call(tmp_path):
    path = tmp_path / "run.safetensors"
    with pytest.raises(Stop):
        inversion.train_token(
            make_model(), make_views(), settings(), name="cup", checkpoint=path, progress=stop_after(6)
        )
    assert inversion.checkpoint.peek(path) == (6, False)
    inversion.train_token(make_model(), make_views(), settings(), name="cup", checkpoint=path)
    assert inversion.checkpoint.peek(path) == (6, True)


def test_a_preview_that_does_not_fit_costs_the_previews_alone(monkeypatch, caplog):
    def too_large(*_):
        tried.append(1)
        raise ModelError("no room")

    tried: list[int] = []
    monkeypatch.setattr("invert3d_core.inversion.trainer.preview_strip", too_large)
    shown = []

    def progress(step, total, *, metrics=None, preview=None):
        if preview is not None:
            shown.append(preview())

    result = inversion.train_token(make_model(), make_views(), settings(preview_every=2), name="cup", progress=progress)
    assert len(result.losses) == 6
    assert (len(tried), len(shown), result.previews) == (1, 1, [])
    assert "no more previews of this training: no room" in caplog.text
