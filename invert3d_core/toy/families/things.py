"""Things to use, wear and play with."""

from ..primitives import FIXED, MAIN, SECOND, THIRD
from .builder import BLACK, METAL, WHITE, Builder, Family, rotation_about


def mug(b: Builder) -> None:
    r, h = b.u(0.5, 0.75), b.u(0.9, 1.4)
    b.tube(MAIN, (0, 0, 0), (0, h, 0), r * b.u(0.75, 1.0), r)
    b.tube(FIXED, (0, h, 0), (0, h + 0.05, 0), r * 0.86, color=BLACK)
    b.ring(THIRD, (0, h, 0), r * 0.95, b.u(0.06, 0.1))
    size = h * b.u(0.22, 0.34)
    b.ring(SECOND, (r + size * 0.6, h * 0.52, 0), size, b.u(0.07, 0.12), rotation_about("x", 90))


def vase(b: Builder) -> None:
    r, h = b.u(0.5, 0.75), b.u(0.5, 0.8)
    b.ball(MAIN, (0, h, 0), (r, h, r))
    neck, top = b.u(0.3, 0.7), 2 * h
    b.tube(SECOND, (0, top - 0.1, 0), (0, top + neck, 0), r * 0.35, r * b.u(0.35, 0.65))
    b.ring(THIRD, (0, h * b.u(0.8, 1.2), 0), r * 0.98, b.u(0.07, 0.13))
    b.tube(THIRD, (0, 0, 0), (0, 0.12, 0), r * 0.55)


def teapot(b: Builder) -> None:
    r, h = b.u(0.6, 0.8), b.u(0.5, 0.75)
    b.ball(MAIN, (0, h, 0), (r, h, r))
    b.tube(SECOND, (r * 0.7, h * 0.8, 0), (r + b.u(0.4, 0.65), h * b.u(1.5, 1.9), 0), 0.17, 0.08)
    b.ring(SECOND, (-r - 0.12, h, 0), h * b.u(0.4, 0.6), 0.08, rotation_about("x", 90))
    b.ball(THIRD, (0, h * 1.82, 0), (r * 0.6, 0.16, r * 0.6))
    b.ball(THIRD, (0, h * 1.82 + 0.22, 0), b.u(0.1, 0.17))


def hat(b: Builder) -> None:
    r, h = b.u(0.5, 0.7), b.u(0.8, 1.4)
    brim = r * b.u(1.25, 1.6)
    b.tube(SECOND, (0, 0, 0), (0, 0.1, 0), brim)
    b.tube(MAIN, (0, 0.1, 0), (0, h, 0), r, r * b.u(0.6, 1.05))
    b.tube(THIRD, (0, 0.1, 0), (0, 0.1 + b.u(0.15, 0.32), 0), r * 1.06)
    if b.maybe(0.4):
        b.ball(FIXED, (r * 0.9, 0.4, r * 0.4), (0.06, 0.35, 0.12), color=WHITE)


def umbrella(b: Builder) -> None:
    r, h, pole = b.u(0.85, 1.1), b.u(0.4, 0.8), b.u(1.2, 1.7)
    b.tube(MAIN, (0, pole - h * 0.3, 0), (0, pole + h * 0.4, 0), r, 0.3)
    b.ball(MAIN, (0, pole + h * 0.38, 0), (0.34, 0.13, 0.34))
    b.tube(SECOND, (0, 0.15, 0), (0, pole, 0), 0.06)
    b.ring(SECOND, (0.15, 0.15, 0), 0.15, 0.06, rotation_about("x", 90))
    b.tube(THIRD, (0, pole + h * 0.45, 0), (0, pole + h * 0.45 + b.u(0.2, 0.4), 0), 0.09, 0.03)


def guitar(b: Builder) -> None:
    low, high, d, neck = b.u(0.5, 0.65), b.u(0.35, 0.5), b.u(0.2, 0.32), b.u(0.8, 1.2)
    b.tube(MAIN, (0, low, -d / 2), (0, low, d / 2), low)
    b.tube(MAIN, (0, low * 1.75 + high * 0.4, -d / 2), (0, low * 1.75 + high * 0.4, d / 2), high)
    y = low * 1.75 + high
    b.tube(FIXED, (0, low * 1.45, d / 2), (0, low * 1.45, d / 2 + 0.06), 0.2, color=BLACK)
    b.box(SECOND, (0, y + neck / 2 - 0.2, d / 2), (0.15, neck + 0.3, 0.1))
    b.box(THIRD, (0, y + neck, d / 2 - 0.02), (b.u(0.24, 0.36), b.u(0.3, 0.45), 0.11))
    b.box(THIRD, (0, low * 0.75, d / 2 + 0.03), (0.42, 0.1, 0.08))


def sword(b: Builder) -> None:
    blade, width = b.u(1.3, 1.9), b.u(0.2, 0.36)
    b.box(MAIN, (0, 0.55 + blade / 2, 0), (width, blade, 0.1))
    b.tube(MAIN, (0, 0.55 + blade, 0), (0, 0.55 + blade + b.u(0.15, 0.4), 0), width / 2, 0.02, flat=0.35)
    b.box(THIRD, (0, 0.52, 0), (b.u(0.7, 1.1), 0.14, 0.2))
    b.tube(SECOND, (0, 0, 0), (0, 0.5, 0), b.u(0.09, 0.13))
    b.ball(THIRD, (0, 0, 0), b.u(0.12, 0.18))


def robot(b: Builder) -> None:
    w, h, leg = b.u(0.6, 0.95), b.u(0.7, 1.0), b.u(0.4, 0.7)
    y = leg + h / 2
    b.box(MAIN, (0, y, 0), (w, h, b.u(0.45, 0.65)))
    head = b.u(0.4, 0.6)
    top = leg + h + head / 2 + 0.05
    if b.maybe():
        b.box(SECOND, (0, top, 0), (head * b.u(1.0, 1.4), head, head))
    else:
        b.ball(SECOND, (0, top, 0), head * 0.58)
    b.eyes((0, top + 0.06, head * 0.52), head * 0.25, 0.09, WHITE)
    lift = b.u(0, 70)
    for side in (-1, 1):
        turn = rotation_about("z", side * lift)
        tip = turn @ (0, -0.65, 0)
        shoulder = (side * (w / 2 + 0.12), leg + h * 0.85, 0)
        b.tube(THIRD, shoulder, (shoulder[0] + tip[0], shoulder[1] + tip[1], 0), 0.12)
        b.tube(THIRD, (side * w * 0.28, leg, 0), (side * w * 0.28, 0, 0), 0.14)
    b.box(FIXED, (0, y + 0.05, 0.3), (w * 0.5, h * 0.3, 0.1), color=METAL)
    if b.maybe():
        b.tube(FIXED, (0, top + head / 2, 0), (0, top + head / 2 + 0.25, 0), 0.04, color=BLACK)


def snowman(b: Builder) -> None:
    r = b.u(0.5, 0.65)
    middle, head = r * b.u(0.65, 0.8), r * b.u(0.5, 0.62)
    b.ball(MAIN, (0, r, 0), r)
    b.ball(MAIN, (0, 2 * r + middle * 0.6, 0), middle)
    top = 2 * r + middle * 1.4 + head * 0.6
    b.ball(MAIN, (0, top, 0), head)
    b.eyes((0, top + 0.08, head * 0.88), head * 0.35, 0.06)
    b.ring(THIRD, (0, top - head * 0.9, 0), head * 0.85, 0.11)
    b.tube(SECOND, (0, top + head * 0.75, 0), (0, top + head * 0.75 + b.u(0.25, 0.5), 0), head * 0.75)
    b.tube(SECOND, (0, top + head * 0.7, 0), (0, top + head * 0.8, 0), head * 1.3)
    for k in range(2):
        b.ball(FIXED, (0, 2 * r + middle * (0.4 + 0.5 * k), middle * 0.93), 0.07, color=BLACK)


def gift(b: Builder) -> None:
    w, h, d = b.u(0.9, 1.4), b.u(0.6, 1.2), b.u(0.9, 1.3)
    b.box(MAIN, (0, h / 2, 0), (w, h, d))
    band = b.u(0.16, 0.28)
    b.box(SECOND, (0, h / 2, 0), (band, h * 1.06, d * 1.06))
    b.box(SECOND, (0, h / 2, 0), (w * 1.06, h * 1.06, band))
    size = b.u(0.2, 0.34)
    for side in (-1, 1):
        b.ball(THIRD, (side * size, h + size * 0.6, 0), (size, size * 0.6, 0.16), rotation_about("z", side * 30))


def balloon(b: Builder) -> None:
    r, h, drop = b.u(0.65, 0.85), b.u(0.7, 0.95), b.u(0.35, 0.7)
    y = drop + 0.4 + h
    b.ball(MAIN, (0, y, 0), (r, h, r))
    b.tube(MAIN, (0, y - h * 1.1, 0), (0, y - h * 0.6, 0), r * 0.25, r * 0.75)
    b.box(SECOND, (0, 0.2, 0), (b.u(0.35, 0.5), 0.36, 0.4))
    for x in (-1, 1):
        for z in (-1, 1):
            b.tube(FIXED, (x * 0.15, 0.35, z * 0.15), (x * 0.17, y - h, z * 0.17), 0.03, color=BLACK)
    b.ring(THIRD, (0, y + h * b.u(-0.25, 0.25), 0), r * 0.98, b.u(0.08, 0.16))


def bottle(b: Builder) -> None:
    r, h, neck = b.u(0.32, 0.48), b.u(0.9, 1.3), b.u(0.4, 0.7)
    b.tube(MAIN, (0, 0, 0), (0, h, 0), r)
    b.tube(MAIN, (0, h, 0), (0, h + 0.3, 0), r, r * 0.4)
    b.tube(MAIN, (0, h + 0.25, 0), (0, h + 0.25 + neck, 0), r * 0.38)
    b.tube(SECOND, (0, h + 0.2 + neck, 0), (0, h + 0.4 + neck, 0), r * 0.5)
    low = h * b.u(0.15, 0.35)
    b.tube(THIRD, (0, low, 0), (0, low + h * b.u(0.3, 0.5), 0), r * 1.05)


THINGS = (
    Family("mug", ("handle", "rim"), mug),
    Family("vase", ("neck", "stripe"), vase),
    Family("teapot", ("handle", "lid"), teapot),
    Family("hat", ("brim", "stripe"), hat),
    Family("umbrella", ("handle", "tip"), umbrella),
    Family("guitar", ("neck", "head"), guitar),
    Family("sword", ("handle", "guard"), sword),
    Family("robot", ("head", "limbs"), robot),
    Family("snowman", ("hat", "scarf"), snowman),
    Family("present", ("ribbon", "bow"), gift),
    Family("balloon", ("basket", "stripe"), balloon),
    Family("bottle", ("lid", "stripe"), bottle, nearest="vase"),
)
