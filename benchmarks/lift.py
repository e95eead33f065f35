"""Is a known splat found again in pictures of it? Held-out views of the built-in samples, 24 training views of 128².

    python benchmarks/lift.py --out benchmarks/results

Training views stand on three rings, held-out ones on two others and between the training azimuths. The least held-out
PSNR must reach 30 dB.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.toy_drawing import save_sheet, table
from invert3d_core import cameras, lift3d, metrics, splats
from invert3d_core.cameras import Cameras
from invert3d_core.rendering import rasterize
from invert3d_core.toy import samples

SIZE, FOV_Y_DEG = 128, 40.0
TRAINING_RINGS = ((-15.0, 0.0), (15.0, 15.0), (45.0, 30.0))  # elevation, first azimuth; 8 views on each
HELD_OUT_RINGS = ((0.0, 7.0), (30.0, 22.0))  # 4 views on each
LEAST_DB = 30.0


def rig(rings: tuple[tuple[float, float], ...], count: int) -> Cameras:
    """Cameras around a sphere of radius 1."""
    distance = cameras.fit_radius(1.0, FOV_Y_DEG, SIZE, SIZE)
    batches = [
        cameras.orbit(cameras.azimuths(count, start), elevation, distance, FOV_Y_DEG, SIZE, SIZE)
        for elevation, start in rings
    ]
    return cameras.concatenate(batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--preset", default="recommended", choices=[p for p in lift3d.PRESETS if p != "consistency"])
    parser.add_argument("--samples", nargs="*", default=samples.names(), help="names of built-in samples")
    parser.add_argument("--out", type=Path, help="folder for the table and a sheet of held-out views")
    options = parser.parse_args()

    config = lift3d.preset(options.preset)
    training, held_out = rig(TRAINING_RINGS, 8), rig(HELD_OUT_RINGS, 4)
    rows, sheet, reached = [], [], []
    for name in options.samples:
        g = splats.load(samples.path(name)).to(options.device)
        with torch.no_grad():
            shown, hidden = (rasterize(g, cams) for cams in (training, held_out))
        began, cpu = time.monotonic(), time.process_time()
        result = lift3d.fit_splats(shown.color.clamp(0, 1), shown.alpha, training, config)
        seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu
        with torch.no_grad():
            drawn = rasterize(result.splats, held_out).color.clamp(0, 1)[None]
        truth = hidden.color.clamp(0, 1)[None]
        reached.append(float(metrics.psnr(drawn, truth)))
        numbers = (result.psnr, reached[-1], float(metrics.foreground_psnr(drawn, truth)))
        similar = float(metrics.ssim(drawn, truth))
        cells = [*(f"{number:.2f}" for number in numbers), f"{similar:.4f}", f"{len(result.splats):,}"]
        rows.append([name, *cells, f"{seconds:.0f}", f"{cpu_seconds:.0f}"])
        sheet += [[truth[0].cpu()], [drawn[0].cpu()]]
        print(" ".join(rows[-1]), flush=True)
    header = ["sample", "training views, dB", "held-out, dB", "held-out foreground, dB", "SSIM", "splats", "s", "CPU s"]
    text = (
        f"{len(training)} training views and {len(held_out)} held-out ones of {SIZE}²; preset {options.preset}, "
        f"{config.steps} steps of {config.views_per_step} views; {options.device}.\n\n"
        + table("A known splat from pictures of it", header, rows)
        + f"\nThe least is {min(reached):.2f} dB, of {LEAST_DB:g} that must be reached.\n"
    )
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "lift.md").write_text(text, encoding="utf-8")
        save_sheet(options.out / "lift.jpg", sheet)
    sys.exit(0 if min(reached) >= LEAST_DB else 1)


if __name__ == "__main__":
    main()
