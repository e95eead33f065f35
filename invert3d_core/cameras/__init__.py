"""Cameras: data, orbits and framing, orientation of an asset, conversions to the conventions of others."""

from . import conversions
from .cameras import Cameras, Orientation, concatenate
from .orbits import Sphere, azimuths, fit_radius, fit_sphere, orbit, turn

__all__ = [
    "Cameras",
    "Orientation",
    "Sphere",
    "azimuths",
    "concatenate",
    "conversions",
    "fit_radius",
    "fit_sphere",
    "orbit",
    "turn",
]
