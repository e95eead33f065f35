"""Graphs about tokens and views of prompts."""

from .node import MUTED, Graph, Model, Node, note

QUICKSTART: Graph = {
    "note": note(
        (0, 0),
        (380, 420),
        "## A splat becomes a word\n\n"
        "Press **Run**. The built-in toy model learns a *token* from the splat, two minutes on an ordinary processor, "
        "and draws it from all around, as it is and in red.\n\n"
        "- **Your own splat**: choose it in *Load Gaussian Splat* (ComfyUI's `input` folder), and describe it in "
        "**initial_words**: what they name, prompts can change. The toy knows a small "
        "world of simple things; a real MVDream checkpoint in `models/mvdream` does the real thing.\n"
        "- **Your own words**: write prompts with `<my_object>`.\n"
        "- **Cancel** whenever you like: *Run* goes on where the training was, and a finished one is never done "
        "twice.\n"
        "- **Keep the token**: select the muted *Save Inversion Token*, press Ctrl+M and **Run**, and it is saved to "
        "`models/embeddings`, from where *Load Inversion Token* takes it without training.",
    ),
    "splat": Node("Invert3DLoadGaussianSplat", (420, 0), {"file": "robot.ply [sample]"}),
    "model": Node("Invert3DMVDreamLoader", (420, 220), {"model": "built-in toy"}),
    "views": Node(
        "Invert3DRenderOrbitViews",
        (800, 0),
        {"count": 4, "elevations_deg": "20", "azimuth_start_deg": 30},
        {"splat": ("splat", "splat")},
        size=(340, 580),
    ),
    "truth": Node("PreviewImage", (1180, 0), {}, {"images": ("views", "images")}, "The splat", (360, 360)),
    "train": Node(
        "Invert3DTrainInversionToken",
        (800, 740),
        {"name": "my_object", "initial_words": "black robot with orange head and cyan limbs"},
        {"mvdream": ("model", "mvdream"), "splat": ("splat", "splat")},
        size=(340, 520),
    ),
    "loss": Node(
        "LossGraphNode",
        (1180, 820),
        {"filename_prefix": "invert3d/loss"},
        {"loss": ("train", "loss")},
        size=(360, 300),
    ),
    "apply": Node(
        "Invert3DTokenApply",
        (1180, 640),
        {},
        {"mvdream": ("model", "mvdream"), "token": ("train", "token")},
        size=(360, 120),
    ),
    "sample": Node(
        "Invert3DMVDreamSampler",
        (1580, 0),
        {"prompt": "a <my_object>", "control_after_generate": "fixed"},
        {"mvdream": ("apply", "mvdream"), "cameras": ("views", "cameras")},
        "The token from the same sides",
        (360, 560),
    ),
    "images": Node(
        "SaveImage",
        (1980, 0),
        {"filename_prefix": "invert3d/token"},
        {"images": ("sample", "images")},
        "The token",
        (360, 480),
    ),
    "edit": Node(
        "Invert3DMVDreamSampler",
        (1580, 640),
        {"prompt": "a red <my_object>", "control_after_generate": "fixed"},
        {"mvdream": ("apply", "mvdream"), "cameras": ("views", "cameras")},
        "The token in other words",
        (360, 560),
    ),
    "edited": Node(
        "SaveImage",
        (1980, 640),
        {"filename_prefix": "invert3d/edited"},
        {"images": ("edit", "images")},
        "The edited token",
        (360, 480),
    ),
    "save": Node(
        "Invert3DSaveInversionToken", (1180, 1190), {}, {"token": ("train", "token")}, size=(360, 150), mode=MUTED
    ),
    "load": Node(
        "Invert3DLoadInversionToken",
        (1580, 1190),
        {"file": "my_object.safetensors"},
        size=(360, 150),
        mode=MUTED,
    ),
}

TEXT_TO_VIEWS: Graph = {
    "note": note(
        (0, 0),
        (380, 300),
        "## Words become views\n\n"
        "Press **Run**: four consistent views of what the prompt says.\n\n"
        "The built-in toy knows colors and simple things: *a red car with white roof and black wheels*, "
        "*a green turtle with brown legs and yellow head*, *a blue teapot* …\n\n"
        "**Orbit Cameras** says from where; other elevations (0 to 30) and starts work, and so do more cameras.",
    ),
    "model": Node("Invert3DMVDreamLoader", (420, 0), {"model": "built-in toy"}),
    "orbit": Node(
        "Invert3DOrbitCameras",
        (420, 180),
        {"count": 4, "elevations_deg": "20", "azimuth_start_deg": 30},
        size=(320, 340),
    ),
    "sample": Node(
        "Invert3DMVDreamSampler",
        (780, 0),
        {
            "prompt": "a yellow castle with red roof and brown door",
            "seed": 1,
            "control_after_generate": "fixed",
        },
        {"mvdream": ("model", "mvdream"), "cameras": ("orbit", "cameras")},
        size=(360, 520),
    ),
    "images": Node(
        "SaveImage",
        (1180, 0),
        {"filename_prefix": "invert3d/views"},
        {"images": ("sample", "images")},
        "Views",
        (480, 520),
    ),
}

CHECKPOINT: Model = {
    "name": "v1-5-pruned-emaonly-fp16.safetensors",
    "url": "https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/"
    "v1-5-pruned-emaonly-fp16.safetensors",
    "directory": "checkpoints",
}

TOKEN_IN_CORE: Graph = {
    "note": note(
        (0, 0),
        (380, 420),
        "## A learned token in ComfyUI's own prompts\n\n"
        "A token is an ordinary textual inversion: any SD1.5 checkpoint draws it.\n\n"
        "1. Choose **your own SD1.5 checkpoint** in *Load Checkpoint*.\n"
        "2. Choose the token in *Load Inversion Token*: one that *Save Inversion Token* wrote for MVDream "
        "sd-v1.5-4view, or a `.pt`, `.bin` or `.safetensors` of A1111, diffusers or the Invert3D release, in "
        "`models/embeddings`.\n"
        "3. Press **Run**.\n\n"
        "*Load Inversion Token* gives the text that ComfyUI's prompts write for it, `embedding:name`; linked into the "
        "prompt, a token that was saved anew is drawn anew.\n\n"
        "Tokens of the built-in toy model do not work here: no other text encoder reads them. A token of "
        "sd-v2.1-base-4view wants an SD2.1 checkpoint.",
    ),
    "checkpoint": Node(
        "CheckpointLoaderSimple",
        (0, 480),
        {"ckpt_name": CHECKPOINT["name"]},
        title="Your SD1.5 checkpoint",
        size=(380, 120),
        models=[CHECKPOINT],
    ),
    "token": Node(
        "Invert3DLoadInversionToken", (0, 650), {"file": "my_object.safetensors"}, title="Your token", size=(380, 150)
    ),
    "words": Node(
        "StringConcatenate",
        (0, 850),
        {"string_a": "a photo of ", "delimiter": ""},
        {"string_b": ("token", "embedding")},
        "Words and token",
        (380, 190),
    ),
    "prompt": Node(
        "CLIPTextEncode",
        (420, 0),
        {},
        {"clip": ("checkpoint", "CLIP"), "text": ("words", "STRING")},
        "Prompt",
        (320, 120),
    ),
    "negative": Node(
        "CLIPTextEncode",
        (420, 180),
        {"text": "blurry, text, watermark"},
        {"clip": ("checkpoint", "CLIP")},
        "Negative prompt",
        (320, 160),
    ),
    "latent": Node("EmptyLatentImage", (420, 400), {"width": 512, "height": 512}, size=(320, 130)),
    "sample": Node(
        "KSampler",
        (420, 590),
        {
            "seed": 1,
            "control_after_generate": "fixed",
            "steps": 25,
            "cfg": 7.5,
            "sampler_name": "dpmpp_2m",
            "scheduler": "karras",
        },
        {
            "model": ("checkpoint", "MODEL"),
            "positive": ("prompt", "CONDITIONING"),
            "negative": ("negative", "CONDITIONING"),
            "latent_image": ("latent", "LATENT"),
        },
        size=(320, 290),
    ),
    "decode": Node(
        "VAEDecode", (420, 940), {}, {"samples": ("sample", "LATENT"), "vae": ("checkpoint", "VAE")}, size=(320, 60)
    ),
    "image": Node(
        "SaveImage",
        (780, 0),
        {"filename_prefix": "invert3d/in_core"},
        {"images": ("decode", "IMAGE")},
        "The token in a picture",
        (520, 1040),
    ),
}
