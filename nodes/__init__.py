"""The pack's nodes: one module per family, each with its list NODES.

A node reads widgets, calls the core with a progress adapter, and returns host types; `host.py` alone touches the host.
"""

from comfy_api.latest import ComfyExtension, io

from . import (
    camera_files,
    camera_paths,
    cameras,
    coloring,
    editing,
    inversion,
    lifting,
    mvdream,
    orienting,
    rendering,
    splats,
    tokens,
)

FAMILIES = (
    splats,
    orienting,
    editing,
    coloring,
    cameras,
    camera_files,
    camera_paths,
    rendering,
    lifting,
    mvdream,
    inversion,
    tokens,
)


class Invert3DExtension(ComfyExtension):
    """What ComfyUI loads: every node of every family."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [node for family in FAMILIES for node in family.NODES]
