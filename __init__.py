"""Invert3D as a ComfyUI node pack: a Gaussian splat becomes a word of a multi-view diffusion model."""

from .nodes import Invert3DExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Invert3DExtension:
    return Invert3DExtension()
