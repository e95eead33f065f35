"""A slow, obvious twin of the rasteriser in float64: every splat at every pixel, no tiles, no bounds."""

import torch

from invert3d_core.cameras.conversions import to_intrinsics, to_viewmats
from invert3d_core.rendering.projection import Limits
from invert3d_core.splats import spherical_harmonics


def rotation_matrices(quaternions):
    w, x, y, z = (quaternions / quaternions.norm(dim=-1, keepdim=True)).unbind(-1)
    return torch.stack(
        [
            torch.stack([w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
            torch.stack([2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)], -1),
            torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z], -1),
        ],
        -2,
    )


def draw(g, cams, degree, near=0.2, limits=Limits(), antialiased=False):  # noqa: B008
    """color and normal sum (C,H,W,3), depth sum, alpha, median (C,H,W); stable (C,H,W): nothing hangs on rounding."""
    views = [_view(g, cam, degree, near, limits, antialiased) for cam in cams.to(dtype=torch.float64)]
    return {name: torch.stack([view[name] for view in views]) for name in views[0]}


def _view(g, cam, degree, near, limits, antialiased):
    width, height = cam.width, cam.height
    rotation, shift = to_viewmats(cam)[0, :3].split([3, 1], -1)
    focal = to_intrinsics(cam)[0, 0, 0]
    x, y = torch.meshgrid(torch.arange(width) + 0.5, torch.arange(height) + 0.5, indexing="xy")
    pixels = torch.stack([x, y], -1).double()
    color, normal = torch.zeros(2, height, width, 3).double()
    depth, alpha = torch.zeros(2, height, width).double()
    light, median, stable = torch.ones_like(depth), torch.zeros_like(depth), torch.ones_like(depth).bool()

    seen = g.positions.double() @ rotation.mT + shift[:, 0]
    axes = rotation_matrices(g.rotations.double())
    covariances = axes * g.scales.double()[:, None]
    covariances = covariances @ covariances.mT
    directions = torch.nn.functional.normalize(g.positions.double() - cam.centers, dim=-1)
    colors = (spherical_harmonics.evaluate(g.sh.double()[:, : (degree + 1) ** 2], directions, degree) + 0.5).clamp_min(
        0
    )
    for i in torch.argsort(seen[:, 2], stable=True).tolist():
        z = seen[i, 2]
        if z <= near:
            continue
        limit = 1.3 * torch.tensor([width, height]) / 2 / focal
        ratio = torch.minimum(torch.maximum(seen[i, :2] / z, -limit), limit)
        jacobian = torch.zeros(2, 3).double()
        jacobian[0, 0] = jacobian[1, 1] = focal / z
        jacobian[:, 2] = -focal * ratio / z
        sharp = jacobian @ rotation @ covariances[i] @ rotation.mT @ jacobian.mT
        cov2d = sharp + 0.3 * torch.eye(2)
        opacity = g.opacities[i].double()
        if antialiased:
            opacity = opacity * (torch.linalg.det(sharp).clamp_min(0) / torch.linalg.det(cov2d)).sqrt()
        axis = rotation @ axes[i][:, g.scales[i].argmin()]
        axis = -axis if axis @ seen[i] > 0 else axis
        offset = pixels - (focal * seen[i, :2] / z + torch.tensor([width, height]) / 2)
        power = torch.einsum("hwi,ij,hwj->hw", offset, torch.linalg.inv(cov2d), offset) / 2
        raw = opacity * torch.exp(-power)
        a = torch.where(raw < limits.alpha_min, 0, raw.clamp_max(limits.alpha_max))
        after = light * (1 - a)
        use = after >= limits.transmittance_min
        stable &= (raw - limits.alpha_min).abs() > 1e-6
        stable &= (after - limits.transmittance_min).abs() > 1e-3 * limits.transmittance_min
        stable &= (after - 0.5).abs() > 1e-5
        weight = torch.where(use, a * light, 0)
        color, depth, alpha = color + weight[..., None] * colors[i], depth + weight * z, alpha + weight
        normal = normal + weight[..., None] * axis * torch.tensor([1, -1, -1])
        median = torch.where((light > 0.5) & (after <= 0.5), z, median)
        light = after
    drawn = {"color": color, "normal": normal, "depth": depth, "alpha": alpha, "depth_median": median}
    return {**drawn, "stable": stable}
