"""What a learned token says that words do not: the toy model's token against captions and controls.

    python benchmarks/toy_inversion.py --out benchmarks/results

Scores are over the union of true and drawn silhouettes on white, four views that no token was trained on, the mean over
the same noises for every row. Guidance of each row is chosen on other assets (`tuning_assets`). On a GPU all tokens are
trained in one batch; each comes out as it would alone.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.toy_drawing import VIEWS, draw_prompts, save_sheet, table
from benchmarks.toy_subjects import (
    Subject,
    distractor_assets,
    make_subject,
    scored_assets,
    tuning_assets,
)
from invert3d_core import inversion, mvdream
from invert3d_core.cameras import Cameras
from invert3d_core.metrics import foreground_mask, foreground_psnr, silhouette_iou
from invert3d_core.mvdream import MVDream
from invert3d_core.rendering import rasterize
from invert3d_core.tokens import Token
from invert3d_core.toy.assets import article
from invert3d_core.toy.colors import nearest_name
from invert3d_core.toy.scoring import scores, scoring_cameras

GUIDANCE = (1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0)


def learn(model: MVDream, subjects: list[Subject], config: inversion.InversionConfig, batch: int) -> list[Token]:
    """One token per subject, started from the words of its full caption."""
    tokens: list[Token] = []
    for start in range(0, len(subjects), batch):
        chosen = subjects[start : start + batch]
        results = inversion.train_tokens(
            model,
            [subject.splats for subject in chosen],
            config,
            names=[f"t{start + i}" for i in range(len(chosen))],
            initial_words=[initial_words(subject) for subject in chosen],
        )
        tokens += [result.token for result in results]
    return tokens


def initial_words(subject: Subject) -> str:
    return subject.asset.full_caption().split(" ", 1)[1]


def with_tokens(model: MVDream, tokens: list[Token], strength: float = 1.0) -> MVDream:
    for token in tokens:
        model = model.with_token(token, strength)
    return model


def random_tokens(tokens: list[Token], seed: int = 5) -> list[Token]:
    """Vectors of random direction with the norms of the learned ones."""
    rng = torch.Generator().manual_seed(seed)
    result = []
    for token in tokens:
        drawn = torch.randn(token.vectors.shape, generator=rng)
        drawn = drawn / drawn.norm(dim=1, keepdim=True) * token.vectors.norm(dim=1, keepdim=True)
        result.append(replace(token, vectors=drawn))
    return result


def siblings(subjects: list[Subject]) -> list[int]:
    """For each subject the index of another of its family; of the next subject where there is none (in a trial)."""
    families = [subject.asset.family.name for subject in subjects]
    return [
        next((j for j in range(len(families)) if j != i and families[j] == family), (i + 1) % len(families))
        for i, family in enumerate(families)
    ]


def truths(subjects: list[Subject]) -> Tensor:
    return torch.stack([subject.truth for subject in subjects])


def retrieved(drawn: Tensor, pool: Tensor) -> Tensor:
    """Share of noises (P,) in which the drawn views are nearest to the right asset; pool starts with the P subjects."""
    hits = []
    for views in drawn:
        best = [int(foreground_psnr(one.expand_as(pool), pool).argmax()) == index for index, one in enumerate(views)]
        hits.append(torch.tensor(best).float())
    return torch.stack(hits).mean(0)


def edited_right(edited: Tensor, plain: Tensor, subjects: list[Subject]) -> tuple[Tensor, Tensor]:
    """Per noise and subject (S,P): main part has the named colour; silhouettes overlap by at least 0.7."""
    colors, overlaps = [], []
    for views, before in zip(edited, plain, strict=True):
        names = []
        for one, subject in zip(views, subjects, strict=True):
            pixels = one[subject.main_mask & foreground_mask(one)]
            names.append(nearest_name(pixels.median(0).values[None])[0] if len(pixels) else "")
        colors.append(torch.tensor([name == s.edit_color for name, s in zip(names, subjects, strict=True)]))
        overlaps.append(silhouette_iou(foreground_mask(views), foreground_mask(before)) >= 0.7)
    return torch.stack(colors), torch.stack(overlaps)


def edit_prompts(subjects: list[Subject], names: list[str]) -> list[str]:
    return [f"{article(s.edit_color)} {s.edit_color} <{name}>" for s, name in zip(subjects, names, strict=True)]


def best_guidance(
    model: MVDream, prompts: list[str], subjects: list[Subject], cams: Cameras, seeds: list[int]
) -> float:
    truth = truths(subjects)
    found = {g: float(scores(draw_prompts(model, prompts, cams, seeds, g), truth)[0].mean()) for g in GUIDANCE}
    print(f"{prompts[0]!r} and the like:", "  ".join(f"{g:g}: {psnr:.2f} dB" for g, psnr in found.items()), flush=True)
    return max(found, key=found.__getitem__)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="toy")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--noises", type=int, default=4)
    parser.add_argument("--limit", type=int, default=0, help="score only every n-th asset (a trial); 0 scores all")
    parser.add_argument("--batch", type=int, default=80 if torch.cuda.is_available() else 1, help="tokens at once")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the training")
    parser.add_argument("--out", type=Path, help="folder for the table, numbers and contact sheet")
    parser.add_argument("--tag", default="toy_inversion")
    parser.add_argument("--tune-only", action="store_true", help="score the tuning assets: to choose settings")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    model = mvdream.load(options.model, device=options.device)
    changes = {key: json.loads(value) for key, value in (item.split("=", 1) for item in options.set)}
    config = inversion.preset("recommended", preview_every=0, checkpoint_every=0, **changes)
    cams = scoring_cameras(model.info)
    every = max(1, options.limit)
    seeds = [100 + i for i in range(options.noises)]
    tuning = [make_subject(asset, cams) for asset in tuning_assets()[::every]]
    subjects = [make_subject(asset, cams) for asset in ([] if options.tune_only else scored_assets()[::every])]

    began = time.monotonic()
    learned = learn(model, tuning + subjects, config, options.batch)
    training_seconds = time.monotonic() - began
    tuned, tokens = learned[: len(tuning)], learned[len(tuning) :]
    chosen_model = with_tokens(model, tuned)
    rows_of_words = {
        "short": [s.asset.short_caption() for s in tuning],
        "full": [s.asset.full_caption() for s in tuning],
        "token": [f"a <{token.name}>" for token in tuned],
    }
    guidance = {
        name: best_guidance(chosen_model, prompts, tuning, cams, seeds[:2]) for name, prompts in rows_of_words.items()
    }
    print(f"guidance chosen on {len(tuning)} other assets: {guidance}", flush=True)
    if options.tune_only:
        subjects, tokens = tuning, tuned
    report(options, model, config, subjects, tokens, guidance, cams, seeds, training_seconds)


def report(options, model, config, subjects, tokens, guidance, cams, seeds, training_seconds) -> None:
    truth = truths(subjects)
    names = [token.name for token in tokens]
    prompts = [f"a <{name}>" for name in names]
    learned = with_tokens(model, tokens)
    other = siblings(subjects)
    others = [replace(tokens[j], name=f"o{i}") for i, j in enumerate(other)]
    plans = {
        "short caption": (model, [s.asset.short_caption() for s in subjects], guidance["short"]),
        "full caption": (model, [s.asset.full_caption() for s in subjects], guidance["full"]),
        "token": (learned, prompts, guidance["token"]),
        "control: initial words (strength 0)": (with_tokens(model, tokens, 0.0), prompts, guidance["token"]),
        "control: token of another of the family": (
            with_tokens(model, others),
            [f"a <{token.name}>" for token in others],
            guidance["token"],
        ),
        "control: random vectors": (with_tokens(model, random_tokens(tokens)), prompts, guidance["token"]),
    }
    drawn = {name: draw_prompts(m, p, cams, seeds, g) for name, (m, p, g) in plans.items()}
    mean, _ = model.encode_images(truth.flatten(0, 1).to(model.device))
    through_vae = model.decode_latents(mean).float().cpu().unflatten(0, (-1, VIEWS))[None]
    pool = torch.cat(
        [truth, *[rasterize(a.splats(), cams).color.clamp(0, 1)[None] for a in distractor_assets(subjects)]]
    )
    known = torch.tensor([s.known for s in subjects])
    groups = {"known": known, "new": ~known}

    def by_group(values: Tensor, digits: int, factor: float = 1) -> list[str]:
        return [f"{float(values[mask].mean()) * factor:.{digits}f}" if mask.any() else "–" for mask in groups.values()]

    def with_error(values: Tensor) -> list[str]:
        spreads = [float(values[m].std()) / len(values[m]) ** 0.5 if m.sum() > 1 else None for m in groups.values()]
        return [
            mean if spread is None else f"{mean} ± {spread:.2f}"
            for mean, spread in zip(by_group(values, 2), spreads, strict=True)
        ]

    rows, numbers = [], {}
    for name, views in {"VAE bound": through_vae, **drawn}.items():
        psnr, iou = scores(views, truth)
        hits = retrieved(views, pool)
        scale = f"{plans[name][2]:g}" if name in plans else "–"
        rows.append([name, scale, *by_group(psnr, 2), *by_group(iou, 3), *by_group(hits, 1, 100)])
        numbers[name] = {"psnr": psnr.tolist(), "iou": iou.tolist(), "retrieval": hits.tolist()}
    gains = {
        f"token over {name}": torch.tensor(numbers["token"]["psnr"]) - torch.tensor(numbers[f"{name} caption"]["psnr"])
        for name in ("full", "short")
    }
    edited = draw_prompts(learned, edit_prompts(subjects, names), cams, seeds, guidance["token"])
    color, overlap = edited_right(edited, drawn["token"], subjects)
    plain_color, _ = edited_right(drawn["token"], drawn["token"], subjects)
    words = [replace(s.asset, colors=(s.edit_color, *s.asset.colors[1:])).full_caption() for s in subjects]
    by_words = draw_prompts(model, words, cams, seeds, guidance["full"])
    word_color, word_overlap = edited_right(by_words, drawn["full caption"], subjects)
    edits = [
        ["token with the colour word", color, overlap],
        ["control: token without it", plain_color, torch.ones_like(plain_color)],
        ["caption with the word changed", word_color, word_overlap],
    ]
    edit_rows = [
        [name, *(cell for hit in (c, o, c & o) for cell in by_group(hit.float().mean(0), 1, 100))]
        for name, c, o in edits
    ]
    count = [int(mask.sum()) for mask in groups.values()]
    text = "\n".join(
        [
            f"{count[0]} assets of known families, {count[1]} of new ones; {len(seeds)} noises; retrieval among "
            f"{len(pool)}; {len(tokens[0].vectors)} vectors, {config.steps} steps; {options.device}; training of all "
            f"tokens {training_seconds:.0f} s.\n",
            table(
                "Views of held-out assets",
                ["", "guidance", "PSNR known", "new", "IoU known", "new", "retrieval % known", "new"],
                rows,
            ),
            table(
                "Gain, dB (± standard error over assets)",
                ["", "known", "new"],
                [[name, *with_error(gain)] for name, gain in gains.items()],
            ),
            table(
                '"a <other colour> <token>", %',
                ["", "colour known", "new", "IoU ≥ 0.7 known", "new", "both known", "new"],
                edit_rows,
            ),
        ]
    )
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"{options.tag}.md").write_text(text, encoding="utf-8")
        details = {
            "subjects": [s.asset.full_caption() for s in subjects],
            "known": known.tolist(),
            "guidance": guidance,
            "gain_over_full": gains["token over full"].tolist(),
            "gain_over_short": gains["token over short"].tolist(),
            "rows": numbers,
            "edits_both": (color & overlap).float().mean(0).tolist(),
        }
        (options.out / f"{options.tag}.json").write_text(json.dumps(details, indent=1), encoding="utf-8")
        shown = range(0, len(subjects), max(1, len(subjects) // 14))
        columns = [truth, drawn["token"][0], edited[0], drawn["full caption"][0], drawn["short caption"][0]]
        save_sheet(options.out / f"{options.tag}.jpg", [[column[i][:3] for column in columns] for i in shown])


if __name__ == "__main__":
    main()
