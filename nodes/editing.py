"""Splats made of other splats: moved, cut, cleaned, thinned out and joined. A batch is edited item by item."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from comfy_api.latest import Types, io
from torch import Tensor

from ..invert3d_core import cameras as core
from ..invert3d_core.cameras import Cameras, Orientation
from ..invert3d_core.progress import Progress
from ..invert3d_core.splats import GaussianSplats, edit
from . import host
from .cameras import orientation_inputs, orientation_of, place_cameras
from .types import Cameras as CamerasSocket

CATEGORY = "Invert3D/splats"
STANDING = {"y up": Orientation("+y", "+z"), "y down": Orientation("-y", "-z")}

Change = Callable[[GaussianSplats, Progress], GaussianSplats]
Other = TypeVar("Other")


def edited(splat: Types.SPLAT, change: Change) -> Types.SPLAT:
    """A batch with each item changed; the bar counts splats, and follows the progress inside an item."""
    items = host.splat_from_host(splat)
    whole, bar = sum(map(len, items)), host.HostProgress()
    changed, done = [], 0
    for item in items:
        changed.append(change(item, partial(_show_part, bar, done, len(item), whole)))
        done += len(item)
        bar(done, whole)
    return host.splat_to_host(changed)


def _show_part(bar: Progress, done: int, count: int, whole: int, step: int, total: int, **shown: Any) -> None:
    """The progress of the work on one item of ``count`` splats, as a part of the whole batch."""
    bar(done + count * step // total, whole, **shown)


def kept(splat: Types.SPLAT, change: Change, nothing: str) -> Types.SPLAT:
    """`edited` by a change that takes splats away; how many are left is shown on the node.

    ValueError, which says what to do with `nothing`, when none is left of an item: no node could go on with it.
    """
    counts = []

    def changed(item: GaussianSplats, progress: Progress) -> GaussianSplats:
        result = change(item, progress)
        if not len(result):
            raise ValueError(f"splat: none of the {len(item):,} splats of item {len(counts)} is left: {nothing}")
        counts.append((len(result), len(item)))
        return result

    result = edited(splat, changed)
    left, whole = (sum(column) for column in zip(*counts, strict=True))
    host.tell(f"{left:,} of {whole:,} splats")
    return result


def paired(count: int, others: Sequence[Other], name: str) -> list[Other]:
    """The partner of each item of a batch: one for all, or one for each. ValueError when they do not go together."""
    if len(others) not in (1, count):
        raise ValueError(f"{name} holds {len(others)} splats for {count}: connect one, or one for each")
    return list(others) * (count if len(others) == 1 else 1)


def axis_inputs(prefix: str, default: float, tooltip: str, least: float = -1e6, step: float = 0.01) -> list[io.Input]:
    """Three number widgets, one for each axis of the file."""
    return [
        io.Float.Input(
            f"{prefix}_{axis}",
            default=default,
            min=least,
            max=1e6,
            step=step,
            tooltip=tooltip.format(axis),
        )
        for axis in "xyz"
    ]


class TransformSplat(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Invert3DTransformSplat",
            display_name="Transform Splat (with Colors)",
            category=CATEGORY,
            description="Moves, turns and scales a Gaussian splat, its view-dependent colors included.",
            search_aliases=["move splat", "rotate splat", "scale splat", "spherical harmonics rotation"],
            inputs=[
                io.Splat.Input("splat"),
                *axis_inputs("translate", 0.0, "How far to move along the file's {} axis, in scene units."),
                *axis_inputs(
                    "rotate", 0.0, "Degrees to turn about the file's {} axis; x first, then y, then z.", step=1.0
                ),
                io.Float.Input("scale", default=1.0, min=1e-6, max=1e6, step=0.01, tooltip="Factor on all sizes."),
                io.Combo.Input(
                    "pivot",
                    options=["object", "origin"],
                    default="object",
                    tooltip="The point that turning and scaling leave in place: the object's middle, or the origin "
                    "of its file.",
                ),
            ],
            outputs=[io.Splat.Output("result", display_name="splat")],
        )

    @classmethod
    def execute(cls, splat: Types.SPLAT, scale: float, pivot: str, **axes: float) -> io.NodeOutput:
        host.check_finite(scale=scale, **axes)
        shift = [axes[f"translate_{axis}"] for axis in "xyz"]
        turn = edit.from_angles(*(axes[f"rotate_{axis}"] for axis in "xyz"))

        def moved(item: GaussianSplats, _: Progress) -> GaussianSplats:
            center = core.fit_sphere(item).center if pivot == "object" else torch.zeros(3)
            return edit.transform(item, turn, shift, scale, center)

        return io.NodeOutput(edited(splat, moved))


class CropSplat(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Invert3DCropSplat",
            display_name="Crop Splat",
            category=CATEGORY,
            description="Keeps the part of a Gaussian splat in a box, in a sphere or in the view of cameras.",
            search_aliases=["cut splat", "crop box", "crop sphere", "frustum", "remove background"],
            inputs=[
                io.Splat.Input("splat"),
                io.MultiType.Input(
                    "cameras",
                    types=[CamerasSocket, io.Load3DCamera],
                    optional=True,
                    tooltip="For the shape view: what any of these cameras sees is inside.",
                ),
                io.Combo.Input(
                    "shape",
                    options=["box", "sphere", "view"],
                    default="box",
                    tooltip="A box along the file's axes, a sphere or ellipsoid in that box, or the view of the "
                    "cameras.",
                ),
                io.Combo.Input(
                    "keep",
                    options=["inside", "outside"],
                    default="inside",
                    tooltip="Which part stays. A splat is where its middle is.",
                ),
                io.Combo.Input(
                    "units",
                    options=["object", "scene"],
                    default="object",
                    tooltip="object: center counts from the object's middle, and 1 is the radius of its visible part. "
                    "scene: positions and lengths of the file.",
                ),
                *axis_inputs("center", 0.0, "Where the middle of the box or sphere is along the file's {} axis."),
                *axis_inputs(
                    "size", 2.0, "How far the box or sphere reaches along the file's {} axis, from end to end.", 0.0
                ),
                *orientation_inputs(),
                io.Int.Input(
                    "view_width",
                    default=512,
                    min=1,
                    max=16384,
                    tooltip="Picture width of a camera_info, which has none of its own.",
                    advanced=True,
                ),
                io.Int.Input(
                    "view_height",
                    default=512,
                    min=1,
                    max=16384,
                    tooltip="Picture height of a camera_info, which has none of its own.",
                    advanced=True,
                ),
            ],
            outputs=[io.Splat.Output("result", display_name="splat")],
        )

    @classmethod
    def execute(
        cls,
        splat: Types.SPLAT,
        shape: str,
        keep: str,
        units: str,
        up: str,
        front: str,
        view_width: int,
        view_height: int,
        cameras: Cameras | Mapping[str, Any] | None = None,
        **axes: float,
    ) -> io.NodeOutput:
        host.check_finite(**axes)
        if shape == "view" and cameras is None:
            raise ValueError("cameras: none are connected; connect cameras or a camera_info, or choose the shape box")
        center, size = (torch.tensor([axes[f"{name}_{axis}"] for axis in "xyz"]) for name in ("center", "size"))
        view_size = {"width": view_width, "height": view_height}

        def inside(item: GaussianSplats) -> Tensor:
            if shape == "view":
                return edit.inside_view(item, place_cameras(item, cameras, up, front, "auto", view_size).in_frame)
            sphere = core.fit_sphere(item)
            ask = edit.inside_box if shape == "box" else edit.inside_ellipsoid
            unit, origin = (sphere.radius, sphere.center) if units == "object" else (1.0, torch.zeros(3))
            return ask(item, origin + unit * center, unit * size)

        def cropped(item: GaussianSplats, _: Progress) -> GaussianSplats:
            return edit.select(item, inside(item) if keep == "inside" else ~inside(item))

        nothing = f"nothing lies {keep} of the {shape}; move it, or change its size or its units"
        return io.NodeOutput(kept(splat, cropped, nothing))


class CleanSplat(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Invert3DCleanSplat",
            display_name="Clean Splat",
            category=CATEGORY,
            description="Removes what training leaves behind in a Gaussian splat: haze, giants, needles and floaters.",
            search_aliases=["prune splat", "remove floaters", "remove needles", "outlier removal", "denoise splat"],
            inputs=[
                io.Splat.Input("splat"),
                io.Float.Input(
                    "min_opacity",
                    default=0.01,
                    min=0.0,
                    max=1.0,
                    step=0.005,
                    tooltip="Remove splats with an opacity below this, 0 to 1; 0 keeps them.",
                ),
                io.Float.Input(
                    "max_size",
                    default=1.0,
                    min=0.0,
                    max=1000.0,
                    step=0.05,
                    tooltip="Remove splats larger than this: the standard deviation along their longest axis, in "
                    "radii of the object; 0 keeps them.",
                ),
                io.Float.Input(
                    "max_needle",
                    default=0.0,
                    min=0.0,
                    max=10000.0,
                    step=1.0,
                    tooltip="Remove splats longer than this many times their second axis, such as 20; 0 keeps them.",
                ),
                io.Float.Input(
                    "floaters",
                    default=6.0,
                    min=0.0,
                    max=100.0,
                    step=0.5,
                    tooltip="Remove splats that hang far from their neighbors. 6 takes what is clearly alone, 3 more; "
                    "0 keeps them.",
                ),
                io.Int.Input(
                    "neighbors",
                    default=16,
                    min=1,
                    max=128,
                    tooltip="How many neighbors a splat must have near it. More finds larger groups of floaters.",
                    advanced=True,
                ),
            ],
            outputs=[io.Splat.Output("result", display_name="splat")],
        )

    @classmethod
    def execute(
        cls, splat: Types.SPLAT, min_opacity: float, max_size: float, max_needle: float, floaters: float, neighbors: int
    ) -> io.NodeOutput:
        host.check_finite(min_opacity=min_opacity, max_size=max_size, max_needle=max_needle, floaters=floaters)
        never = float("inf")

        def cleaned(item: GaussianSplats, progress: Progress) -> GaussianSplats:
            return edit.prune(
                item.to(host.torch_device()),
                min_opacity,
                max_size * core.fit_sphere(item).radius if max_size else never,
                max_needle or never,
                floaters or never,
                neighbors,
                progress,
            )

        return io.NodeOutput(kept(splat, cleaned, "lower min_opacity, or raise the other limits or set them to 0"))


class DecimateSplat(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Invert3DDecimateSplat",
            display_name="Decimate Splat",
            category=CATEGORY,
            description="Fewer splats that look the same: those that resemble each other are merged.",
            search_aliases=["simplify splat", "reduce splat", "compress splat", "level of detail", "lod"],
            inputs=[
                io.Splat.Input("splat"),
                io.Float.Input(
                    "percent",
                    default=50.0,
                    min=0.01,
                    max=100.0,
                    step=1.0,
                    tooltip="How many splats to keep, in percent of what is there.",
                ),
                io.Int.Input(
                    "max_splats",
                    default=0,
                    min=0,
                    max=100_000_000,
                    tooltip="Keep no more than this many of each item, whatever the percentage says; 0 sets no limit.",
                ),
                io.Combo.Input(
                    "method",
                    options=["merge", "drop"],
                    default="merge",
                    tooltip="merge: splats that resemble each other become one. drop: the ones that cover most stay, "
                    "which is faster and leaves holes.",
                    advanced=True,
                ),
            ],
            outputs=[io.Splat.Output("result", display_name="splat")],
        )

    @classmethod
    def execute(
        cls, splat: Types.SPLAT, percent: float, max_splats: int, method: Literal["merge", "drop"]
    ) -> io.NodeOutput:
        host.check_finite(percent=percent)

        def decimated(item: GaussianSplats, progress: Progress) -> GaussianSplats:
            share = max(1, round(len(item) * percent / 100))
            count = min(share, max_splats) if max_splats else share
            if method == "drop":
                return edit.most_visible(item, count)
            return edit.decimate(item.to(host.torch_device()), count, progress=progress)

        return io.NodeOutput(kept(splat, decimated, "connect a splat that is not empty"))


class MergeSplats(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Invert3DMergeSplats",
            display_name="Join Splats",
            category=CATEGORY,
            description="Two Gaussian splats in one, or all splats of a batch in one.",
            search_aliases=["merge splats", "combine splats", "join splats", "flatten splat batch"],
            inputs=[
                io.Splat.Input("splat", tooltip="Without a second splat, the items of this batch are joined into one."),
                io.Splat.Input(
                    "other",
                    optional=True,
                    tooltip="Joined to the first, item by item; a single item goes with each.",
                ),
            ],
            outputs=[io.Splat.Output("result", display_name="splat")],
        )

    @classmethod
    def execute(cls, splat: Types.SPLAT, other: Types.SPLAT | None = None) -> io.NodeOutput:
        items = host.splat_from_host(splat)
        if other is None:
            groups = [items]
        else:
            others = host.splat_from_host(other)
            count = max(len(items), len(others))
            groups = list(zip(paired(count, items, "splat"), paired(count, others, "other"), strict=True))
        stated = {item.stated_axes for group in groups for item in group}
        if len(stated) > 1:
            host.tell("The splats do not state the same up and front: turn them alike with Normalize Splat first.")
        return io.NodeOutput(host.splat_to_host([edit.merge(group) for group in groups]))


class NormalizeSplat(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Invert3DNormalizeSplat",
            display_name="Normalize Splat",
            category=CATEGORY,
            description="Brings a Gaussian splat to a common size, place and stance.",
            search_aliases=["center splat", "fit splat", "ground splat", "orient splat", "upright splat"],
            inputs=[
                io.Splat.Input("splat"),
                io.Float.Input(
                    "radius",
                    default=1.0,
                    min=0.0,
                    max=1e6,
                    step=0.05,
                    tooltip="Radius of the visible object afterwards, in scene units; 0 keeps its size.",
                ),
                io.Combo.Input(
                    "place",
                    options=["center", "ground", "keep"],
                    default="center",
                    tooltip="center: the object's middle comes to the origin. ground: it stands on the plane through "
                    "the origin. keep: nothing moves; sizes and turns count from the origin of the file.",
                ),
                io.Combo.Input(
                    "turn",
                    options=["keep", *STANDING],
                    default="keep",
                    tooltip="keep: no turn. y up: up becomes +y and front +z, as generators and our cameras have it. "
                    "y down: up becomes -y and front -z, as trained splats and ComfyUI's viewer have it.",
                ),
                *orientation_inputs(),
            ],
            outputs=[io.Splat.Output("result", display_name="splat")],
        )

    @classmethod
    def execute(
        cls,
        splat: Types.SPLAT,
        radius: float,
        place: Literal["center", "ground", "keep"],
        turn: str,
        up: str,
        front: str,
    ) -> io.NodeOutput:
        host.check_finite(radius=radius)

        def normalized(item: GaussianSplats, _: Progress) -> GaussianSplats:
            return edit.normalize(item, radius or None, place, orientation_of(item, up, front), STANDING.get(turn))

        return io.NodeOutput(edited(splat, normalized))


NODES = [
    TransformSplat,
    CropSplat,
    CleanSplat,
    DecimateSplat,
    MergeSplats,
    NormalizeSplat,
]
