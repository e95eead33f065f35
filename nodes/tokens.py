"""Tokens: to and from files, and applied to a model."""

from dataclasses import replace
from pathlib import Path

from comfy_api.latest import io, ui

from ..invert3d_core import tokens as core
from ..invert3d_core.errors import TokenError
from ..invert3d_core.tokens import Token
from . import host
from .types import MVDream as MVDreamSocket
from .types import Token as TokenSocket

FOLDER = "embeddings"
ENDINGS = (".safetensors", ".pt", ".bin")  # as the host looks for a name without one
AUTO = "auto"


def token_names() -> list[str]:
    """What the loader offers: the files of models/embeddings that can be tokens."""
    return [name for name in host.list_models(FOLDER) if name.lower().endswith(ENDINGS)]


def token_file(name: str) -> Path:
    """The file that the widget's value names. ValueError when there is none."""
    path = host.find_model(FOLDER, name)
    if path is None or path.suffix.lower() not in ENDINGS:
        raise ValueError(
            f"there is no token {name!r}: save one first, or put its file ({', '.join(ENDINGS)}) into models/{FOLDER}"
        )
    return path


def embedding_text(token: Token, file: str) -> str:
    """What ComfyUI's own prompts write for a token file; empty when its encoders or its prompts cannot read it.

    The ending stands where it is not the first that the host would try: another file may have the same name.
    """
    readable = token.is_host_embedding and core.is_name(Path(file).stem) and not set(file) & set(" <[():")
    return f"embedding:{file.removesuffix(ENDINGS[0])}" if readable else ""


class SaveInversionToken(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Invert3DSaveInversionToken",
            display_name="Save Inversion Token",
            category="Invert3D/tokens",
            description="Writes a learned token into models/embeddings, where ComfyUI's own prompts find it too.",
            search_aliases=["save embedding", "textual inversion", "save token"],
            is_output_node=True,
            inputs=[
                TokenSocket.Input("token"),
                io.String.Input(
                    "name",
                    default="",
                    tooltip="File name and new name of the token: letters, digits, _, - and inner dots. Empty keeps "
                    "the token's name.",
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    tooltip="Replace a file of that name. Without it, another token there is never touched.",
                ),
                io.Combo.Input(
                    "format",
                    options=list(core.FORMATS),
                    default=next(iter(core.FORMATS)),
                    optional=True,
                    advanced=True,
                    tooltip="Kind of the file. ComfyUI reads them all; the others are for other programs: diffusers "
                    "(.safetensors or .bin), A1111 (.pt), or the released Invert3D code (.pt, SD1.5 only).",
                ),
            ],
            outputs=[
                TokenSocket.Output("saved_token", display_name="token"),
                io.String.Output(
                    "embedding",
                    display_name="embedding",
                    tooltip="What ComfyUI's own prompts write for it; empty for a token of the toy model, which no "
                    "other text encoder can read. Linked into a prompt it makes sure that the file is there.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        try:
            core.check_name(name or "unchanged")
        except TokenError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, token: Token, name: str, overwrite: bool, format: str = "invert3d") -> io.NodeOutput:
        token = replace(token, name=name or token.name)
        path = host.embeddings_folder() / f"{token.name}{core.FORMATS[format].ending}"
        if not core.is_saved_as(token, path, format):
            core.save(token, path, overwrite, format)
        message = f"{FOLDER}/{path.name}, written <{token.name}> in prompts"
        return io.NodeOutput(token, embedding_text(token, path.name), ui=ui.PreviewText(message))


class LoadInversionToken(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Invert3DLoadInversionToken",
            display_name="Load Inversion Token",
            category="Invert3D/tokens",
            description="Reads a learned token from models/embeddings: ours, or one of A1111, diffusers or the "
            "Invert3D release for SD1.5 or SD2.",
            search_aliases=["load embedding", "textual inversion", "load token"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=token_names(),
                    tooltip="A textual inversion, written by Save Inversion Token or by another program; the file's "
                    "name is the token's.",
                ),
                io.Combo.Input(
                    "encoder",
                    options=[AUTO, *core.ENCODER_WIDTHS],
                    default=AUTO,
                    optional=True,
                    advanced=True,
                    tooltip="Of a token for several text encoders (SDXL), whose part to take; alone it may mean "
                    "little. auto takes a file that has one.",
                ),
            ],
            outputs=[
                TokenSocket.Output("token", display_name="token"),
                io.String.Output(
                    "embedding",
                    display_name="embedding",
                    tooltip="What ComfyUI's own prompts write for it; empty for a token of the toy model.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        if file is None:  # linked: known only when it runs
            return True
        try:
            token_file(file)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, **others) -> str:
        return "" if file is None else host.path_fingerprint(token_file(file))

    @classmethod
    def execute(cls, file: str, encoder: str = AUTO) -> io.NodeOutput:
        path = token_file(file)
        # A file may have been renamed since: what stands in the list is what a prompt writes.
        token = replace(core.load(path, None if encoder == AUTO else encoder), name=core.addressable(path.stem))
        return io.NodeOutput(token, embedding_text(token, file))


class TokenApply(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Invert3DTokenApply",
            display_name="Apply Token",
            category="Invert3D/tokens",
            description="Makes a token known to a model, so that prompts can write <name>.",
            search_aliases=["use token", "apply embedding", "textual inversion"],
            inputs=[
                MVDreamSocket.Input("mvdream"),
                TokenSocket.Input("token"),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="0 means the words the token started from, 1 the token as learned.",
                ),
            ],
            outputs=[MVDreamSocket.Output("with_token", display_name="mvdream")],
        )

    @classmethod
    def execute(cls, mvdream: host.HostMVDream, token: Token, strength: float) -> io.NodeOutput:
        host.check_finite(strength=strength)
        return io.NodeOutput(mvdream.with_token(token, strength))


NODES = [SaveInversionToken, LoadInversionToken, TokenApply]
