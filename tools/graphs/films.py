"""Graphs about cameras that move."""

from .node import Graph, Node, note

TURNTABLE_VIDEO: Graph = {
    "note": note(
        (0, 0),
        (380, 290),
        "## Once round the object\n\n"
        "Press **Run**: a film of four seconds that runs on without a cut, in ComfyUI's `output/invert3d`.\n\n"
        "- **Your own splat**: choose it in *Load Gaussian Splat*. Does it lie on its side? Choose **up** and "
        "**front** in *Render Views*.\n"
        "- **Camera Path** says how long, how fast and from which height. *spiral* rises on the way; for *keyframes* "
        "see the workflow *camera_flight*.\n"
        "- **background** in *Render Views*: a color, or a picture, or a film with as many frames.",
    ),
    "splat": Node("Invert3DLoadGaussianSplat", (420, 0), {"file": "robot.ply [sample]"}, size=(340, 150)),
    "path": Node(
        "Invert3DCameraPath",
        (420, 240),
        {"seconds": 4.0, "fps": 24.0, "elevation_deg": 15.0},
        {"splat": ("splat", "splat")},
        size=(340, 460),
    ),
    "views": Node(
        "Invert3DRenderOrbitViews",
        (800, 0),
        {},
        {"splat": ("splat", "splat"), "cameras": ("path", "cameras")},
        size=(340, 700),
    ),
    "video": Node(
        "CreateVideo", (1180, 0), {}, {"images": ("views", "images"), "fps": ("path", "fps")}, size=(320, 120)
    ),
    "save": Node(
        "SaveVideo",
        (1180, 190),
        {"filename_prefix": "invert3d/turntable"},
        {"video": ("video", "VIDEO")},
        "The film",
        (440, 510),
    ),
}

CAMERA_FLIGHT: Graph = {
    "note": note(
        (0, 0),
        (380, 380),
        "## A flight through keyframes\n\n"
        "Press **Run**: the camera goes round the object, comes close, and returns to where it began.\n\n"
        "1. *Orbit Cameras* makes eight cameras, *Select Cameras* keeps every third of them.\n"
        "2. *Create Camera Info* is ComfyUI's own camera: here the close-up. A *camera_info* of its 3D viewers works "
        "as well.\n"
        "3. *Join Cameras* puts one behind the other, and *Camera Path* flies through them: change **seconds**, "
        "**easing** and **loop**.\n\n"
        "*Normalize Splat* makes every object as large as a ball of radius 1 around the origin, upright in ComfyUI's "
        "viewer: so the distances fit any splat.\n\n"
        "Back to ComfyUI: *Cameras to camera_info* hands a camera of the flight, here the second, to its own *Render "
        "Splat*.",
    ),
    "splat": Node("Invert3DLoadGaussianSplat", (420, 0), {"file": "guitar.ply [sample]"}, size=(340, 150)),
    "normal": Node(
        "Invert3DNormalizeSplat", (420, 240), {"turn": "y down"}, {"splat": ("splat", "splat")}, size=(340, 180)
    ),
    "orbit": Node(
        "Invert3DOrbitCameras",
        (420, 510),
        {"count": 8, "elevations_deg": "15", "width": 512, "height": 512},
        {"splat": ("normal", "splat")},
        size=(340, 270),
    ),
    "ring": Node("Invert3DSelectCameras", (800, 0), {"every": 3}, {"cameras": ("orbit", "cameras")}, size=(320, 130)),
    "info": Node(
        "CreateCameraInfo",
        (800, 200),
        {"mode": "orbit", "mode.yaw": 20.0, "mode.pitch": 25.0, "mode.distance": 1.8, "fov": 40.0},
        {},
        "The close-up",
        (320, 330),
    ),
    "close": Node(
        "Invert3DCamerasFromCameraInfo",
        (800, 610),
        {"frame": "object"},
        {"camera_info": ("info", "camera_info")},
        size=(320, 170),
    ),
    "keys": Node(
        "Invert3DJoinCameras",
        (1160, 0),
        {},
        {"first": ("ring", "cameras"), "second": ("close", "cameras")},
        "The keyframes",
        (340, 70),
    ),
    "path": Node(
        "Invert3DCameraPath",
        (1160, 130),
        {"path": "keyframes", "seconds": 6.0, "fps": 24.0, "easing": "in-out", "loop": True},
        {"keys": ("keys", "cameras")},
        size=(340, 460),
    ),
    "core_info": Node(
        "Invert3DCamerasToCameraInfo",
        (1160, 680),
        {"index": 1},
        {"cameras": ("keys", "cameras")},
        size=(340, 110),
    ),
    "views": Node(
        "Invert3DRenderOrbitViews",
        (1540, 0),
        {},
        {"splat": ("normal", "splat"), "cameras": ("path", "cameras")},
        size=(340, 700),
    ),
    "video": Node(
        "CreateVideo", (1920, 0), {}, {"images": ("views", "images"), "fps": ("path", "fps")}, size=(320, 120)
    ),
    "save": Node(
        "SaveVideo",
        (1920, 190),
        {"filename_prefix": "invert3d/flight"},
        {"video": ("video", "VIDEO")},
        "The film",
        (440, 510),
    ),
    "core": Node(
        "RenderSplat",
        (1540, 790),
        {"width": 512, "height": 512, "background": "#ffffff"},
        {"splat": ("normal", "splat"), "camera_info": ("core_info", "camera_info")},
        size=(340, 320),
    ),
    "picture": Node(
        "PreviewImage",
        (1920, 790),
        {},
        {"images": ("core", "image")},
        "The second keyframe in Render Splat",
        (440, 320),
    ),
}
