"""Cameras from files of the input folder."""

from pathlib import Path

from comfy_api.latest import io

from ..invert3d_core import cameras as core
from ..invert3d_core.cameras import Cameras, Orientation
from . import host
from .cameras import AXES
from .types import Cameras as CamerasSocket

# Of what the input folder holds under general endings, these names alone are files of cameras.
NAMED_ALONE = {".bin": ("images.bin",), ".txt": ("images.txt",)}
BLENDER = Orientation("+z", "-y")  # the world of NeRF's and nerfstudio's files


def camera_files() -> list[str]:
    """What the file widget offers: files of cameras in the input folder."""
    return [name for name in host.list_files(core.formats.EXTENSIONS) if _may_hold_cameras(name)]


def _may_hold_cameras(name: str) -> bool:
    if name.endswith(host.SAMPLE_SUFFIX):  # the samples' own list is JSON too
        return False
    alone = NAMED_ALONE.get(Path(name).suffix.lower())
    return alone is None or Path(name).name.lower() in alone


def describe(name: str, loaded: core.LoadedCameras, cams: Cameras) -> str:
    """What a person wants to know of a loaded file, a line each."""
    low, high = float(cams.fov_y_deg.min()), float(cams.fov_y_deg.max())
    lens = f"{low:.4g}°" if high - low < 0.01 else f"{low:.4g}° to {high:.4g}°"
    return "\n".join(
        [
            f"{name}: {len(cams):,} cameras ({loaded.format})",
            f"{cams.width}×{cams.height} pixels, vertical field of view {lens}",
            f"first {loaded.names[0]}, last {loaded.names[-1]}",
            *loaded.remarks,
        ]
    )


class LoadCameras(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Invert3DLoadCameras",
            display_name="Load Cameras",
            category="Invert3D/cameras",
            description="Reads cameras from a COLMAP model, transforms.json, a training's cameras.json or a DTU scene.",
            search_aliases=["colmap", "transforms.json", "nerfstudio", "camera poses", "dtu", "import cameras"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=camera_files(),
                    tooltip="A file in ComfyUI's input folder: images.bin or images.txt of a COLMAP model with its "
                    "cameras file beside it, a .zip of such a folder, transforms.json, cameras.json, or cameras.npz.",
                ),
                io.Combo.Input(
                    "frame",
                    options=["splat", "object"],
                    default="splat",
                    tooltip="splat: the cameras stay where the file has them, which is right for a splat trained from "
                    "the same pictures. object: they are turned so that the object stands upright around its origin, "
                    "as nodes that draw or learn from prompts need it.",
                ),
                io.Combo.Input(
                    "up",
                    options=["auto", *AXES],
                    default="auto",
                    tooltip="With frame object: the axis of the file that points up. auto: +z for transforms.json, "
                    "else -y.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "front",
                    options=["auto", *AXES],
                    default="auto",
                    tooltip="With frame object: the axis of the file that the front faces. auto: -y for "
                    "transforms.json, else -z.",
                    advanced=True,
                ),
                io.Int.Input(
                    "longest_side",
                    default=0,
                    min=0,
                    max=16384,
                    tooltip="Scale the picture size so that its longer side has this many pixels; 0 keeps it.",
                ),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=16384,
                    tooltip="Width of the pictures in pixels, where a file does not say it or has several shapes; "
                    "else 0.",
                    advanced=True,
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=16384,
                    tooltip="Height of the pictures in pixels, where a file does not say it or has several shapes; "
                    "else 0.",
                    advanced=True,
                ),
            ],
            outputs=[
                CamerasSocket.Output("cameras", display_name="cameras"),
                io.String.Output("info", display_name="info", tooltip="What the file holds, in words."),
                io.Int.Output("count", display_name="count", tooltip="How many cameras there are."),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        if file is not None and host.find_file(file) is None:
            return f"there is no file {file!r}: put it into ComfyUI's input folder"
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, **others) -> str:
        path = None if file is None else host.find_file(file)
        if path is None:
            return "" if file is None else host.file_fingerprint(file)
        beside = path.with_name(path.name.lower().replace("images.", "cameras."))  # of a COLMAP model, the lenses
        return " ".join(host.path_fingerprint(found) for found in (path, beside) if found.is_file())

    @classmethod
    def execute(
        cls, file: str, frame: str, up: str, front: str, longest_side: int, width: int, height: int
    ) -> io.NodeOutput:
        path = host.find_file(file)
        if path is None:
            raise ValueError(f"there is no file {file!r}: put it into ComfyUI's input folder")
        if (width > 0) != (height > 0):
            raise ValueError(f"width is {width} and height {height}: give both, or neither")
        loaded = core.load(path, size=(width, height) if width and height else None)
        cams = loaded.cameras
        if longest_side:
            cams = cams.scaled(longest_side)
        if frame == "object":
            usual = BLENDER if loaded.format == core.formats.transforms.NAME else Orientation()
            cams = usual.with_axes(up, front).from_splat_frame(cams)
        info = describe(file, loaded, cams)
        if loaded.remarks:
            host.tell("\n".join(loaded.remarks))
        return io.NodeOutput(cams, info, len(cams))


NODES = [LoadCameras]
