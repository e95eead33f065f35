"""Views of a splat from any cameras: color, mask, depth and normals."""

from functools import partial
from typing import Literal

import psutil
import torch
from comfy_api.latest import Types, io
from torch import Tensor

from ..invert3d_core import cameras as core
from ..invert3d_core import rendering
from ..invert3d_core.cameras import Cameras
from ..invert3d_core.splats.spherical_harmonics import MAX_DEGREE
from . import host
from .cameras import check_elevations, orbit_inputs, orientation_inputs, place_cameras
from .coloring import rgb_of
from .types import Cameras as CamerasSocket
from .types import Depth

SH_DEGREES = ["all", "0", "1", "2", "3", "4"]


def backgrounds_of(color: str, picture: Tensor | None, cams: Cameras) -> list[Tensor]:
    """One background for each camera: a color (3,), or a picture (H,W,3) brought to the size of the views.

    ValueError when there are several pictures, but not one for each camera.
    """
    if picture is None:
        return [torch.tensor(rgb_of("background", color))] * len(cams)
    if len(picture) not in (1, len(cams)):
        raise ValueError(
            f"background_image holds {len(picture)} pictures for {len(cams)} views: "
            "connect one picture, or one for each view"
        )
    return list(host.resize_images(picture[..., :3], cams.width, cams.height).expand(len(cams), -1, -1, -1))


def check_memory(views: int, cams: Cameras, normals: bool) -> None:
    """ValueError when the pictures of so many views would not fit into the memory that is free."""
    needed = views * cams.width * cams.height * (8 if normals else 5) * 4
    free = psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"{views:,} views of {cams.width}×{cams.height} pixels take {needed / 1e9:,.1f} GB, but {free / 1e9:,.1f} "
            "GB of memory are free: choose fewer or smaller views (Select Cameras, longest_side), or render to disk "
            "with the command invert3d render"
        )


class Results:
    """Tensors for all views, made at the first one: a list of views joined at the end would take twice the memory."""

    def __init__(self, total: int) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._total = total

    def put(self, name: str, index: int, drawn: Tensor) -> None:  # (1,…)
        """Keep what was drawn of one view."""
        if name not in self.tensors:
            self.tensors[name] = drawn.new_empty(self._total, *drawn.shape[1:])
        self.tensors[name][index] = drawn[0]


class RenderOrbitViews(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Invert3DRenderOrbitViews",
            display_name="Render Views",
            category="Invert3D/cameras",
            description="Pictures of a Gaussian splat from all around or any cameras, with masks, depth and normals.",
            search_aliases=["render splat", "gaussian splatting views", "turntable", "render orbit views", "depth map"],
            inputs=[
                io.Splat.Input("splat"),
                io.MultiType.Input(
                    "cameras",
                    types=[CamerasSocket, io.Load3DCamera],
                    optional=True,
                    tooltip="Cameras to use instead of the orbit below: Orbit Cameras, Camera Path, Load Cameras, or "
                    "ComfyUI's camera_info.",
                ),
                io.Image.Input(
                    "background_image",
                    optional=True,
                    tooltip="A picture behind the object, scaled to the views: one for all, or one for each view.",
                ),
                *orbit_inputs(advanced=True),
                *orientation_inputs(),
                io.Color.Input("background", default="#ffffff", tooltip="The color behind the object."),
                io.Combo.Input(
                    "sh_degree",
                    options=SH_DEGREES,
                    default="all",
                    tooltip="How much of the view-dependent color is drawn; 0 is the base color alone.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "backend",
                    options=["auto", "torch", "gsplat"],
                    default="auto",
                    tooltip="The rasterizer. auto takes gsplat where it works, else the built-in one.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "center",
                    options=["auto", "object", "origin"],
                    default="auto",
                    tooltip="What the cameras circle: the middle of the object, or the origin of its file. "
                    "auto: the file's origin for a camera_info, else the object.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "depth_kind",
                    options=["expected", "median"],
                    default="expected",
                    optional=True,
                    tooltip="expected: the mean over what is seen in a pixel, smooth. median: the splat behind which "
                    "half of the light is left, sharp at edges; with gsplat it takes as long again.",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "draw_normals",
                    default=False,
                    optional=True,
                    tooltip="Draw the normals too; without this they are black.",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "antialiased",
                    default=False,
                    optional=True,
                    tooltip="Thin splats smaller than a pixel: for splats trained so, and for pictures much smaller "
                    "than those of the training.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Image.Output("images", display_name="images"),
                io.Mask.Output("masks", display_name="masks", tooltip="1 on the object."),
                Depth.Output("depth", display_name="depth", tooltip="Distance along the view axis in scene units."),
                CamerasSocket.Output("views", display_name="cameras"),
                io.Image.Output(
                    "normals",
                    display_name="normals",
                    tooltip="Directions of the surface in the camera's axes: red right, green up, blue towards the "
                    "camera; gray where nothing is.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, elevations_deg: str | None = None, background: str | None = None) -> bool | str:
        try:
            rgb_of("background", background or "#ffffff")
        except ValueError as error:
            return str(error)
        return check_elevations(elevations_deg)

    @classmethod
    def execute(
        cls,
        splat: Types.SPLAT,
        up: str,
        front: str,
        background: str,
        sh_degree: str,
        backend: Literal["auto", "torch", "gsplat"],
        center: str,
        cameras: Cameras | dict | None = None,
        background_image: Tensor | None = None,
        depth_kind: str = "expected",
        draw_normals: bool = False,
        antialiased: bool = False,
        **orbit,
    ) -> io.NodeOutput:
        items = host.splat_from_host(splat)
        placed = [place_cameras(item, cameras, up, front, center, orbit) for item in items]
        cams = placed[0].in_frame
        total = len(items) * len(cams)
        check_memory(total, cams, draw_normals)
        behind = backgrounds_of(background, background_image, cams)
        degree = MAX_DEGREE if sh_degree == "all" else int(sh_degree)
        progress, results, done = host.HostProgress(), Results(total), 0
        for item, place in zip(items, placed, strict=True):
            views = rendering.rasterize_each(
                item.to(host.torch_device()),
                place.in_frame,
                behind.__getitem__,
                min(degree, item.degree),
                [core.near_plane(view, place.middle) for view in place.in_frame],
                backend,
                normals=draw_normals,
                antialiased=antialiased,
            )
            for drawn in views:
                picture = host.image_to_host(drawn.color.clamp(0, 1))
                results.put("color", done, picture)
                results.put("alpha", done, host.image_to_host(drawn.alpha))
                depth = drawn.depth_median if depth_kind == "median" else drawn.depth
                results.put("depth", done, host.to_host(depth))
                if draw_normals:
                    results.put("normals", done, host.image_to_host((drawn.normals + 1) / 2))
                done += 1
                progress(done, total, preview=partial(torch.select, picture, 0, 0))
        pictures = results.tensors
        normals = pictures.get("normals", torch.zeros_like(pictures["color"][:1, :1, :1]).expand_as(pictures["color"]))
        around = core.concatenate([place.around for place in placed])
        return io.NodeOutput(pictures["color"], pictures["alpha"], pictures["depth"], around, normals)


NODES = [RenderOrbitViews]
