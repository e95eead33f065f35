"""Cameras around an asset, and views of a splat from them."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from comfy_api.latest import Types, io
from torch import Tensor

from ..invert3d_core import cameras as core
from ..invert3d_core import rendering
from ..invert3d_core.cameras import Cameras, Orientation
from ..invert3d_core.splats import GaussianSplats
from ..invert3d_core.splats.spherical_harmonics import MAX_DEGREE
from . import host
from .types import Cameras as CamerasSocket
from .types import Depth

AXES = ["+x", "-x", "+y", "-y", "+z", "-z"]
SH_DEGREES = ["all", "0", "1", "2", "3", "4"]
NEAR = 0.2  # of 3D Gaussian splatting, in scene units
NEAR_SHARE = 0.05  # of the distance to the middle: an object smaller than a hand must not be cut away


def azimuth_start_input(advanced: bool) -> io.Input:
    """The widget for where a ring of cameras starts."""
    return io.Float.Input(
        "azimuth_start_deg",
        default=0.0,
        min=-360.0,
        max=360.0,
        step=1.0,
        tooltip="Where the ring starts: 0 looks at the front, 90 at the side of +x.",
        advanced=advanced,
    )


def orbit_inputs(advanced: bool) -> list[io.Input]:
    """The widgets of an orbit; `orbit_cameras` takes their values."""
    return [
        io.Int.Input("count", default=8, min=1, max=256, tooltip="Cameras on each ring, evenly spaced."),
        io.String.Input(
            "elevations_deg",
            default="15",
            tooltip="Height of the ring in degrees, −90 (below) to 90 (above); several rings as a list: 0, 30.",
        ),
        azimuth_start_input(advanced),
        io.Float.Input(
            "azimuth_span_deg",
            default=360.0,
            min=-360.0,
            max=360.0,
            step=1.0,
            tooltip="How far the ring goes round; its end is left out, so that 360 closes the circle.",
            advanced=advanced,
        ),
        io.Float.Input(
            "fov_y_deg",
            default=40.0,
            min=1.0,
            max=150.0,
            step=0.1,
            tooltip="Vertical field of view.",
            advanced=advanced,
        ),
        io.Float.Input(
            "radius",
            default=0.0,
            min=0.0,
            max=1e6,
            step=0.01,
            tooltip="Distance from the middle of the object in scene units; 0 fits the object into the picture.",
            advanced=advanced,
        ),
        io.Int.Input("width", default=256, min=16, max=4096, step=8, tooltip="Picture width in pixels."),
        io.Int.Input("height", default=256, min=16, max=4096, step=8, tooltip="Picture height in pixels."),
    ]


def orientation_inputs() -> list[io.Input]:
    """The widgets that say how the object stands in its file; `orientation_of` takes their values."""
    tooltip = (
        "The axis of the file that {}. auto: what the file says about itself, as the built-in samples do; "
        "else {}, the usual frame of trained splats, which ComfyUI's viewer shows upright."
    )
    return [
        io.Combo.Input("up", options=["auto", *AXES], default="auto", tooltip=tooltip.format("points up", "-y")),
        io.Combo.Input(
            "front", options=["auto", *AXES], default="auto", tooltip=tooltip.format("the object's front faces", "-z")
        ),
    ]


def check_elevations(elevations_deg: str | None) -> bool | str:
    """For `validate_inputs`: True, or what is wrong with the list. None stands for a link."""
    try:
        parse_elevations("0" if elevations_deg is None else elevations_deg)
    except ValueError as error:
        return str(error)
    return True


def parse_elevations(text: str) -> list[float]:
    """Degrees from a list such as "0, 30". ValueError when it is not one, or an angle is out of range."""
    try:
        rings = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise ValueError(f"elevations_deg is {text!r}: write degrees separated by commas, such as 0, 30") from None
    if not rings or not all(-90 <= ring <= 90 for ring in rings):
        raise ValueError(f"elevations_deg is {text!r}: write one or more angles between -90 and 90")
    return rings


def orbit_cameras(
    sphere_radius: float,
    count: int,
    elevations_deg: str,
    azimuth_start_deg: float,
    azimuth_span_deg: float,
    fov_y_deg: float,
    radius: float,
    width: int,
    height: int,
) -> Cameras:
    """The cameras of the orbit widgets around the asset's origin; radius 0 frames a sphere of this size."""
    rings = parse_elevations(elevations_deg)
    ring = core.azimuths(count, azimuth_start_deg, azimuth_span_deg)
    distance = radius or core.fit_radius(sphere_radius, fov_y_deg, width, height)
    elevations = torch.tensor(rings).repeat_interleave(count)
    return core.orbit(ring.repeat(len(rings)), elevations, distance, fov_y_deg, width, height)


def orientation_of(splats: GaussianSplats, up: str, front: str) -> Orientation:
    """The orientation that the two widgets choose; auto is what the file states, else the default."""
    stated = Orientation.from_comment(splats.comment) or Orientation()
    return Orientation(stated.up if up == "auto" else up, stated.front if front == "auto" else front)


def rgb_of(color: str) -> tuple[float, float, float]:
    """A color widget's "#rrggbb" in [0,1]. ValueError for anything else."""
    if not re.fullmatch("#[0-9a-fA-F]{6}", color):
        raise ValueError(f"background is {color!r}: write a color as #rrggbb")
    red, green, blue = bytes.fromhex(color[1:])
    return red / 255, green / 255, blue / 255


def place_cameras(
    splats: GaussianSplats, given: Cameras | Mapping | None, up: str, front: str, center: str, orbit: dict[str, Any]
) -> tuple[Cameras, Cameras]:
    """The cameras of a node's inputs around the asset's origin, and the same cameras in the splat's frame.

    given: what the cameras socket brought, None for the orbit widgets. A camera_info of the host is seen as in its
    viewer: in the usual 3DGS frame and around the file's origin, unless a widget says otherwise.
    """
    from_viewer = isinstance(given, Mapping)
    if center == "auto":
        center = "origin" if from_viewer else "object"
    if from_viewer:
        up, front = (
            default if axis == "auto" else axis for axis, default in ((up, Orientation.up), (front, Orientation.front))
        )
    sphere = core.fit_sphere(splats)
    middle = sphere.center if center == "object" else torch.zeros(3)
    if given is None:
        cams = orbit_cameras(sphere.radius + float((sphere.center - middle).norm()), **orbit)
    elif from_viewer:
        cams = core.conversions.from_camera_info(given, orbit["width"], orbit["height"])
    else:
        cams = given
    return cams, orientation_of(splats, up, front).into_splat_frame(cams, middle)


def near_plane(cams: Cameras) -> float:
    """Where views begin: at the usual distance, but well before the object that the cameras circle."""
    return max(1e-4, min(NEAR, NEAR_SHARE * float(cams.centers.norm(dim=-1).min())))


def backgrounds_of(color: str, picture: Tensor | None, cams: Cameras) -> list[Tensor]:
    """One background for each camera: a color (3,), or a picture (H,W,3) brought to the size of the views.

    ValueError when there are several pictures, but not one for each camera.
    """
    if picture is None:
        return [torch.tensor(rgb_of(color))] * len(cams)
    if len(picture) not in (1, len(cams)):
        raise ValueError(
            f"background_image holds {len(picture)} pictures for {len(cams)} views: "
            "connect one picture, or one for each view"
        )
    return list(host.resize_images(picture[..., :3], cams.width, cams.height).expand(len(cams), -1, -1, -1))


class OrbitCameras(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Invert3DOrbitCameras",
            display_name="Orbit Cameras",
            category="Invert3D/cameras",
            description="Cameras on rings around an object, looking at its middle.",
            search_aliases=["camera path", "turntable", "multi view cameras"],
            inputs=[
                *orbit_inputs(advanced=False),
                io.Splat.Input(
                    "splat",
                    optional=True,
                    tooltip="The object that radius 0 frames; without it, an object of radius 1 is framed.",
                ),
            ],
            outputs=[
                CamerasSocket.Output("cameras", display_name="cameras"),
                io.Load3DCamera.Output(
                    "camera_info", display_name="camera_info", tooltip="The first camera, for ComfyUI's own 3D nodes."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, elevations_deg: str | None = None) -> bool | str:
        return check_elevations(elevations_deg)

    @classmethod
    def execute(cls, splat: Types.SPLAT | None = None, **orbit) -> io.NodeOutput:
        radii = [1.0] if splat is None else [core.fit_sphere(item).radius for item in host.splat_from_host(splat)]
        cams = orbit_cameras(max(radii), **orbit)
        return io.NodeOutput(cams, core.conversions.to_camera_info(cams[0])[0])


class RenderOrbitViews(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Invert3DRenderOrbitViews",
            display_name="Render Orbit Views",
            category="Invert3D/cameras",
            description="Pictures of a Gaussian splat from all around, with masks and depth.",
            search_aliases=["render splat", "gaussian splatting views", "turntable"],
            inputs=[
                io.Splat.Input("splat"),
                io.MultiType.Input(
                    "cameras",
                    types=[CamerasSocket, io.Load3DCamera],
                    optional=True,
                    tooltip="Cameras to use instead of the orbit below: Orbit Cameras, or ComfyUI's camera_info.",
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
            ],
            outputs=[
                io.Image.Output("images", display_name="images"),
                io.Mask.Output("masks", display_name="masks", tooltip="1 on the object."),
                Depth.Output("depth", display_name="depth", tooltip="Distance along the view axis in scene units."),
                CamerasSocket.Output("views", display_name="cameras"),
            ],
        )

    @classmethod
    def validate_inputs(cls, elevations_deg: str | None = None, background: str | None = None) -> bool | str:
        try:
            rgb_of(background or "#ffffff")
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
        **orbit,
    ) -> io.NodeOutput:
        items = host.splat_from_host(splat)
        placed = [place_cameras(item, cameras, up, front, center, orbit) for item in items]
        behind = backgrounds_of(background, background_image, placed[0][0])
        degree = MAX_DEGREE if sh_degree == "all" else int(sh_degree)
        progress, total = host.HostProgress(), len(items) * len(behind)
        colors, alphas, depths = [], [], []
        for item, (around, in_frame) in zip(items, placed, strict=True):
            item, near = item.to(host.torch_device()), near_plane(around)
            for view, color in zip(in_frame, behind, strict=True):
                drawn = rendering.rasterize(item, view, color, min(degree, item.degree), near, backend)
                colors.append(host.image_to_host(drawn.color.clamp(0, 1)))
                alphas.append(host.image_to_host(drawn.alpha))
                depths.append(host.to_host(drawn.depth))
                progress(len(colors), total, preview=partial(torch.select, colors[-1], 0, 0))
        views = core.concatenate([around for around, _ in placed])
        return io.NodeOutput(torch.cat(colors), torch.cat(alphas), torch.cat(depths), views)


NODES = [OrbitCameras, RenderOrbitViews]
