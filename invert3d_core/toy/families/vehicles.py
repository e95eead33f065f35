"""Things that drive, fly and float; the front is +z."""

from ..primitives import FIXED, MAIN, SECOND, THIRD
from .builder import BLACK, GLASS, METAL, WHITE, Builder, Family, rotation_about


def car(b: Builder) -> None:
    w, length, h, r = b.u(0.8, 1.1), b.u(1.8, 2.6), b.u(0.35, 0.6), b.u(0.22, 0.36)
    b.box(MAIN, (0, r + h / 2, 0), (w, h, length))
    cabin, back = length * b.u(0.35, 0.6), b.u(-0.2, 0.05) * length
    top = b.u(0.3, 0.5)
    b.box(SECOND, (0, r + h + top / 2, back), (w * 0.86, top, cabin))
    b.box(FIXED, (0, r + h + top / 2, back), (w * 0.93, top * 0.6, cabin * 0.75), color=GLASS)
    b.box(FIXED, (0, r + h + top / 2, back), (w * 0.7, top * 0.6, cabin * 1.07), color=GLASS)
    b.wheels(THIRD, (-w / 2, w / 2), (-length * 0.3, length * 0.3), r, 0.2)
    for x in (-0.3, 0.3):
        b.ball(FIXED, (x * w, r + h * 0.6, length / 2), 0.09, color=WHITE)
    if b.maybe(0.3):
        b.box(MAIN, (0, r + h + 0.2, -length / 2 + 0.1), (w, 0.07, 0.22))


def truck(b: Builder) -> None:
    w, length, h, r = b.u(0.8, 1.1), b.u(1.3, 1.9), b.u(0.8, 1.2), b.u(0.22, 0.32)
    cab = b.u(0.5, 0.75)
    b.box(MAIN, (0, r + 0.1 + h / 2, -cab / 2), (w, h, length))
    z = (length + cab) / 2 - cab / 2 + 0.05
    tall = h * b.u(0.6, 0.85)
    b.box(SECOND, (0, r + 0.1 + tall / 2, z), (w * 0.92, tall, cab))
    b.box(FIXED, (0, r + 0.1 + tall * 0.72, z + 0.06), (w * 0.8, tall * 0.35, cab), color=GLASS)
    b.wheels(THIRD, (-w / 2, w / 2), (z, -length * 0.2, -length * 0.45), r, 0.2)
    if b.maybe(0.4):
        b.tube(FIXED, (w * 0.3, r + tall, z - cab / 2), (w * 0.3, r + h * 1.3, z - cab / 2), 0.06, color=METAL)


def plane(b: Builder) -> None:
    length, r, span = b.u(1.8, 2.4), b.u(0.2, 0.34), b.u(1.8, 2.8)
    sweep, chord = b.u(-0.3, 0.5), b.u(0.35, 0.6)
    b.ball(MAIN, (0, 0, 0), (r, r * b.u(0.9, 1.2), length / 2))
    for x in (-1, 1):
        b.box(SECOND, (x * span / 4, 0, -sweep / 4), (span / 2, 0.09, chord), rotation_about("y", x * sweep * 25))
        b.box(THIRD, (x * span * 0.11, 0.05, -length * 0.43), (span * 0.22, 0.08, 0.28))
        if b.maybe(0.5):
            b.tube(FIXED, (x * span * 0.25, -0.12, -0.2), (x * span * 0.25, -0.12, 0.25), 0.1, color=METAL)
    b.box(THIRD, (0, 0.3, -length * 0.44), (0.08, b.u(0.4, 0.65), 0.32))
    b.ball(FIXED, (0, r * 0.55, length * 0.24), (r * 0.7, r * 0.6, 0.25), color=GLASS)


def ship(b: Builder) -> None:
    w, length, h = b.u(0.6, 0.9), b.u(1.7, 2.4), b.u(0.4, 0.6)
    b.box(MAIN, (0, h / 2, -0.1), (w, h, length * 0.7))
    b.tube(MAIN, (0, h / 2, length * 0.2), (0, h * 0.7, length * 0.62), w * 0.5, 0.06, flat=h / w * 1.1)
    mast = b.u(1.2, 1.9)
    b.tube(THIRD, (0, h, 0), (0, h + mast, 0), 0.06)
    sails = b.pick(1, 2)
    for i in range(sails):
        height = mast * 0.75 / sails
        b.box(SECOND, (0, h + 0.25 + height * (i + 0.5), 0.1), (b.u(0.9, 1.4), height * 0.86, 0.07))
    b.box(THIRD, (0, h + 0.14, -length * 0.32), (w * 0.7, b.u(0.25, 0.45), 0.4))
    if b.maybe():
        b.box(FIXED, (0.14, h + mast, 0), (0.3, 0.18, 0.05), color=WHITE)


def train(b: Builder) -> None:
    w, length, r = b.u(0.6, 0.85), b.u(1.6, 2.2), b.u(0.18, 0.3)
    barrel = w * b.u(0.42, 0.52)
    base = r + 0.15
    b.tube(MAIN, (0, base + barrel, -length * 0.1), (0, base + barrel, length / 2), barrel)
    b.box(MAIN, (0, base + 0.55, -length * 0.32), (w, b.u(1.0, 1.3), length * 0.34))
    b.box(FIXED, (0, base + 0.75, -length * 0.32), (w * 1.09, 0.3, length * 0.2), color=GLASS)
    b.box(MAIN, (0, base - 0.06, 0), (w * 1.05, 0.16, length))
    b.wheels(SECOND, (-w / 2, w / 2), (-length * 0.35, 0, length * 0.33), r, 0.12)
    b.tube(
        THIRD,
        (0, base + barrel * 1.8, length * 0.34),
        (0, base + barrel * 2 + b.u(0.3, 0.6), length * 0.34),
        0.1,
        b.u(0.12, 0.2),
    )
    if b.maybe():
        b.ball(THIRD, (0, base + barrel * 2, length * 0.08), b.u(0.12, 0.18))


def helicopter(b: Builder) -> None:
    r, long = b.u(0.45, 0.6), b.u(1.1, 1.5)
    b.ball(MAIN, (0, 0, 0.2), (r, r * b.u(0.9, 1.1), r * 1.4))
    b.ball(FIXED, (0, 0.08, 0.2 + r * 0.75), (r * 0.75, r * 0.6, r * 0.7), color=GLASS)
    b.tube(THIRD, (0, 0.1, -r), (0, 0.25, -r - long), 0.17, 0.08)
    b.box(THIRD, (0, 0.4, -r - long), (0.07, 0.5, 0.24))
    b.tube(SECOND, (0, r * 0.8, 0.15), (0, r + 0.3, 0.15), 0.06)
    turn, span = b.u(0, 90), b.u(1.6, 2.4)
    for k in range(b.pick(1, 2)):
        b.box(SECOND, (0, r + 0.3, 0.15), (span, 0.06, 0.18), rotation_about("y", turn + 90 * k))
    for x in (-1, 1):
        b.tube(SECOND, (x * r * 0.8, -r - 0.2, -0.5), (x * r * 0.8, -r - 0.2, 0.85), 0.06)
        b.tube(SECOND, (x * r * 0.5, -r * 0.7, 0.2), (x * r * 0.8, -r - 0.2, 0.2), 0.05)


def rocket(b: Builder) -> None:
    r, h, nose = b.u(0.28, 0.45), b.u(1.2, 1.9), b.u(0.5, 0.9)
    b.tube(MAIN, (0, 0.3, 0), (0, 0.3 + h, 0), r, r * b.u(0.8, 1.0))
    b.tube(THIRD, (0, 0.3 + h, 0), (0, 0.3 + h + nose, 0), r * 0.95, 0.04)
    fins, reach, tall = b.pick(3, 4), b.u(0.3, 0.55), b.u(0.45, 0.8)
    for k in range(fins):
        turn = rotation_about("y", 360 * k / fins + 45)
        center = turn @ (0, 0, r + reach / 2)
        b.box(SECOND, (center[0], 0.1 + tall / 2, center[2]), (0.09, tall, reach), turn)
    for k in range(b.pick(1, 2)):
        b.ball(FIXED, (0, 0.3 + h * (0.75 - 0.3 * k), r * 0.85), (0.15, 0.15, 0.1), color=GLASS)
    b.tube(FIXED, (0, 0.12, 0), (0, 0.3, 0), r * 0.7, r * 0.5, color=BLACK)


def bus(b: Builder) -> None:
    w, length, h, r = b.u(0.8, 1.0), b.u(2.0, 2.8), b.u(0.8, 1.1), b.u(0.2, 0.28)
    b.box(MAIN, (0, r + 0.05 + h / 2, 0), (w, h, length))
    b.box(FIXED, (0, r + h * 0.7, 0), (w * 1.09, h * 0.3, length * 0.84), color=GLASS)
    b.box(FIXED, (0, r + h * 0.66, 0), (w * 0.84, h * 0.36, length * 1.04), color=GLASS)
    b.box(SECOND, (0, r + 0.05 + h + 0.05, 0), (w * b.u(0.7, 1.0), b.u(0.1, 0.2), length * b.u(0.6, 0.96)))
    b.wheels(THIRD, (-w / 2, w / 2), (-length * 0.32, length * 0.32), r, 0.18)


VEHICLES = (
    Family("car", ("roof", "wheels"), car),
    Family("truck", ("cabin", "wheels"), truck),
    Family("plane", ("wings", "tail"), plane),
    Family("ship", ("sail", "mast"), ship),
    Family("train", ("wheels", "chimney"), train),
    Family("helicopter", ("rotor", "tail"), helicopter),
    Family("rocket", ("fins", "nose"), rocket),
    Family("bus", ("roof", "wheels"), bus, nearest="truck"),
)
