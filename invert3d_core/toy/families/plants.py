"""Things that grow, and things to eat."""

from ..primitives import FIXED, MAIN, SECOND, THIRD
from .builder import WHITE, Builder, Family, rotation_about


def tree(b: Builder) -> None:
    trunk, r = b.u(0.4, 1.0), b.u(0.5, 0.8)
    b.tube(SECOND, (0, 0, 0), (0, trunk + 0.2, 0), b.u(0.12, 0.24), b.u(0.1, 0.14))
    if b.maybe():
        for k in range(3):
            size = r * (1 - 0.25 * k)
            b.tube(MAIN, (0, trunk + 0.42 * k, 0), (0, trunk + 0.42 * k + 0.6, 0), size, size * 0.15)
        spots = [(0.5, 0.2), (0.4, 0.65)]
    else:
        b.ball(MAIN, (0, trunk + r, 0), (r, r * b.u(0.8, 1.2), r))
        if b.maybe():
            b.ball(MAIN, (r * 0.7, trunk + r * 0.7, 0), r * 0.6)
        spots = [(0.85, r * 0.7), (0.8, r * 1.35)]
    for k in range(8):
        reach, height = spots[k % 2]
        place = rotation_about("y", 45 * k) @ (0, 0, r * reach)
        b.ball(THIRD, (place[0], trunk + height, place[2]), 0.12)


def mushroom(b: Builder) -> None:
    r, h, stem = b.u(0.6, 0.9), b.u(0.3, 0.6), b.u(0.5, 1.0)
    b.tube(SECOND, (0, 0, 0), (0, stem, 0), b.u(0.2, 0.34), b.u(0.15, 0.26))
    b.ball(MAIN, (0, stem, 0), (r, h, r))
    for k in range(7):
        lift = 0.75 if k else 1.0
        place = rotation_about("y", 60 * k + 20) @ (0, 0, r * 0.62 * (k > 0))
        b.ball(THIRD, (place[0], stem + h * lift * 0.98, place[2]), (0.15, 0.09, 0.15))


def flower(b: Builder) -> None:
    h, petals, reach = b.u(0.9, 1.5), b.pick(5, 6, 8), b.u(0.35, 0.55)
    tilt = b.u(-65, -20)
    facing = rotation_about("x", -tilt)
    head = (0, h, 0)
    for k in range(petals):
        turn = facing @ rotation_about("y", 360 * k / petals)
        center = turn @ (0, 0, reach)
        b.ball(MAIN, (center[0], h + center[1], center[2]), (reach * 0.45, 0.09, reach * 0.6), turn)
    b.ball(THIRD, head, (reach * 0.5, 0.17, reach * 0.5), facing)
    b.tube(SECOND, (0, 0, -0.1), (0, h - 0.05, -0.06), 0.07)
    for side in (-1, 1):
        if b.maybe(0.7):
            b.ball(SECOND, (side * 0.3, h * b.u(0.2, 0.5), -0.08), (0.3, 0.06, 0.13), rotation_about("z", side * 30))


def icecream(b: Builder) -> None:
    cone, r = b.u(0.9, 1.4), b.u(0.4, 0.55)
    b.tube(SECOND, (0, cone, 0), (0, 0, 0), r * 0.95, 0.05)
    scoops = b.pick(1, 2)
    b.ball(MAIN, (0, cone + r * 0.5, 0), r * 1.1)
    if scoops == 2:
        b.ball(MAIN, (b.u(-0.1, 0.1), cone + r * 1.6, 0), r * 0.85)
    top = cone + r * (1.55 if scoops == 1 else 2.4)
    b.ball(THIRD, (0, top, 0), b.u(0.14, 0.22))
    if b.maybe():
        b.tube(THIRD, (0.15, top - 0.3, 0), (0.5, top + 0.35, 0), 0.07)


def cake(b: Builder) -> None:
    r, h, layers = b.u(0.7, 0.95), b.u(0.35, 0.6), b.pick(1, 2)
    b.tube(MAIN, (0, 0, 0), (0, h, 0), r)
    b.ring(SECOND, (0, h, 0), r * 0.96, b.u(0.08, 0.14))
    size, top = r, h
    if layers == 2:
        size, top = r * b.u(0.5, 0.7), h + b.u(0.3, 0.5)
        b.tube(MAIN, (0, h, 0), (0, top, 0), size)
        b.ring(SECOND, (0, top, 0), size * 0.96, 0.09)
    for k in range(4):
        place = rotation_about("y", 90 * k + 45) @ (0, 0, size * 0.55)
        b.tube(THIRD, (place[0], top, place[2]), (place[0], top + b.u(0.3, 0.45), place[2]), 0.07)


def burger(b: Builder) -> None:
    r, bun, meat = b.u(0.7, 0.95), b.u(0.25, 0.4), b.u(0.16, 0.3)
    b.tube(MAIN, (0, 0, 0), (0, bun * 0.8, 0), r * 0.95)
    b.tube(SECOND, (0, bun * 0.8, 0), (0, bun * 0.8 + meat, 0), r * b.u(0.98, 1.12))
    y = bun * 0.8 + meat
    b.tube(THIRD, (0, y, 0), (0, y + 0.14, 0), r * b.u(1.0, 1.2))
    b.ball(MAIN, (0, y + 0.12, 0), (r, bun * b.u(1.5, 2.2), r))
    if b.maybe():
        for k in range(6):
            place = rotation_about("y", 60 * k) @ (0, 0, r * 0.5)
            b.ball(FIXED, (place[0], y + bun * 1.65, place[2]), 0.07, color=WHITE)


def pear(b: Builder) -> None:
    r, h = b.u(0.5, 0.7), b.u(0.4, 0.9)
    b.ball(MAIN, (0, r, 0), r)
    b.ball(MAIN, (0, r + h * 0.8, 0), (r * b.u(0.55, 0.85), h * 0.7, r * 0.65))
    top = r + h * 1.45
    b.tube(SECOND, (0, top - 0.1, 0), (b.u(-0.15, 0.15), top + b.u(0.2, 0.4), 0), 0.07)
    b.ball(THIRD, (0.28, top + 0.12, 0), (b.u(0.2, 0.36), 0.06, 0.15), rotation_about("z", b.u(0, 40)))


def cactus(b: Builder) -> None:
    r, h = b.u(0.22, 0.34), b.u(1.0, 1.6)
    pot = b.u(0.35, 0.5)
    b.tube(SECOND, (0, 0, 0), (0, 0.45, 0), pot * 0.75, pot)
    b.tube(MAIN, (0, 0.45, 0), (0, 0.45 + h, 0), r)
    b.ball(MAIN, (0, 0.45 + h, 0), r)
    for side in b.pick((-1, 1), (1,), (-1,)):
        y, reach, up = 0.45 + h * b.u(0.3, 0.6), r + b.u(0.2, 0.35), b.u(0.3, 0.6)
        b.tube(MAIN, (0, y, 0), (side * reach, y, 0), r * 0.6)
        b.tube(MAIN, (side * reach, y - 0.1, 0), (side * reach, y + up, 0), r * 0.6)
        b.ball(MAIN, (side * reach, y + up, 0), r * 0.6)
    b.ball(THIRD, (0, 0.5 + h + r, 0), (0.2, 0.13, 0.2))


PLANTS = (
    Family("tree", ("trunk", "fruits"), tree),
    Family("mushroom", ("stem", "spots"), mushroom),
    Family("flower", ("stem", "heart"), flower),
    Family("icecream", ("cone", "cherry"), icecream),
    Family("cake", ("icing", "candles"), cake),
    Family("burger", ("meat", "salad"), burger),
    Family("pear", ("stem", "leaf"), pear),
    Family("cactus", ("base", "heart"), cactus, nearest="tree"),
)
