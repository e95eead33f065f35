"""The training of the toy model: what it must never show, and that the shipped file draws what was trained."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from invert3d_core import mvdream
from invert3d_core.mvdream.sampling import noise_from_velocity
from invert3d_core.toy.assets import held_out_color
from invert3d_core.toy.colors import NAMES
from invert3d_core.toy.families import KNOWN
from invert3d_core.toy.primitives import COLOR, PART
from invert3d_core.toy.vocabulary import words
from tools.toy_training import training
from tools.toy_training.export import export
from tools.toy_training.networks import encode_text, make_vae, word_table
from tools.toy_training.pool import PRIMITIVES, _jittered, camera_vectors, draw_pool
from tools.toy_training.preview import text_ids
from tools.toy_training.prompts import END, SLOT, Vocabulary, make_prompts
from tools.toy_training.training import Diffusion, Run, Schedule, Trainer, flat_gradients


@pytest.fixture(scope="module")
def pool():
    return draw_pool(1500, seed=3)


def test_held_out_colours_never_appear_as_main_colours(pool):
    for family, colors in zip(pool.family.tolist(), pool.colors.tolist(), strict=True):
        if family >= 0:
            assert NAMES[colors[0]] != held_out_color(KNOWN[family])
    assert pool.rows.shape[1:] == (PRIMITIVES, 21)
    assert 0.3 < (pool.family < 0).float().mean() < 0.5


def test_the_pool_does_not_depend_on_how_it_is_split():
    one, other = draw_pool(30, seed=4, chunk=10), draw_pool(30, seed=4, chunk=10, processes=2)
    assert torch.equal(one.rows, other.rows) and torch.equal(one.colors, other.colors)


def test_no_asset_is_empty(pool):
    """An asset without primitives has no size: its features would be NaN, and soon all weights as well."""
    rng, rows = np.random.default_rng(0), pool.rows[0].numpy()[:4]
    assert min(len(_jittered(rng, rows)) for _ in range(2000)) >= 2
    assert ((pool.rows[..., 0] >= 0).sum(1) >= 2).all()


def test_flat_gradients_are_autograds():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.Conv2d(5, 7, 1))
    network.to(memory_format=torch.channels_last)
    parameters = list(network.parameters())
    loss = network(torch.rand(2, 3, 8, 8)).square().mean()
    expected = torch.autograd.grad(loss, parameters, retain_graph=True)
    flat = flat_gradients(parameters)
    before = [p.grad for p in parameters]
    loss.backward()
    for parameter, held, wanted in zip(parameters, before, expected, strict=True):
        assert parameter.grad is held and held.stride() == parameter.stride()
        assert torch.equal(held, wanted)
    assert float(flat.norm()) == pytest.approx(float(torch.cat([g.flatten() for g in expected]).norm()))


class Work:
    """A training of a network so small that only the loop counts; each step takes seven seconds of its own clock.

    killed_at: the step in which it ends without a word.
    """

    def __init__(self, folder, seed, killed_at=None):
        folder.mkdir(exist_ok=True)
        torch.manual_seed(seed)
        networks = nn.ModuleDict({"body": nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), "head": nn.Linear(6, 2)})
        self.trainer = Trainer(
            Run(folder, torch.device("cpu")), "tiny", networks, Schedule(1e-2, 30), seconds=700, decay=0.01
        )
        self.killed_at, self.now = killed_at, 1000.0 * seed  # no clock starts where another one stopped
        self.rates = []

    def fill_gradients(self):
        step, networks = self.trainer.step, self.trainer.networks
        if step == self.killed_at:
            raise KeyboardInterrupt
        self.now += 7
        self.rates.append(self.trainer.optimizer.param_groups[0]["lr"])
        self.trainer.gradients.zero_()
        batch = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        loss = networks["head"](networks["body"](batch)).square().mean()
        loss.backward()
        return {"loss": loss.detach()}

    def loop(self, monkeypatch, seconds=math.inf):
        monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.trainer.loop(self.fill_gradients, self.now + seconds, report_every=50)

    def state(self):
        return [*self.trainer.networks.state_dict().values(), *self.trainer.average]


def test_a_stopped_and_a_killed_training_go_on_to_the_same_weights(tmp_path, monkeypatch):
    """The learning rate goes by the clock, so the clock is the test's."""
    whole = Work(tmp_path / "whole", seed=1)
    whole.loop(monkeypatch)
    assert (whole.trainer.step, whole.trainer.spent, whole.trainer.done) == (100, 700, True)

    stopped = Work(tmp_path / "broken", seed=1)
    stopped.loop(monkeypatch, seconds=150)
    assert (stopped.trainer.step, stopped.trainer.done) == (40, False)
    killed = Work(tmp_path / "broken", seed=2, killed_at=75)
    with pytest.raises(KeyboardInterrupt):
        killed.loop(monkeypatch)
    last = Work(tmp_path / "broken", seed=3)
    assert last.trainer.step == 60, "it was saved on the way"
    last.loop(monkeypatch)
    assert (last.trainer.step, last.trainer.spent, last.trainer.done) == (100, 700, True)
    assert whole.rates == stopped.rates + killed.rates[:20] + last.rates
    assert all(torch.equal(found, expected) for found, expected in zip(last.state(), whole.state(), strict=True))
    assert Work(tmp_path / "broken", seed=4).trainer.done


def test_prompts_say_what_the_pictures_show(pool):
    vocabulary, spoken = Vocabulary.on("cpu"), words()
    prompts = make_prompts(pool, vocabulary, torch.Generator().manual_seed(0))
    held_out = {spoken.index(family.name): spoken.index(held_out_color(family)) for family in KNOWN}
    for row, instance, family, colors in zip(
        prompts.ids.tolist(), prompts.instance.tolist(), pool.family.tolist(), pool.colors.tolist(), strict=True
    ):
        body = [i for i in row[1:] if i != END]
        assert len(body) <= 46
        slots = [i for i in body if i >= SLOT]
        assert bool(slots) <= instance
        if family < 0:
            assert not {spoken.index(f.name) for f in KNOWN} & set(body), "a nameless asset has no family word"
        if not instance and len(body) > 3 and body[2] in held_out and family >= 0:
            assert body[1] == spoken.index(NAMES[colors[0]]) != held_out[body[2]]
    changed = (prompts.rows != pool.rows).any(-1)
    assert (changed.any(1) <= (pool.rows[..., PART] >= 0).any(1)).all()
    assert 0.1 < changed.any(1).float().mean() < 0.35
    only_color = torch.cat([prompts.rows[..., : COLOR.start], prompts.rows[..., COLOR.stop :]], -1)
    assert torch.equal(only_color, torch.cat([pool.rows[..., : COLOR.start], pool.rows[..., COLOR.stop :]], -1))


def test_the_exported_file_predicts_what_was_trained(tmp_path, pool):
    """Same noise for the same latents, text and cameras, through the loader that reads published checkpoints."""
    torch.manual_seed(0)
    diffusion, vae = Diffusion().eval(), make_vae().eval()
    mean, deviation = torch.linspace(-1, 1, 8), torch.linspace(0.5, 2, 8)
    file = export(tmp_path, diffusion.unet, diffusion.text, vae, mean, deviation)
    again = [export(tmp_path / str(i), diffusion.unet, diffusion.text, vae, mean, deviation) for i in range(8)]
    assert len({path.read_bytes() for path in (file, *again)}) == 1, "the same weights give the same file"
    model = mvdream.load(str(tmp_path), device="cpu")
    assert model.info.base == "toy" and model.info.front_azimuth_deg == 0

    caption = "a red chair with blue legs, 3d asset"
    part = pool.map(lambda tensor: tensor[:1])
    cameras = camera_vectors(part.azimuth, part.elevation)[0]
    rng = torch.Generator().manual_seed(1)
    latents = torch.randn(4, 8, 16, 16, generator=rng)
    with torch.no_grad():
        context = diffusion.context(text_ids([caption], "cpu"), torch.zeros(1, 16, 128))
        assert (model.encode_prompt([caption]) - context).abs().max() < 0.02
        times = torch.full((4,), 700)
        kwargs = {"cross_attention_kwargs": {"num_frames": 4}}
        velocity = diffusion.unet(latents, times, context.expand(4, -1, -1), class_labels=cameras, **kwargs).sample
        expected = noise_from_velocity(velocity, latents, times, model.schedule.alphas_cumprod.float())
        found = model.predict_noise(latents, times, context, cameras)
        assert (found - expected).abs().max() < 0.03

        images = torch.rand(2, 128, 128, 3, generator=rng)
        raw = vae.encode(images.movedim(-1, 1) * 2 - 1).latent_dist.mean
        wanted = (raw - mean.view(1, -1, 1, 1)) / deviation.view(1, -1, 1, 1)
        standardised, _ = model.encode_images(images)
        assert (standardised - wanted).abs().max() < 0.02
        drawn = (vae.decode(raw).sample / 2 + 0.5).clamp(0, 1).movedim(1, -1)
        assert (model.decode_latents(wanted) - drawn).abs().max() < 0.02


def test_our_text_encoder_is_the_librarys(pool):
    torch.manual_seed(1)
    text = Diffusion().text.eval()
    ids = torch.randint(0, len(words()), (2, 48), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours = encode_text(text, word_table(text)(ids))
        assert (text(ids).last_hidden_state - ours).abs().max() < 1e-5
