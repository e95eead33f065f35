"""Random splats and cameras for the tests of rendering."""

import torch

from invert3d_core import cameras
from invert3d_core.splats import GaussianSplats


def cloud(count, seed=0, degree=0, size=(0.02, 0.2), opacity=(0.02, 1.0), spread=1.0):
    """Anisotropic splats in a ball of radius ``spread``, sizes log-uniform."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator)

    positions = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    low, high = torch.tensor(size).log()
    return GaussianSplats(
        spread * positions * uniform(count, 1) ** (1 / 3),
        (low + (high - low) * uniform(count, 3)).exp(),
        torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=-1),
        opacity[0] + (opacity[1] - opacity[0]) * uniform(count, 1),
        torch.cat([2 * uniform(count, 1, 3) - 1, uniform(count, (degree + 1) ** 2 - 1, 3) - 0.5], 1),
    )


def one(position=(0.0, 0.0, 0.0), scale=0.1, opacity=0.5, rgb=(0.5, 0.5, 0.5)):
    """A single round splat."""
    return GaussianSplats(
        torch.tensor([position]).float(),
        torch.full((1, 3), float(scale)),
        torch.tensor([[1.0, 0, 0, 0]]),
        torch.full((1, 1), float(opacity)),
        ((torch.tensor(rgb) - 0.5) / 0.28209479177387814)[None, None],
    )


NAMES = ("positions", "scales", "rotations", "opacities", "sh")


def tensors_of(g):
    return [getattr(g, name) for name in NAMES]


def built_of(tensors):
    positions, scales, rotations, opacities, sh = tensors
    return GaussianSplats(positions, scales, rotations, opacities, sh)


def together(*parts):
    return built_of(torch.cat(columns) for columns in zip(*map(tensors_of, parts), strict=True))


def rig(count=2, width=32, height=32, radius=3.0, fov=45):
    return cameras.orbit(cameras.azimuths(count, 20), 15, radius, fov, width, height)
