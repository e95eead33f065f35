from pathlib import Path

import pytest
import safetensors.torch
import torch

from invert3d_core import inversion
from invert3d_core.inversion.optimizer import adamw
from invert3d_core.mvdream import sampling
from invert3d_core.tokens import prompts

DATA = Path(__file__).parent / "invert3d"


def golden(name):
    return safetensors.torch.load_file(DATA / f"{name}.safetensors")


EXPANSION_CASES = [
    "one_vector",
    "one_vector_batch",
    "bare_32",
    "mid_32",
    "twice_32",
    "thrice_32_overflow",
    "late_32_truncated",
    "batch_32",
    "two_placeholders_32",
    "two_placeholders_overflow_32",
    "two_placeholders_n",
]


def test_every_expansion_case_is_listed():
    assert {k.split(".")[0] for k in golden("placeholder_expansion") if "." in k} == set(EXPANSION_CASES)


@pytest.mark.parametrize("case", EXPANSION_CASES)
def test_placeholder_expansion(case):
    data = golden("placeholder_expansion")
    vectors = {p: data[f"{case}.{k}"] for k, p in (("vectors_0", 265), ("vectors_1", 287)) if f"{case}.{k}" in data}
    ids = data[f"{case}.ids_in"]
    out = prompts.expand(ids, data[f"{case}.embeds_in"], vectors)
    assert torch.equal(out, data[f"{case}.embeds_out"])
    assert torch.equal(prompts.expand_ids(ids, {p: len(v) for p, v in vectors.items()}), data[f"{case}.ids_out"])


def test_first_end_token_after_expansion():
    data = golden("placeholder_expansion")
    ids = prompts.expand_ids(data["bare_32.ids_in"], {265: 32})
    assert (ids[0] == 49407).nonzero()[0].item() == data["first_eos_example_bare_32"].item()


def test_initial_vectors():
    data = golden("embedding_init_and_file")
    row, position = data["token_row"], data["position_row_0"]
    published = inversion.initial_vectors(row, 4, position)
    torch.testing.assert_close(published, data["init_vectors_reference"], rtol=0, atol=1e-6)
    plain = inversion.initial_vectors(row[None], 4)
    torch.testing.assert_close(plain, data["init_vectors_token_only"], rtol=0, atol=1e-6)


def test_noise_schedule():
    data = golden("noise_schedule")
    start, end = data["linear_start_end"].tolist()
    alphas = sampling.alphas_cumprod(start, end)
    torch.testing.assert_close(alphas, data["alphas_cumprod_f64"], rtol=0, atol=1e-12)
    for values, key in (
        (alphas, "alphas_cumprod_f32"),
        (alphas.sqrt(), "sqrt_alphas_cumprod_f32"),
        ((1 - alphas).sqrt(), "sqrt_one_minus_alphas_cumprod_f32"),
    ):
        torch.testing.assert_close(values.float(), data[key], rtol=0, atol=2e-7)


def stub_model(context, camera, stub_weight):
    """The stand-in for the network that the golden values were made with."""

    def predict(x, t):
        text = (context.mean(dim=1) @ stub_weight)[:, :, None, None]
        view = 0.02 * camera.sum(dim=1) + 1e-4 * t.to(camera.dtype)
        return 0.5 * x + text + view[:, None, None, None]

    return predict


@pytest.mark.parametrize("case", ["per_view", "shared"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 5e-6)])
def test_noising_and_loss(case, dtype, tolerance):
    data = golden("q_sample_and_loss")
    z, noise, context, camera, weight = (data[k].to(dtype) for k in ("z", "noise", "context", "camera", "stub_weight"))
    t = data[f"{case}.t"]
    seen = {}

    def predict(x, timesteps):
        seen["x"], seen["out"] = x, stub_model(context, camera, weight)(x, timesteps)
        return seen["out"]

    losses = inversion.denoising_losses(predict, z, noise, t)
    loss = inversion.denoising_loss(predict, z, noise, t)
    for value, key in ((seen["x"], "x_t"), (seen["out"], "eps_hat"), (losses, "loss_per_view"), (loss[None], "loss")):
        assert value.dtype == dtype
        torch.testing.assert_close(value.double(), data[f"{case}.{key}"], rtol=0, atol=tolerance)


def test_quick_numbers_of_the_loss():
    k = torch.arange(4 * 4 * 8 * 8, dtype=torch.float32).reshape(4, 4, 8, 8)
    z, noise = torch.sin(0.37 * k), torch.cos(0.73 * k)
    for timesteps, expected in (([10, 250, 500, 990], 0.3111934662), ([500] * 4, 0.2002252489)):
        loss = inversion.denoising_loss(lambda x, t: 0.5 * x, z, noise, torch.tensor(timesteps))
        assert loss.item() == pytest.approx(expected, abs=1e-7)


def test_training_steps():
    data = golden("training_steps")
    reference = inversion.preset("reference")
    vectors = data["vectors"][0]
    first, second = torch.zeros_like(vectors)[None], torch.zeros_like(vectors)[None]
    for k in range(3):
        vectors = vectors.detach().requires_grad_()
        rows = prompts.expand(data["caption_ids"], data["caption_token_embeddings"], {265: vectors})
        context = torch.tanh(rows + data["position_embeddings"])
        predict = stub_model(context, data["camera"], data["stub_weight"])
        loss = inversion.denoising_loss(predict, data["z"][k], data["noise"][k], data["t"][k])
        (gradient,) = torch.autograd.grad(loss, vectors)
        assert loss.item() == pytest.approx(data["losses"][k].item(), abs=1e-5)
        torch.testing.assert_close(gradient.double(), data["gradients"][k], rtol=0, atol=2e-6)
        moved, first, second = adamw(
            vectors[None],
            gradient[None],
            first,
            second,
            k + 1,
            learning_rate=reference.learning_rate,
            betas=reference.betas,
            epsilon=reference.epsilon,
            weight_decay=reference.weight_decay,
        )
        vectors = moved[0]
        torch.testing.assert_close(vectors, data["vectors"][k + 1], rtol=0, atol=2e-5)
