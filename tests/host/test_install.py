"""The pack as people install it: a download from the registry, a clone under any name, a link to a checkout."""

import urllib.request
from pathlib import Path

from tests.archives import files_of_registry, lay_out
from tests.host.client import Client
from tests.host.server import PACK, Server
from tests.host.test_pack import NODE_IDS


def check_pack_works(server: Server, folder: str) -> None:
    """Every node registers, draws, and finds its help, its templates and its translations under the folder's name."""
    server.start()
    try:
        server.check_log()
        client = Client(server.url)
        registered = {
            node_id
            for node_id, node in client.get("/object_info").items()
            if node["python_module"] == f"custom_nodes.{folder}" and node_id in NODE_IDS
        }
        assert sorted(registered) == NODE_IDS
        run = client.succeed(
            {
                "load": client.node("Invert3DLoadGaussianSplat"),  # its first file, a sample
                "views": client.node("Invert3DRenderOrbitViews", splat=["load", 0], count=1, width=32, height=32),
                "images": client.node("PreviewImage", images=["views", 0]),
            }
        )
        assert client.images(run, "images").std() > 0.05
        assert sorted(client.get("/api/workflow_templates")[folder]) == sorted(
            file.stem for file in (PACK / "workflows").glob("*.json")
        )
        assert set(client.get("/i18n")["zh"]["nodeDefs"]) == set(NODE_IDS)
        for page in ("Invert3DTokenApply.md", "Invert3DTokenApply/zh.md"):
            with urllib.request.urlopen(f"{server.url}/extensions/{folder}/docs/{page}", timeout=30) as answer:
                assert answer.read().startswith(b"# ")
        server.check_log()
    finally:
        server.stop()


def test_download_from_the_registry_is_whole(host: tuple[Path, Path], tmp_path: Path) -> None:
    """In a folder of its own named as the registry names it, with nothing but what publishing packs."""
    server = Server(*host, tmp_path, pack_folder="invert3d")
    lay_out(files_of_registry(), tmp_path / "custom_nodes" / "invert3d")
    check_pack_works(server, "invert3d")
    assert not (tmp_path / "custom_nodes" / "invert3d").is_symlink()


def test_any_folder_name_will_do(host: tuple[Path, Path], tmp_path: Path) -> None:
    """Dashes, dots and capitals, and a link to a checkout that lies elsewhere."""
    server = Server(*host, tmp_path, pack_folder="ComfyUI-Invert.3D_v0.1")
    check_pack_works(server, "ComfyUI-Invert.3D_v0.1")
    assert (tmp_path / "custom_nodes" / "ComfyUI-Invert.3D_v0.1").is_symlink()
