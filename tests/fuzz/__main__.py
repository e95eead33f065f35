"""Read many damaged files: none may break a reader.

    python -m tests.fuzz [--files 200000] [--formats ply sog …] [--seconds 600] [--workers 2] [--out TABLE.md]

Each file must be read whole and valid, or refused with the package's own error; without a warning, within a second of
processor time and 4 times its size plus 64 MB of memory. Goes on where it stopped (``--fresh`` starts anew), and keeps
what it finds in ``--state``. Exit code 1 when a file broke a promise.
"""

import argparse
import gc
import logging
import multiprocessing
import os
import shutil
import sys
import time
from pathlib import Path

import torch

from .campaign import Record, check_parents, run, table, write_corpus
from .targets import TARGETS
from .trials import FREE_BYTES, SECONDS, TIMES

ABOUT = f"""\
{{date}}, made by `{{command}}`.

Whole files of every format, ours and other programs', are changed: bits, bytes, numbers, words, JSON members, pieces
moved, repeated and cut off; inside gzip, zstd, zip, WebP and glTF chunks too, with lengths and checksums made to fit
again. A file that ends in a way not seen before becomes a parent of others. Held of each file: it is read whole and
valid (finite, scales ≥ 0, opacities within 0..1, unit rotations; orthonormal poses, fields of view within 0..180), or
refused with FormatError or CameraError and a message of at most 2,000 characters; no warning of Python or numpy; at
most {SECONDS:.0f} s of processor time; at most {TIMES} times its size + {FREE_BYTES >> 20} MB of memory.

- **endings**: the different places where a file was refused, and kinds of what was read.
- **slowest**: processor time of one file.
- **memory**: address space that a batch of 500 files took beyond their own bytes, the worst batch. It holds whatever
  any library allocates, touched or not.
- **broken**: files that broke a promise.

The law of memory is held of damaged files, which are small. Whole ones of megabytes keep it too, but for SPZ of more
than some 200,000 splats: its few bytes a splat become up to 300 in memory.

{{table}}
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=200_000, help="of each format, those of earlier runs included")
    parser.add_argument("--formats", nargs="*", default=[], choices=list(TARGETS), metavar="FORMAT")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    workers = os.cpu_count() or 1 if "fork" in multiprocessing.get_all_start_methods() else 0
    parser.add_argument("--workers", type=int, default=workers, help="processes; 0 does without")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, default=Path("build/fuzz"), help="a folder to go on from")
    parser.add_argument("--unguided", action="store_true", help="files that depend on the seed alone")
    parser.add_argument("--fresh", action="store_true", help="forget what --state holds of the formats")
    parser.add_argument("--out", type=Path, help="a file for the table, in Markdown")
    parser.add_argument("--keep", action="store_true", help="make the corpus anew from what was found")
    arguments = parser.parse_args()
    logging.getLogger("invert3d").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    targets = [TARGETS[name] for name in arguments.formats or TARGETS]
    for target in targets:
        if arguments.fresh:
            shutil.rmtree(arguments.state / target.name, ignore_errors=True)
        check_parents(target)
    gc.freeze()  # what is here for good need not be looked at in every process
    records = [Record(target, arguments.state, arguments.seed, not arguments.unguided) for target in targets]
    run(records, arguments.files, arguments.workers, arguments.seconds)
    print(table(records))
    for record in records:
        for kind, finding in record.tally.findings.items():
            print(f"\n{record.target.name}, {finding.files} files: {kind}\n{finding.what.rstrip()}")
    if arguments.keep:
        write_corpus(records)
    if arguments.out:
        command = "make fuzz"
        text = ABOUT.format(date=time.strftime("%d %B %Y").lstrip("0"), command=command, table=table(records))
        arguments.out.write_text(f"# Damaged files\n\n{text}", encoding="utf-8")
    return 1 if any(record.tally.broken for record in records) else 0


if __name__ == "__main__":
    sys.exit(main())
