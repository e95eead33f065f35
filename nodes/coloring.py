"""Splats with other colors and opacities. A batch is edited item by item."""

import re
from collections.abc import Sequence

from comfy_api.latest import Types, io
from torch import Tensor

from ..invert3d_core.progress import Progress
from ..invert3d_core.splats import GaussianSplats, edit
from ..invert3d_core.splats.spherical_harmonics import MAX_DEGREE
from . import editing, host

NO_TINT = "#ffffff"


def rgb_of(name: str, color: str) -> tuple[float, float, float]:
    """The "#rrggbb" of a color widget with this name, in [0,1]. ValueError for anything else."""
    if not re.fullmatch("#[0-9a-fA-F]{6}", str(color)):  # an API prompt may hold anything
        raise ValueError(f"{name} is {color!r}: write a color as #rrggbb")
    red, green, blue = bytes.fromhex(color[1:])
    return red / 255, green / 255, blue / 255


class RecolorSplat(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Invert3DRecolorSplat",
            display_name="Recolor Splat",
            category=editing.CATEGORY,
            description="Other colors for a Gaussian splat, from every side: hue, saturation, brightness, a tint, or "
            "the colors of something else.",
            search_aliases=["color correction splat", "hue saturation", "tint splat", "match colors", "color transfer"],
            inputs=[
                io.Splat.Input("splat"),
                io.Splat.Input(
                    "match_splat",
                    optional=True,
                    tooltip="Take over the average and the spread of this splat's colors, before the changes below.",
                ),
                io.Image.Input(
                    "match_image",
                    optional=True,
                    tooltip="Take over the average and the spread of these pictures' colors, before the changes below.",
                ),
                io.Mask.Input(
                    "match_mask", optional=True, tooltip="Which part of match_image counts: 1 where it does."
                ),
                io.Float.Input(
                    "match_strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How far to go towards the colors of match_splat or match_image; 0 not at all.",
                ),
                io.Float.Input(
                    "hue_deg",
                    default=0.0,
                    min=-360.0,
                    max=360.0,
                    step=1.0,
                    tooltip="Degrees to turn the hue: 120 makes red green, −120 makes it blue.",
                ),
                io.Float.Input(
                    "saturation", default=1.0, min=0.0, max=10.0, step=0.05, tooltip="1 is unchanged, 0 is grey."
                ),
                io.Float.Input(
                    "brightness", default=1.0, min=0.0, max=10.0, step=0.05, tooltip="Factor on all colors."
                ),
                io.Color.Input("tint", default=NO_TINT, tooltip="The color that tint_strength draws white towards."),
                io.Float.Input(
                    "tint_strength",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="0 leaves the colors, 1 leaves only shades of the tint.",
                ),
            ],
            outputs=[io.Splat.Output("result", display_name="splat")],
        )

    @classmethod
    def validate_inputs(cls, tint: str | None = None) -> bool | str:
        try:
            rgb_of("tint", tint or NO_TINT)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        splat: Types.SPLAT,
        match_strength: float,
        hue_deg: float,
        saturation: float,
        brightness: float,
        tint: str,
        tint_strength: float,
        match_splat: Types.SPLAT | None = None,
        match_image: Tensor | None = None,
        match_mask: Tensor | None = None,
    ) -> io.NodeOutput:
        numbers = {"hue_deg": hue_deg, "saturation": saturation, "brightness": brightness}
        host.check_finite(match_strength=match_strength, tint_strength=tint_strength, **numbers)
        targets = iter(target_colors(splat, match_splat, match_image, match_mask))
        color = rgb_of("tint", tint)

        def recolored(item: GaussianSplats, _: Progress) -> GaussianSplats:
            target = next(targets)
            matched = item if target is None else edit.match_colors(item, target, match_strength)
            return edit.tint(edit.adjust_colors(matched, hue_deg, saturation, brightness), color, tint_strength)

        return io.NodeOutput(editing.edited(splat, recolored))


def target_colors(
    splat: Types.SPLAT, match_splat: Types.SPLAT | None, match_image: Tensor | None, match_mask: Tensor | None
) -> Sequence[edit.ColorStatistics | None]:
    """What each item of a batch shall look like, None where nothing is to be matched."""
    count = splat.positions.shape[0]
    if match_splat is not None and match_image is not None:
        raise ValueError("match_splat and match_image are both connected: connect one of them")
    if match_mask is not None and match_image is None:
        raise ValueError("match_mask is connected without match_image: connect the picture that it belongs to")
    if match_splat is not None:
        looks = [edit.splat_statistics(item) for item in host.splat_from_host(match_splat)]
        return editing.paired(count, looks, "match_splat")
    if match_image is None:
        return [None] * count
    mask = None
    if match_mask is not None:
        if len(match_mask) not in (1, len(match_image)):
            raise ValueError(
                f"match_mask holds {len(match_mask)} masks for {len(match_image)} pictures: connect one each"
            )
        height, width = match_image.shape[1:3]
        mask = host.resize_images(match_mask[..., None], width, height)[..., 0].expand(len(match_image), -1, -1)
    return [edit.image_statistics(match_image[..., :3], mask)] * count


class AdjustSplat(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Invert3DAdjustSplat",
            display_name="Adjust Splat",
            category=editing.CATEGORY,
            description="More or less opacity, larger or smaller splats, and less view-dependent color.",
            search_aliases=["splat opacity", "splat size", "truncate spherical harmonics", "sh degree"],
            inputs=[
                io.Splat.Input("splat"),
                io.Float.Input(
                    "opacity",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    tooltip="Factor on all opacities; 1 is the most.",
                ),
                io.Float.Input(
                    "size",
                    default=1.0,
                    min=0.001,
                    max=100.0,
                    step=0.05,
                    tooltip="Factor on each splat's size, in its place: below 1 shows points, above 1 closes gaps.",
                ),
                io.Combo.Input(
                    "sh_degree",
                    options=["keep", *map(str, range(MAX_DEGREE + 1))],
                    default="keep",
                    tooltip="How much view-dependent color stays; 0 is the base color alone, in the smallest file.",
                ),
            ],
            outputs=[io.Splat.Output("result", display_name="splat")],
        )

    @classmethod
    def execute(cls, splat: Types.SPLAT, opacity: float, size: float, sh_degree: str) -> io.NodeOutput:
        host.check_finite(opacity=opacity, size=size)

        def adjusted(item: GaussianSplats, _: Progress) -> GaussianSplats:
            degree = item.degree if sh_degree == "keep" else min(item.degree, int(sh_degree))
            return edit.gain(edit.with_degree(item, degree), opacity, size)

        return io.NodeOutput(editing.edited(splat, adjusted))


NODES = [RecolorSplat, AdjustSplat]
