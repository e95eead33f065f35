"""Our splat files in ComfyUI's own parsers: what the host reads is what we read."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from invert3d_core import splats
from invert3d_core.splats import GaussianSplats

# Runs in the host's interpreter: every file of a folder through the parser that the host takes for its contents.
PARSE = """
import sys
comfyui, folder = sys.argv[1:]
sys.path.insert(0, comfyui)
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import pathlib
import numpy as np
from comfy_extras import nodes_gaussian_splat as core
for path in sorted(pathlib.Path(folder).iterdir()):
    data = path.read_bytes()
    parts = core._GAUSSIAN_PARSERS[core._detect_splat_format(data)](data)
    np.savez(path.with_suffix(path.suffix + ".npz"), *parts)
"""

FILES = {  # name → options of the writer; core reads no SH from all but .ply, and no SPZ of version 4
    "scene.ply": {},
    "scene.splat": {},
    "level0.ksplat": {"level": 0},
    "level1.ksplat": {"level": 1, "block_size": 1.0},
    "level2.ksplat": {"level": 2},
    "version1.spz": {"version": 1},
    "version2.spz": {"version": 2},
    "version3.spz": {"version": 3},
}


def scene() -> GaussianSplats:
    """Splats of SH degree 2, in several buckets, some of them full."""
    g, count = torch.Generator().manual_seed(0), 2000
    positions = torch.randn(count, 3, generator=g)
    positions[:900] *= 0.01
    sh = 0.3 * torch.randn(count, 9, 3, generator=g)
    rotations = functional.normalize(torch.randn(count, 4, generator=g), dim=1)
    scales = torch.exp(torch.randn(count, 3, generator=g) - 4)
    return GaussianSplats(positions, scales, rotations, torch.rand(count, 1, generator=g), sh)


@pytest.fixture(scope="module")
def parsed(host: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all files and, beside each, what core's parser makes of it."""
    folder = tmp_path_factory.mktemp("parsers")
    for name, options in FILES.items():
        splats.save(scene(), folder / name, **options)
    comfyui, python = host
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [str(python), "-c", PARSE, str(comfyui), str(folder)]
    done = subprocess.run(command, env=environment, cwd=comfyui, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.parametrize("name", FILES)
def test_core_reads_what_we_read(parsed: Path, name: str) -> None:
    ours = splats.load(parsed / name)
    with np.load(parsed / f"{name}.npz") as archive:
        positions, scales, rotations, opacities, sh = (torch.from_numpy(archive[f"arr_{i}"]).float() for i in range(5))
    assert len(positions) == len(ours) == 2000
    torch.testing.assert_close(positions, ours.positions, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(scales, ours.scales, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(opacities.reshape(-1), ours.opacities[:, 0], rtol=1e-5, atol=1e-6)
    sign = (rotations * ours.rotations).sum(1, keepdim=True).sign()
    torch.testing.assert_close(rotations * sign, ours.rotations, rtol=0, atol=2e-6)
    kept = ours.sh if name.endswith(".ply") else ours.sh[:, :1]
    torch.testing.assert_close(sh, kept, rtol=1e-5, atol=2e-6)
