"""ComfyUI's real page in a headless Chromium: what a person's browser would make of a workflow file."""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests.host.locate import find_comfyui, find_python
from tests.host.server import Server

# Rendering without a GPU: WebGL2 on SwiftShader, as the host's 3D viewers need it, and nothing else on it: putting the
# page together there takes five times the processor's time.
ARGUMENTS = [
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-gpu-compositing",
    "--disable-background-networking",
]
# Sixty pictures a second, drawn by the processor, would leave the tests little of it.
FEWER_FRAMES = """
const nextFrame = window.requestAnimationFrame.bind(window);
window.requestAnimationFrame = (draw) => setTimeout(() => nextFrame(draw), 70);
window.cancelAnimationFrame = (id) => clearTimeout(id);
"""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str | None:
    """The system's Chromium, None when there is none."""
    return next((path for path in map(shutil.which, BROWSERS) if path), None)


@contextmanager
def real_page() -> Iterator[tuple[Server, "ComfyPage"]]:
    """A ComfyUI started for the occasion and its page, for tools; SystemExit where one of them is not to be had."""
    comfyui, chromium = find_comfyui(), find_chromium()
    if comfyui is None or chromium is None:
        sys.exit("a ComfyUI (COMFYUI_PATH) and a Chromium are needed")
    with tempfile.TemporaryDirectory() as base:
        server = Server(comfyui, find_python(comfyui), Path(base))
        server.start()
        try:
            with ComfyPage(server.url, chromium) as page:
                yield server, page
        finally:
            server.stop()


class ComfyPage:
    """The page of one server. Use as a context manager; `page` is Playwright's own object."""

    def __init__(self, url: str, chromium: str) -> None:
        self.url, self.chromium = url, chromium
        self.errors: list[str] = []

    def __enter__(self) -> "ComfyPage":
        self._playwright = sync_playwright().start()
        self._browser = self._playwright.chromium.launch(executable_path=self.chromium, args=ARGUMENTS)
        self.page: Page = self._browser.new_page()
        self.page.add_init_script(FEWER_FRAMES)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.open()
        return self

    def __exit__(self, *exception: object) -> None:
        self._browser.close()
        self._playwright.stop()

    def open(self) -> None:
        """Load the page and wait until its first graph is there and it knows the pack's nodes."""
        self.page.goto(self.url)
        self.page.wait_for_function(
            """!!(window.app?.extensionManager?.workflow?.activeWorkflow
                && window.LiteGraph?.registered_node_types?.["Invert3DLoadGaussianSplat"])""",
            timeout=60_000,
        )

    def rest(self) -> None:
        """Leave the page, which draws all the time, while a prompt needs the processor; `prompt_of` comes back."""
        self.page.goto("about:blank")

    def prompt_of(self, workflow: Path | dict) -> dict:
        """The API prompt that the page queues for a UI workflow (a file or its content).

        AssertionError when the workflow holds a node type that the page does not know.
        """
        graph = workflow if isinstance(workflow, dict) else json.loads(workflow.read_text(encoding="utf-8"))
        if self.page.url == "about:blank":
            self.open()
        loaded = self.page.evaluate(
            """async graph => {
                const wanted = graph.nodes.map(node => String(node.id)).sort().join()
                // A page that has just opened may still put a graph of its own in place of ours.
                for (let i = 0; i < 20; i++) {
                    await app.loadGraphData(structuredClone(graph))
                    await new Promise(resolve => setTimeout(resolve, 1000))
                    if (app.graph.nodes.map(node => String(node.id)).sort().join() === wanted)
                        return app.graph.nodes.map(node => [node.type, node.type in LiteGraph.registered_node_types])
                }
                return null
            }""",
            graph,
        )
        assert loaded is not None, "the page did not take the workflow"
        unknown = [name for name, known in loaded if not known]
        assert not unknown, f"the page does not know the node types {unknown}"
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def workflow_of(self) -> dict:
        """The graph now in the page as a UI workflow, as the page would save it."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).workflow")
