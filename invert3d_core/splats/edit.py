"""Splats made of other splats: everything that edits them, under one name.

All are pure: the splats given stay as they are. They run on the splats' own device and, where the docstring says so,
let gradients through.
"""

from ..rotations import from_angles
from .cleaning import faint, floaters, needles, oversized, prune
from .combining import gain, merge, with_degree
from .decimation import decimate
from .neighbors import nearest
from .recolor import (
    ColorStatistics,
    adjust_colors,
    apply_color_matrix,
    base_colors,
    image_statistics,
    match_colors,
    splat_statistics,
    tint,
)
from .selection import coverage, inside_box, inside_ellipsoid, inside_view, most_visible, select
from .transform import normalize, transform

__all__ = [
    "ColorStatistics",
    "adjust_colors",
    "apply_color_matrix",
    "base_colors",
    "coverage",
    "decimate",
    "faint",
    "floaters",
    "from_angles",
    "gain",
    "image_statistics",
    "inside_box",
    "inside_ellipsoid",
    "inside_view",
    "match_colors",
    "merge",
    "most_visible",
    "nearest",
    "needles",
    "normalize",
    "oversized",
    "prune",
    "select",
    "splat_statistics",
    "tint",
    "transform",
    "with_degree",
]
