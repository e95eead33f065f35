"""How long a 1,000,000-splat degree-3 binary PLY takes to load, against reading its bytes: at most 4 times as long.

    python benchmarks/splat_load.py

The file (248 MB) is made in a temporary folder and lies in the system's file cache for both; each is timed in turn,
and the ratio is that of the medians.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from invert3d_core import splats

LIMIT = 4.0


def random_splats(count: int) -> splats.GaussianSplats:
    """Splats of SH degree 3 with values as a training leaves them."""
    g = torch.Generator().manual_seed(0)
    return splats.GaussianSplats(
        positions=torch.randn(count, 3, generator=g),
        scales=torch.exp(torch.randn(count, 3, generator=g) - 4),
        rotations=torch.nn.functional.normalize(torch.randn(count, 4, generator=g), dim=1),
        opacities=torch.rand(count, 1, generator=g),
        sh=torch.randn(count, 16, 3, generator=g) / 4,
    )


def seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--splats", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "splats.ply"
        splats.save(random_splats(arguments.splats), path)
        size = path.stat().st_size
        read, load = [], []
        for _ in range(arguments.rounds + 1):
            read.append(seconds(lambda: np.fromfile(path, np.uint8)))
            load.append(seconds(lambda: splats.load(path)))
    first = load[0] / read[0]
    read, load = (statistics.median(times[1:]) for times in (read, load))
    ratio = load / read
    print(f"{arguments.splats} splats, SH degree 3, {size / 1e6:.0f} MB, {arguments.rounds} rounds")
    print(f"{'':24}{'seconds':>9}{'MB/s':>8}")
    for name, time_ in (("numpy.fromfile", read), ("splats.load", load)):
        print(f"{name:24}{time_:9.4f}{size / 1e6 / time_:8.0f}")
    print(f"ratio {ratio:.2f} (limit {LIMIT:.0f}; the first, untimed round {first:.2f})")
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    raise SystemExit(main())
