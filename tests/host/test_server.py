"""What the harness takes for a failure of the host."""

from pathlib import Path

import pytest

from tests.host.server import HostFailure, Server


@pytest.mark.parametrize(
    "line",
    [
        "   0.0 seconds (IMPORT FAILED): /somewhere/custom_nodes/comfyui-invert3d",
        "Cannot import /somewhere/custom_nodes/comfyui-invert3d module for custom nodes: no module",
        "Error while calling comfy_entrypoint in /somewhere/custom_nodes/comfyui-invert3d",
    ],
)
def test_log_that_says_so_is_a_failure(tmp_path: Path, line: str) -> None:
    server = Server(tmp_path, tmp_path, tmp_path)
    server.log_file.write_text("Starting server\n")
    server.check_log()
    server.log_file.write_text(f"Import times for custom nodes:\n{line}\nStarting server\n")
    with pytest.raises(HostFailure, match="could not load everything:\n.*comfyui-invert3d"):
        server.check_log()


def test_host_that_ends_at_start_shows_its_log(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("print('out of order'); raise SystemExit(3)")
    base = tmp_path / "base"
    base.mkdir()
    with pytest.raises(HostFailure, match="exit code 3 at start:\nout of order"):
        Server(tmp_path, Path("python3"), base).start(timeout=20)
