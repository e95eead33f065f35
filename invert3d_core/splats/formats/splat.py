"""``.splat``: 32 bytes a splat, no header, no view-dependent colour (antimatter15/splat).

A record is position 3 × float32, linear scale 3 × float32, RGBA 4 × uint8, quaternion w,x,y,z 4 × uint8. Colour is
255 (0.5 + C0·DC), alpha is 255·opacity, a quaternion part is 128·q + 128.
"""

from typing import BinaryIO

import numpy as np

from ...errors import FormatError
from ..gaussians import GaussianSplats
from ..spherical_harmonics import C0
from .buffer import BLOCK_BYTES, Block, SplatBuffer, normalize_quaternions
from .losses import Array, Losses, blocks, rows
from .source import Source

NAME = "splat"
EXTENSIONS = (".splat",)
LIMITS = (
    "Keeps positions and scales; colour (SH degree 0 alone, within 0..1), opacity and rotation have 8 bits. No "
    "comment. Has no header: recognised by its extension, and by a size that is a multiple of 32."
)

_RECORD = np.dtype([("position", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("rotation", "u1", 4)])


def detect(head: bytes) -> bool:
    """Never: nothing in a .splat says what it is."""
    return False


def read(source: Source) -> GaussianSplats:
    """The splats of a .splat file, SH degree 0, in the file's order.

    Records with values that are not finite or with negative scales are dropped with a warning, see
    `buffer.MAX_BAD_FRACTION`. Raises FormatError for a size that is no multiple of 32, and for too many of those.
    """
    count, odd = divmod(source.size, _RECORD.itemsize)
    if odd:
        raise FormatError(
            f"{source.name} has {source.size} bytes, which is no multiple of {_RECORD.itemsize}: a .splat file is cut "
            "short, or this is another format. Copy or download it again, or name its format."
        )
    source.stream.seek(0)
    splats = SplatBuffer(count, 0)
    step = BLOCK_BYTES // _RECORD.itemsize
    raw = np.empty(min(step, count) * _RECORD.itemsize, np.uint8)
    for start in range(0, count, step):
        stop = min(start + step, count)
        data = raw[: (stop - start) * _RECORD.itemsize]
        source.read_into(data)
        _decode(data.view(_RECORD), splats.block(start, stop))
        splats.check(start, stop)
    with np.errstate(invalid="ignore"):
        flat = not splats.arrays.scales.any()
    if flat:
        raise FormatError(
            f"{source.name}: the scales of all {count} splats are 0, so nothing of them can be seen. The file is "
            "filled with zeros (a download that never finished) or of another type. Copy or download it again."
        )
    return splats.finish(source)


def write(
    splats: GaussianSplats,
    file: BinaryIO,
    *,
    sort: bool = True,
) -> list[str]:
    """Write a .splat file; bytes are rounded, so that writing what was read changes no colour.

    sort: put the largest and most opaque splats first, as viewers expect that draw while they load; False keeps the
    order. Returns what was lost, with the largest change of each kind.
    """
    losses = Losses()
    losses.truncate(splats, 0)
    arrays, count = blocks(splats), len(splats)
    arrays = arrays._replace(sh=arrays.sh[:, :1])
    order = np.arange(count)
    if sort:
        with np.errstate(divide="ignore"):
            weight = np.log(arrays.scales).sum(axis=1, dtype=np.float64) + np.log(arrays.opacities[:, 0])
        order = np.argsort(-weight, kind="stable")
    back = SplatBuffer(min(count, BLOCK_BYTES // _RECORD.itemsize), 0)
    for start in range(0, count, back.count):
        stop = min(start + back.count, count)
        wanted = rows(arrays, order[start:stop])
        dc = losses.clip(wanted.sh, -0.5 / C0, 0.5 / C0, "colours outside 0..1")
        wanted, found = wanted._replace(sh=dc), back.block(0, stop - start)
        records = np.empty(stop - start, _RECORD)
        records["position"] = wanted.positions
        records["scale"] = wanted.scales
        records["rgba"][:, :3] = np.rint((0.5 + C0 * dc[:, 0]).clip(0, 1) * 255)
        records["rgba"][:, 3:] = np.rint(wanted.opacities * 255)
        records["rotation"] = np.rint(wanted.rotations * 128 + 128).clip(0, 255)
        file.write(records.data)
        _decode(records, found)
        losses.compare(wanted, found)
    if bool((np.diff(order) < 0).any()):
        losses.note("the order of the splats (largest and most opaque first)")
    losses.comment(splats)
    return losses.words()


def _decode(records: Array, out: Block) -> None:
    out.positions[:] = records["position"]
    out.scales[:] = records["scale"]
    out.opacities[:, 0] = records["rgba"][:, 3] / np.float32(255)
    out.sh[:, 0] = (records["rgba"][:, :3] / 255 - 0.5) / C0
    normalize_quaternions(records["rotation"].astype(np.float32) - 128, out.rotations)
