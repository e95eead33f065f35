"""Drawing Gaussian splats: against ComfyUI's RenderSplat, within a bound of memory, and through gsplat.

    python benchmarks/render.py [host] [memory] [gpu] [--threads 2] [--rounds 5] [--splats N --size PIXELS]

Without names, every part that can run here. The scene is object-like: a closed, bumpy surface covered by thin, flat,
overlapping splats of SH degree 3 of varying size and opacity, framed like the views of a training bank.

- **host**: the torch backend against core's RenderSplat (color, sharpen 1) in a process of the ComfyUI that
  tests/host/locate.py finds, both on the CPU with the same splats, camera and number of threads, in turns. Claims at
  512²: at least as fast at 100,000 splats, 5 times as fast at 500,000. Ours is exact and draws SH; core's takes the
  base colours and adds splats up within slabs of depth.
- **memory**: peak memory of a process that draws one picture with the torch backend on the CPU. Claims: 100,000 splats
  at 256² within 1.5 GB and 3 s, 2,000,000 at 1024² within 6 GB.
- **gpu**: `rasterize` through gsplat against a call of gsplat with the same outputs, cameras already on the GPU. Claim:
  at most 10 % more.

Prints wall and CPU seconds (the latter of all threads, and not troubled by other processes) and ratios of medians.
Exit code 1 when a part that ran misses its claim.
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from invert3d_core import cameras, rendering
from invert3d_core.cameras import Cameras
from invert3d_core.splats import GaussianSplats

HOST_CLAIMS = {(100_000, 512): 1.0, (500_000, 512): 5.0}  # how many times as fast as core
MEMORY_CLAIMS = {(100_000, 256): (1536.0, 3.0), (2_000_000, 1024): (6144.0, math.inf)}  # MB, seconds
GPU_SCENES = ((100_000, 512), (500_000, 512), (500_000, 1024), (2_000_000, 1024))
GPU_CLAIM = 1.10  # of the time of gsplat alone
FIELDS = ("positions", "scales", "rotations", "opacities", "sh")


class Seconds(NamedTuple):
    """Time of one picture: on the clock, and of the processor."""

    wall: float
    cpu: float


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


def view_of(g: GaussianSplats, size: int) -> Cameras:
    """A camera that frames the object."""
    sphere = cameras.fit_sphere(g)
    distance = cameras.fit_radius(sphere.radius, 40, size, size)
    return cameras.orbit(30, 15, distance, 40, size, size, sphere.center)


def timed(draw: Callable[[], object]) -> Seconds:
    wall, cpu = time.perf_counter(), time.process_time()
    draw()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def medians(times: list[Seconds]) -> Seconds:
    walls, cpus = zip(*times, strict=True)
    return Seconds(statistics.median(walls), statistics.median(cpus))


def verdict(met: bool, claim: str) -> str:
    return f"{claim}: {'met' if met else 'MISSED'}"


# ---- against core's RenderSplat


def against_host(scenes: dict[tuple[int, int], float], threads: int, rounds: int) -> bool:
    """Ours and core's in turns, for scenes (splats, size) with the ratio each has to reach. True when all do."""
    from tests.host import locate

    try:
        comfyui = locate.find_comfyui()
        python = comfyui and locate.find_python(comfyui)
        if comfyui is None or python is None:
            raise locate.HostNotFound("no ComfyUI here; COMFYUI_PATH and COMFYUI_PYTHON name one")
    except locate.HostNotFound as error:
        print(f"host: left out: {error}")
        return True
    torch.set_num_threads(threads)
    print(f"host: RenderSplat of {comfyui}, {threads} threads, {rounds} rounds in turns; median seconds per picture")
    print(
        f"{'splats':>10} {'size':>5} {'core wall':>10} {'core cpu':>9} {'ours wall':>10} {'ours cpu':>9} {'ratio':>6}"
    )
    all_met = True
    for (count, size), claim in scenes.items():
        g = bumpy_ball(count)
        view = view_of(g, size)
        with tempfile.TemporaryDirectory() as folder:
            scene = Path(folder) / "scene.pt"
            information = cameras.conversions.to_camera_info(view)[0]
            torch.save({**{name: getattr(g, name) for name in FIELDS}, "camera": json.dumps(information)}, scene)
            command = [str(python), __file__, "core", str(comfyui), str(scene), str(size), str(threads)]
            # Its own folder as the working one: in the pack's, a host's imports would find ours.
            with subprocess.Popen(
                command, cwd=comfyui, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as host:
                core, ours = [], []
                for turn in range(rounds + 1):
                    core_time = _ask(host)
                    our_time = timed(lambda g=g, view=view: rendering.rasterize(g, view, backend="torch"))
                    if turn:  # the first is the warm-up
                        core.append(core_time)
                        ours.append(our_time)
                assert host.stdin is not None
                host.stdin.close()
        theirs, mine = medians(core), medians(ours)
        ratio = theirs.wall / mine.wall
        print(
            f"{count:10,} {size:5} {theirs.wall:10.3f} {theirs.cpu:9.3f} {mine.wall:10.3f} {mine.cpu:9.3f} {ratio:6.2f}"
            f"  {verdict(ratio >= claim, f'≥ {claim:g} × as fast')}, {theirs.cpu / mine.cpu:.2f} × by CPU time",
            flush=True,
        )
        all_met &= ratio >= claim
    return all_met


def _ask(host: subprocess.Popen[str]) -> Seconds:
    assert host.stdin is not None and host.stdout is not None
    host.stdin.write("draw\n")
    host.stdin.flush()
    for line in host.stdout:
        if line.startswith("seconds "):
            wall, cpu = line.split()[1:]
            return Seconds(float(wall), float(cpu))
    raise SystemExit(f"host: the process with ComfyUI ended with exit code {host.wait()}")


def serve_core(comfyui: str, scene: str, size: int, threads: int) -> None:
    """In the host's interpreter: draw with core's node whenever a line arrives, and say how long it took."""
    sys.path[0] = comfyui
    sys.argv = [sys.argv[0], "--cpu"]
    import comfy.options  # pyright: ignore[reportMissingImports]

    comfy.options.enable_args_parsing()
    from comfy_api.latest import Types
    from comfy_extras.nodes_gaussian_splat import RenderSplat  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(threads)
    held = torch.load(scene, weights_only=True)
    splat = Types.SPLAT(*(held[name][None] for name in FIELDS))
    camera = json.loads(held["camera"])
    plain = {"splat_scale": 1.0, "sharpen": 1.0, "headlight_shading": 0.0, "opacity_threshold": 0.0}

    def draw() -> None:
        RenderSplat.execute(
            splat, size, size, 1, background="#ffffff", render_style="color", camera_info=camera, **plain
        )

    with torch.inference_mode():
        for _ in sys.stdin:
            print("seconds", *timed(draw), flush=True)


# ---- memory


def within_memory(scenes: dict[tuple[int, int], tuple[float, float]], threads: int) -> bool:
    """A process per scene (splats, size), with the MB and seconds that it may take. True when all keep to them."""
    print(f"memory: torch backend on the CPU, {threads} threads, one picture, a process of its own")
    print(f"{'splats':>10} {'size':>5} {'before MB':>10} {'peak MB':>8} {'wall s':>8} {'cpu s':>8}")
    all_met = True
    for (count, size), (most, longest) in scenes.items():
        command = [sys.executable, __file__, "peak", str(count), str(size), str(threads)]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        before, peak, wall, cpu = map(float, run.stdout.split())
        met = peak <= most and wall <= longest
        claim = f"≤ {most:,.0f} MB" + (f" and {longest:g} s" if longest < math.inf else "")
        print(
            f"{count:10,} {size:5} {before:10.0f} {peak:8.0f} {wall:8.2f} {cpu:8.2f}  {verdict(met, claim)}", flush=True
        )
        all_met &= met
    return all_met


def draw_once(count: int, size: int, threads: int) -> None:
    torch.set_num_threads(threads)
    g = bumpy_ball(count)
    view = view_of(g, size)
    before = peak_memory_mb()
    seconds = timed(lambda: rendering.rasterize(g, view, backend="torch"))
    print(before, peak_memory_mb(), *seconds)


def peak_memory_mb() -> float:
    """Most memory this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


# ---- gsplat


@torch.no_grad()
def against_gsplat(scenes: tuple[tuple[int, int], ...], rounds: int) -> bool:
    """`rasterize` and gsplat in turns, for scenes (splats, size). True when all are within the claim."""
    from invert3d_core.rendering import gsplat_backend

    reason = "no CUDA device" if not torch.cuda.is_available() else gsplat_backend.why_not(torch.device("cuda"))
    if reason:
        print(f"gpu: left out: {reason}")
        return True
    import gsplat

    print(
        f"gpu: {torch.cuda.get_device_name()}, gsplat {gsplat.__version__}, {rounds} rounds of 20 in turns; median ms"
    )
    print(f"{'splats':>10} {'size':>5} {'gsplat':>8} {'ours':>8} {'ratio':>6} {'torch backend':>14}")
    all_met = True
    for count, size in scenes:
        g = bumpy_ball(count)
        view = view_of(g, size)
        g = g.to("cuda")
        viewmats = cameras.conversions.to_viewmats(view).float().cuda()
        intrinsics = cameras.conversions.to_intrinsics(view).float().cuda()
        white = torch.ones(3, device="cuda")

        def direct(g=g, viewmats=viewmats, intrinsics=intrinsics, white=white, size=size) -> Tensor:
            # Its own `backgrounds` fails with the packed layout, which is its default.
            picture, alpha, _ = gsplat.rasterization(
                *(g.positions, g.rotations, g.scales, g.opacities[:, 0], g.sh, viewmats, intrinsics, size, size),
                near_plane=0.2,
                sh_degree=3,
                render_mode="RGB+ED",
            )
            return picture[..., :3] + (1 - alpha) * white

        def ours(g=g, view=view, white=white) -> None:
            rendering.rasterize(g, view, white, backend="gsplat")

        def plain(g=g, view=view, white=white) -> None:
            rendering.rasterize(g, view, white, backend="torch")

        rows = [[_gpu_ms(draw, 20) for draw in (direct, ours)] for _ in range(rounds + 1)][1:]
        theirs, mine = (statistics.median(column) for column in zip(*rows, strict=True))
        ratio = mine / theirs
        _gpu_ms(plain, 1)
        met = ratio <= GPU_CLAIM
        print(
            f"{count:10,} {size:5} {theirs:8.3f} {mine:8.3f} {ratio:6.3f} {_gpu_ms(plain, 3):14.1f}"
            f"  {verdict(met, f'≤ {GPU_CLAIM:g} × gsplat')}",
            flush=True,
        )
        all_met &= met
    return all_met


def _gpu_ms(draw: Callable[[], object], times: int) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(times):
        draw()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / times * 1e3


def main() -> int:
    if sys.argv[1:2] == ["core"]:
        comfyui, scene, size, threads = sys.argv[2:]
        serve_core(comfyui, scene, int(size), int(threads))
        return 0
    if sys.argv[1:2] == ["peak"]:
        draw_once(*map(int, sys.argv[2:]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help="host, memory, gpu; default: all")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--splats", type=int, help="one scene of so many splats, without claims")
    parser.add_argument("--size", type=int, default=512, help="width and height of that scene's picture")
    arguments = parser.parse_args()
    parts = arguments.parts or ["host", "memory", "gpu"]
    if unknown := set(parts) - {"host", "memory", "gpu"}:
        parser.error(f"no part is called {', '.join(sorted(unknown))}: choose from host, memory, gpu")
    own = (arguments.splats, arguments.size) if arguments.splats else None
    met = True
    if "host" in parts:
        met &= against_host({own: 0.0} if own else HOST_CLAIMS, arguments.threads, arguments.rounds)
    if "memory" in parts:
        met &= within_memory({own: (math.inf, math.inf)} if own else MEMORY_CLAIMS, arguments.threads)
    if "gpu" in parts:
        met &= against_gsplat((own,) if own else GPU_SCENES, arguments.rounds)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
