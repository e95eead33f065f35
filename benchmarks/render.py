"""Time and memory of drawing Gaussian splats with the torch backend (and gsplat where it works).

    python benchmarks/render.py [--splats 100000] [--size 256] [--views 1] [--threads 2] [--device cpu] [--backward]

The claim: 100,000 splats at 256² on 2 CPU cores in at most 3 s within 1.5 GB, SH degree 3. Exit code 1 when a run on
the CPU with the default numbers misses it. The scene is object-like: a closed, bumpy surface covered by thin, flat,
overlapping splats of varying size and opacity, framed like the views of a training bank.
"""

import argparse
import math
import resource
import sys
import time
from pathlib import Path
from typing import get_args

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from invert3d_core import cameras, rendering
from invert3d_core.rendering.rasterize import Backend
from invert3d_core.splats import GaussianSplats

LIMIT_SECONDS, LIMIT_MEMORY_MB = 3.0, 1536
BACKENDS = get_args(Backend)


def bumpy_ball(count: int, degree: int = 3, seed: int = 0) -> GaussianSplats:
    """An object of ``count`` splats on a bumpy closed surface of radius about 1."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    x, y, z = direction.unbind(-1)
    radius = 0.75 + 0.15 * torch.sin(5 * x) * torch.cos(4 * y) + 0.1 * torch.sin(7 * z + 2 * x)
    positions = direction * radius[:, None] + 0.004 * torch.randn(count, 3, generator=generator)
    spacing = math.sqrt(4 * math.pi * 0.75**2 / count)  # of splats that cover the surface evenly
    size = spacing * torch.exp(0.5 * torch.randn(count, 1, generator=generator))
    stretch = torch.tensor([1.2, 0.6, 0.15]) * torch.exp(0.3 * torch.randn(count, 3, generator=generator))
    turned = torch.stack([1 + z, -y, x, torch.zeros_like(x)], -1)  # z axis -> surface normal
    rotations = torch.nn.functional.normalize(turned + 0.1 * torch.randn(count, 4, generator=generator), dim=-1)
    opacities = torch.sigmoid(1.5 + 2 * torch.randn(count, 1, generator=generator))
    sh = 0.15 * torch.randn(count, (degree + 1) ** 2, 3, generator=generator)
    sh[:, 0] = 1.5 * torch.sin(4 * positions + torch.tensor([0.0, 1.0, 2.0]))
    return GaussianSplats(positions, size * stretch, rotations, opacities, sh)


def peak_memory_mb() -> float:
    """Most memory this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splats", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=256, help="width and height in pixels")
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backend", choices=BACKENDS, help="default: torch, and auto on a GPU")
    parser.add_argument("--backward", action="store_true", help="gradients of all splat tensors too")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    g = bumpy_ball(arguments.splats)
    names = ("positions", "scales", "rotations", "opacities", "sh")
    tensors = [getattr(g, name).to(device).requires_grad_(arguments.backward) for name in names]
    g = GaussianSplats(*tensors)
    sphere = cameras.fit_sphere(g)
    distance = cameras.fit_radius(sphere.radius, 40, arguments.size, arguments.size)
    cams = cameras.orbit(
        cameras.azimuths(arguments.views, 30), 15, distance, 40, arguments.size, arguments.size, sphere.center
    )
    base = peak_memory_mb()
    backends: list[Backend] = ["torch", "auto"] if device.type == "cuda" else ["torch"]
    if arguments.backend:
        backends = [arguments.backend]
    print(
        f"{len(g.positions):,} splats, SH degree 3, {arguments.views} × {arguments.size}², "
        f"{arguments.threads} threads, {device}, process before drawing {base:.0f} MB"
    )
    print(f"{'backend':8} {'pass':9} {'best s':>8} {'mean s':>8} {'peak MB':>8} {'mean alpha':>10}")
    missed = False
    for backend in backends:
        seconds, alpha = [], 0.0
        for _ in range(arguments.repeats):
            start = time.perf_counter()
            drawn = rendering.rasterize(g, cams, backend=backend)
            if arguments.backward:
                torch.autograd.grad(drawn.color.sum() + drawn.depth.sum(), tensors)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
            alpha = float(drawn.alpha.detach().mean())
        peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else peak_memory_mb()
        kind = "both" if arguments.backward else "forward"
        mean = sum(seconds) / len(seconds)
        print(f"{backend:8} {kind:9} {min(seconds):8.3f} {mean:8.3f} {peak:8.0f} {alpha:10.3f}")
        missed |= max(seconds) > LIMIT_SECONDS or peak > LIMIT_MEMORY_MB
    claimed = (arguments.splats, arguments.size, arguments.views, device.type) == (100_000, 256, 1, "cpu")
    if claimed and not arguments.backward:
        print(f"claim (≤ {LIMIT_SECONDS:g} s, ≤ {LIMIT_MEMORY_MB} MB): {'missed' if missed else 'met'}")
        return int(missed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
