"""A reader of pictures: family and the colours of the three parts from four views, to score text prompts by."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from invert3d_core.toy.colors import NAMES
from invert3d_core.toy.families import KNOWN


class Classifier(nn.Module):
    """(B,V,H,W,3) in [0,1] -> logits of family (B,44) and of the colours of main, second and third part (B,3,12)."""

    def __init__(self, width: int = 48):
        super().__init__()
        sizes = [3, width, 2 * width, 3 * width, 3 * width]
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(sizes[i], sizes[i + 1], 4 if i < 3 else 3, 2, 1),
                nn.GroupNorm(8, sizes[i + 1]),
                nn.SiLU(),
                nn.Conv2d(sizes[i + 1], sizes[i + 1], 3, 1, 1),
                nn.GroupNorm(8, sizes[i + 1]),
                nn.SiLU(),
            )
            for i in range(4)
        )
        hidden = 2 * sizes[-1]
        self.mix = nn.Sequential(nn.Linear(2 * sizes[-1], hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.family, self.colors = nn.Linear(hidden, len(KNOWN)), nn.Linear(hidden, 3 * len(NAMES))

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        x = views.flatten(0, 1).movedim(-1, 1).float() * 2 - 1
        for stage in self.stages:
            x = stage(x)
        mean, peak = (x.unflatten(0, views.shape[:2]).transpose(1, 2).flatten(2) for _ in range(2))
        features = self.mix(torch.cat([mean.mean(-1), peak.amax(-1)], -1))
        return self.family(features), self.colors(features).unflatten(-1, (3, -1))

    @torch.no_grad()
    def read(self, views: Tensor, batch: int = 64) -> tuple[Tensor, Tensor]:
        """Indices of family (B,) and colours (B,3)."""
        parts = [self(views[start : start + batch]) for start in range(0, len(views), batch)]
        return torch.cat([p[0].argmax(-1) for p in parts]), torch.cat([p[1].argmax(-1) for p in parts])

    def save(self, path: Path) -> None:
        save_file({k: v.detach().half().cpu().contiguous() for k, v in self.state_dict().items()}, path)

    @classmethod
    def load(cls, path: Path) -> "Classifier":
        reader = cls()
        reader.load_state_dict({k: v.float() for k, v in load_file(path).items()})
        return reader.eval()


def classifier_loss(reader: nn.Module, views: Tensor, family: Tensor, colors: Tensor) -> Tensor:
    families, shades = reader(views)
    return nn.functional.cross_entropy(families, family) + nn.functional.cross_entropy(
        shades.flatten(0, 1), colors.flatten()
    )
