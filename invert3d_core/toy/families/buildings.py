"""Buildings; the door is at +z."""

import math

from ..primitives import FIXED, MAIN, SECOND, THIRD
from .builder import BLACK, GLASS, WHITE, Builder, Family, rotation_about


def house(b: Builder) -> None:
    w, d, h, roof = b.u(1.0, 1.6), b.u(1.0, 1.5), b.u(0.8, 1.3), b.u(0.5, 0.9)
    b.box(MAIN, (0, h / 2, 0), (w, h, d))
    if b.maybe(0.65):
        slope = (w / 2 + 0.1) / 2
        length = (slope**2 + (roof / 2) ** 2) ** 0.5 * 2
        angle = math.degrees(math.atan2(roof, 2 * slope))
        for side in (-1, 1):
            b.box(SECOND, (side * slope, h + roof / 2, 0), (length, 0.12, d + 0.2), rotation_about("z", -side * angle))
        b.box(MAIN, (0, h + roof * 0.2, 0), (w * 0.6, roof * 0.4, d * 0.96))
    else:
        b.tube(SECOND, (0, h, 0), (0, h + roof, 0), max(w, d) * 0.72, 0.04)
    b.box(THIRD, (b.u(-0.2, 0.2) * w, 0.27, d / 2), (b.u(0.25, 0.4), 0.54, 0.08))
    for x in (-0.3, 0.3):
        b.box(FIXED, (x * w, h * 0.75, d / 2), (0.24, 0.24, 0.06), color=GLASS)
        b.box(FIXED, (w / 2, h * 0.6, x * d), (0.06, 0.3, 0.24), color=GLASS)
    if b.maybe():
        b.box(FIXED, (w * 0.3, h + roof * 0.8, -d * 0.2), (0.2, 0.5, 0.2), color=WHITE)


def castle(b: Builder) -> None:
    w, h, r = b.u(0.9, 1.3), b.u(0.6, 1.0), b.u(0.2, 0.32)
    b.box(MAIN, (0, h / 2, 0), (w, h, w))
    towers = h * b.u(1.15, 1.6)
    cone = b.u(0.35, 0.7)
    for x in (-1, 1):
        for z in (-1, 1):
            b.tube(MAIN, (x * w / 2, 0, z * w / 2), (x * w / 2, towers, z * w / 2), r)
            b.tube(SECOND, (x * w / 2, towers, z * w / 2), (x * w / 2, towers + cone, z * w / 2), r * 1.25, 0.02)
    b.box(THIRD, (0, h * 0.3, w / 2), (w * b.u(0.3, 0.45), h * 0.6, 0.1))
    if b.maybe():
        b.box(MAIN, (0, h * 1.2, 0), (w * 0.5, h * 0.6, w * 0.5))


def windmill(b: Builder) -> None:
    r, h = b.u(0.4, 0.6), b.u(1.2, 1.8)
    b.tube(MAIN, (0, 0, 0), (0, h, 0), r, r * b.u(0.6, 0.85))
    b.tube(THIRD, (0, h, 0), (0, h + b.u(0.35, 0.6), 0), r, 0.05)
    span, turn, width = b.u(0.7, 1.0), b.u(0, 90), b.u(0.16, 0.26)
    for k in range(4):
        rotation = rotation_about("z", turn + 90 * k)
        center = rotation @ (0, span / 2 + 0.1, 0)
        b.box(SECOND, (center[0], h * 0.9 + center[1], r * 0.95 + 0.15), (width, span, 0.06), rotation)
    b.tube(FIXED, (0, h * 0.9, r * 0.5), (0, h * 0.9, r * 0.95 + 0.22), 0.1, color=WHITE)
    b.box(FIXED, (0, 0.25, r * 0.95), (0.28, 0.5, 0.1), color=BLACK)


def lighthouse(b: Builder) -> None:
    r, h = b.u(0.35, 0.5), b.u(1.6, 2.3)
    top = r * b.u(0.55, 0.8)
    b.tube(MAIN, (0, 0, 0), (0, h, 0), r, top)
    stripes = b.pick(1, 2)
    for k in range(stripes):
        low = h * (0.3 + 0.4 * k / stripes)
        width = r + (top - r) * low / h
        b.tube(THIRD, (0, low, 0), (0, low + h * 0.14, 0), width * 1.07)
    b.tube(FIXED, (0, h, 0), (0, h + 0.32, 0), top * 0.75, color=GLASS)
    b.tube(SECOND, (0, h + 0.32, 0), (0, h + b.u(0.55, 0.85), 0), top * 1.15, 0.03)
    b.tube(SECOND, (0, h - 0.04, 0), (0, h + 0.06, 0), top * 1.3)
    b.box(FIXED, (0, 0.22, r * 0.97), (0.25, 0.44, 0.1), color=BLACK)


def tent(b: Builder) -> None:
    r, h = b.u(0.8, 1.1), b.u(1.0, 1.6)
    b.tube(MAIN, (0, 0, 0), (0, h, 0), r, b.u(0.03, 0.2))
    b.box(SECOND, (0, h * 0.24, r * 0.78), (b.u(0.3, 0.5), h * 0.5, 0.12), rotation_about("x", -25))
    b.tube(THIRD, (0, h * 0.95, 0), (0, h + b.u(0.3, 0.6), 0), 0.06)
    b.ball(THIRD, (0, h + 0.45, 0), b.u(0.1, 0.18))
    for side in (-1, 1):
        b.tube(FIXED, (side * r, 0.02, -0.3), (side * (r + 0.3), 0.02, -0.3), 0.04, color=BLACK)


BUILDINGS = (
    Family("house", ("roof", "door"), house),
    Family("castle", ("roof", "door"), castle),
    Family("windmill", ("wings", "roof"), windmill),
    Family("lighthouse", ("roof", "stripe"), lighthouse),
    Family("tent", ("door", "pole"), tent),
)
