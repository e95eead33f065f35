"""Make the built-in sample assets: invert3d_core/toy/samples/*.ply and samples.json.

    python tools/make_samples.py

Held-out combinations: each family in the main colour that it never has in training.
"""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from invert3d_core import splats
from invert3d_core.toy.assets import draw, held_out_color
from invert3d_core.toy.families import ALL
from invert3d_core.toy.primitives import SPLATS_PER_ASSET
from invert3d_core.toy.samples import FOLDER, TABLE

# Name, family, seed as in the benchmarks, splats. The first is the demo's and has as many as the assets of the
# training; the others fewer, so that all of them stay below the limit.
SAMPLES = (
    ("robot", "robot", 20_001, SPLATS_PER_ASSET),
    ("rocket", "rocket", 20_000, 2_350),
    ("guitar", "guitar", 20_000, 2_350),
)
LIMIT_BYTES = 500_000
NORMALS = slice(3, 6)


def without_normals(file: Path) -> None:
    """Leave out the three columns of zeros that a splat file has only by habit."""
    head, mark, body = file.read_bytes().partition(b"end_header\n")
    lines = head.split(b"\n")
    columns = sum(line.startswith(b"property") for line in lines)
    kept = [line for line in lines if line not in (b"property float nx", b"property float ny", b"property float nz")]
    rows = np.frombuffer(body, "<f4").reshape(-1, columns)
    file.write_bytes(b"\n".join(kept) + mark + np.delete(rows, NORMALS, axis=1).tobytes())


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    table = {}
    for name, family, seed, count in SAMPLES:
        asset = draw(seed, family, held_out_color(ALL[family]))
        file = FOLDER / f"{name}.ply"
        splats.save(asset.splats(count), file)
        without_normals(file)
        table[name] = {"file": file.name, "short": asset.short_caption(), "full": asset.full_caption()}
        print(f"{file.name}: {asset.full_caption()}, {count} splats, {file.stat().st_size:,} bytes")
    TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    for file in FOLDER.iterdir():
        if file.name not in {TABLE.name, *(entry["file"] for entry in table.values())}:
            print(f"not a sample any more, delete it: {file}")
    total = sum(file.stat().st_size for file in FOLDER.iterdir())
    if total > LIMIT_BYTES:
        sys.exit(f"{total:,} bytes in all: at most {LIMIT_BYTES:,} are allowed")
    print(f"{total:,} bytes in all")


if __name__ == "__main__":
    main()
