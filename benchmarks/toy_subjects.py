"""The held-out assets that the toy model is scored on, and those that settings are chosen on."""

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from invert3d_core.cameras import Cameras
from invert3d_core.rendering import rasterize
from invert3d_core.splats import GaussianSplats
from invert3d_core.splats.spherical_harmonics import C0
from invert3d_core.toy.assets import ToyAsset, draw, held_out_color
from invert3d_core.toy.colors import CHROMATIC
from invert3d_core.toy.families import HELD_OUT, KNOWN
from invert3d_core.toy.primitives import MAIN, cover

DISTRACTORS = 4  # of the same family, for every scored asset's family


@dataclass(frozen=True)
class Subject:
    """A held-out asset with its true views (4,H,W,3), its main part's mask (4,H,W) and the colour it is edited to."""

    asset: ToyAsset
    splats: GaussianSplats
    truth: Tensor
    main_mask: Tensor
    edit_color: str

    @property
    def known(self) -> bool:
        return self.asset.family.known


def main_part(asset: ToyAsset, cams: Cameras) -> Tensor:
    """Where the asset's main part shows in each view, (C,H,W) bool."""
    splats = asset.splats()
    covered = cover(torch.from_numpy(asset.rows)[None], torch.from_numpy(asset.stretch)[None], len(splats))
    is_main = (covered["part"][0] == MAIN).float()[:, None, None].expand(-1, 1, 3)
    painted = GaussianSplats(splats.positions, splats.scales, splats.rotations, splats.opacities, (is_main - 0.5) / C0)
    return rasterize(painted, cams, background=(0, 0, 0)).color[..., 0] > 0.5


def make_subject(asset: ToyAsset, cams: Cameras) -> Subject:
    splats = asset.splats()
    rng = np.random.default_rng(zlib.crc32(asset.full_caption().encode()))
    choices = [name for name in CHROMATIC if name != asset.colors[0]]
    return Subject(
        asset, splats, rasterize(splats, cams).color.clamp(0, 1), main_part(asset, cams), str(rng.choice(choices))
    )


def held_out_assets(first_seed: int, families: slice, each: int, new_each: int) -> list[ToyAsset]:
    """Unseen combinations of known families (their held-out colour) and members of families never trained on."""
    assets = [
        draw(first_seed + i, family.name, held_out_color(family)) for family in KNOWN[families] for i in range(each)
    ]
    return assets + [draw(first_seed + i, family.name) for family in HELD_OUT for i in range(new_each)]


def scored_assets() -> list[ToyAsset]:
    """44 assets of 22 known families in combinations never trained on, and 18 of the 6 new families."""
    return held_out_assets(20_000, slice(0, None, 2), each=2, new_each=3)


def tuning_assets() -> list[ToyAsset]:
    """Others, to choose guidance and training settings on: 11 of other known families, 6 of the new ones."""
    return held_out_assets(30_000, slice(1, None, 4), each=1, new_each=1)


def distractor_assets(subjects: list[Subject]) -> list[ToyAsset]:
    """More members of every subject's family, only to make retrieval harder; half of them share a subject's colour."""
    colors = {subject.asset.family.name: subject.asset.colors[0] for subject in subjects}
    return [
        draw(40_000 + i, name, color if i % 2 else None) for name, color in colors.items() for i in range(DISTRACTORS)
    ]
