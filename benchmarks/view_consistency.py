"""Do generated views show one object? The toy's token views and text views, and a control that must fall behind.

    python benchmarks/view_consistency.py --out benchmarks/results

A splat of degree 0 with a fixed number of splats is fitted to four views (`lift3d.view_consistency`); the foreground
PSNR of the fit says how far one object explains them. The control takes the four views from samples of four different
noises: each is a good picture of what the prompt says, but not of the same object. It is judged where the noise decides
what the object is, by prompts that name the family alone: there it must score at least 4 dB lower than samples of one
noise, or the metric is rejected. The more a prompt says, the less is left to the noise, and the smaller is the gap that
there is to see: with colors, full captions and tokens it is told, not judged.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.toy_drawing import VIEWS, draw_prompts, table
from benchmarks.toy_inversion import learn
from benchmarks.toy_subjects import make_subject, tuning_assets
from invert3d_core import inversion, lift3d, mvdream
from invert3d_core.cameras import Cameras
from invert3d_core.toy.assets import article
from invert3d_core.toy.scoring import CAPTION_GUIDANCE, TOKEN_GUIDANCE, scoring_cameras

SEEDS = (100, 101, 102, 103)  # one for each view of the control
LEAST_GAP_DB = 4.0
JUDGED = "text views, family alone"


def mixed(drawn: Tensor) -> Tensor:  # (S,P,V,H,W,3) -> (S,P,V,H,W,3)
    """Views of which each is from another seed, S ways."""
    seeds = torch.arange(len(drawn))
    return torch.stack([drawn[seeds.roll(-shift), :, torch.arange(VIEWS)].movedim(0, 1) for shift in range(len(seeds))])


def consistencies(drawn: Tensor, cams: Cameras, device: str) -> Tensor:  # (S,P,V,H,W,3) -> (S,P)
    """The consistency of each sample, in dB."""
    rows = [[lift3d.view_consistency(views.to(device), cams) for views in prompts] for prompts in drawn]
    return torch.tensor(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="toy")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="folder for the table")
    parser.add_argument("--limit", type=int, default=1, help="only every n-th asset (a trial)")
    parser.add_argument("--samples", type=int, default=2, help="samples of each prompt, and as many controls (1 to 4)")
    parser.add_argument(
        "--token-steps", type=int, help="training steps of the tokens, 0 for none (default: the preset's)"
    )
    options = parser.parse_args()

    began = time.monotonic()
    model = mvdream.load(options.model, device=options.device)
    cams = scoring_cameras(model.info)
    subjects = [make_subject(asset, cams) for asset in tuning_assets()[:: options.limit]]
    short = [subject.asset.short_caption() for subject in subjects]
    families = [caption.split(" ", 2)[2] for caption in short]  # behind article and color
    prompts = {
        JUDGED: ([f"{article(family)} {family}" for family in families], CAPTION_GUIDANCE),
        "text views, short captions": (short, CAPTION_GUIDANCE),
        "text views, full captions": ([subject.asset.full_caption() for subject in subjects], CAPTION_GUIDANCE),
    }
    config = inversion.preset("recommended", preview_every=0, checkpoint_every=0)
    steps = config.steps if options.token_steps is None else options.token_steps
    if steps:
        tokens = learn(
            model, subjects, replace(config, steps=steps), batch=len(subjects) if options.device == "cuda" else 1
        )
        for token in tokens:
            model = model.with_token(token)
        prompts["token views"] = ([f"a <{token.name}>" for token in tokens], TOKEN_GUIDANCE)

    rendered = consistencies(torch.stack([subject.truth for subject in subjects])[None], cams, options.device)
    rows = [["rendered views of the assets", *_summary(rendered), "–", "–"]]
    passed = False
    for name, (texts, guidance) in prompts.items():
        drawn = draw_prompts(model, texts, cams, SEEDS, guidance)  # (S,P,V,H,W,3)
        one = consistencies(drawn[: options.samples], cams, options.device)
        control = consistencies(mixed(drawn)[: options.samples], cams, options.device)
        gap = one.mean(0) - control.mean(0)  # (P,)
        if name == JUDGED:
            passed = float(gap.mean()) >= LEAST_GAP_DB
        share = f"{100 * float((gap >= LEAST_GAP_DB).float().mean()):.0f} %"
        rows.append([name, *_summary(one), f"{float(gap.mean()):.2f}", share])
        rows.append([f"control: {name} of four seeds", *_summary(control), "–", "–"])
        print(f"{name}: {float(one.mean()):.2f} dB, four seeds {float(control.mean()):.2f} dB", flush=True)

    fit = lift3d.preset("consistency")
    text = (
        f"{len(subjects)} assets, {options.samples} samples of each prompt, {VIEWS} views of {cams.width}²; "
        f"{fit.splats} splats, {fit.steps} steps; tokens trained for {steps} steps; "
        f"{options.device}, {time.monotonic() - began:.0f} s.\n\n"
        + table(
            "Cross-view consistency: foreground PSNR of a degree-0 splat fitted to four views, dB",
            ["", "mean", "least", "greatest", "above four seeds", f"assets with ≥ {LEAST_GAP_DB:g} dB"],
            rows,
        )
        + f"\nThe metric is {'kept' if passed else 'REJECTED'}: with prompts of the family alone, views of four seeds "
        f"must lie at least {LEAST_GAP_DB:g} dB lower, in the mean over the assets.\n"
    )
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "view_consistency.md").write_text(text, encoding="utf-8")
    sys.exit(0 if passed else 1)


def _summary(values: Tensor) -> list[str]:
    return [f"{float(value):.2f}" for value in (values.mean(), values.min(), values.max())]


if __name__ == "__main__":
    main()
