"""How often is the guess right that is made of a splat which does not say how it stands?

    python benchmarks/orientation.py --out benchmarks/results [FILE ...]

Toy assets of all families are turned to all 24 stances, and `guess_orientation` is asked. Files of which up is +y and
the front +z (LGM writes such) may be given and are turned alike. The usual frame counts as the likeliest where the
shape says nothing, so what counts is that few are called something that is neither true nor usual, and that the
truth is among the four which a person is shown.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.toy_drawing import table
from invert3d_core import splats
from invert3d_core.cameras import Orientation
from invert3d_core.splats import GaussianSplats
from invert3d_core.splats.edit import transform
from invert3d_core.splats.orientation import FRONTS, UPS, candidates
from invert3d_core.toy.assets import draw
from invert3d_core.toy.families import ALL

STANDS = Orientation("+y", "+z")  # how toys and the files given stand
USUAL = Orientation()
SPLATS, SEED = 2048, 7
COLUMNS = ("up", "up and front", "usual frame", "neither", "of two", "of four")


def counted(assets: Sequence[GaussianSplats]) -> dict[str, Counter]:
    """By the true up, with the front that goes with it by habit and with others: how often what is right."""
    counts: dict[str, Counter] = {}
    for up in UPS:
        for front in (axis for axis in UPS if axis[1] != up[1]):
            stands = Orientation(up, front)
            row = counts.setdefault(up if front == FRONTS[up] else f"{up}, other fronts", Counter())
            for asset in assets:
                turned = transform(asset, stands.matrix() @ STANDS.matrix().T)
                guesses = candidates(replace(turned, comment="", check_values=False))
                first, ups = guesses[0].orientation, [guess.orientation.up for guess in guesses]
                row["all"] += 1
                row["up"] += first.up == up
                row["up and front"] += first == stands
                row["usual frame"] += first == USUAL
                row["neither"] += first.up not in (up, USUAL.up)
                row["of two"] += up in ups[:2]
                row["of four"] += up in ups
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="splats with up +y and front +z")
    parser.add_argument("--out", type=Path, help="folder for the table")
    parser.add_argument("--limit", type=int, default=1, help="only every n-th family (a trial)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sets = {"toys": [draw(SEED, family).splats(SPLATS) for family in list(ALL)[:: options.limit]]}
    if options.files:
        sets["files"] = [splats.load(file) for file in options.files]
    parts = []
    for name, assets in sets.items():
        rows = [
            [truth, *(f"{row[column] / row['all']:.0%}" for column in COLUMNS)]
            for truth, row in counted(assets).items()
        ]
        parts.append(table(f"{len(assets)} {name}", ["true up", *COLUMNS], rows))
        print(parts[-1], flush=True)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        file = options.out / "orientation.md"
        file.write_text("# Guesses of how a splat stands\n\n" + "\n".join(parts), encoding="utf-8")
        print(f"wrote {file}")


if __name__ == "__main__":
    main()
