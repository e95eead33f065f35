"""Small splats with known places and colors, for tests that look at pixels."""

import torch

from invert3d_core.splats import GaussianSplats

SH_C0 = 0.28209479177387814

RED, GREEN, BLUE = (1.0, 0.0, 0.0), (0.0, 0.8, 0.0), (0.0, 0.0, 1.0)

# Balls of radius 0.25: red to the object's left hand (+x, right in a front view), green opposite, blue on top.
BALLS = (((0.6, -0.3, 0.0), RED), ((-0.6, -0.3, 0.0), GREEN), ((0.0, 0.5, 0.0), BLUE))


def three_balls(per_ball: int = 600, degree: int = 0, comment: str = "") -> GaussianSplats:
    """The scene BALLS in an asset's own frame: y up, front +z. comment: what the file shall say about itself.

    With a degree above 0 the colors are darker from the front than from behind.
    """
    generator = torch.Generator().manual_seed(7)
    positions, colors = [], []
    for center, color in BALLS:
        directions = torch.nn.functional.normalize(torch.randn(per_ball, 3, generator=generator), dim=1)
        positions.append(torch.tensor(center) + 0.22 * directions)
        colors.append(torch.tensor(color).expand(per_ball, 3))
    count = per_ball * len(BALLS)
    sh = torch.zeros(count, (degree + 1) ** 2, 3)
    sh[:, 0] = (torch.cat(colors) - 0.5) / SH_C0
    if degree:
        sh[:, 2] = 0.5  # grows with z of the direction from camera to splat
    return GaussianSplats(
        positions=torch.cat(positions),
        scales=torch.full((count, 3), 0.02),
        rotations=torch.tensor([[1.0, 0.0, 0.0, 0.0]]).expand(count, 4),
        opacities=torch.full((count, 1), 0.95),
        sh=sh,
        comment=comment,
    )


def in_viewer_frame(splats: GaussianSplats, comment: str = "") -> GaussianSplats:
    """A degree-0 asset in the frame of trained splats (x right, y down, z forward), which a file need not name."""
    turn = torch.tensor([1.0, -1.0, -1.0])
    return GaussianSplats(
        splats.positions * turn, splats.scales, splats.rotations, splats.opacities, splats.sh, comment=comment
    )
