import pytest
import torch

from invert3d_core import inversion
from invert3d_core.errors import TrainingError
from invert3d_core.inversion.losses import foreground_weights, masks_at_latent_size, snr_weights
from invert3d_core.mvdream.sampling import alphas_cumprod, velocity


def test_initial_words_are_repeated_in_order():
    rows = torch.arange(6.0).reshape(3, 2)
    assert torch.equal(inversion.initial_vectors(rows, 7), rows[[0, 1, 2, 0, 1, 2, 0]])
    assert torch.equal(inversion.initial_vectors(rows, 3), rows)
    assert torch.equal(inversion.initial_vectors(rows[0], 2, torch.ones(2)), (rows[0] + 1).expand(2, 2))


def test_more_words_than_vectors_are_refused():
    with pytest.raises(TrainingError, match="3 pieces, but the token has 2 vectors"):
        inversion.initial_vectors(torch.zeros(3, 4), 2)
    with pytest.raises(TrainingError, match="0 pieces"):
        inversion.initial_vectors(torch.zeros(0, 4), 2)


def draws(dtype=torch.float64):
    g = torch.Generator().manual_seed(3)
    return (*torch.randn(2, 4, 3, 5, 5, generator=g, dtype=dtype), torch.randint(1000, (4,), generator=g))


def test_weights_of_one_change_nothing_and_factors_scale():
    z, noise, t = draws()
    plain = inversion.denoising_losses(lambda x, _: 0.3 * x, z, noise, t)
    ones = inversion.denoising_losses(lambda x, _: 0.3 * x, z, noise, t, torch.ones(4, 1, 1, 1))
    assert torch.equal(plain, ones)
    scaled = inversion.denoising_losses(
        lambda x, _: 0.3 * x, z, noise, t, torch.tensor([1.0, 2, 3, 0])[:, None, None, None]
    )
    torch.testing.assert_close(scaled, plain * torch.tensor([1.0, 2, 3, 0]))


def test_a_perfect_prediction_has_no_loss():
    z, noise, t = draws()
    assert inversion.denoising_loss(lambda *_: noise, z, noise, t).item() == 0


@pytest.mark.parametrize("shape", [(4, 3, 5, 4), (3, 3, 5, 5)])
def test_shapes_that_do_not_fit_are_refused(shape):
    z, _, t = draws()
    with pytest.raises(TrainingError, match="do not fit"):
        inversion.denoising_loss(lambda x, _: x, z, torch.zeros(shape), t)


def test_foreground_weights_have_mean_one_and_the_right_ratio():
    masks = torch.zeros(2, 4, 6, 6)
    masks[0, :, :3] = 1
    weights = foreground_weights(masks, 3.0)
    assert weights.shape == (2, 4, 1, 6, 6)
    torch.testing.assert_close(weights.mean(dim=(1, 2, 3, 4)), torch.ones(2))
    assert weights[0, 0, 0, 0, 0] / weights[0, 0, 0, 5, 0] == 3
    assert torch.equal(weights[1], torch.ones(4, 1, 6, 6))
    assert torch.equal(foreground_weights(masks, 1.0), torch.ones(2, 4, 1, 6, 6))


def test_a_wrong_foreground_costs_its_factor():
    z, noise, _ = draws()
    t = torch.full((4,), 300)
    masks = torch.zeros(4, 5, 5)
    masks[:, :2] = 1

    def wrong_at(rows):
        def predict(*_):
            out = noise.clone()
            out[:, :, rows] += 1
            return out

        return inversion.denoising_loss(predict, z, noise, t, foreground_weights(masks, 4.0))

    torch.testing.assert_close(wrong_at(slice(0, 1)), 4 * wrong_at(slice(4, 5)))


def test_snr_weights_on_noise_are_the_same_objective_as_on_velocity():
    """clamp(SNR,1,γ)/SNR on the ε-error = clamp(SNR,1,γ)/(SNR+1) on the v-error."""
    z, noise, _ = draws()
    t = torch.tensor([3, 200, 600, 999])
    alphas = alphas_cumprod()
    a = alphas[t][:, None, None, None]
    noisy = a.sqrt() * z + (1 - a).sqrt() * noise
    guess = noise + 0.1 * torch.randn(noise.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    clean = (noisy - (1 - a).sqrt() * guess) / a.sqrt()
    v_error = (a.sqrt() * guess - (1 - a).sqrt() * clean - velocity(z, noise, t, alphas)).square()
    snr = alphas[t] / (1 - alphas[t])
    expected = (snr.clamp(1, 5) / (snr + 1)) * v_error.flatten(1).mean(dim=1)
    weights = snr_weights(t, alphas, 5.0)
    got = inversion.denoising_losses(lambda *_: guess, z, noise, t, weights[:, None, None, None])
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
    assert weights[0] < 0.05  # nearly clean: capped
    assert weights[3] > 100  # nearly noise: the ε-error hardly shows what x₀ is


def test_a_latent_cell_is_object_where_any_pixel_is():
    mask = torch.zeros(1, 8, 8)
    mask[0, 0, 0] = 1
    mask[0, 7, 5] = 0.5
    assert masks_at_latent_size(mask, 2, 2).tolist() == [[[1, 0], [0, 0.5]]]
