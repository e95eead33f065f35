"""Graphs about splats: converted, edited, put together, and made from views."""

from .node import MUTED, Graph, Node, note

FOUR_SIDES = {"count": 4, "elevations_deg": "15", "azimuth_start_deg": 30}

SPLAT_CONVERT_AND_CLEAN: Graph = {
    "note": note(
        (0, 0),
        (380, 400),
        "## A splat cleaned, made smaller, and saved\n\n"
        "Press **Run**: the new file lies in ComfyUI's `output/invert3d`.\n\n"
        "1. **Your own splat**: choose it in *Load Gaussian Splat*, whatever the format.\n"
        "2. **Orient Splat** shows how it may stand: say which picture of the upper row is upright, and which of the "
        "lower row shows the front.\n"
        "3. **Clean Splat** removes haze, giants and floaters; **Crop Splat** what lies around the object: 1 is the "
        "radius of its visible part.\n"
        "4. **Decimate Splat** leaves half of the splats, and **Normalize Splat** turns it as ComfyUI's viewer and "
        "most others expect it.\n"
        "5. **Save Gaussian Splat** writes any format, and says what it does not keep. Connect **file** to ComfyUI's "
        "*Preview Splat* to turn it with the mouse.\n\n"
        "Not every step is for every splat: select one and press Ctrl+B to leave it out.",
    ),
    "splat": Node("Invert3DLoadGaussianSplat", (420, 0), {"file": "robot.ply [sample]"}, size=(360, 170)),
    "orient": Node("Invert3DOrientSplat", (420, 260), {}, {"splat": ("splat", "splat")}, size=(520, 420)),
    "clean": Node("Invert3DCleanSplat", (980, 0), {}, {"splat": ("orient", "splat")}, size=(340, 190)),
    "crop": Node(
        "Invert3DCropSplat",
        (980, 280),
        {"shape": "sphere", "size_x": 2.4, "size_y": 2.4, "size_z": 2.4},
        {"splat": ("clean", "splat")},
        size=(340, 400),
    ),
    "fewer": Node("Invert3DDecimateSplat", (1360, 0), {}, {"splat": ("crop", "splat")}, size=(340, 130)),
    "normal": Node(
        "Invert3DNormalizeSplat",
        (1360, 220),
        {"turn": "y down"},
        {"splat": ("fewer", "splat")},
        size=(340, 180),
    ),
    "save": Node(
        "Invert3DSaveGaussianSplat",
        (1360, 490),
        {"filename_prefix": "invert3d/clean", "format": "spz"},
        {"splat": ("normal", "splat")},
        size=(340, 260),
    ),
    "before": Node("Invert3DRenderOrbitViews", (1740, 0), FOUR_SIDES, {"splat": ("orient", "splat")}, size=(340, 700)),
    "seen_before": Node("PreviewImage", (2500, 0), {}, {"images": ("before", "images")}, "Before", (360, 360)),
    "after": Node("Invert3DRenderOrbitViews", (2120, 0), FOUR_SIDES, {"splat": ("normal", "splat")}, size=(340, 700)),
    "seen_after": Node("PreviewImage", (2500, 450), {}, {"images": ("after", "images")}, "After", (360, 360)),
}

SPLAT_SCENE: Graph = {
    "note": note(
        (0, 0),
        (380, 300),
        "## Two splats become one scene\n\n"
        "Press **Run**: a robot and the hologram of a rocket.\n\n"
        "- **Recolor Splat** tints, turns the hue, or takes over the colors of another splat or of a picture.\n"
        "- **Adjust Splat** makes it transparent, and each splat smaller, so that points appear.\n"
        "- **Transform Splat** moves, turns and scales it along the axes of its file: here x is to the side, y up.\n"
        "- **Join Splats** puts them together. More objects: another *Join Splats* behind it.\n\n"
        "*Save Gaussian Splat* makes a file of the scene.",
    ),
    "first": Node("Invert3DLoadGaussianSplat", (420, 0), {"file": "robot.ply [sample]"}, size=(340, 170)),
    "second": Node("Invert3DLoadGaussianSplat", (420, 260), {"file": "rocket.ply [sample]"}, size=(340, 170)),
    "color": Node(
        "Invert3DRecolorSplat",
        (800, 0),
        {"tint": "#1a99ff", "tint_strength": 0.9},
        {"splat": ("second", "splat")},
        size=(340, 300),
    ),
    "ghost": Node(
        "Invert3DAdjustSplat",
        (800, 420),
        {"opacity": 0.35, "size": 0.7},
        {"splat": ("color", "splat")},
        size=(340, 130),
    ),
    "place": Node(
        "Invert3DTransformSplat",
        (1180, 0),
        {"translate_x": -1.3, "translate_y": 0.1, "translate_z": -0.3, "scale": 0.8},
        {"splat": ("ghost", "splat")},
        size=(340, 260),
    ),
    "scene": Node(
        "Invert3DMergeSplats",
        (1180, 380),
        {},
        {"splat": ("first", "splat"), "other": ("place", "splat")},
        size=(340, 70),
    ),
    "save": Node(
        "Invert3DSaveGaussianSplat",
        (1180, 540),
        {"filename_prefix": "invert3d/scene"},
        {"splat": ("scene", "splat")},
        size=(340, 260),
        mode=MUTED,
    ),
    "views": Node(
        "Invert3DRenderOrbitViews",
        (1560, 0),
        {**FOUR_SIDES, "azimuth_start_deg": 0, "azimuth_span_deg": 180, "width": 512, "height": 512},
        {"splat": ("scene", "splat")},
        size=(340, 700),
    ),
    "images": Node(
        "SaveImage",
        (1940, 0),
        {"filename_prefix": "invert3d/scene"},
        {"images": ("views", "images")},
        "The scene",
        (520, 720),
    ),
}

VIEWS_TO_SPLAT: Graph = {
    "note": note(
        (0, 0),
        (380, 400),
        "## Views become a splat\n\n"
        "Press **Run**: 24 views of the robot become a splat again, a few minutes on an ordinary processor. It is "
        "drawn from sides that none of the views shows, below the robot itself from the same sides.\n\n"
        "- **Your own pictures**: connect them to *Splat From Views* with their cameras. A COLMAP model, a "
        "`transforms.json` or a `cameras.json` in ComfyUI's `input` folder is read by *Load Cameras*, which is muted "
        "here: select it, press Ctrl+M, and connect **cameras**.\n"
        "- **Views of a prompt**: connect *MVDream Sampler* instead of *Render Views*.\n"
        "- **Cancel** whenever you like: *Run* goes on where the fit was, and a finished one is never done twice.\n"
        "- **Finer**: more and larger views, more **max_splats** and **steps**; on a GPU the presets *reference* and "
        "*mcmc*.",
    ),
    "splat": Node("Invert3DLoadGaussianSplat", (420, 0), {"file": "robot.ply [sample]"}, size=(340, 170)),
    "views": Node(
        "Invert3DRenderOrbitViews",
        (420, 260),
        {"count": 12, "elevations_deg": "0, 35", "width": 128, "height": 128},
        {"splat": ("splat", "splat")},
        size=(340, 700),
    ),
    "cameras": Node(
        "Invert3DLoadCameras", (0, 490), {"file": "transforms.json"}, title="Your cameras", size=(380, 190), mode=MUTED
    ),
    "fit": Node(
        "Invert3DSplatFromViews",
        (800, 0),
        {},
        {"images": ("views", "images"), "cameras": ("views", "cameras"), "masks": ("views", "masks")},
        size=(340, 440),
    ),
    "progress": Node(
        "PreviewImage", (800, 530), {}, {"images": ("fit", "preview")}, "Views, and below them the splat", (340, 430)
    ),
    "sides": Node(
        "Invert3DOrbitCameras",
        (1180, 0),
        {"count": 4, "elevations_deg": "18", "azimuth_start_deg": 45},
        {"splat": ("splat", "splat")},
        "New sides",
        (340, 300),
    ),
    "truth": Node(
        "Invert3DRenderOrbitViews",
        (1180, 390),
        {},
        {"splat": ("splat", "splat"), "cameras": ("sides", "cameras")},
        size=(340, 700),
    ),
    "drawn": Node(
        "Invert3DRenderOrbitViews",
        (1560, 390),
        {"center": "origin"},
        {"splat": ("fit", "splat"), "cameras": ("sides", "cameras")},
        size=(340, 700),
    ),
    "save": Node(
        "Invert3DSaveGaussianSplat",
        (1560, 0),
        {"filename_prefix": "invert3d/fitted"},
        {"splat": ("fit", "splat")},
        size=(340, 260),
    ),
    "seen_truth": Node("PreviewImage", (1940, 0), {}, {"images": ("truth", "images")}, "The robot", (360, 360)),
    "seen_drawn": Node(
        "SaveImage",
        (1940, 450),
        {"filename_prefix": "invert3d/fitted"},
        {"images": ("drawn", "images")},
        "The splat that was fitted",
        (360, 480),
    ),
}
