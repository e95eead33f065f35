"""The pack's own sockets, for what the host has no type for; what travels through them is said beside each."""

from comfy_api.latest import io

Cameras = io.Custom("INVERT3D_CAMERAS")  # invert3d_core.cameras.Cameras
Depth = io.Custom("INVERT3D_DEPTH")  # tensor (B,H,W), metric distance along the view axis, 0 where nothing is
MVDream = io.Custom("INVERT3D_MVDREAM")  # nodes.host.HostMVDream
Token = io.Custom("INVERT3D_TOKEN")  # invert3d_core.tokens.Token
