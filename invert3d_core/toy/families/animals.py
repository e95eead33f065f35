"""Animals, looking towards +z."""

from ..primitives import FIXED, MAIN, SECOND, THIRD
from .builder import BLACK, WHITE, Builder, Family, rotation_about


def _legs(b: Builder, part: int, x: float, zs, top: float, radius: float) -> None:
    for z in zs:
        for side in (-1, 1):
            b.tube(part, (side * x, top, z), (side * x, 0, z), radius)


def dog(b: Builder) -> None:
    r, length, leg = b.u(0.3, 0.45), b.u(0.6, 0.95), b.u(0.4, 0.75)
    y, head = leg + r * 0.7, b.u(0.28, 0.4)
    b.ball(MAIN, (0, y, 0), (r, r, length))
    b.ball(MAIN, (0, y + r + head * 0.6, length), head)
    b.ball(MAIN, (0, y + r + head * 0.4, length + head), (head * 0.5, head * 0.45, head * b.u(0.6, 0.9)))
    b.ball(FIXED, (0, y + r + head * 0.5, length + head * 1.75), 0.09, color=BLACK)
    b.eyes((0, y + r + head * 0.95, length + head * 0.8), head * 0.45, 0.07)
    drop = b.u(0.25, 0.5)
    for side in (-1, 1):
        b.ball(SECOND, (side * head, y + r + head * 0.6, length - 0.05), (0.1, drop, 0.18))
    _legs(b, THIRD, r * 0.7, (-length * 0.65, length * 0.65), y, b.u(0.1, 0.15))
    b.tube(MAIN, (0, y + r * 0.3, -length), (0, y + b.u(0.3, 0.8), -length - b.u(0.2, 0.45)), 0.08)


def cat(b: Builder) -> None:
    r, length, leg = b.u(0.28, 0.42), b.u(0.55, 0.85), b.u(0.35, 0.6)
    y, head = leg + r * 0.7, b.u(0.32, 0.44)
    b.ball(MAIN, (0, y, 0), (r, r, length))
    b.ball(MAIN, (0, y + r + head * 0.5, length), (head, head * 0.9, head * 0.9))
    b.eyes((0, y + r + head * 0.7, length + head * 0.8), head * 0.42, 0.09, (0.2, 0.55, 0.25))
    ear = b.u(0.2, 0.38)
    for side in (-1, 1):
        b.tube(
            MAIN,
            (side * head * 0.6, y + r + head * 1.1, length),
            (side * head * 0.75, y + r + head * 1.1 + ear, length),
            0.17,
            0.02,
        )
    _legs(b, THIRD, r * 0.7, (-length * 0.65, length * 0.65), y * 0.9, b.u(0.1, 0.15))
    curl = b.u(0.3, 1.0)
    b.tube(SECOND, (0, y + 0.1, -length * 0.95), (0, y + curl * 0.6, -length - 0.4), 0.1)
    b.tube(SECOND, (0, y + curl * 0.6, -length - 0.4), (0, y + curl * 1.3, -length - b.u(0.1, 0.5)), 0.1, 0.07)


def bird(b: Builder) -> None:
    r, length = b.u(0.35, 0.5), b.u(0.55, 0.85)
    y, head = 0.4 + r, b.u(0.25, 0.36)
    b.ball(MAIN, (0, y, 0), (r, r * b.u(0.9, 1.15), length), rotation_about("x", -b.u(0, 35)))
    b.ball(MAIN, (0, y + r + head * 0.7, length * 0.7), head)
    b.tube(
        THIRD,
        (0, y + r + head * 0.65, length * 0.7 + head * 0.8),
        (0, y + r + head * 0.5, length * 0.7 + head + b.u(0.25, 0.55)),
        0.12,
        0.02,
    )
    b.eyes((0, y + r + head * 0.95, length * 0.7 + head * 0.65), head * 0.6, 0.07)
    spread, lift = b.u(0.35, 0.8), b.u(-30, 35)
    for side in (-1, 1):
        b.ball(
            SECOND,
            (side * (r + spread * 0.6), y + 0.2 + lift * 0.006, -0.1),
            (spread, 0.09, length * 0.55),
            rotation_about("z", side * lift),
        )
        b.tube(THIRD, (side * r * 0.4, y - r * 0.7, 0), (side * r * 0.4, 0, 0.05), 0.06)
    b.box(SECOND, (0, y, -length - 0.15), (b.u(0.2, 0.5), 0.08, 0.5))


def fish(b: Builder) -> None:
    r, h, length = b.u(0.2, 0.35), b.u(0.4, 0.7), b.u(0.8, 1.1)
    b.ball(MAIN, (0, 0, 0), (r, h, length))
    tail = b.u(0.3, 0.55)
    for side in (-1, 1):
        b.box(
            THIRD,
            (0, side * tail * 0.5, -length - tail * 0.25),
            (0.09, tail, tail * 0.7),
            rotation_about("x", side * 35),
        )
        b.box(SECOND, (side * (r + 0.1), -h * 0.2, 0.2), (0.35, 0.08, 0.28), rotation_about("z", side * -30))
    fin = b.u(0.25, 0.5)
    b.box(SECOND, (0, h + fin * 0.3, -0.05), (0.09, fin, length * b.u(0.5, 0.9)))
    b.eyes((0, h * 0.25, length * 0.68), r * 0.68, 0.11, WHITE)
    b.eyes((0, h * 0.25, length * 0.72), r * 0.8, 0.06)


def turtle(b: Builder) -> None:
    r, h, length = b.u(0.65, 0.9), b.u(0.35, 0.65), b.u(0.75, 1.0)
    b.ball(MAIN, (0, 0.3, 0), (r, h, length))
    neck = b.u(0.1, 0.4)
    b.ball(THIRD, (0, 0.35 + neck, length + 0.25), (0.24, 0.24, 0.3))
    b.tube(THIRD, (0, 0.25, length * 0.7), (0, 0.35 + neck, length + 0.2), 0.13)
    b.eyes((0, 0.48 + neck, length + 0.42), 0.15, 0.06)
    for z in (-0.6, 0.6):
        for side in (-1, 1):
            b.ball(SECOND, (side * r * 0.85, 0.12, z * length), (0.28, 0.16, 0.24), rotation_about("y", side * z * 40))
    b.tube(THIRD, (0, 0.2, -length * 0.9), (0, 0.12, -length - 0.3), 0.1, 0.02)


def horse(b: Builder) -> None:
    r, length, leg = b.u(0.3, 0.42), b.u(0.7, 0.95), b.u(0.75, 1.1)
    y, neck = leg + r * 0.6, b.u(0.55, 0.85)
    b.ball(MAIN, (0, y, 0), (r, r, length))
    top = y + neck
    b.tube(MAIN, (0, y, length * 0.7), (0, top, length + 0.15), 0.24, 0.17)
    b.ball(MAIN, (0, top, length + 0.4), (0.17, 0.19, b.u(0.38, 0.52)), rotation_about("x", 25))
    for k in range(4):
        b.box(SECOND, (0, y + 0.2 + neck * k / 3.4, length * 0.55 + 0.14 * k), (0.12, 0.26, 0.26))
    b.eyes((0, top + 0.08, length + 0.45), 0.14, 0.06)
    b.tube(SECOND, (0, y + 0.1, -length * 0.9), (0, y - b.u(0.3, 0.6), -length - 0.3), 0.08, 0.14)
    _legs(b, THIRD, r * 0.7, (-length * 0.7, length * 0.65), y, b.u(0.09, 0.14))


def snail(b: Builder) -> None:
    r, length = b.u(0.6, 0.85), b.u(0.85, 1.1)
    b.ball(MAIN, (0, 0.2 + r, -0.1), (r * b.u(0.6, 0.85), r, r))
    b.ring(THIRD, (0, 0.2 + r, -0.1), r * 0.62, r * 0.14, rotation_about("z", 90))
    b.ball(SECOND, (0, 0.15, 0.1), (0.22, 0.16, length))
    b.tube(SECOND, (0, 0.15, length * 0.8), (0, b.u(0.5, 0.8), length + 0.05), 0.2, 0.17)
    for side in (-1, 1):
        tip = (side * 0.2, b.u(0.9, 1.1), length + 0.15)
        b.tube(SECOND, (side * 0.08, 0.55, length), tip, 0.05)
        b.ball(FIXED, tip, 0.09, color=BLACK)


def penguin(b: Builder) -> None:
    r, h = b.u(0.38, 0.52), b.u(0.6, 0.9)
    b.ball(MAIN, (0, h + 0.1, 0), (r, h, r))
    b.ball(FIXED, (0, h, r * 0.42), (r * 0.72, h * 0.75, r * 0.74), color=WHITE)
    head = b.u(0.28, 0.38)
    b.ball(MAIN, (0, 2 * h + head * 0.5, 0), head)
    b.tube(THIRD, (0, 2 * h + head * 0.4, head * 0.8), (0, 2 * h + head * 0.35, head + b.u(0.2, 0.4)), 0.1, 0.02)
    b.eyes((0, 2 * h + head * 0.75, head * 0.85), head * 0.4, 0.06, WHITE)
    lift = b.u(5, 55)
    for side in (-1, 1):
        b.ball(
            SECOND,
            (side * (r + 0.1 + lift * 0.004), h * 1.15, 0),
            (0.1, h * 0.6, 0.24),
            rotation_about("z", side * lift),
        )
        b.ball(THIRD, (side * r * 0.5, 0.06, 0.2), (0.2, 0.08, 0.32))


def rabbit(b: Builder) -> None:
    r, h = b.u(0.35, 0.5), b.u(0.4, 0.6)
    b.ball(MAIN, (0, h, 0), (r, h, r * b.u(1.0, 1.4)))
    head = b.u(0.28, 0.38)
    y = 2 * h + head * 0.5
    b.ball(MAIN, (0, y, r * 0.5), head)
    ear = b.u(0.35, 0.65)
    lean = b.u(0, 30)
    for side in (-1, 1):
        b.ball(
            SECOND,
            (side * (head * 0.4 + lean * 0.005), y + head + ear * 0.6, r * 0.4),
            (0.11, ear, 0.08),
            rotation_about("z", -side * lean),
        )
        b.ball(THIRD, (side * r * 0.6, 0.1, r * 0.7), (0.17, 0.12, 0.34))
        b.ball(THIRD, (side * r * 0.5, h * 1.1, r * 0.95), (0.11, 0.26, 0.11))
    b.eyes((0, y + head * 0.25, r * 0.5 + head * 0.85), head * 0.42, 0.07)
    b.ball(FIXED, (0, h * 0.6, -r * 1.2), 0.17, color=WHITE)


ANIMALS = (
    Family("dog", ("ears", "legs"), dog),
    Family("cat", ("tail", "legs"), cat),
    Family("bird", ("wings", "beak"), bird),
    Family("fish", ("fins", "tail"), fish),
    Family("turtle", ("legs", "head"), turtle),
    Family("horse", ("mane", "legs"), horse),
    Family("snail", ("body", "stripe"), snail),
    Family("penguin", ("wings", "beak"), penguin),
    Family("rabbit", ("ears", "legs"), rabbit, nearest="cat"),
)
