"""cameras.npz of DTU scenes as IDR, NeuS and their kin share them: world_mat_i and scale_mat_i, (4,4) each.

world_mat is the projection K [R | t] of world points to pixels with a last row 0 0 0 1; scale_mat takes the unit sphere
around the object to the world. world_mat · scale_mat projects points of the normalised scene.
"""

import io
import warnings
from tokenize import TokenError
from typing import BinaryIO

import numpy as np
import torch

from ...errors import CameraError
from ..cameras import Cameras
from ..conversions import to_intrinsics, to_viewmats
from .container import Container, picture_size, read_whole
from .lenses import FLIP, MAX_CAMERAS, Floats, Lens, LoadedCameras, Shot, to_cameras

NAME = "dtu"
MEMBER = "world_mat_0.npy"
PICTURES = ("image/{:06d}", "image/{:03d}", "rgb/{:06d}", "rgb/{:03d}")

MAX_MEMBER = 4096  # bytes: a header and 16 numbers


def read(
    archive: Container, size: tuple[int, int] | None = None, folder: Container | None = None, normalised: bool = True
) -> LoadedCameras:
    """The cameras of an .npz, in the order of their numbers.

    normalised: in the scene that scale_mat makes, the object in the unit sphere, else in the world as measured.
    size: (width, height) of the pictures wanted; where no picture lies in the folder of the file, which does not say
    their size, it is taken for theirs. Raises CameraError naming the file and what is wrong in it.
    """
    count = 0
    while archive.find(f"world_mat_{count}.npy"):
        count += 1
        if count > MAX_CAMERAS:
            raise CameraError(f"{archive.name} holds more than {MAX_CAMERAS:,} cameras")
    found = size
    if folder is not None:
        sizes = (picture_size(folder, "cameras.npz", form.format(0)) for form in PICTURES)
        found = next((side for side in sizes if side), size)
    if found is None:
        raise CameraError(
            f"{archive.name} does not say how large its pictures are, and no image/000000.png lies beside it; say it "
            "(width and height)"
        )
    shots = []
    for i in range(count):
        projection = _matrix(archive, f"world_mat_{i}.npy")
        if normalised and archive.find(f"scale_mat_{i}.npy"):
            with np.errstate(all="ignore"):  # what is not finite is no projection
                projection = projection @ _matrix(archive, f"scale_mat_{i}.npy")
        c2w, intrinsics = decompose(projection[:3], f"{archive.name}: world_mat_{i}")
        lens = Lens(*found, intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2])
        shots.append(Shot(f"{i:06d}", c2w, lens))
    return to_cameras(shots, archive.name, NAME, size)


def write(cams: Cameras) -> bytes:
    """The content of a cameras.npz with these poses as they are; scale_mat is the identity."""
    precise = cams.to("cpu", torch.float64)
    projections = to_intrinsics(precise) @ to_viewmats(precise)[:, :3]
    arrays = {}
    for i, projection in enumerate(projections.numpy()):
        arrays[f"world_mat_{i}"] = np.vstack([projection, [0, 0, 0, 1]])
        arrays[f"scale_mat_{i}"] = np.eye(4)
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def decompose(projection: Floats, what: str) -> tuple[Floats, Floats]:  # (3,4) -> (4,4), (3,3)
    """The OpenGL camera-to-world matrix and the intrinsics of a projection to pixels, of any scale.

    RQ decomposition of its left 3×3 part (Hartley and Zisserman, 6.2.4). Raises CameraError when that is singular.
    """
    left = projection[:, :3]
    with np.errstate(all="ignore"):
        determinant = np.linalg.det(left / np.abs(left).max())
    if not (np.isfinite(projection).all() and abs(determinant) > 1e-12):
        raise CameraError(f"{what} is no projection of a camera (its 3×3 part has no inverse); export the file again")
    projection = projection * np.sign(determinant)
    left = projection[:, :3]
    flipped = left[::-1].T
    q, r = np.linalg.qr(flipped)
    upper, rotation = r.T[::-1, ::-1], q.T[::-1]
    signs = np.sign(np.diag(upper))
    upper, rotation = upper * signs, signs[:, None] * rotation
    c2w = np.eye(4)
    c2w[:3, :3] = rotation.T
    c2w[:3, 3] = -np.linalg.solve(left, projection[:, 3])
    with np.errstate(all="ignore"):  # what is not finite is told with its picture
        return c2w @ FLIP, upper / upper[2, 2]


def _matrix(archive: Container, name: str) -> Floats:
    file = f"{name} in {archive.name}"
    content: BinaryIO = io.BytesIO(read_whole(archive, archive.find(name) or name, MAX_MEMBER))
    try:
        version = np.lib.format.read_magic(content)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers that Python 2 wrote
            shape, by_columns, kind = reader(content)
        if shape not in ((4, 4), (3, 4)) or kind.kind not in "fiu":
            raise ValueError(f"an array of shape {shape} and type {kind}")
        values = np.frombuffer(content.read(), kind, shape[0] * shape[1]).astype(np.float64)
    # numpy reads the header as a Python literal, which fails in ways of its own.
    except (ValueError, SyntaxError, TypeError, KeyError, EOFError, OverflowError, MemoryError, TokenError) as error:
        raise CameraError(f"{file} is not 4×4 numbers ({error}); expected the cameras.npz of a DTU scene") from error
    matrix = values.reshape(shape, order="F" if by_columns else "C")
    return matrix if len(matrix) == 4 else np.vstack([matrix, [0, 0, 0, 1]])
