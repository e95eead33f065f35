"""The graphs of the example workflows, as `tools/make_workflows.py` builds them in the page."""

from .films import CAMERA_FLIGHT, TURNTABLE_VIDEO
from .node import Graph
from .splats import SPLAT_CONVERT_AND_CLEAN, SPLAT_SCENE, VIEWS_TO_SPLAT
from .tokens import QUICKSTART, TEXT_TO_VIEWS, TOKEN_IN_CORE

GRAPHS: dict[str, Graph] = {
    "invert3d_quickstart": QUICKSTART,
    "text_to_views": TEXT_TO_VIEWS,
    "token_in_core": TOKEN_IN_CORE,
    "splat_convert_and_clean": SPLAT_CONVERT_AND_CLEAN,
    "splat_scene": SPLAT_SCENE,
    "views_to_splat": VIEWS_TO_SPLAT,
    "turntable_video": TURNTABLE_VIDEO,
    "camera_flight": CAMERA_FLIGHT,
}
