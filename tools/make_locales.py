"""Write the English locale file from the nodes themselves, and say what the translations lack.

    python tools/make_locales.py

It starts the ComfyUI that the host tests use, asks it for the nodes as its page does, and writes
``locales/en/nodeDefs.json``: every text of every node, each written by hand only once, in the node. From that file
translators start. Run it when a node's texts change; it ends with exit code 1 when a translation has to follow.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.host.client import Client
from tests.host.locate import find_comfyui, find_python
from tests.host.server import PACK, Server

LOCALES = PACK / "locales"
NODE_TEXTS = "nodeDefs.json"
MAIN_TEXTS = "main.json"
PREFIX = "Invert3D"


def texts_of(descriptions: Mapping[str, dict]) -> dict[str, dict]:
    """The texts of nodes, by node id, in the form of a locale file.

    descriptions: nodes by id as the host's /object_info describes them.
    """
    return {node_id: _texts_of_node(description) for node_id, description in descriptions.items()}


def categories_of(descriptions: Mapping[str, dict]) -> list[str]:
    """The parts of the categories in which these nodes stand: the page translates each part by itself."""
    return sorted({part for description in descriptions.values() for part in description["category"].split("/")})


def leaves(texts: Mapping, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Every text of a locale file with where it stands: "Node/inputs/seed/tooltip"."""
    for key, value in texts.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*path, key))
        else:
            yield "/".join((*path, key)), value


def read(language: str, name: str) -> dict:
    """A locale file, empty when there is none."""
    file = LOCALES / language / name
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def write(language: str, name: str, texts: dict) -> None:
    file = LOCALES / language / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(texts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def languages() -> list[str]:
    """The languages that the nodes are translated to."""
    return sorted(folder.name for folder in LOCALES.iterdir() if folder.is_dir() and folder.name != "en")


def work_left(language: str, english: Mapping, changed: set[str]) -> list[str]:
    """What a translation lacks, has too much, or was made from another English text; a line each."""
    there, wanted = dict(leaves(read(language, NODE_TEXTS))), dict(leaves(english))
    return [
        *(f"missing: {path}: {text}" for path, text in wanted.items() if path not in there),
        *(f"not in the nodes: {path}" for path in there if path not in wanted),
        *(f"look again: {path}: {wanted[path]}" for path in wanted if path in changed and path in there),
    ]


def nodes_of(client: Client) -> dict[str, dict]:
    """The pack's nodes as the host describes them."""
    ids = {node_id: node for node_id, node in client.get("/object_info").items() if node_id.startswith(PREFIX)}
    return {node_id: node for node_id, node in ids.items() if not node["python_module"].endswith("probe")}


def main() -> int:
    comfyui = find_comfyui()
    if comfyui is None:
        sys.exit("a ComfyUI (COMFYUI_PATH) is needed")
    with tempfile.TemporaryDirectory() as base:
        server = Server(comfyui, find_python(comfyui), Path(base))
        server.start()
        try:
            english = texts_of(nodes_of(Client(server.url)))
        finally:
            server.stop()
    before = dict(leaves(read("en", NODE_TEXTS)))
    changed = {path for path, text in leaves(english) if before.get(path, text) != text}
    write("en", NODE_TEXTS, english)
    left = {language: work_left(language, english, changed) for language in languages()}
    for language, lines in left.items():
        print(f"{language}:", *(lines or ["complete"]), sep="\n  ")
    return 1 if any(left.values()) else 0


def _texts_of_node(description: dict) -> dict:
    inputs = {}
    for group in ("required", "optional"):
        for name, (_, *rest) in description["input"].get(group, {}).items():
            options = rest[0] if rest else {}
            inputs[_key(name)] = _named(options.get("display_name") or name, options.get("tooltip"))
            if options.get("control_after_generate"):  # a widget of its own in the page
                inputs["control_after_generate"] = _named("control after generate", None)
    tooltips = description["output_tooltips"] or [None] * len(description["output_name"])
    outputs = zip(description["output_name"], tooltips, strict=True)
    return {
        "display_name": description["display_name"],
        "description": description["description"],
        "inputs": inputs,
        "outputs": {str(i): _named(name, tooltip) for i, (name, tooltip) in enumerate(outputs)},
    }


def _named(name: str, tooltip: str | None) -> dict[str, str]:
    return {"name": name, "tooltip": tooltip} if tooltip else {"name": name}


def _key(name: str) -> str:
    """The page looks for names with dots under one with underscores."""
    return name.replace(".", "_")


if __name__ == "__main__":
    sys.exit(main())
