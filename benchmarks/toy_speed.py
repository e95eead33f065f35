"""How long drawing takes with the toy model on a CPU: 25 guided DDIM steps, four views, decoded.

    python benchmarks/toy_speed.py [--threads 2] [--rounds 5]

Claim: the median on two cores is at most 3 s. Prints wall and CPU seconds (the latter of all threads, and not troubled
by other processes). Exit code 1 when the claim is missed.
"""

import argparse
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.render import medians, timed, verdict
from invert3d_core import mvdream
from invert3d_core.toy.scoring import CAPTION_GUIDANCE, SAMPLING_STEPS, scoring_cameras

PROMPT = "a black robot with orange head and cyan limbs"
CLAIM = 3.0  # seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = mvdream.load("toy", device="cpu")
    cams = scoring_cameras(model.info)

    def draw(seed: int = 0) -> torch.Tensor:
        return model.sample(PROMPT, cams, steps=SAMPLING_STEPS, guidance_scale=CAPTION_GUIDANCE, seed=seed)

    draw()  # the first is the warm-up
    times = [timed(lambda seed=seed: draw(seed)) for seed in range(1, options.rounds + 1)]
    walls = [time.wall for time in times]
    middle = medians(times)
    met = middle.wall <= CLAIM
    print(
        f"{SAMPLING_STEPS} guided DDIM steps, {len(cams)} views of {cams.width}², decoded; {options.threads} threads, "
        f"{options.rounds} rounds: median {middle.wall:.2f} s ({middle.cpu:.2f} s of the processor), "
        f"{min(walls):.2f} to {max(walls):.2f} s  {verdict(met, f'≤ {CLAIM:g} s')}"
    )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
