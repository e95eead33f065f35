"""Cameras: data, orbits, paths and framing, files, orientation of an asset, conversions to others' conventions."""

from . import conversions, paths
from .cameras import Cameras, Orientation, concatenate
from .formats import LoadedCameras, load, save
from .orbits import Sphere, azimuths, fit_radius, fit_sphere, near_plane, orbit, turn

__all__ = [
    "Cameras",
    "LoadedCameras",
    "Orientation",
    "Sphere",
    "azimuths",
    "concatenate",
    "conversions",
    "fit_radius",
    "fit_sphere",
    "load",
    "near_plane",
    "orbit",
    "paths",
    "save",
    "turn",
]
