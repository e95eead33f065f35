"""Gaussian splats from files."""

from pathlib import Path

from comfy_api.latest import io

from ..invert3d_core import cameras, splats
from ..invert3d_core.splats import GaussianSplats
from ..invert3d_core.splats.edit import most_visible
from . import host

EXTENSIONS = [extension for form in splats.formats.FORMATS.values() for extension in form.extensions]
UPLOAD_FOLDER = "3d"  # where ComfyUI's own 3D nodes put what they upload


def splat_file(name: str) -> Path:
    """The splat file that the widget's value names. ValueError when there is none."""
    path = host.find_file(name)
    if path is None:
        raise ValueError(f"there is no file {name!r}: put it into ComfyUI's input folder, or choose a built-in sample")
    if path.suffix.lower() not in EXTENSIONS:
        raise ValueError(f"{name!r} is not a splat file: expected one of {', '.join(EXTENSIONS)}")
    return path


def describe(name: str, whole: GaussianSplats, kept: GaussianSplats) -> str:
    """What a person wants to know of a loaded file, a line each."""
    stated = cameras.Orientation.from_comment(whole.comment)
    sphere = cameras.fit_sphere(kept)
    x, y, z = sphere.center.tolist()
    lines = [
        name,
        f"{len(whole):,} splats" + (f", the {len(kept):,} most visible kept" if len(kept) < len(whole) else ""),
        f"spherical harmonics of degree {whole.degree}",
        f"visible within a radius of {sphere.radius:.4g} around ({x:.3g}, {y:.3g}, {z:.3g})",
        f"up {stated.up}, front {stated.front}, as the file says" if stated else "the file does not say what is up",
    ]
    return "\n".join(lines)


class LoadGaussianSplat(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Invert3DLoadGaussianSplat",
            display_name="Load Gaussian Splat",
            category="Invert3D/splats",
            description="Reads a Gaussian splat with all its colors: a built-in sample, or a file of the input folder.",
            search_aliases=["load splat", "3dgs", "ply", "spz", "gaussian splatting"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=host.list_files(EXTENSIONS),
                    tooltip=f"A sample of the pack, or a {', '.join(EXTENSIONS)} file in ComfyUI's input folder.",
                    # Nodes 2.0 draws a list with an upload button for this; the canvas shows the plain list.
                    extra_dict={"mesh_upload": True, "upload_subfolder": UPLOAD_FOLDER},
                ),
                io.Combo.Input(
                    "format",
                    options=["auto", *splats.formats.FORMATS],
                    default="auto",
                    tooltip="auto goes by what the file contains.",
                    advanced=True,
                ),
                io.Int.Input(
                    "max_splats",
                    default=0,
                    min=0,
                    max=100_000_000,
                    tooltip="Keep this many splats, those that cover most; 0 keeps all.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Splat.Output("splat", display_name="splat"),
                io.String.Output("info", display_name="info", tooltip="What the file holds, in words."),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        if file is None:  # linked: known only when it runs
            return True
        try:
            splat_file(file)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, **others) -> str:
        return "" if file is None else host.file_fingerprint(file)

    @classmethod
    def execute(cls, file: str, format: str, max_splats: int) -> io.NodeOutput:
        whole = splats.load(splat_file(file), format)
        kept = most_visible(whole, max_splats) if max_splats else whole
        return io.NodeOutput(host.splat_to_host([kept]), describe(file, whole, kept))


NODES = [LoadGaussianSplat]
