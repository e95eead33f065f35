"""Rotations as quaternions w,x,y,z, as matrices, as rotation vectors and as angles, in batches of any shape."""

import torch
from torch import Tensor
from torch.nn import functional

SMALL_ANGLE = 1e-6  # rad; below it a straight line and an arc are the same


def rotation_matrices(
    quaternions: Tensor,  # (...,4)
) -> Tensor:  # (...,3,3)
    """Rotation matrices of quaternions w,x,y,z, which need not be normalised; a zero quaternion gives the identity."""
    w, x, y, z = functional.normalize(quaternions, dim=-1).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def quaternions(
    matrices: Tensor,  # (...,3,3)
) -> Tensor:  # (...,4)
    """Unit quaternions w,x,y,z of rotation matrices, w ≥ 0; the inverse of `rotation_matrices`, differentiable.

    The largest of the four components is taken from the diagonal and the others from sums and differences beside it
    (Shepperd, 1978), so that no rotation divides by something small.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (row.unbind(-1) for row in matrices.unbind(-2))
    candidates = torch.stack(  # row i is 4 q_i · q
        [
            torch.stack([1 + xx + yy + zz, zy - yz, xz - zx, yx - xy], -1),
            torch.stack([zy - yz, 1 + xx - yy - zz, yx + xy, xz + zx], -1),
            torch.stack([xz - zx, yx + xy, 1 - xx + yy - zz, zy + yz], -1),
            torch.stack([yx - xy, xz + zx, zy + yz, 1 - xx - yy + zz], -1),
        ],
        -2,
    )
    largest = torch.diagonal(candidates, dim1=-2, dim2=-1).argmax(-1)
    chosen = candidates.gather(-2, largest[..., None, None].expand(*largest.shape, 1, 4))[..., 0, :]
    return functional.normalize(chosen, dim=-1) * torch.where(chosen[..., :1] < 0, -1, 1)


def multiply(
    first: Tensor,  # (...,4)
    second: Tensor,  # (...,4)
) -> Tensor:  # (...,4)
    """Hamilton's product of quaternions w,x,y,z: the rotation that turns by ``second``, then by ``first``."""
    a, b, c, d = first.unbind(-1)
    w, x, y, z = second.unbind(-1)
    return torch.stack(
        [
            a * w - b * x - c * y - d * z,
            a * x + b * w + c * z - d * y,
            a * y - b * z + c * w + d * x,
            a * z + b * y - c * x + d * w,
        ],
        -1,
    )


def conjugate(
    quaternions: Tensor,  # (...,4)
) -> Tensor:  # (...,4)
    """The inverse rotations of unit quaternions w,x,y,z."""
    return torch.cat([quaternions[..., :1], -quaternions[..., 1:]], -1)


def rotation_vectors(
    quaternions: Tensor,  # (...,4)
) -> Tensor:  # (...,3)
    """Rotation vectors of unit quaternions w,x,y,z: the axis times the angle in radians, the shorter way round."""
    quaternions = torch.where(quaternions[..., :1] < 0, -quaternions, quaternions)
    length = quaternions[..., 1:].norm(dim=-1, keepdim=True)
    scale = torch.where(length < SMALL_ANGLE, 2.0, 2 * torch.atan2(length, quaternions[..., :1]) / length)
    return scale * quaternions[..., 1:]


def from_rotation_vectors(
    vectors: Tensor,  # (...,3)
) -> Tensor:  # (...,4)
    """Unit quaternions w,x,y,z of rotation vectors; the inverse of `rotation_vectors`."""
    angle = vectors.norm(dim=-1, keepdim=True)
    scale = torch.where(angle < SMALL_ANGLE, 0.5, (angle / 2).sin() / angle)
    return functional.normalize(torch.cat([(angle / 2).cos(), scale * vectors], -1), dim=-1)


def slerp(
    start: Tensor,  # (...,4) unit
    end: Tensor,  # (...,4) unit
    share: Tensor,  # (...)
) -> Tensor:  # (...,4)
    """Unit quaternions on the shorter arc from start (share 0) to end (1), at even speed (Shoemake, 1985)."""
    end = torch.where((start * end).sum(-1, keepdim=True) < 0, -end, end)
    # Half the angle between them as 4-vectors; the arcus cosine of the product would be blunt near 0.
    angle = 2 * torch.atan2((end - start).norm(dim=-1), (end + start).norm(dim=-1))
    straight = angle < SMALL_ANGLE
    sine = torch.where(straight, 1.0, angle.sin())
    first = torch.where(straight, 1 - share, ((1 - share) * angle).sin() / sine)
    second = torch.where(straight, share, (share * angle).sin() / sine)
    return functional.normalize(first[..., None] * start + second[..., None] * end, dim=-1)


def from_angles(x_deg: float, y_deg: float, z_deg: float) -> Tensor:  # (3,3)
    """The rotation matrix, float64, that turns about the fixed x axis, then y, then z; degrees, right-handed."""
    cos_x, cos_y, cos_z = torch.deg2rad(torch.tensor([x_deg, y_deg, z_deg], dtype=torch.float64)).cos().tolist()
    sin_x, sin_y, sin_z = torch.deg2rad(torch.tensor([x_deg, y_deg, z_deg], dtype=torch.float64)).sin().tolist()
    about_x = torch.tensor([[1, 0, 0], [0, cos_x, -sin_x], [0, sin_x, cos_x]], dtype=torch.float64)
    about_y = torch.tensor([[cos_y, 0, sin_y], [0, 1, 0], [-sin_y, 0, cos_y]], dtype=torch.float64)
    about_z = torch.tensor([[cos_z, -sin_z, 0], [sin_z, cos_z, 0], [0, 0, 1]], dtype=torch.float64)
    return about_z @ about_y @ about_x
