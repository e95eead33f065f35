"""Things to sit, lie and put things on."""

from ..primitives import FIXED, MAIN, SECOND, THIRD
from .builder import BLACK, WHITE, Builder, Family, rotation_about


def chair(b: Builder) -> None:
    w, d, seat, back = b.u(0.8, 1.3), b.u(0.8, 1.1), b.u(0.7, 1.1), b.u(0.7, 1.4)
    leg, lean = b.u(0.06, 0.12), b.u(0, 0.2)
    b.box(MAIN, (0, seat, 0), (w, 0.16, d))
    b.box(MAIN, (0, seat + back / 2, -d / 2 - lean / 2), (w, back, 0.14), rotation_about("x", -lean * 40))
    b.box(THIRD, (0, seat + 0.15, 0.05), (w * 0.85, b.u(0.1, 0.22), d * 0.8))
    for x in (-1, 1):
        for z in (-1, 1):
            b.tube(SECOND, (x * (w / 2 - leg), seat, z * (d / 2 - leg)), (x * w / 2, 0, z * d / 2), leg)
        if w > 1.05:
            b.box(SECOND, (x * w / 2, seat + 0.38, 0), (0.1, 0.1, d))
            b.box(SECOND, (x * w / 2, seat + 0.2, d / 2 - 0.06), (0.1, 0.4, 0.1))


def table(b: Builder) -> None:
    w, d, h = b.u(1.4, 2.2), b.u(0.9, 1.5), b.u(0.8, 1.3)
    leg, reach = b.u(0.06, 0.13), b.u(0.6, 0.95)
    if b.maybe(0.4):
        b.tube(MAIN, (0, h, 0), (0, h + 0.14, 0), w / 2, flat=d / w)
        reach *= 0.7
    else:
        b.box(MAIN, (0, h + 0.07, 0), (w, 0.16, d))
    for x in (-1, 1):
        for z in (-1, 1):
            b.tube(SECOND, (x * w / 2 * reach, 0, z * d / 2 * reach), (x * w / 2 * reach, h, z * d / 2 * reach), leg)
    b.box(THIRD, (0, h * b.u(0.25, 0.45), 0), (w * reach, 0.09, d * reach))
    if b.maybe(0.4):
        b.tube(FIXED, (w * 0.2, h + 0.14, 0), (w * 0.2, h + 0.4, 0), 0.13, 0.1, color=WHITE)


def lamp(b: Builder) -> None:
    h, shade, top = b.u(1.3, 2.1), b.u(0.45, 0.8), b.u(0.35, 0.9)
    tall = b.u(0.5, 0.8)
    b.tube(SECOND, (0, 0.1, 0), (0, h, 0), b.u(0.05, 0.1))
    b.tube(MAIN, (0, h - tall * 0.4, 0), (0, h + tall * 0.6, 0), shade, shade * top)
    if b.maybe(0.5):
        b.tube(THIRD, (0, 0, 0), (0, 0.14, 0), b.u(0.35, 0.55))
    else:
        b.ball(THIRD, (0, 0.12, 0), (b.u(0.3, 0.5), 0.2, b.u(0.3, 0.5)))
    if b.maybe(0.4):
        b.ball(FIXED, (0, h + tall * 0.65, 0), 0.09, color=WHITE)


def bed(b: Builder) -> None:
    w, d, h = b.u(1.1, 1.7), b.u(1.8, 2.4), b.u(0.25, 0.5)
    b.box(SECOND, (0, h / 2, 0), (w, h * 0.5, d))
    b.box(MAIN, (0, h + 0.16, d * 0.06), (w * 1.02, b.u(0.3, 0.45), d * 0.9))
    b.box(MAIN, (0, h * 0.5 + 0.4, -d / 2), (w, b.u(0.8, 1.3), 0.14))
    if b.maybe():
        b.box(SECOND, (0, h * 0.5 + 0.1, d / 2), (w, b.u(0.4, 0.7), 0.12))
    pillows = b.pick((0.0,), (-0.25, 0.25))
    for x in pillows:
        b.box(THIRD, (x * w, h + 0.42, -d * 0.33), (w * (0.7 if len(pillows) == 1 else 0.4), 0.2, d * 0.18))


def shelf(b: Builder) -> None:
    w, h, d = b.u(1.0, 1.6), b.u(1.4, 2.2), b.u(0.4, 0.7)
    levels = b.pick(2, 3)
    b.box(MAIN, (0, h / 2 + 0.1, -d / 2), (w, h, 0.08))
    for x in (-1, 1):
        b.box(MAIN, (x * w / 2, h / 2 + 0.1, 0), (0.1, h, d))
        b.box(THIRD, (x * w * 0.42, 0.06, 0), (0.16, 0.14, d))
    for level in range(levels + 1):
        b.box(MAIN, (0, 0.14 + h * level / levels, 0), (w, 0.09, d))
    for level in range(levels):
        width = w * b.u(0.4, 0.8)
        height = h / levels * b.u(0.5, 0.8)
        b.box(
            SECOND, ((w - width) * b.u(-0.4, 0.4), 0.18 + h * level / levels + height / 2, 0), (width, height, d * 0.7)
        )


def clock(b: Builder) -> None:
    r, d = b.u(0.7, 1.0), b.u(0.3, 0.6)
    b.tube(MAIN, (0, r, -d / 2), (0, r, d / 2), r)
    b.ring(SECOND, (0, r, d / 2), r * 0.95, b.u(0.07, 0.14), rotation_about("x", 90))
    b.tube(FIXED, (0, r, d / 2), (0, r, d / 2 + 0.07), r * 0.82, color=WHITE)
    for angle, length in ((b.u(0, 360), 0.55), (b.u(0, 360), 0.38)):
        turn = rotation_about("z", angle)
        tip = turn[:, 1] * r * length
        b.tube(FIXED, (0, r, d / 2 + 0.11), (tip[0], r + tip[1], d / 2 + 0.11), 0.055, color=BLACK)
    for x in (-1, 1):
        b.tube(THIRD, (x * r * 0.5, r * 0.3, 0), (x * r * 0.75, -0.15, 0), b.u(0.08, 0.14))
        b.ball(THIRD, (x * r * 0.55, r * 1.95, 0), b.u(0.18, 0.3))


def stool(b: Builder) -> None:
    r, h = b.u(0.5, 0.75), b.u(1.0, 1.6)
    b.tube(MAIN, (0, h, 0), (0, h + b.u(0.14, 0.3), 0), r)
    spread = b.u(0.6, 1.0)
    for x, z in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        b.tube(SECOND, (x * r * 0.5, h, z * r * 0.5), (x * r * spread, 0, z * r * spread), b.u(0.06, 0.1))
    b.ring(THIRD, (0, h * b.u(0.25, 0.5), 0), r * 0.5 * (1 + spread), 0.06)


def sofa(b: Builder) -> None:
    w, d, h = b.u(1.8, 2.5), b.u(0.8, 1.1), b.u(0.3, 0.45)
    arm = b.u(0.2, 0.32)
    b.box(MAIN, (0, h * 0.8, 0), (w, h, d))
    b.box(MAIN, (0, h + 0.3, -d / 2), (w, b.u(0.7, 1.0), 0.28))
    for x in (-1, 1):
        b.box(MAIN, (x * (w - arm) / 2, h + 0.14, 0), (arm, 0.5, d))
        b.box(SECOND, (x * w * 0.42, 0.04, 0), (0.14, 0.18, d * 0.8))
        b.box(THIRD, (x * (w - 2 * arm) / 4, h * 1.4, 0.08), ((w - 2 * arm) * 0.46, b.u(0.14, 0.24), d * 0.85))


FURNITURE = (
    Family("chair", ("legs", "seat"), chair),
    Family("table", ("legs", "shelf"), table),
    Family("lamp", ("pole", "base"), lamp),
    Family("bed", ("frame", "pillow"), bed),
    Family("bookcase", ("books", "feet"), shelf),
    Family("clock", ("rim", "feet"), clock),
    Family("stool", ("legs", "rim"), stool, nearest="table"),
    Family("sofa", ("feet", "seat"), sofa, nearest="bed"),
)
