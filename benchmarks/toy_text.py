"""Does the toy model draw what captions say? Held-out combinations, read by a classifier of pictures.

    python benchmarks/toy_text.py [--classifier FILE] [--out benchmarks/results] [--limit 6]

The classifier, made by ``tools/train_toy.py classifier``, lies beside this file. It first reads fresh renders, so that
its own mistakes are known before it judges the model's.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.toy_drawing import draw_prompts, table
from invert3d_core import mvdream
from invert3d_core.rendering import rasterize
from invert3d_core.toy.assets import ToyAsset, draw, held_out_color
from invert3d_core.toy.colors import NAMES
from invert3d_core.toy.families import KNOWN
from invert3d_core.toy.scoring import CAPTION_GUIDANCE, scoring_cameras
from tools.toy_training.classifier import Classifier

GUIDANCE = (2.0, 3.0, 5.0, 7.5)  # beside the verdict's
PER_FAMILY = 3
SEEDS = (100, 101, 102, 103)


def answers(assets: list[ToyAsset]) -> tuple[Tensor, Tensor]:
    """Indices of family (B,) and of the parts' colours (B,3)."""
    family = torch.tensor([KNOWN.index(asset.family) for asset in assets])
    return family, torch.tensor([[NAMES.index(name) for name in asset.colors] for asset in assets])


def accuracies(reader: Classifier, views: Tensor, truth: tuple[Tensor, Tensor]) -> list[float]:
    """Share read right, in %: family, main, second and third part's color, both of these. views: (B,4,H,W,3)."""
    device = next(reader.parameters()).device
    family, colors = (part.cpu() for part in reader.read(views.to(device)))
    hits = (colors == truth[1]).float()
    right = [(family == truth[0]).float().mean(), *hits.mean(0), hits[:, 1:].mean()]
    return [float(value) * 100 for value in right]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="toy")
    parser.add_argument("--classifier", type=Path, default=Path(__file__).with_name("toy_classifier.safetensors"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="folder for the table")
    parser.add_argument("--limit", type=int, default=1, help="only every n-th family (a trial)")
    options = parser.parse_args()

    model = mvdream.load(options.model, device=options.device)
    reader = Classifier.load(options.classifier).to(options.device)
    cams = scoring_cameras(model.info)
    assets = [
        draw(50_000 + i, family.name, held_out_color(family))
        for family in KNOWN[:: options.limit]
        for i in range(PER_FAMILY)
    ]
    truth = answers(assets)
    renders = torch.stack([rasterize(asset.splats(), cams).color.clamp(0, 1) for asset in assets])
    rows = [["fresh renders", "–", *(f"{value:.1f}" for value in accuracies(reader, renders, truth))]]
    prompts = [asset.full_caption() for asset in assets]
    # The verdict is the row of the guidance that was chosen for captions on other assets; the others show its effect.
    for scale in sorted({*GUIDANCE, CAPTION_GUIDANCE}):
        drawn = draw_prompts(model, prompts, cams, SEEDS, scale)
        read = torch.tensor([accuracies(reader, views, truth) for views in drawn]).mean(0)
        used = " (the verdict)" if scale == CAPTION_GUIDANCE else ""
        rows.append([f"captions{used}", f"{scale:g}", *(f"{value:.1f}" for value in read.tolist())])
    columns = ["", "guidance", "family", "main color", "part 2", "part 3", "parts 2 and 3"]
    text = (
        f"{len(assets)} prompts of held-out combinations, {len(SEEDS)} noises, 25 steps; {options.device}.\n\n"
        + table("What the classifier reads, %", columns, rows)
    )
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "toy_text.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
