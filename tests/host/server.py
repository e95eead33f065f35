"""A real ComfyUI server for the tests: started in a base folder of its own, stopped by its process id."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.host.toy_stand_in import pack_with_weights

PACK = Path(__file__).resolve().parents[2]

# What ComfyUI writes to its log when a pack, or a node of it, did not load; the server starts all the same.
LOAD_FAILURES = ("IMPORT FAILED", "Cannot import", "Error while calling comfy_entrypoint")


class HostFailure(AssertionError):
    """The host did not start, or its log says that something did not load; the message ends with the log."""


class Server:
    """One ComfyUI process with this pack, and with the tests' own nodes, in its custom_nodes folder.

    comfyui: the checkout. python: an interpreter with its requirements. base: an empty folder that becomes its base
    directory (input, output, models, user, custom_nodes). pack_folder: the name under which the pack is linked in.
    """

    def __init__(
        self, comfyui: Path, python: Path, base: Path, *, pack_folder: str = "comfyui-invert3d", arguments: tuple = ()
    ) -> None:
        self.comfyui, self.python, self.base = comfyui, python, base
        self.pack_folder = pack_folder
        self.pack = pack_with_weights(PACK, base / "pack")
        self.arguments = arguments
        self.log_file = base / "comfyui.log"
        self.port = 0
        self.process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, timeout: float = 180) -> None:
        """Start and wait until the server answers; HostFailure with the log when it ends or hangs instead."""
        self._prepare_base()
        self.port = _free_port()
        command = [str(self.python), "main.py", "--cpu", "--port", str(self.port), "--base-directory", str(self.base)]
        command += ["--database-url", "sqlite:///:memory:", "--disable-api-nodes", *self.arguments]
        # PYTHONPATH could hold an installed core; the network must not be needed.
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
        environment |= {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        # Beside a browser that draws in software, two threads wait for each other most of the time.
        environment["OMP_NUM_THREADS"] = "1"
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=self.comfyui, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + timeout
        while not self._answers():
            if self.process.poll() is not None:
                raise HostFailure(f"ComfyUI ended with exit code {self.process.returncode} at start:\n{self.log()}")
            if time.monotonic() > deadline:
                self.stop()
                raise HostFailure(f"ComfyUI did not answer within {timeout:.0f} s:\n{self.log()}")
            time.sleep(0.2)

    def stop(self) -> None:
        """End the process: politely, then by force."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(timeout=10)

    def kill(self) -> None:
        """End the process at once, as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(timeout=10)

    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def check_log(self) -> None:
        """HostFailure when the log says that something did not load."""
        bad = [line for line in self.log().splitlines() if any(sign in line for sign in LOAD_FAILURES)]
        if bad:
            raise HostFailure("ComfyUI could not load everything:\n" + "\n".join(bad) + "\n\n" + self.log())

    def _prepare_base(self) -> None:
        custom_nodes = self.base / "custom_nodes"
        for folder in (custom_nodes, self.base / "input", self.base / "output", self.base / "models" / "embeddings"):
            folder.mkdir(parents=True, exist_ok=True)
        link = custom_nodes / self.pack_folder
        if not link.exists():  # a server started again in its base folder, or a test has laid a copy there
            link.symlink_to(self.pack, target_is_directory=True)
        shutil.copyfile(Path(__file__).with_name("probe_pack.py"), custom_nodes / "invert3d_probe.py")
        # Without these the page opens with its own dialogs before the graph.
        settings = self.base / "user" / "default" / "comfy.settings.json"
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(json.dumps({"Comfy.TutorialCompleted": True, "Comfy.InstalledVersion": "1.0.0"}))

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + "/system_stats", timeout=2) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
