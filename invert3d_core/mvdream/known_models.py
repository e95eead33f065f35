"""Checkpoints that are published, as a person needs to know them: file, size, folder, licence, and where to get it.

Nothing here downloads anything. The page of a host offers the download where a workflow names the file
(`workflow_models`).
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

MODEL_FOLDER = "mvdream"
"""The host's model folder that ours go into: ``models/mvdream``."""


@dataclass(frozen=True)
class KnownModel:
    """One published checkpoint.

    file: its name, or its folder's. size: of what is to be fetched, in bytes; None where no one states it.
    page: where it is published. url: of the file itself, None for a folder. base: as in `ModelInfo`.
    """

    name: str
    file: str
    size: int | None
    licence: str
    page: str
    base: str
    url: str | None = None

    @property
    def text(self) -> str:
        """Everything about it in one line."""
        what = f"file {self.file}" if self.url else f"folder {self.file} (all of it)"
        size = f"{self.size / 1e9:.2f} GB" if self.size else "size not stated"
        return (
            f"{self.name}: {what}, {size}, into models/{MODEL_FOLDER}; licence {self.licence}; from "
            f"{self.url or self.page}"
        )


_HUB = "https://huggingface.co/"
_LICENCE = "CreativeML OpenRAIL-M (weights)"

KNOWN_MODELS: tuple[KnownModel, ...] = (
    KnownModel(
        name="MVDream sd-v1.5-4view",
        file="sd-v1.5-4view.pt",
        size=4_271_635_604,
        licence=_LICENCE,
        page=_HUB + "MVDream/MVDream",
        base="clip_l",
        url=_HUB + "MVDream/MVDream/resolve/main/sd-v1.5-4view.pt",
    ),
    KnownModel(
        name="MVDream sd-v2.1-base-4view",
        file="sd-v2.1-base-4view.pt",
        size=5_221_082_672,
        licence=_LICENCE,
        page=_HUB + "MVDream/MVDream",
        base="clip_h",
        url=_HUB + "MVDream/MVDream/resolve/main/sd-v2.1-base-4view.pt",
    ),
    KnownModel(
        name="MVDream sd-v2.1-base-4view in half precision",
        file="mvdream-sd2.1-diffusers",
        size=2_588_000_000,
        licence=_LICENCE,
        page=_HUB + "ashawkey/mvdream-sd2.1-diffusers",
        base="clip_h",
    ),
    KnownModel(
        name="MVDream sd-v2.1-base-4view for diffusers",
        file="mvdream-sd21-diffusers",
        size=None,
        licence=_LICENCE,
        page=_HUB + "lzq49/mvdream-sd21-diffusers",
        base="clip_h",
    ),
    KnownModel(
        name="MVDream sd-v1.5-4view for diffusers",
        file="mvdream-sd1.5-diffusers",
        size=None,
        licence=_LICENCE,
        page=_HUB + "yanqinJiang/mvdream-sd1.5-diffusers",
        base="clip_l",
    ),
    KnownModel(
        name="MVDream sd-v1.5-4view behind a wrapper",
        file="mvdream-hf",
        size=None,
        licence=_LICENCE,
        page=_HUB + "KokeCacao/mvdream-hf",
        base="clip_l",
    ),
    KnownModel(
        name="MVDream sd-v2.1-base-4view behind a wrapper",
        file="mvdream-base-hf",
        size=None,
        licence=_LICENCE,
        page=_HUB + "KokeCacao/mvdream-base-hf",
        base="clip_h",
    ),
)
"""Every text-to-views checkpoint that is known to be published, those to take first first."""


def find_known(name: str) -> KnownModel | None:
    """The known model of a file's or folder's name, whatever folder it was looked for in; None when it is not known.

    A file's ending does not matter: its twin in safetensors is the same model.
    """
    wanted = _plain(name)
    return next((model for model in KNOWN_MODELS if _plain(model.file) == wanted), None)


def where_to_get(name: str | None = None) -> str:
    """Where to get the model of that name, or what is published when it is none of that: a sentence for a message."""
    known = find_known(name) if name else None
    if known is not None:
        return f"It is published as {known.text}."
    choices = "; ".join(model.text for model in KNOWN_MODELS if model.url)
    folders = ", ".join(model.page for model in KNOWN_MODELS if not model.url)
    return f"Published are {choices}. As folders: {folders}."


def workflow_models(files: Iterable[str] | None = None) -> list[dict[str, str]]:
    """Entries for ``properties.models`` of a workflow's loader node: name, url and directory of each file to fetch.

    files: names of files as in `KNOWN_MODELS`; None takes all that are one file (a page fetches files only).
    Raises KeyError for a name that is not among them.
    """
    single = {model.file: model for model in KNOWN_MODELS if model.url}
    chosen = [single[file] for file in (single if files is None else files)]
    return [{"name": model.file, "url": model.url or "", "directory": MODEL_FOLDER} for model in chosen]


def _plain(name: str) -> str:
    base = os.path.basename(name.replace("\\", "/").rstrip("/"))
    stem, ending = os.path.splitext(base)
    return (stem if ending in (".pt", ".safetensors", ".pth", ".ckpt") else base).lower()
