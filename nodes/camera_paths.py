"""Cameras that move: frames for a film."""

from collections.abc import Mapping

from comfy_api.latest import Types, io

from ..invert3d_core import cameras as core
from ..invert3d_core.cameras import Cameras, Orientation, paths
from . import host
from .types import Cameras as CamerasSocket

PATHS = ["turntable", "spiral", "keyframes"]


def keys_of(given: list[Cameras | Mapping], width: int, height: int) -> Cameras:
    """Cameras and camera_info of a list as one batch; a camera_info stands where the host's viewer shows it."""
    batches = [
        item
        if isinstance(item, Cameras)
        else Orientation().into_splat_frame(core.conversions.from_camera_info(item, width, height))
        for item in given
    ]
    return core.concatenate([batch.resized(width, height) for batch in batches])


class CameraPath(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Invert3DCameraPath",
            display_name="Camera Path",
            category="Invert3D/cameras",
            description="Cameras for every frame of a film: a turntable, a spiral, or a flight through keyframes.",
            search_aliases=["camera animation", "turntable video", "keyframes", "fly through", "spiral"],
            is_input_list=True,
            inputs=[
                io.Combo.Input(
                    "path",
                    options=PATHS,
                    default="turntable",
                    tooltip="turntable: round the object at one height, without end. spiral: round it while height and "
                    "distance change. keyframes: through the cameras that are connected.",
                ),
                io.Float.Input("seconds", default=4.0, min=0.01, max=600.0, step=0.1, tooltip="Length of the film."),
                io.Float.Input("fps", default=24.0, min=1.0, max=120.0, step=1.0, tooltip="Frames a second."),
                io.Combo.Input(
                    "easing",
                    options=list(paths.EASINGS),
                    default="linear",
                    tooltip="How the movement starts and ends: evenly, from rest (in), to rest (out), or both.",
                ),
                io.Float.Input(
                    "turns",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.25,
                    tooltip="Turntable and spiral: full circles towards +x; negative goes the other way.",
                ),
                io.Float.Input(
                    "elevation_deg",
                    default=15.0,
                    min=-90.0,
                    max=90.0,
                    step=1.0,
                    tooltip="Turntable and spiral: height of the camera in degrees, of a spiral at its start.",
                ),
                io.Float.Input(
                    "elevation_end_deg",
                    default=60.0,
                    min=-90.0,
                    max=90.0,
                    step=1.0,
                    tooltip="Spiral: height of the camera in degrees at the end.",
                ),
                io.Boolean.Input(
                    "loop",
                    default=False,
                    tooltip="Keyframes: return to the first one, so that the film runs on without a cut.",
                ),
                io.Int.Input("width", default=512, min=16, max=4096, step=8, tooltip="Picture width in pixels."),
                io.Int.Input("height", default=512, min=16, max=4096, step=8, tooltip="Picture height in pixels."),
                io.Float.Input(
                    "azimuth_start_deg",
                    default=0.0,
                    min=-360.0,
                    max=360.0,
                    step=1.0,
                    tooltip="Turntable and spiral: where they start; 0 looks at the front, 90 at the side of +x.",
                    advanced=True,
                ),
                io.Float.Input(
                    "fov_y_deg",
                    default=40.0,
                    min=1.0,
                    max=150.0,
                    step=0.1,
                    tooltip="Turntable and spiral: vertical field of view.",
                    advanced=True,
                ),
                io.Float.Input(
                    "radius",
                    default=0.0,
                    min=0.0,
                    max=1e6,
                    step=0.01,
                    tooltip="Turntable and spiral: distance from the middle of the object in scene units; 0 fits the "
                    "object into the picture.",
                    advanced=True,
                ),
                io.Float.Input(
                    "zoom_end",
                    default=1.0,
                    min=0.05,
                    max=20.0,
                    step=0.05,
                    tooltip="Spiral: how much nearer the camera is at the end; 2 is half the distance.",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "rest_at_keys",
                    default=False,
                    tooltip="Keyframes: the easing holds between every two of them, so that the camera rests at each; "
                    "it cannot be linear then.",
                    advanced=True,
                ),
                io.Splat.Input(
                    "splat",
                    optional=True,
                    tooltip="The object that radius 0 frames; without it, an object of radius 1 is framed.",
                ),
                io.MultiType.Input(
                    "keys",
                    types=[CamerasSocket, io.Load3DCamera],
                    optional=True,
                    tooltip="The keyframes: cameras, a camera_info, or a list of them.",
                ),
            ],
            outputs=[
                CamerasSocket.Output("cameras", display_name="cameras", tooltip="One for each frame."),
                io.Float.Output("fps", display_name="fps", tooltip="For Create Video."),
                io.Int.Output("frames", display_name="frames", tooltip="How many frames there are."),
            ],
        )

    @classmethod
    def execute(
        cls,
        splat: list[Types.SPLAT] | None = None,
        keys: list[Cameras | Mapping] | None = None,
        **widgets: list,
    ) -> io.NodeOutput:
        chosen = {name: values[0] for name, values in widgets.items()}
        host.check_finite(**{name: value for name, value in chosen.items() if isinstance(value, float)})
        count = paths.frame_count(chosen["seconds"], chosen["fps"])
        if chosen["path"] == "keyframes":
            cams = cls._flight(keys, count, chosen)
        else:
            items = [item for batch in splat or [] for item in host.splat_from_host(batch)]
            size = max((core.fit_sphere(item).radius for item in items), default=1.0)
            cams = cls._round(size, count, chosen)
        return io.NodeOutput(cams, float(chosen["fps"]), len(cams))

    @classmethod
    def _flight(cls, keys: list[Cameras | Mapping] | None, count: int, chosen: dict) -> Cameras:
        if not keys or None in keys:
            raise ValueError("a path through keyframes needs them: connect cameras, or a list of camera_info, to keys")
        return paths.keyframes(
            keys_of(keys, chosen["width"], chosen["height"]),
            count,
            easing=chosen["easing"],
            ease_at="keys" if chosen["rest_at_keys"] else "ends",
            closed=chosen["loop"],
        )

    @classmethod
    def _round(cls, size: float, count: int, chosen: dict) -> Cameras:
        fov, width, height = chosen["fov_y_deg"], chosen["width"], chosen["height"]
        radius = chosen["radius"] or core.fit_radius(size, fov, width, height)
        motion = {
            "start_deg": chosen["azimuth_start_deg"],
            "turns": chosen["turns"],
            "easing": chosen["easing"],
        }
        if chosen["path"] == "turntable":
            return paths.turntable(count, radius, fov, width, height, elevation_deg=chosen["elevation_deg"], **motion)
        elevations = (chosen["elevation_deg"], chosen["elevation_end_deg"])
        distances = (radius, radius / chosen["zoom_end"])
        return paths.spiral(count, distances, fov, width, height, elevation_deg=elevations, **motion)


NODES = [CameraPath]
