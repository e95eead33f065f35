"""Cameras as data: around an asset, to and from the host's camera_info, chosen and joined."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from comfy_api.latest import Types, io
from torch import Tensor

from ..invert3d_core import cameras as core
from ..invert3d_core.cameras import Cameras, Orientation
from ..invert3d_core.splats import GaussianSplats
from . import host
from .types import Cameras as CamerasSocket

AXES = ["+x", "-x", "+y", "-y", "+z", "-z"]
MAX_RINGS = 1000  # with the most cameras on each, still no trouble for memory; more is no list that somebody wrote


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
    """Degrees from a list such as "0, 30". ValueError when it is not one, too long, or an angle is out of range."""
    try:
        rings = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise ValueError(f"elevations_deg is {text!r}: write degrees separated by commas, such as 0, 30") from None
    if not rings or not all(-90 <= ring <= 90 for ring in rings):
        raise ValueError(f"elevations_deg is {text!r}: write one or more angles between -90 and 90")
    if len(rings) > MAX_RINGS:
        raise ValueError(f"elevations_deg holds {len(rings):,} angles: write at most {MAX_RINGS:,}")
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
    host.check_finite(
        azimuth_start_deg=azimuth_start_deg, azimuth_span_deg=azimuth_span_deg, fov_y_deg=fov_y_deg, radius=radius
    )
    rings = parse_elevations(elevations_deg)
    ring = core.azimuths(count, azimuth_start_deg, azimuth_span_deg)
    distance = radius or core.fit_radius(sphere_radius, fov_y_deg, width, height)
    elevations = torch.tensor(rings).repeat_interleave(count)
    return core.orbit(ring.repeat(len(rings)), elevations, distance, fov_y_deg, width, height)


def orientation_of(splats: GaussianSplats, up: str, front: str) -> Orientation:
    """The orientation that the two widgets choose; auto is what the file states, else the default."""
    return Orientation.stated_or_usual(splats.comment).with_axes(up, front)


class Placed(NamedTuple):
    """Cameras of a node's inputs around the asset's origin, and the same cameras in the splat's frame.

    Cameras that stand in the splat's frame from the start are both. middle: (3,) what they look at, in that frame.
    """

    around: Cameras
    in_frame: Cameras
    middle: Tensor


def place_cameras(
    splats: GaussianSplats, given: Cameras | Mapping | None, up: str, front: str, center: str, orbit: dict[str, Any]
) -> Placed:
    """The cameras of a node's inputs.

    given: what the cameras socket brought, None for the orbit widgets. A camera_info of the host is seen as in its
    viewer: in the usual 3DGS frame and around the file's origin, unless a widget says otherwise. Cameras in the splat's
    frame, as files of cameras hold them, are taken as they stand.
    """
    sphere = core.fit_sphere(splats)
    if isinstance(given, Cameras) and given.frame == "splat":
        return Placed(given, given, sphere.center)
    from_viewer = isinstance(given, Mapping)
    if center == "auto":
        center = "origin" if from_viewer else "object"
    stands = Orientation().with_axes(up, front) if from_viewer else orientation_of(splats, up, front)
    middle = sphere.center if center == "object" else torch.zeros(3)
    if given is None:
        cams = orbit_cameras(sphere.radius + float((sphere.center - middle).norm()), **orbit)
    elif from_viewer:
        cams = core.conversions.from_camera_info(given, orbit["width"], orbit["height"])
    else:
        cams = given
    return Placed(cams, stands.into_splat_frame(cams, middle), middle)


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


class CamerasToCameraInfo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Invert3DCamerasToCameraInfo",
            display_name="Cameras to camera_info",
            category="Invert3D/cameras",
            description="Turns cameras into the camera_info of ComfyUI's own 3D nodes, one of them and all as a list.",
            search_aliases=["camera info", "load3d camera", "export cameras"],
            inputs=[
                CamerasSocket.Input("cameras"),
                io.Int.Input(
                    "index",
                    default=0,
                    min=-100_000,
                    max=100_000,
                    tooltip="Which camera the first output is: 0 is the first, -1 the last.",
                ),
                io.Combo.Input(
                    "fov_of",
                    options=["height", "smaller side"],
                    default="height",
                    tooltip="What the field of view is measured along: ComfyUI documents the height, but its Render "
                    "Splat takes the smaller side; they differ for pictures higher than wide.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Load3DCamera.Output("camera_info", display_name="camera_info", tooltip="The camera of the index."),
                io.Load3DCamera.Output(
                    "camera_infos",
                    display_name="all",
                    tooltip="Every camera: what is connected here runs once for each.",
                    is_output_list=True,
                ),
            ],
        )

    @classmethod
    def execute(cls, cameras: Cameras, index: int, fov_of: str) -> io.NodeOutput:
        if not -len(cameras) <= index < len(cameras):
            raise ValueError(f"index is {index}, but there are {len(cameras)} cameras: choose 0 to {len(cameras) - 1}")
        infos = core.conversions.to_camera_info(cameras, fov_side_of(fov_of))
        return io.NodeOutput(infos[index], infos)


def fov_side_of(widget: str) -> Literal["vertical", "smaller"]:
    """The core's word for the widget's."""
    return "vertical" if widget == "height" else "smaller"


class CamerasFromCameraInfo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Invert3DCamerasFromCameraInfo",
            display_name="Cameras from camera_info",
            category="Invert3D/cameras",
            description="Turns one camera_info of ComfyUI's 3D nodes, or a list of them, into cameras.",
            search_aliases=["camera info", "load3d camera", "camera list"],
            is_input_list=True,
            inputs=[
                io.Load3DCamera.Input(
                    "camera_info",
                    tooltip="From ComfyUI's viewers and Create Camera Info; a list gives all its cameras.",
                ),
                io.Int.Input("width", default=512, min=16, max=8192, step=8, tooltip="Picture width in pixels."),
                io.Int.Input("height", default=512, min=16, max=8192, step=8, tooltip="Picture height in pixels."),
                io.Combo.Input(
                    "frame",
                    options=["viewer", "object"],
                    default="viewer",
                    tooltip="viewer: the views are what ComfyUI's viewer shows of the splat. object: the cameras stand "
                    "around the middle of whatever they are shown, as those of Orbit Cameras do.",
                ),
                io.Combo.Input(
                    "fov_of",
                    options=["height", "smaller side"],
                    default="height",
                    tooltip="What the field of view is measured along, in pictures higher than wide.",
                    advanced=True,
                ),
            ],
            outputs=[CamerasSocket.Output("cameras", display_name="cameras")],
        )

    @classmethod
    def execute(
        cls, camera_info: list[dict], width: list[int], height: list[int], frame: list[str], fov_of: list[str]
    ) -> io.NodeOutput:
        if None in camera_info:
            raise ValueError(
                "a camera_info is empty: a viewer gives one only after the page has shown it; open it there, or use "
                "Create Camera Info"
            )
        cams = core.conversions.from_camera_info(camera_info, width[0], height[0], fov_side_of(fov_of[0]))
        return io.NodeOutput(Orientation().into_splat_frame(cams) if frame[0] == "viewer" else cams)


class JoinCameras(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Invert3DJoinCameras",
            display_name="Join Cameras",
            category="Invert3D/cameras",
            description="Puts the cameras of the second input behind those of the first.",
            search_aliases=["concatenate cameras", "camera batch", "append cameras"],
            inputs=[
                CamerasSocket.Input("first", tooltip="Their picture size holds for all."),
                CamerasSocket.Input("second"),
            ],
            outputs=[CamerasSocket.Output("cameras", display_name="cameras")],
        )

    @classmethod
    def execute(cls, first: Cameras, second: Cameras) -> io.NodeOutput:
        return io.NodeOutput(core.concatenate([first, second.resized(first.width, first.height)]))


class SelectCameras(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Invert3DSelectCameras",
            display_name="Select Cameras",
            category="Invert3D/cameras",
            description="Keeps some of the cameras: a range, and of it every so many.",
            search_aliases=["camera subset", "slice cameras", "every nth camera"],
            inputs=[
                CamerasSocket.Input("cameras"),
                io.Int.Input(
                    "start",
                    default=0,
                    min=-100_000,
                    max=100_000,
                    tooltip="The first camera to keep: 0 is the first, -1 the last.",
                ),
                io.Int.Input("count", default=0, min=0, max=100_000, tooltip="How many to keep at most; 0 keeps all."),
                io.Int.Input("every", default=1, min=1, max=100_000, tooltip="Keep every so many: 2 is every other."),
            ],
            outputs=[CamerasSocket.Output("cameras", display_name="cameras")],
        )

    @classmethod
    def execute(cls, cameras: Cameras, start: int, count: int, every: int) -> io.NodeOutput:
        if not -len(cameras) <= start < len(cameras):
            raise ValueError(
                f"start is {start}, but there are {len(cameras)} cameras; choose one of them to start at: 0 to "
                f"{len(cameras) - 1}, or -1 to {-len(cameras)} from the last"
            )
        return io.NodeOutput(cameras[list(range(len(cameras))[start::every][: count or None])])


NODES = [OrbitCameras, JoinCameras, SelectCameras, CamerasToCameraInfo, CamerasFromCameraInfo]
