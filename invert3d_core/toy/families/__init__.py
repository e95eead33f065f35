"""The families of toy assets: each is a function that builds one random member from primitives."""

from .animals import ANIMALS
from .builder import Builder, Family
from .buildings import BUILDINGS
from .furniture import FURNITURE
from .plants import PLANTS
from .things import THINGS
from .vehicles import VEHICLES

ALL: dict[str, Family] = {
    family.name: family for family in (*FURNITURE, *VEHICLES, *ANIMALS, *BUILDINGS, *PLANTS, *THINGS)
}
KNOWN: tuple[Family, ...] = tuple(family for family in ALL.values() if family.known)
"""Families that the toy model is trained on; their names are words of its vocabulary."""
HELD_OUT: tuple[Family, ...] = tuple(family for family in ALL.values() if not family.known)
"""Families it has never seen, to test what a token can say that words cannot."""

__all__ = ["ALL", "HELD_OUT", "KNOWN", "Builder", "Family"]
