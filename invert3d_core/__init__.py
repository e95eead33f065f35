"""Invert3D: Gaussian splats as words of a multi-view diffusion model.

The host-free core. Import the part that is needed; nothing heavy is imported before it is used:

    from invert3d_core import splats, cameras, rendering, mvdream, tokens, inversion
"""

__version__ = "0.1.0"
