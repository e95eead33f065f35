"""Loading a full-size checkpoint against reading its file: at most 1.2 times as long, in 1.3 times its size of RAM.

    python benchmarks/model_load.py [--models sd-v1.5-4view sd-v2.1-base-4view] [--rounds 5] [--folder PLACE]

Files of random weights with the published names and shapes (4 to 5 GB each) are made one after another in a temporary
folder. Each reading and each loading is a process of its own, in turn, with the file in the system's cache and without;
ratios are those of medians. *Reading* is the file's bytes into new memory. *Loading* is `mvdream.load` on the CPU,
every key accounted for, until every page of every weight has been touched; libraries are imported before. RAM is the
peak of the process as the system counts it (libraries and mapped pages included), in file sizes; then the same without
what the libraries took. Where weights are cast, only the RAM is held to its limit. Linux only.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from invert3d_core import mvdream
from invert3d_core.mvdream.weights import write_safetensors

KEYS = Path(__file__).resolve().parent.parent / "tests" / "golden" / "mvdream"
TIME_LIMIT, MEMORY_LIMIT = 1.2, 1.3
VOCABULARY = 49408
PAGE = 4096

# What is loaded: the file, the dtype it is written in, and the dtype it is loaded in.
CASES = (
    (".pt", torch.float32, torch.float32),
    (".safetensors", torch.float32, torch.float32),
    (".safetensors", torch.float32, torch.bfloat16),
    (".safetensors", torch.float16, torch.float16),
)


def random_weights(name: str) -> dict[str, torch.Tensor]:
    """Weights of a published checkpoint's names and shapes; they share one buffer of random numbers."""
    rows = json.loads((KEYS / f"keys_{name}.json").read_text())["rows"]
    sizes = [int(np.prod(shape)) for _, shape, _ in rows]
    buffer = torch.randn(max(sizes), generator=torch.Generator().manual_seed(0)).mul_(0.02)
    return {
        key: torch.arange(size).reshape(shape) if key.endswith("position_ids") else buffer[:size].reshape(shape)
        for (key, shape, _), size in zip(rows, sizes, strict=True)
    }


def write_checkpoint(name: str, path: Path, dtype: torch.dtype) -> None:
    weights = random_weights(name)
    write_safetensors(path.with_suffix(".safetensors"), weights, {}, dtype)
    if path.suffix == ".pt":
        # Read back, so that each tensor has a storage of its own, as in a published file.
        state, _ = mvdream.checkpoint.read_state_dict(path.with_suffix(".safetensors"))
        torch.save({key: value.clone() for key, value in state.items()}, path)
        path.with_suffix(".safetensors").unlink()
        with open(path, "rb+") as file:
            os.fsync(file.fileno())


def write_vocabulary(path: Path) -> None:
    """A vocabulary of the right size, since the published files have none."""
    from tokenizers import Tokenizer, models

    words = {f"word{i}": i for i in range(VOCABULARY)}
    Tokenizer(models.WordLevel(words, unk_token="word0")).save(str(path))


def drop_from_cache(path: Path) -> None:
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(path: Path, dtype: str) -> None:
    np.fromfile(path, np.uint8)


def load(path: Path, dtype: str) -> None:
    model = mvdream.load(path, "cpu", getattr(torch, dtype))
    for network in (model.unet, model.vae, model.text_encoder):
        for parameter in network.parameters():
            parameter.data.flatten()[:: PAGE // parameter.element_size()].sum()


def peak_bytes() -> int:
    """The most memory this process has held; unlike getrusage's, this peak is not inherited from the parent."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def child(job: str, path: Path, dtype: str, cached: bool) -> None:
    """One reading or loading, in this process; prints seconds and the peak of its memory in bytes."""
    import diffusers  # noqa: F401
    import transformers  # noqa: F401
    from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: F401
    from transformers import CLIPTextModel  # noqa: F401

    if not cached:
        drop_from_cache(path)
    before = peak_bytes()
    start = time.perf_counter()
    {"read": read, "load": load}[job](path, dtype)
    seconds = time.perf_counter() - start
    peak = peak_bytes()
    print(json.dumps({"seconds": seconds, "peak": peak, "libraries": before}))


def measured(job: str, path: Path, dtype: torch.dtype, cached: bool) -> dict[str, float]:
    options = ["--child", job, str(path), str(dtype).removeprefix("torch."), str(int(cached))]
    done = subprocess.run([sys.executable, __file__, *options], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def compare(path: Path, kept: bool, dtype: torch.dtype, cached: bool, rounds: int) -> bool:
    """A line of the table; whether the limits are kept."""
    if cached:
        measured("read", path, dtype, True)
    pairs = [[measured(job, path, dtype, cached) for job in ("read", "load")] for _ in range(rounds)]
    size = path.stat().st_size
    read_s, load_s = (statistics.median(run["seconds"] for run in runs) for runs in zip(*pairs, strict=True))
    peak = max(pair[1]["peak"] for pair in pairs) / size
    net = max(pair[1]["peak"] - pair[1]["libraries"] for pair in pairs) / size
    times = f"{read_s:9.2f}{load_s:9.2f}{load_s / read_s:8.2f}"
    print(f"{'cached' if cached else 'from disk':12}{times}{peak:8.2f}{net:14.2f}", flush=True)
    return peak <= MEMORY_LIMIT and (not kept or load_s / read_s <= TIME_LIMIT)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["sd-v1.5-4view", "sd-v2.1-base-4view"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments: Any = parser.parse_args()
    if arguments.child:
        job, path, dtype, cached = arguments.child
        child(job, Path(path), dtype, cached == "1")
        return 0
    fine = True
    print(f"limits: time {TIME_LIMIT} of reading where nothing is cast, peak RAM {MEMORY_LIMIT} of the file's size")
    for name in arguments.models:
        for ending, stored, wanted in CASES:
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                path = Path(folder) / f"{name}{ending}"
                write_checkpoint(name, path, stored)
                write_vocabulary(path.parent / "tokenizer.json")
                kinds = " as ".join(str(kind).removeprefix("torch.") for kind in dict.fromkeys((stored, wanted)))
                print(f"\n{path.name}, {path.stat().st_size / 1e9:.2f} GB, {kinds}, {arguments.rounds} rounds")
                print(f"{'':12}{'read s':>9}{'load s':>9}{'ratio':>8}{'RAM':>8}{'its own RAM':>14}")
                for cached in (True, False):
                    fine &= compare(path, stored == wanted, wanted, cached, arguments.rounds)
    return 0 if fine else 1


if __name__ == "__main__":
    raise SystemExit(main())
