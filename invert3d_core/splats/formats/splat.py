"""``.splat``: 32 bytes a splat, no header, no view-dependent colour (antimatter15/splat).

A record is position 3 × float32, linear scale 3 × float32, RGBA 4 × uint8, quaternion w,x,y,z 4 × uint8. Colour is
255 (0.5 + C0·DC), alpha is 255·opacity, a quaternion part is 128·q + 128.
"""

from typing import BinaryIO

import numpy as np

from ...errors import FormatError
from ..gaussians import GaussianSplats
from ..spherical_harmonics import C0
from .buffer import BLOCK_BYTES, SplatBuffer, normalize_quaternions
from .source import Source

NAME = "splat"
EXTENSIONS = (".splat",)
LIMITS = (
    "Keeps positions and scales; colour (SH degree 0 alone, within 0..1), opacity and rotation have 8 bits. No "
    "comment. Has no header: recognised by its extension, and by a size that is a multiple of 32."
)

_EXACT = 1e-6  # changes of a colour or an opacity below this are float32's rounding
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
        rows, out = data.view(_RECORD), splats.block(start, stop)
        out.positions[:] = rows["position"]
        out.scales[:] = rows["scale"]
        out.opacities[:, 0] = rows["rgba"][:, 3] / np.float32(255)
        out.sh[:, 0] = (rows["rgba"][:, :3] / 255 - 0.5) / C0
        normalize_quaternions(rows["rotation"].astype(np.float32) - 128, out.rotations)
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
    positions, scales, rotations, opacities, sh = (
        t.detach().cpu().numpy()
        for t in (splats.positions, splats.scales, splats.rotations, splats.opacities, splats.sh)
    )
    order = None
    if sort:
        with np.errstate(divide="ignore"):
            weight = np.log(scales).sum(axis=1, dtype=np.float64) + np.log(opacities[:, 0])
        order = np.argsort(-weight, kind="stable")
    quaternions = np.empty_like(rotations)
    normalize_quaternions(rotations, quaternions)
    color = 0.5 + C0 * sh[:, 0].astype(np.float64)
    rows = np.empty(len(splats), _RECORD)
    rows["position"] = positions
    rows["scale"] = scales
    rows["rgba"][:, :3] = np.rint(color.clip(0, 1) * 255)
    rows["rgba"][:, 3:] = np.rint(opacities * 255)
    rows["rotation"] = np.rint(quaternions * 128 + 128).clip(0, 255)
    file.write((rows if order is None else rows[order]).data)

    back = np.empty_like(quaternions)
    normalize_quaternions(rows["rotation"].astype(np.float32) - 128, back)
    # |q·q'| is the cosine of half the angle between two rotations.
    turn = 2 * np.degrees(np.arccos(np.abs((back * quaternions).sum(axis=1, dtype=np.float64)).clip(0, 1))).max()
    clipped = int(((color < -_EXACT) | (color > 1 + _EXACT)).any(axis=1).sum())
    faded = np.abs(rows["rgba"][:, :3] / 255 - color.clip(0, 1)).max()
    thinned = np.abs(rows["rgba"][:, 3:] / 255 - opacities).max()
    lost = []
    if splats.degree:
        lost.append(f"view-dependent colour (SH degree 1 to {splats.degree})")
    if clipped:
        lost.append(f"colours outside 0..1 of {clipped} splats, clipped")
    if faded > _EXACT:
        lost.append(f"colour beyond 8 bits (changes by up to {faded:.4f})")
    if thinned > _EXACT:
        lost.append(f"opacity beyond 8 bits (changes by up to {thinned:.4f})")
    if turn > 0.1:
        lost.append(f"rotation beyond 8 bits (turns by up to {turn:.2f} degrees)")
    if order is not None and bool((np.diff(order) < 0).any()):
        lost.append("the order of the splats (largest and most opaque first)")
    if splats.comment:
        lost.append("the comment, and what it states about the axes")
    return lost
