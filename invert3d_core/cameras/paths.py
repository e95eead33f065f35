"""Cameras that move: frames of a turntable, of a spiral, and between keyframes, with easing."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .. import rotations
from ..errors import CameraError
from .cameras import Cameras
from .orbits import orbit

Span = float | tuple[float, float]  # a number for the whole path, or its first and last

Easing = Literal["linear", "in", "out", "in-out"]
EASINGS = get_args(Easing)
EaseAt = Literal["ends", "keys"]

PIVOT_PULL = 1e-6  # towards the middle of cameras whose axes do not say how far away what they look at is
PIVOT_ASIDE = 0.2  # of its distance, by which what is looked at may lie beside an axis
SWING = 3.0  # Fritsch and Carlson, "Monotone Piecewise Cubic Interpolation", 1980
LEVEL = 1e-6  # squared: what is taken for level, so that cameras of files, rounded to 4 digits, can be
MAX_FRAMES = 100_000  # an hour at 25 frames a second; more is a slip of the hand

_CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda t: t,
    "in": lambda t: t * t,
    "out": lambda t: t * (2 - t),
    "in-out": lambda t: t * t * (3 - 2 * t),
}


def frame_count(seconds: float, fps: float) -> int:
    """How many frames a film of so many seconds has, at least 1.

    Raises CameraError when one of them is not a positive number, or there would be more than 100,000 frames.
    """
    if not (0 < seconds < math.inf and 0 < fps < math.inf):
        raise CameraError(f"frame_count: {seconds} seconds at {fps} frames a second; expected positive numbers")
    return _checked(max(1, round(min(seconds * fps, 1e9))))


def ease(share: Tensor, easing: Easing = "in-out") -> Tensor:
    """Shares of a path in [0,1] for shares of its time: even, or starting (in) or ending (out) at rest.

    in t², out t (2 − t), in-out t² (3 − 2t). Raises CameraError for another name.
    """
    if easing not in _CURVES:
        raise CameraError(f"ease: easing is {easing!r}, expected one of {', '.join(map(repr, EASINGS))}")
    return _CURVES[easing](share)


def turntable(
    count: int,
    radius: float,
    fov_y_deg: float,
    width: int,
    height: int,
    *,
    elevation_deg: float = 15.0,
    start_deg: float = 0.0,
    turns: float = 1.0,
    easing: Easing = "linear",
    target: Sequence[float] | Tensor = (0.0, 0.0, 0.0),
) -> Cameras:
    """``count`` frames of a camera that goes round ``target`` at one height, as `orbit` places it.

    turns: 1 is a full circle towards +x from start_deg, negative the other way. The end is left out, so that a film of
    whole turns runs on without a stutter. Raises CameraError as `orbit`, and for a count out of range.
    """
    share = ease(torch.arange(_checked(count), dtype=torch.float64) / count, easing)
    return orbit(start_deg + 360.0 * turns * share, elevation_deg, radius, fov_y_deg, width, height, target)


def spiral(
    count: int,
    radius: Span,
    fov_y_deg: Span,
    width: int,
    height: int,
    *,
    elevation_deg: Span = (-15.0, 60.0),
    start_deg: float = 0.0,
    turns: float = 2.0,
    easing: Easing = "in-out",
    target: Sequence[float] | Tensor = (0.0, 0.0, 0.0),
) -> Cameras:
    """``count`` frames of a camera that goes round ``target`` while its height, distance and lens change.

    A pair stands for the values of the first and of the last frame, both reached; distances and focal lengths change
    by even factors. turns as in `turntable`. Raises CameraError as `orbit`, and for a count out of range.
    """
    share = ease(_inclusive(_checked(count)), easing)
    low, high = _ends(elevation_deg)
    near, far = _ends(radius)
    wide, narrow = _ends(fov_y_deg)
    if not (near > 0 and far > 0 and 0 < wide < 180 and 0 < narrow < 180):
        raise CameraError(
            f"spiral: radius {radius} and fov_y_deg {fov_y_deg}, expected positive distances and degrees between 0 "
            "and 180 (exclusive)"
        )
    distance = math.log(near) + share * (math.log(far) - math.log(near))
    fov = _between_angles(torch.tensor(wide).double(), torch.tensor(narrow).double(), share)
    return orbit(
        start_deg + 360.0 * turns * share, low + share * (high - low), distance.exp(), fov, width, height, target
    )


def keyframes(
    keys: Cameras,
    count: int,
    *,
    times: Sequence[float] | None = None,
    easing: Easing = "linear",
    ease_at: EaseAt = "ends",
    closed: bool = False,
    smooth: bool = True,
    pivot: Sequence[float] | Tensor | Literal["auto"] | None = "auto",
) -> Cameras:
    """``count`` frames of a camera that moves through the cameras ``keys``, in their frame and picture size.

    times: when each key is reached, increasing numbers of any unit; evenly by default. closed: the path returns to the
    first key, whose return is one more time, and that frame is left out, so that a film of it runs on. easing: at both
    ends of the path, or with ease_at="keys" between every two keys, so that the camera rests at each; "linear" cannot.

    Positions and rotations follow cubic Hermite splines with Catmull and Rom's tangents for uneven times, shortened
    where they would overshoot a key, so that the camera stands still between equal keys; or with smooth=False straight
    lines and slerp. Cameras that all stand upright stay so: their azimuths and elevations are splined; other rotations
    in the tangent space of each key (Kim, Kim and Shin, 1995). Focal lengths change by even factors. pivot: a point
    (3,) that keeps its way through the picture: the camera swings round it instead of flying straight. "auto" is the
    point that all keys look at, where there is one, None never.
    Raises CameraError when there are no keys, the times do not fit or do not increase, or the count is out of range.
    """
    if len(keys) == 0:
        raise CameraError("keyframes: there are no cameras to move through, expected at least one")
    if ease_at not in get_args(EaseAt):
        raise CameraError(f"keyframes: ease_at is {ease_at!r}, expected 'ends' or 'keys'")
    if ease_at == "keys" and easing == "linear":
        raise CameraError("keyframes: with the easing linear the camera rests at no key; choose in-out, in or out")
    stops = [*range(len(keys)), 0] if closed else list(range(len(keys)))
    when = _times(times, len(stops))
    if len(stops) == 1:
        return keys[[0] * _checked(count)]
    share = torch.arange(_checked(count), dtype=torch.float64) / count if closed else _inclusive(_checked(count))
    if ease_at == "ends":
        share = ease(share, easing)
    moment = when[0] + share * (when[-1] - when[0])
    first = (torch.searchsorted(when, moment, right=True) - 1).clamp(0, len(stops) - 2)
    length = when[1:] - when[:-1]
    local = (moment - when[first]) / length[first]
    if ease_at == "keys":
        local = ease(local, easing)

    poses = keys.c2w[stops].detach().cpu().double()
    points, turned = poses[:, :3, 3], rotations.quaternions(poses[:, :3, :3])
    fov = keys.fov_y_deg[stops].detach().cpu().double()
    course = _Course(first, local, length, closed)
    c2w = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    if not smooth:
        c2w[:, :3, :3] = rotations.rotation_matrices(rotations.slerp(turned[first], turned[first + 1], local))
    elif (level := _level(poses[:, :3, :3])) is not None:
        angles = _unwound(_angles_in(level, poses[:, :3, :3]))
        c2w[:, :3, :3] = _upright(level, course.points(angles))
    else:
        c2w[:, :3, :3] = rotations.rotation_matrices(course.turns(turned))
    center = _common_target(keys) if isinstance(pivot, str) else pivot
    if center is not None:
        center = torch.as_tensor(center).detach().cpu().double()
        points = ((center - points)[:, None] @ poses[:, :3, :3])[:, 0]  # where the cameras see the pivot
    between = course.points(points) if smooth else points[first] + local[:, None] * (points[first + 1] - points[first])
    if center is not None:
        between = center - (c2w[:, :3, :3] @ between[..., None])[..., 0]
    c2w[:, :3, 3] = between
    lens = _between_angles(fov[first], fov[first + 1], local)
    return replace(keys, c2w=c2w.to(keys.c2w), fov_y_deg=lens.to(keys.fov_y_deg))


class _Course(NamedTuple):
    """Where the frames are on their way from key to key.

    first: (F,) the key before each. local: (F,) the share of the way to the next. length: (K-1,) the time between keys.
    """

    first: Tensor
    local: Tensor
    length: Tensor
    closed: bool

    def points(self, points: Tensor) -> Tensor:  # (K,D) -> (F,D)
        """A cubic Hermite spline through points."""
        t, start, end = self.local[:, None], points[self.first], points[self.first + 1]
        tangents = self._tangents(points[1:] - points[:-1])
        return start + self._curve(t, end - start, tangents[self.first], tangents[self.first + 1])

    def turns(self, turned: Tensor) -> Tensor:  # (K,4) -> (F,4)
        """Rotations between rotations: from each key a spline of rotation vectors, without a kink at the next."""
        steps = rotations.rotation_vectors(rotations.multiply(rotations.conjugate(turned[:-1]), turned[1:]))
        speeds = self._tangents(steps)  # in the camera's own axes, as the steps are
        step = steps[self.first]
        arriving = _vector_speed(step, speeds[self.first + 1])
        vector = self._curve(self.local[:, None], step, speeds[self.first], arriving)
        return rotations.multiply(turned[self.first], rotations.from_rotation_vectors(vector))

    def _curve(self, t: Tensor, step: Tensor, leaving: Tensor, arriving: Tensor) -> Tensor:
        """From 0 by a step in the time to the next key, with speeds at both ends."""
        scale = self.length[self.first][:, None]
        return t**2 * (3 - 2 * t) * step + scale * (t * (1 - t) ** 2 * leaving - t**2 * (1 - t) * arriving)

    def _tangents(self, steps: Tensor) -> Tensor:  # (K-1,D) -> (K,D)
        """Speeds at the keys: the mean of the steps around them, in which the shorter time weighs more.

        Where they are faster than `SWING` times the slower step, they are slowed down to that: beyond it the spline
        would overshoot the nearer key and come back, and before an equal key it would leave and return.
        """
        slopes = steps / self.length[:, None]
        before, after = torch.cat([slopes[:1], slopes]), torch.cat([slopes, slopes[-1:]])
        past, coming = torch.cat([self.length[:1], self.length]), torch.cat([self.length, self.length[-1:]])
        if self.closed:
            before[0], after[-1] = slopes[-1], slopes[0]
            past[0], coming[-1] = self.length[-1], self.length[0]
        ahead = (past / (past + coming))[:, None]
        tangents = before * (1 - ahead) + after * ahead
        fastest = SWING * torch.minimum(before.norm(dim=-1), after.norm(dim=-1))
        return tangents * (fastest / tangents.norm(dim=-1).clamp_min(1e-300)).clamp_max(1)[:, None]


def _level(rotations: Tensor) -> Tensor | None:  # (K,3,3) -> (3,3)
    """Axes of which the second is the up axis that all cameras share, None where they share none.

    Where their right sides leave more than one, as of cameras that face each other, it is an axis of the world.
    """
    right, up = rotations[..., 0], rotations[..., 1]
    spread, axes = torch.linalg.eigh(right.mT @ right / len(right))  # of the right sides, the smallest first
    choices = torch.stack([axes[:, 0], -axes[:, 0]])
    if spread[1] < LEVEL:
        choices = torch.cat([torch.eye(3, dtype=right.dtype), -torch.eye(3, dtype=right.dtype)])
    slack = LEVEL**0.5
    fits = ((right @ choices.mT).abs() < slack).all(0) & (up @ choices.mT > -slack).all(0)  # none stands on its head
    if not fits.any():
        return None
    axis = choices[torch.where(fits, (up @ choices.mT).mean(0), -2.0).argmax()]
    aside = torch.linalg.cross(axis, torch.eye(3, dtype=axis.dtype)[axis.abs().argmin()])
    aside = aside / aside.norm()
    return torch.stack([aside, axis, torch.linalg.cross(aside, axis)], -1)


def _angles_in(level: Tensor, rotations: Tensor) -> Tensor:  # (3,3), (K,3,3) -> (K,2)
    """Azimuth and elevation, radians, of upright cameras in axes whose second is up."""
    local = level.mT @ rotations
    azimuth = torch.atan2(-local[:, 2, 0], local[:, 0, 0])
    return torch.stack([azimuth, torch.atan2(local[:, 1, 2], local[:, 1, 1])], -1)


def _upright(level: Tensor, angles: Tensor) -> Tensor:  # (3,3), (F,2) -> (F,3,3)
    """The rotations of upright cameras with these angles."""
    (sin_a, sin_e), (cos_a, cos_e) = angles.sin().unbind(-1), angles.cos().unbind(-1)
    zero = torch.zeros_like(sin_a)
    backward = torch.stack([cos_e * sin_a, sin_e, cos_e * cos_a], -1)
    right = torch.stack([cos_a, zero, -sin_a], -1)
    return level @ torch.stack([right, torch.linalg.cross(backward, right), backward], -1)


def _unwound(angles: Tensor) -> Tensor:  # (K,D)
    """Angles without jumps by whole turns: from each to the next the shorter way."""
    steps = torch.remainder(angles.diff(dim=0) + math.pi, 2 * math.pi) - math.pi
    return torch.cat([angles[:1], angles[:1] + steps.cumsum(0)])


def _vector_speed(vector: Tensor, speed: Tensor) -> Tensor:  # (F,3), (F,3) -> (F,3)
    """How fast a rotation vector changes when the rotation turns at a speed in its own axes.

    The inverse of the right Jacobian of rotations: s + v × s / 2 + (1/θ² − cot(θ/2)/(2θ)) v × (v × s), θ = |v|.
    """
    angle = vector.norm(dim=-1, keepdim=True)
    small = angle < 1e-3
    safe = torch.where(small, 1.0, angle)
    share = torch.where(small, 1 / 12, 1 / safe**2 - 1 / (2 * safe * (safe / 2).tan()))
    once = torch.linalg.cross(vector, speed)
    return speed + once / 2 + share * torch.linalg.cross(vector, once)


def _common_target(keys: Cameras) -> Tensor | None:
    """The point that all cameras look at, None where there is none in front of all of them and near their axes.

    The least squares point of the axes; parallel ones leave it to the middle of the cameras.
    """
    eyes, axes = keys.centers.detach().cpu().double(), keys.view_directions.detach().cpu().double()
    across = torch.eye(3, dtype=torch.float64) - axes[:, :, None] * axes[:, None]
    pull = PIVOT_PULL * torch.eye(3, dtype=torch.float64)
    right = (across @ eyes[..., None]).mean(0)[:, 0] + pull @ eyes.mean(0)
    target = torch.linalg.solve(across.mean(0) + pull, right)
    depth = ((target - eyes) * axes).sum(-1)
    aside = ((target - eyes) - depth[:, None] * axes).norm(dim=-1)
    return target if bool((depth > 0).all() and (aside < PIVOT_ASIDE * depth).all()) else None


def _times(times: Sequence[float] | None, count: int) -> Tensor:
    if times is None:
        return torch.arange(count, dtype=torch.float64)
    when = torch.as_tensor(times, dtype=torch.float64)
    if when.shape != (count,):
        raise CameraError(
            f"keyframes: {when.numel()} times for {count} keys, expected one for each (a closed path reaches its first "
            "key twice)"
        )
    if not (when.isfinite().all() and (when[1:] > when[:-1]).all()):
        raise CameraError(f"keyframes: the times {when.tolist()} do not increase from key to key")
    return when


def _between_angles(start_deg: Tensor, end_deg: Tensor, share: Tensor) -> Tensor:
    """Fields of view between two: the focal length changes by even factors, as an even zoom does."""
    low, high = (torch.tan(torch.deg2rad(angle) / 2).log() for angle in (start_deg, end_deg))
    return 2 * torch.rad2deg(torch.atan((low + share * (high - low)).exp()))


def _inclusive(count: int) -> Tensor:
    """Shares of a path whose end is reached."""
    return torch.linspace(0, 1, count, dtype=torch.float64)


def _ends(span: Span) -> tuple[float, float]:
    return (span[0], span[1]) if isinstance(span, tuple) else (float(span), float(span))


def _checked(count: int) -> int:
    if not 1 <= count <= MAX_FRAMES:
        advice = " Ask for fewer, or a lower fps." if count > MAX_FRAMES else ""
        raise CameraError(f"A path of {count:,} frames; expected 1 to {MAX_FRAMES:,}.{advice}")
    return count
