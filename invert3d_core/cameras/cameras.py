"""Cameras as data, and how an asset stands in the frame of its splat file."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import CameraError

RIGID_TOLERANCE = 1e-3  # on R Rᵀ = 1; poses of real files are stored in float32, some of them rounded to 4 digits

Frame = Literal["asset", "splat"]
FRAMES = get_args(Frame)

_STATEMENT = re.compile(r"\b(up|front)\s*[=:]\s*[\"']?\s*([+-]?[xyz])\b[\"']?", re.IGNORECASE)

AXES = {
    sign + name: tuple(value * (i == axis) for i in range(3))
    for axis, name in enumerate("xyz")
    for sign, value in (("+", 1.0), ("-", -1.0))
}


@dataclass(frozen=True, eq=False)
class Cameras:
    """A batch of C pinhole cameras that share one picture size.

    c2w: (C,4,4) camera-to-world, OpenGL (columns right, up, backward, position: the camera looks down its −z).
    fov_y_deg: (C,) vertical field of view in degrees, in (0, 180). width, height: pixels; square pixels, the principal
    point in the middle. Numbers and sequences are accepted for fov_y_deg; it takes dtype and device of c2w.
    frame: what c2w is relative to. "asset": the asset's own world, around its origin, y up, the front towards +z.
    "splat": the frame of the splat's file, where `rendering.rasterize` draws and files of cameras stand.

    Raises CameraError when a shape is wrong, a number is not finite, c2w is not a rotation and a position, a field of
    view is out of range, a side is not a positive whole number or the frame has another name.
    """

    c2w: Tensor  # (C,4,4)
    fov_y_deg: Tensor  # (C,)
    width: int
    height: int
    frame: Frame = "asset"

    def __post_init__(self) -> None:
        c2w = torch.as_tensor(self.c2w)
        if not c2w.is_floating_point():
            c2w = c2w.float()
        if c2w.ndim != 3 or c2w.shape[1:] != (4, 4):
            raise CameraError(
                f"Cameras: c2w has shape {tuple(c2w.shape)}, expected (C,4,4) camera-to-world matrices; "
                "a single matrix needs a batch axis: c2w[None]"
            )
        fov = torch.as_tensor(self.fov_y_deg, dtype=c2w.dtype, device=c2w.device)
        if fov.ndim == 0 or (fov.shape == (1,) and len(c2w) != 1):
            fov = fov.expand(len(c2w))
        if fov.shape != (len(c2w),):
            raise CameraError(
                f"Cameras: fov_y_deg has shape {tuple(fov.shape)}, expected one number per camera ({len(c2w)},)"
            )
        object.__setattr__(self, "c2w", c2w)
        object.__setattr__(self, "fov_y_deg", fov)
        for name in ("width", "height"):
            side = getattr(self, name)
            if side != int(side) or side < 1:
                raise CameraError(f"Cameras: {name} is {side}, expected a whole number of pixels of at least 1")
            object.__setattr__(self, name, int(side))
        if self.frame not in FRAMES:
            raise CameraError(f"Cameras: frame is {self.frame!r}, expected {' or '.join(map(repr, FRAMES))}")
        self._check_values()

    def _check_values(self) -> None:
        c2w, fov = self.c2w.detach().cpu().double(), self.fov_y_deg.detach().cpu()
        finite = c2w.isfinite().all(-1).all(-1) & fov.isfinite()
        if not finite.all():
            raise CameraError(f"Cameras: camera {_first(~finite)} holds NaN or infinity; give finite poses and angles")
        narrow = (fov > 0) & (fov < 180)
        if not narrow.all():
            i = _first(~narrow)
            raise CameraError(
                f"Cameras: camera {i} has fov_y_deg {float(fov[i]):g}, expected degrees between 0 and 180 (exclusive)"
            )
        rotation = c2w[:, :3, :3]
        error = (rotation @ rotation.mT - torch.eye(3, dtype=c2w.dtype)).abs().amax((-1, -2))
        error = torch.maximum(error, (c2w[:, 3] - torch.tensor([0, 0, 0, 1])).abs().amax(-1))
        rigid = (error <= RIGID_TOLERANCE) & (torch.linalg.det(rotation) > 0)
        if not rigid.all():
            i = _first(~rigid)
            raise CameraError(
                f"Cameras: c2w of camera {i} is not a rotation and a position (off by {float(error[i]):.2g}, "
                f"determinant {float(torch.linalg.det(rotation[i])):.3g}); expected orthonormal right-handed columns "
                "right, up, backward and the last row 0 0 0 1: take scale and mirroring out of the matrix first"
            )

    def __len__(self) -> int:
        return len(self.c2w)

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> "Cameras":
        """The chosen cameras, always as a batch: ``cams[2]`` has length 1. Raises IndexError beyond the end."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"camera {index} of a batch of {len(self)}")
            index = slice(index, index + 1 or None)
        elif not isinstance(index, slice):
            index = torch.as_tensor(index, device=self.c2w.device).reshape(-1)
            if index.numel() == 0:
                index = index.long()
        return replace(self, c2w=self.c2w[index], fov_y_deg=self.fov_y_deg[index])

    def __iter__(self) -> Iterator["Cameras"]:
        return (self[i] for i in range(len(self)))

    @property
    def centers(self) -> Tensor:
        """Positions in the world (C,3)."""
        return self.c2w[:, :3, 3]

    @property
    def view_directions(self) -> Tensor:
        """Unit directions in which the cameras look (C,3)."""
        return -self.c2w[:, :3, 2]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Cameras":
        """The same cameras on another device or in another floating dtype."""
        return replace(
            self, c2w=self.c2w.to(device=device, dtype=dtype), fov_y_deg=self.fov_y_deg.to(device=device, dtype=dtype)
        )

    def moved(
        self,
        rotation: Tensor,  # (3,3)
        translation: Tensor | None = None,  # (3,)
    ) -> "Cameras":
        """The cameras after a rigid motion of the world: positions p become rotation · p + translation.

        Computed in float64 on the CPU, so that no setting of a GPU's matrix products can blunt it.
        Raises CameraError when rotation is not one.
        """
        motion = torch.eye(4, dtype=torch.float64)
        motion[:3, :3] = rotation
        if translation is not None:
            motion[:3, 3] = translation
        return replace(self, c2w=(motion @ self.c2w.cpu().double()).to(self.c2w))

    def resized(self, width: int, height: int) -> "Cameras":
        """The same poses and vertical fields of view with pictures of another size in pixels."""
        return replace(self, width=width, height=height)

    def scaled(self, longer_side: int) -> "Cameras":
        """The same views with pictures whose longer side has so many pixels, the other one in proportion.

        Raises CameraError when longer_side is below 1.
        """
        if longer_side < 1:
            raise CameraError(f"Cameras: the longer side is {longer_side}, expected at least 1 pixel")
        share = longer_side / max(self.width, self.height)
        return self.resized(max(1, round(self.width * share)), max(1, round(self.height * share)))


def concatenate(batches: Sequence[Cameras]) -> Cameras:
    """All cameras of several batches in order, on the device and in the dtype of the first.

    Raises CameraError when there is none, or the picture sizes or the frames differ.
    """
    if not batches:
        raise CameraError("concatenate: no cameras were given, expected at least one batch")
    first = batches[0]
    sizes = [(cams.width, cams.height) for cams in batches]
    if len(set(sizes)) > 1:
        raise CameraError(
            f"concatenate: the batches have picture sizes {sorted(set(sizes))} (width, height), expected one; "
            "bring them to one size with Cameras.resized"
        )
    if len({cams.frame for cams in batches}) > 1:
        raise CameraError(
            "concatenate: some cameras stand around the asset, as orbits do, and some in the frame of the splat's "
            "file, as cameras from files do. Join cameras of one kind (in Python, Orientation.into_splat_frame turns "
            "one into the other)."
        )
    moved = [cams.to(first.c2w.device, first.c2w.dtype) for cams in batches]
    return replace(
        first, c2w=torch.cat([cams.c2w for cams in moved]), fov_y_deg=torch.cat([cams.fov_y_deg for cams in moved])
    )


@dataclass(frozen=True)
class Orientation:
    """How an asset stands in its splat file: which axes of the file point up and to the front.

    up, front: "+x", "-x", "+y", "-y", "+z" or "-z" (the sign may be left out for +), perpendicular. The default is the
    usual frame of trained 3DGS scenes (x right, y down, z forward), which the host's viewer shows upright; generators
    such as LGM write up "+y", front "+z".

    The asset's world is right-handed with y up and the front towards +z. Splats are never turned: cameras move.
    Raises CameraError for another axis name or axes that are not perpendicular.
    """

    up: str = "-y"
    front: str = "-z"

    def __post_init__(self) -> None:
        for name in ("up", "front"):
            axis = str(getattr(self, name)).strip().lower()
            axis = axis if axis[:1] in ("+", "-") else f"+{axis}"
            if axis not in AXES:
                raise CameraError(
                    f"Orientation: {name} is {getattr(self, name)!r}, expected one of {', '.join(map(repr, AXES))}"
                )
            object.__setattr__(self, name, axis)
        if self.up[1] == self.front[1]:
            raise CameraError(
                f"Orientation: up {self.up!r} and front {self.front!r} lie on one axis, expected perpendicular axes; "
                "choose another front"
            )

    @classmethod
    def from_comment(cls, comment: str | None) -> "Orientation | None":
        """The orientation that a file's comment states, as in ``up=+y front=+z``; None when it states none.

        Quotes, commas, colons and case do not matter. A comment with only one of the two, or with two that do not fit
        together, states none.
        """
        found = dict(_STATEMENT.findall((comment or "").lower()))
        if found.keys() != {"up", "front"}:
            return None
        try:
            return cls(**found)
        except CameraError:
            return None

    @classmethod
    def stated_or_usual(cls, comment: str | None) -> "Orientation":
        """What a file's comment states (`from_comment`), else the usual orientation of trained splats."""
        return cls.from_comment(comment) or cls()

    def stated_in(self, comment: str) -> str:
        """The comment with a last line that states this orientation, in place of what it stated."""
        lines = (_STATEMENT.sub("", line).strip(" ,;") for line in comment.split("\n"))
        return "\n".join([*filter(None, lines), f'up="{self.up}" front="{self.front}"'])

    def with_axes(self, up: str = "auto", front: str = "auto") -> "Orientation":
        """The same with another up or front where one is named; "auto" leaves it. Raises CameraError as the class."""
        return Orientation(self.up if up == "auto" else up, self.front if front == "auto" else front)

    def matrix(self) -> Tensor:
        """The rotation (3,3), float64, that takes the asset's world (y up, front +z) to the splat's frame."""
        up, front = (torch.tensor(AXES[axis], dtype=torch.float64) for axis in (self.up, self.front))
        return torch.stack([torch.linalg.cross(up, front), up, front], dim=1)

    def into_splat_frame(self, cams: Cameras, center: Tensor | Sequence[float] = (0.0, 0.0, 0.0)) -> Cameras:
        """Cameras around the asset's origin as cameras in the splat's frame, for `rendering.rasterize`.

        center: (3,) the point of the splat's frame that the asset's origin stands for, for example the centre of
        `fit_sphere`. The same picture comes from turning the splats by the inverse and leaving the cameras alone.
        Cameras that stand in the splat's frame already are returned as they are.
        """
        if cams.frame == "splat":
            return cams
        return replace(cams.moved(self.matrix(), torch.as_tensor(center).detach().cpu().double()), frame="splat")

    def from_splat_frame(self, cams: Cameras, center: Tensor | Sequence[float] = (0.0, 0.0, 0.0)) -> Cameras:
        """The inverse of `into_splat_frame`, for cameras of either frame: what they say of themselves is not asked."""
        inverse = self.matrix().mT
        moved = cams.moved(inverse, -inverse @ torch.as_tensor(center).detach().cpu().double())
        return replace(moved, frame="asset")


def _first(mask: Tensor) -> int:
    return int(mask.nonzero()[0, 0])
