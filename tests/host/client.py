"""A client of a ComfyUI server: queue API prompts, follow them over the websocket, fetch what they made."""

import asyncio
import io
import json
import struct
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np
from PIL import Image

# Binary websocket messages: a 4-byte big-endian type, then the payload.
PREVIEW, TEXT, PREVIEW_WITH_METADATA = 1, 3, 4


class PromptRejected(Exception):
    """The server did not accept a prompt, or not all of it; `messages` holds every reason it gave, as text."""

    def __init__(self, body: dict) -> None:
        self.body = body
        errors = [body["error"]] if body.get("error") else []
        errors += [error for node in (body.get("node_errors") or {}).values() for error in node["errors"]]
        self.types = [error["type"] for error in errors]
        self.messages = "\n".join(f"{error['type']}: {error['message']}: {error['details']}" for error in errors)
        super().__init__(self.messages)


@dataclass
class Run:
    """What a prompt did: the events of its websocket, sorted."""

    prompt_id: str
    status: str = "running"  # then "success", "error" or "interrupted"
    outputs: dict[str, dict] = field(default_factory=dict)  # node id → its ui output
    executed: list[str] = field(default_factory=list)  # nodes that ran, in order
    cached: set[str] = field(default_factory=set)
    progress: list[tuple[str, int, int]] = field(default_factory=list)  # node id, value, total
    previews: list[tuple[str, bytes]] = field(default_factory=list)  # node id, JPEG or PNG file
    error: dict | None = None  # exception_message, exception_type, node_id, traceback, …

    def text(self, node_id: str) -> str:
        """The text that a text preview node showed."""
        return "".join(self.outputs[node_id]["text"])


class Client:
    """Talks to one server. Methods block; `run` and `wait` end with AssertionError after their timeout."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client_id = uuid.uuid4().hex

    def get(self, path: str) -> Any:
        """The JSON answer of a GET."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, body: dict) -> Any:
        """The JSON answer of a POST, None when it is empty; urllib.error.HTTPError for a status of 400 and above."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def object_info(self, node_id: str) -> dict | None:
        """The description of a node class, None when the server does not know it."""
        return self.get(f"/object_info/{node_id}").get(node_id)

    def node(self, class_type: str, **inputs: Any) -> dict:
        """An API-format node: these inputs, and the default of every other widget as the page would fill it in.

        A dynamic input's parts are named as in the API: node("X", **{"mode": "orbit", "mode.views": 4}).
        """
        description = self.object_info(class_type)
        assert description is not None, f"the server knows no node {class_type}"
        widgets = {}
        for name, (kind, *options) in description["input"].get("required", {}).items():
            option = options[0] if options else {}
            choices = kind if isinstance(kind, list) else option.get("options", [])
            if "default" in option:
                widgets[name] = option["default"]
            elif choices and kind in ("COMBO", choices):
                widgets[name] = choices[0]
        return {"class_type": class_type, "inputs": widgets | inputs}

    def queue(self, prompt: dict) -> str:
        """Queue an API-format prompt; its id. PromptRejected when any part of it is not accepted."""
        try:
            answer = self.post("/prompt", {"prompt": prompt, "client_id": self.client_id})
        except urllib.error.HTTPError as refusal:
            raise PromptRejected(json.load(refusal)) from None
        if answer["node_errors"]:
            raise PromptRejected(answer)
        return answer["prompt_id"]

    def interrupt(self) -> None:
        """Cancel the running prompt."""
        self.post("/interrupt", {})

    def run(self, prompt: dict, *, on_event: Callable[[dict], None] | None = None, timeout: float = 180) -> Run:
        """Queue a prompt and follow it to its end, whatever that is: look at the status of the Run.

        on_event: called with every JSON event {"type", "data"} of this prompt as it comes; it may queue or interrupt.
        """
        # A thread of its own: a browser driver may keep an event loop running in this one.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, self._run(prompt, on_event, timeout)).result()

    def succeed(self, prompt: dict, **options: Any) -> Run:
        """`run` that fails the test, with the node's own message and traceback, unless the prompt succeeds."""
        run = self.run(prompt, **options)
        error = run.error or {}
        trace = "".join(error.get("traceback", []))
        assert run.status == "success", f"{run.status}: {error.get('exception_message')}\n{trace}"
        return run

    def wait(self, prompt_id: str, timeout: float = 180) -> dict:
        """The history entry of a prompt, once it has ended: {"status": {"status_str", …}, "outputs", …}."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.1)
        raise AssertionError(f"prompt {prompt_id} did not end within {timeout:.0f} s")

    def file(self, saved: dict) -> bytes:
        """The content of a saved file, as an output names it: {"filename", "subfolder", "type"}."""
        with urllib.request.urlopen(f"{self.url}/view?{urllib.parse.urlencode(saved)}", timeout=60) as answer:
            return answer.read()

    def images(self, run: Run, node_id: str) -> np.ndarray:
        """The pictures that an image-saving node made, (B,H,W,3) float in [0,1]."""
        files = [self.file(saved) for saved in run.outputs[node_id]["images"]]
        return np.stack([decode_image(content) for content in files])

    async def _run(self, prompt: dict, on_event: Callable[[dict], None] | None, timeout: float) -> Run:
        address = f"{self.url}/ws?clientId={self.client_id}"
        async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
            # Must be the first message: with it, previews carry the id of their node.
            await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
            run = Run(await asyncio.to_thread(self.queue, prompt))
            deadline = time.monotonic() + timeout
            while run.status == "running":
                remaining = deadline - time.monotonic()
                if remaining <= 0:  # or all that follows would wait for it
                    await asyncio.to_thread(self.interrupt)
                assert remaining > 0, f"prompt did not end within {timeout:.0f} s; progress: {run.progress[-3:]}"
                try:
                    message = await socket.receive(timeout=remaining)
                except asyncio.TimeoutError:
                    continue
                if message.type is aiohttp.WSMsgType.BINARY:
                    _take_binary(run, message.data)
                elif message.type is aiohttp.WSMsgType.TEXT:
                    event = json.loads(message.data)
                    if event["data"].get("prompt_id") == run.prompt_id:
                        _take_event(run, event)
                        if on_event is not None:
                            await asyncio.to_thread(on_event, event)
                else:
                    raise AssertionError(f"the server closed the websocket: {message}")
            return run


def decode_image(content: bytes) -> np.ndarray:
    """An image file as (H,W,3) float in [0,1]."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), dtype=np.float32) / 255


def _take_event(run: Run, event: dict) -> None:
    kind, data = event["type"], event["data"]
    if kind == "execution_cached":
        run.cached.update(data["nodes"])
    elif kind == "executing" and data["node"] is not None:
        run.executed.append(data["node"])
    elif kind == "executed":
        run.outputs[data["node"]] = data["output"] or {}
    elif kind == "progress":
        run.progress.append((data["node"], data["value"], data["max"]))
    elif kind in ("execution_success", "execution_error", "execution_interrupted"):
        run.status = kind.removeprefix("execution_")
        run.error = data if kind == "execution_error" else None


def _take_binary(run: Run, message: bytes) -> None:
    (kind,) = struct.unpack_from(">I", message)
    if kind == PREVIEW_WITH_METADATA:
        (length,) = struct.unpack_from(">I", message, 4)
        metadata = json.loads(message[8 : 8 + length])
        if metadata["prompt_id"] == run.prompt_id:
            run.previews.append((metadata["node_id"], message[8 + length :]))
