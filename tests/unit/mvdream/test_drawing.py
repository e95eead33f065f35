"""Many prompts from the same noises."""

from typing import Any

import pytest
import torch

from invert3d_core.cameras import orbit
from invert3d_core.errors import ModelError
from invert3d_core.mvdream import MVDream
from invert3d_core.mvdream.drawing import draw_prompts

PROMPTS = ["a red cup", "a blue cup", "a cup"]


def test_each_prompt_and_seed_is_what_sample_draws(model: MVDream) -> None:
    cams = orbit([0.0, 90.0, 180.0], 10.0, 3.0, 40.0, 16, 16)
    drawn = draw_prompts(model, PROMPTS, cams, [3, 8], 2.5, steps=2, batch=2)
    assert drawn.shape == (2, 3, 3, 16, 16, 3)
    for s, seed in enumerate([3, 8]):
        for p, prompt in enumerate(PROMPTS):
            alone = model.sample(prompt, cams, steps=2, guidance_scale=2.5, seed=seed, suffix="")
            assert torch.allclose(drawn[s, p], alone, atol=2e-5), (seed, prompt)
    assert not torch.equal(drawn[:, 0], drawn[:, 1])


def test_progress_counts_all_batches_and_steps_default_to_the_model(model: MVDream) -> None:
    seen: list[tuple[int, int]] = []

    def progress(step: int, total: int, **_: Any) -> None:
        seen.append((step, total))

    cams = orbit([0.0], 10.0, 3.0, 40.0, 16, 16)
    draw_prompts(model, PROMPTS, cams, [0, 1], 1.0, batch=2, progress=progress)
    assert seen == [(i, 2 * 2 * model.info.steps) for i in range(1, 2 * 2 * model.info.steps + 1)]


def test_nothing_to_draw(model: MVDream) -> None:
    cams = orbit([0.0], 10.0, 3.0, 40.0, 16, 16)
    with pytest.raises(ModelError, match="0 prompts and 1 seeds"):
        draw_prompts(model, [], cams, [0], 1.0)
    with pytest.raises(ModelError, match="1 prompts and 0 seeds"):
        draw_prompts(model, ["a cup"], cams, [], 1.0)
