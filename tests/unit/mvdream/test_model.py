import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from invert3d_core.cameras import Cameras, conversions, orbit
from invert3d_core.errors import ModelError, TokenError
from invert3d_core.mvdream import MVDream, sampling
from invert3d_core.mvdream.sampling import Schedule
from invert3d_core.progress import Cancelled
from invert3d_core.tokens import Token

from .conftest import INFO, LENGTH, make_unet


def make_token(draw: Any, name: str = "thing", count: int = 3, **changes: Any) -> Token:
    return Token(**{"name": name, "vectors": draw(count, 24), "initial": draw(count, 24), "base": "tiny", **changes})


def cams(count: int = 4, start: float = 0.0) -> Cameras:
    return orbit([start + i * 360 / count for i in range(count)], 15.0, 2.0, 40.0, 16, 16)


# Text


@torch.no_grad()
def test_a_prompt_is_encoded_as_transformers_does(model: MVDream) -> None:
    ids = torch.tensor([[0, 4, 5, 7, *[1] * 8], [0, *[1] * 11]])
    expected = model.text_encoder(input_ids=ids).last_hidden_state
    assert torch.equal(model.encode_prompt(["a red cup", ""]), expected)
    assert torch.equal(model.encode_prompt("a red cup"), expected[:1])
    assert expected.shape == (2, LENGTH, 24)


@torch.no_grad()
def test_a_token_of_known_rows_is_the_words(model: MVDream, draw: Any) -> None:
    rows = model.token_rows(torch.tensor([5, 7]))
    known = model.with_token(make_token(draw, vectors=rows, initial=draw(2, 24)))
    expected = model.encode_prompt("a red cup, 3d asset")
    for prompt in ("a <thing>, 3d asset", "a embedding:thing, 3d asset"):
        assert torch.equal(known.encode_prompt(prompt), expected)


@torch.no_grad()
def test_strength(model: MVDream, draw: Any) -> None:
    token = make_token(draw)
    at = {s: model.with_token(token, s).encode_prompt("a <thing>") for s in (0.0, 0.5, 1.0)}
    initial = model.with_token(replace(token, vectors=token.initial)).encode_prompt("a <thing>")
    half = model.with_token(replace(token, vectors=(token.vectors + token.initial) / 2)).encode_prompt("a <thing>")
    assert torch.equal(at[0.0], initial)
    torch.testing.assert_close(at[0.5], half)
    assert not torch.equal(at[1.0], at[0.0])


@torch.no_grad()
def test_tokens_are_applied_to_a_copy(model: MVDream, draw: Any) -> None:
    one = model.with_token(make_token(draw, "one"))
    two = one.with_token(make_token(draw, "two", 1), 0.5)
    assert (list(model.tokens), list(one.tokens), list(two.tokens)) == ([], ["one"], ["one", "two"])
    assert two.unet is model.unet and two.text_encoder is model.text_encoder
    assert two.tokens["two"][1] == 0.5
    # Each token stands where it is written, whatever else is applied.
    assert torch.equal(two.encode_prompt("a <one>"), one.encode_prompt("a <one>"))
    assert not torch.equal(two.encode_prompt("a <one> <two>"), two.encode_prompt("a <two> <one>"))
    replaced = two.with_token(make_token(draw, "one"))
    assert not torch.equal(replaced.encode_prompt("a <one>"), two.encode_prompt("a <one>"))
    with pytest.raises(TokenError, match="<two>"):
        one.encode_prompt("a <two>")
    with pytest.raises(TokenError, match=r"needs 11 places .* has 10"):
        one.encode_prompt("a a <one> <one> <one>")


def test_gradients_reach_the_vectors_and_agree_with_differences(model: MVDream, draw: Any) -> None:
    vectors = draw(2, 24).requires_grad_()
    weight = draw(LENGTH, 24)

    def value(rows: Tensor) -> Tensor:
        token = make_token(draw, vectors=rows, initial=torch.zeros(2, 24))
        return (model.with_token(token).encode_prompt("a <thing> <thing>")[0] * weight).sum()

    (gradient,) = torch.autograd.grad(value(vectors), vectors)
    for place in ((0, 3), (1, 20)):
        step = torch.zeros(2, 24)
        step[place] = 2**-5
        with torch.no_grad():
            slope = (value(vectors + step) - value(vectors - step)) / 2**-4
        assert float(gradient[place]) == pytest.approx(float(slope), rel=1e-2, abs=2e-3)
    # The hook is gone afterwards.
    assert not model.text_encoder.get_input_embeddings()._forward_hooks


def test_the_hook_is_gone_after_an_error(model: MVDream, draw: Any) -> None:
    with pytest.raises(Exception, match=r"\d"):
        model.encode_embeddings(draw(1, LENGTH + 1, 24))
    assert not model.text_encoder.get_input_embeddings()._forward_hooks


def test_tokens_of_another_model_are_refused(model: MVDream, draw: Any) -> None:
    with pytest.raises(TokenError, match=r"trained for the text encoder 'toy', but tiny has 'tiny'"):
        model.with_token(make_token(draw, base="toy"))
    model.info = replace(model.info, model_hash="b" * 64)
    model.with_token(make_token(draw, model_hash="b" * 64))
    model.with_token(make_token(draw))
    with pytest.raises(TokenError, match="other weights"):
        model.with_token(make_token(draw, model_hash="a" * 64))


def test_unknown_words_are_logged(model: MVDream, draw: Any, caplog: pytest.LogCaptureFixture) -> None:
    known = model.with_token(make_token(draw))
    with caplog.at_level(logging.WARNING, "invert3d"):
        known.prompt_ids(["a <thing>", "embedding:thing, a cup"])
        assert not caplog.records
        known.prompt_ids(["a green dragon <thing>"])
    assert "green" in caplog.text and "dragon" in caplog.text


# Cameras


def test_the_front_is_a_property_of_the_model(model: MVDream) -> None:
    """Azimuth 0 of the asset is the model's front azimuth, as MVDream's get_camera counts azimuths."""
    assert torch.equal(model.camera_vectors(cams()), conversions.to_mvdream(cams()))
    model.info = replace(model.info, front_azimuth_deg=90.0)
    torch.testing.assert_close(model.camera_vectors(cams()), conversions.to_mvdream(cams(start=90)))
    # facts: elevation 15, azimuth 90.
    row = model.camera_vectors(cams(1))[0]
    expected = [0, -0.2588, 0.9659, 0.9659, 1, 0, 0, 0, 0, 0.9659, 0.2588, 0.2588, 0, 0, 0, 1]
    torch.testing.assert_close(row, torch.tensor(expected).to(row), atol=1e-4, rtol=0)


# Denoising


@torch.no_grad()
def test_cameras_as_data_or_numbers_per_view_or_per_object(model: MVDream, draw: Any) -> None:
    x, text = draw(8, 4, 8, 8), draw(8, 5, 24)
    vectors = conversions.to_mvdream(cams()).float()
    expected = model.predict_noise(x, 500, text, torch.cat([vectors, vectors]))
    assert torch.equal(model.predict_noise(x, 500, text, vectors), expected)
    assert torch.equal(model.predict_noise(x, torch.full((8,), 500), text, cams()), expected)
    assert torch.equal(model.predict_noise(x, torch.tensor(500), text, cams()), expected)
    assert torch.equal(
        model.predict_noise(x, 500, text[:1], vectors), model.predict_noise(x, 500, text[:1].expand(8, -1, -1), vectors)
    )
    assert not torch.equal(model.predict_noise(x, 500, text, vectors, num_frames=1), expected)


@torch.no_grad()
def test_a_velocity_model_answers_with_noise(model: MVDream, draw: Any) -> None:
    x, text, t = draw(4, 4, 8, 8), draw(4, 5, 24), torch.tensor([3, 400, 700, 999])
    raw = model.predict_noise(x, t, text, cams())
    velocity = MVDream(model.unet, None, None, None, Schedule(prediction_type="v_prediction"), model.info)
    alphas = sampling.alphas_cumprod()
    expected = sampling.noise_from_velocity(raw, x, t, alphas)
    torch.testing.assert_close(velocity.predict_noise(x, t, text, cams()), expected, atol=1e-6, rtol=1e-5)
    from_info = MVDream(model.unet, None, None, None, info=replace(INFO, prediction_type="v_prediction"))
    assert torch.equal(from_info.predict_noise(x, t, text, cams()), velocity.predict_noise(x, t, text, cams()))


def test_shapes_that_disagree(model: MVDream, draw: Any) -> None:
    x, text = draw(6, 4, 8, 8), draw(1, 5, 24)
    for message, call in {
        r"batch of 6 views .* 4 views": lambda: model.predict_noise(x, 1, text),
        r"objects of 0 views": lambda: model.predict_noise(x, 1, text, num_frames=0),
        r"text embeddings for 5 views, but 6": lambda: model.predict_noise(x, 1, draw(5, 5, 24), num_frames=1),
        r"4 cameras for 6 views": lambda: model.predict_noise(x, 1, text, cams(4), num_frames=3),
        r"cameras are \(6, 12\)": lambda: model.predict_noise(x, 1, text, draw(6, 12), num_frames=3),
        r"cameras are \(0, 16\)": lambda: model.predict_noise(x, 1, text, draw(0, 16), num_frames=3),
        r"starting latents are \(6, 4, 8, 8\); expected \(4, 4, 8, 8\)": lambda: model.sample("a", cams(4), latents=x),
        r"without a VAE": lambda: MVDream(model.unet, None, None, None).decode_latents(x),
        r"without a tokenizer": lambda: MVDream(model.unet, None, None, None).encode_prompt("a"),
    }.items():
        with pytest.raises(ModelError, match=message):
            call()


@torch.no_grad()
def test_networks_may_have_their_own_dtype(model: MVDream, draw: Any) -> None:
    images, x = torch.rand(2, 16, 16, 3), draw(4, 4, 8, 8)
    mean, picture = model.encode_images(images)[0], model.decode_latents(x)
    embeddings, noise = model.encode_prompt("a cup"), model.predict_noise(x, 5, model.encode_prompt("a cup"), cams())
    model.unet.bfloat16()
    torch.nn.Module.to(model.vae, dtype=torch.float64)
    torch.nn.Module.to(model.text_encoder, dtype=torch.bfloat16)
    torch.testing.assert_close(model.encode_images(images)[0].float(), mean, atol=1e-4, rtol=0)
    torch.testing.assert_close(model.decode_latents(x).float(), picture, atol=1e-4, rtol=0)
    torch.testing.assert_close(model.encode_prompt("a cup").float(), embeddings, atol=5e-2, rtol=0)
    found = model.predict_noise(x, 5, model.encode_prompt("a cup"), cams())
    assert (model.dtype, found.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(found, noise, atol=0.1, rtol=0)
    assert model.to(dtype=torch.float32) is model and model.dtype == torch.float32


# Pictures


@torch.no_grad()
def test_latents_are_on_the_scale_of_the_unet(model: MVDream) -> None:
    images = torch.rand(10, 16, 16, 3)
    mean, std = model.encode_images(images)  # more than pass the VAE at once
    posterior = model.vae.encode(images.movedim(-1, 1) * 2 - 1).latent_dist
    torch.testing.assert_close(mean, posterior.mean * INFO.scaling_factor)
    torch.testing.assert_close(std, posterior.std * INFO.scaling_factor)
    assert mean.shape == (10, *model.latent_shape)
    decoded = model.decode_latents(mean * 5)
    raw = (model.vae.decode(mean * 5 / INFO.scaling_factor).sample + 1) / 2
    torch.testing.assert_close(decoded, raw.clamp(0, 1).movedim(1, -1))


def test_encoding_can_be_differentiated(model: MVDream) -> None:
    images = torch.rand(1, 16, 16, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(model.encode_images(images)[0].sum(), images)
    assert gradient.abs().max() > 0


# Sampling


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_any_number_of_views(model: MVDream, count: int) -> None:
    pictures = model.sample("a red cup", cams(count), steps=2)
    assert pictures.shape == (count, 16, 16, 3) and pictures.dtype == torch.float32
    assert 0 <= float(pictures.min()) <= float(pictures.max()) <= 1
    assert not pictures.requires_grad


def test_sampling_is_the_published_loop(model: MVDream, draw: Any) -> None:
    """Put together by hand from parts that golden tests check."""
    noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    text = model.encode_prompt(["a red cup, 3d asset", "blue"])
    vectors = model.camera_vectors(cams())
    latents = sampling.sample_latents(model, noise, text[:1], text[1:], vectors, 4, 3, 6.0, guidance_rescale=0.4)
    expected = model.decode_latents(latents)
    options: dict[str, Any] = {"negative": "blue", "steps": 3, "guidance_scale": 6.0, "guidance_rescale": 0.4}
    found = model.sample("a red cup", cams(), seed=5, **options)
    assert torch.equal(found, expected)
    assert torch.equal(model.sample("a red cup, 3d asset", vectors, latents=noise, **options), expected)
    assert torch.equal(model.sample("a red cup", cams(), seed=5, decode=False, **options), latents)
    for change in (
        {"seed": 6},
        {"suffix": ""},
        {"negative": ""},
        {"guidance_rescale": 0.0},
        {"eta": 0.5},
        {"steps": 2},
    ):
        assert not torch.equal(model.sample("a red cup", cams(), **{"seed": 5, **options, **change}), expected), change


def test_defaults_are_the_models_own(model: MVDream) -> None:
    expected = model.sample("a cup", cams(), steps=2, guidance_scale=2.0, guidance_rescale=0.0)
    assert torch.equal(model.sample("a cup", cams()), expected)
    model.info = replace(model.info, steps=4, guidance_scale=3.0, guidance_rescale=0.5, caption_suffix="")
    expected = model.sample("a cup", cams(), steps=4, guidance_scale=3.0, guidance_rescale=0.5, suffix="")
    assert torch.equal(model.sample("a cup", cams()), expected)


def test_2d_mode_draws_independent_pictures(model: MVDream) -> None:
    pictures = model.sample("a cup", None, count=2)
    assert pictures.shape == (2, 16, 16, 3)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    alone = model.sample("a cup", None, latents=latents[1:])
    torch.testing.assert_close(pictures[1:], alone, atol=1e-5, rtol=0)
    # Views of one object are not independent.
    views = model.sample("a cup", cams(2), latents=latents)
    assert (views[1:] - model.sample("a cup", cams(2)[1], latents=latents[1:])).abs().max() > 1e-4


def test_progress_previews_and_cancelling(model: MVDream) -> None:
    seen: list[tuple[int, int]] = []
    previews: list[Tensor] = []

    def progress(step: int, total: int, *, metrics: Any = None, preview: Any = None) -> None:
        seen.append((step, total))
        previews.append(preview())
        if step == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        model.sample("a cup", cams(5), steps=6, progress=progress)
    assert seen == [(1, 7), (2, 7), (3, 7)]  # 6 does not divide 1000: the published sampler takes 7
    assert all(preview.shape == (16, 64, 3) and 0 <= preview.min() <= preview.max() <= 1 for preview in previews)
    with torch.inference_mode():
        assert model.sample("a cup", cams()).shape == (4, 16, 16, 3)


def test_tokens_change_the_views_and_no_global_generator_is_used(model: MVDream, draw: Any) -> None:
    state = torch.random.get_rng_state()
    known = model.with_token(make_token(draw))
    pictures = known.sample("a <thing>", cams(), eta=1.0)
    assert torch.equal(pictures, known.sample("a <thing>", cams(), eta=1.0))
    assert not torch.equal(pictures, model.with_token(make_token(draw)).sample("a <thing>", cams(), eta=1.0))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_another_unet_gets_the_multi_view_attention(draw: Any) -> None:
    from diffusers.models.attention_processor import AttnProcessor2_0

    unet = make_unet()
    expected = MVDream(unet, None, None, None).predict_noise(draw(4, 4, 8, 8), 1, torch.zeros(1, 5, 24), num_frames=4)
    unet.set_attn_processor(AttnProcessor2_0())
    model = MVDream(unet, None, None, None)
    assert expected.shape == (4, 4, 8, 8)
    x = draw(4, 4, 8, 8)
    joint = model.predict_noise(x, 1, torch.zeros(1, 5, 24), num_frames=4)
    assert not torch.equal(joint, model.predict_noise(x, 1, torch.zeros(1, 5, 24), num_frames=1))
