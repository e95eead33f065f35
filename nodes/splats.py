"""Gaussian splats from and to files."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from comfy_api.latest import Types, io, ui

from ..invert3d_core import splats
from ..invert3d_core.cameras import Orientation, Sphere, fit_sphere
from ..invert3d_core.errors import FormatError
from ..invert3d_core.progress import Progress
from ..invert3d_core.splats import GaussianSplats, formats
from ..invert3d_core.splats.edit import most_visible, with_degree
from ..invert3d_core.splats.metadata import with_metadata, without_metadata
from ..invert3d_core.splats.orientation import Guess, gltf_remark, guess_orientation
from . import host
from .rendering import SH_DEGREES

EXTENSIONS = list(dict.fromkeys(extension for form in formats.FORMATS.values() for extension in form.extensions))
WRITABLE = [form.name for form in formats.FORMATS.values() if form.write]
UPLOAD_FOLDER = "3d"  # where ComfyUI's own 3D nodes put what they upload

# Formats that keep a comment, and how long one may be. Some viewers look for the end of a PLY header in its first
# 10,000 bytes, ComfyUI's in the first 65,536.
COMMENT_BYTES = {"ply": 7_000, "compressed_ply": 7_000, "sog": 500_000, "gltf": 500_000}
PART = 1000  # steps of a bar for each item


def splat_file(name: str) -> Path:
    """The splat file that the widget's value names. ValueError when there is none."""
    path = host.find_file(name)
    if path is None:
        raise ValueError(
            f"there is no file {name!r}: put it into ComfyUI's input folder (a link that leads out of it does not "
            "count), or choose a built-in sample"
        )
    if not path.name.lower().endswith(tuple(EXTENSIONS)) and not formats.known(path):
        raise ValueError(f"{name!r} is not a splat file: expected one of {', '.join(EXTENSIONS)}")
    return path


def describe(
    name: str, whole: GaussianSplats, kept: GaussianSplats, sphere: Sphere, guess: Guess, remarks: Sequence[str]
) -> str:
    """What a person wants to know of a loaded file, a line each."""
    x, y, z = sphere.center.tolist()
    axes = f"up {guess.orientation.up}, front {guess.orientation.front}"
    stated = f"{axes}, as the file says"
    guessed = f"perhaps {axes} (up: {guess.confidence:.0%}; {'; '.join(guess.reasons)}): the file does not say it"
    lines = [
        name,
        f"{len(whole):,} splats" + (f", the {len(kept):,} most visible kept" if len(kept) < len(whole) else ""),
        f"spherical harmonics of degree {whole.degree}",
        f"visible within a radius of {sphere.radius:.4g} around ({x:.3g}, {y:.3g}, {z:.3g})",
        stated if guess.stated else guessed,
    ]
    lines += [f"note: {remark}" for remark in remarks]
    usual = Orientation()
    if not guess.stated and guess.orientation != usual:
        lines.append(
            f"nodes with up and front on auto take up {usual.up}, front {usual.front}: choose with Orient Splat"
        )
    return "\n".join(lines)


def summary(splat: GaussianSplats, sphere: Sphere, guess: Guess) -> str:
    """A loaded splat in one line."""
    axes = f"up {guess.orientation.up}, front {guess.orientation.front}"
    perhaps = "" if guess.stated else "perhaps "
    return f"{len(splat):,} splats · SH degree {splat.degree} · radius {sphere.radius:.3g} · {perhaps}{axes}"


def written(
    splat: GaussianSplats, path: Path, format: str, options: Mapping[str, Any], metadata: Mapping[str, Any]
) -> str:
    """Write one file; what it is and what it does not keep, a line each."""
    if format in COMMENT_BYTES:
        comment, left_out = with_metadata(splat.comment, metadata, COMMENT_BYTES[format])
        why = "which is too long for a comment in this format"
    else:
        comment, left_out = without_metadata(splat.comment), list(metadata)
        why = "for which this format has no place"
    lost = splats.save(replace(splat, comment=comment, check_values=False), path, format, **options)
    lost += [f"the {name}, {why}" for name in left_out]
    size = path.stat().st_size / 1e6
    line = f"{host.within_output(path)} · {len(splat):,} splats · {size:,.2f} MB"
    lines = [line, *(f"not kept: {what}" for what in lost)]
    remark = gltf_remark(splat) if format == formats.gltf.NAME else None
    if remark is not None:
        lines.append(f"{remark}; Orient Splat shows it, and Normalize Splat turns them.")
    return "\n".join(lines)


class LoadGaussianSplat(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Invert3DLoadGaussianSplat",
            display_name="Load Gaussian Splat",
            category="Invert3D/splats",
            description="Reads a Gaussian splat with all its colors: a built-in sample, or a file of the input folder.",
            search_aliases=["load splat", "3dgs", "gaussian splatting", "import splat", *formats.FORMATS],
            has_intermediate_output=True,  # the page gets the text of a kept result too
            inputs=[
                io.Combo.Input(
                    "file",
                    options=host.list_files(EXTENSIONS),
                    tooltip=f"A sample of the pack, or a {', '.join(EXTENSIONS)} file in ComfyUI's input folder.",
                    # Nodes 2.0 draws a list with an upload button for this, which takes the kinds that its viewer
                    # knows; web/js adds a button that takes all.
                    extra_dict={
                        "mesh_upload": True,
                        "upload_subfolder": UPLOAD_FOLDER,
                        "invert3d_upload": [extension for extension in EXTENSIONS if extension.count(".") == 1],
                    },
                ),
                io.Combo.Input(
                    "format",
                    options=["auto", *formats.FORMATS],
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
        except (ValueError, FormatError) as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, **others) -> str:
        return "" if file is None else host.file_fingerprint(file)

    @classmethod
    def execute(cls, file: str, format: str, max_splats: int) -> io.NodeOutput:
        whole, remarks, _ = splats.read(splat_file(file), format)
        kept = most_visible(whole, max_splats) if max_splats else whole
        sphere, guess = fit_sphere(kept), guess_orientation(kept)
        shown = ui.PreviewText(summary(kept, sphere, guess))
        return io.NodeOutput(host.splat_to_host([kept]), describe(file, whole, kept, sphere, guess, remarks), ui=shown)


class SaveGaussianSplat(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Invert3DSaveGaussianSplat",
            display_name="Save Gaussian Splat",
            category="Invert3D/splats",
            description="Writes a Gaussian splat with its view-dependent colors into the output folder, and says what "
            "the format does not keep.",
            search_aliases=["save splat", "export splat", "convert splat", "3dgs", *WRITABLE],
            is_output_node=True,
            inputs=[
                io.Splat.Input("splat", tooltip="A batch gives a file for each item."),
                io.String.Input(
                    "filename_prefix",
                    default="3d/splat",
                    tooltip="Folders and beginning of the file name, within ComfyUI's output folder. Dates and values "
                    "of other nodes may stand in it, as in ComfyUI's own nodes that save.",
                ),
                io.Combo.Input(
                    "format",
                    options=WRITABLE,
                    default="ply",
                    tooltip="ply and gltf keep all there is; compressed_ply, spz and sog are several times smaller and "
                    "keep what is seen; splat keeps one color a splat, ksplat SH up to degree 2.",
                ),
                io.Combo.Input(
                    "sh_degree",
                    options=SH_DEGREES,
                    default="all",
                    tooltip="Highest degree of view-dependent color to write; 0 is the base color alone. all: as much "
                    "as the format holds.",
                ),
                io.Boolean.Input(
                    "keep_order",
                    default=False,
                    tooltip="Keep the order of the splats where the format would sort them to become smaller.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "spz_version",
                    options=["3", "4", "2"],
                    default="3",
                    tooltip="Of an spz: 3 for most viewers, 2 for old ones, 4 for files that load faster (needs the "
                    "Python package zstandard).",
                    advanced=True,
                ),
                io.Combo.Input(
                    "ksplat_level",
                    options=["1", "0", "2"],
                    default="1",
                    tooltip="Compression of a ksplat: 0 none, 1 half the size, 2 still smaller colors.",
                    advanced=True,
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            outputs=[
                io.File3DSplatAny.Output(
                    "file",
                    display_name="file",
                    tooltip="For ComfyUI's Preview Splat, which shows ply, splat, spz and ksplat. Files of a batch run "
                    "one after another.",
                    is_output_list=True,
                ),
                io.String.Output(
                    "info", display_name="info", tooltip="Where the files are, and what they do not keep, in words."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        try:
            host.check_output_prefix("linked" if filename_prefix is None else filename_prefix)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        splat: Types.SPLAT,
        filename_prefix: str,
        format: str,
        sh_degree: str,
        keep_order: bool,
        spz_version: str,
        ksplat_level: str,
    ) -> io.NodeOutput:
        items = host.splat_from_host(splat)
        form = formats.FORMATS[format]
        metadata = host.metadata_to_save(cls.hidden)
        bar, files, lines = host.HostProgress(), [], []
        for index, item in enumerate(items):
            if sh_degree != "all":
                item = with_degree(item, min(int(sh_degree), item.degree))
            wanted = {
                "sort": not keep_order,
                "version": int(spz_version),
                "level": int(ksplat_level),
                "progress": partial(_show_part, bar, index, len(items)),
            }
            path = host.new_output_file(filename_prefix, form.extensions[0])
            lines.append(written(item, path, format, form.options(wanted), metadata))
            files.append(path)
            bar((index + 1) * PART, len(items) * PART)
        info = "\n".join(lines)
        saved = [host.saved_in_output(path) for path in files]
        return io.NodeOutput(
            [Types.File3D(str(path), path.suffix[1:]) for path in files], info, ui={"3d": saved, "text": [info]}
        )


def _show_part(bar: Progress, index: int, count: int, step: int, total: int, **shown: Any) -> None:
    """The progress of writing one file of a batch, as a part of the whole."""
    bar(PART * index + PART * step // total, PART * count, **shown)


NODES = [LoadGaussianSplat, SaveGaussianSplat]
