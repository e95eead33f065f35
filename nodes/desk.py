"""The training desk: what the page shows of trainings while they run, and how it ends one early.

The state lives in memory, so that a page that is opened or reloaded in the middle of a training finds it again:
``GET /invert3d/trainings`` gives all of it, and every change is sent to the open pages as the event EVENT.
``POST /invert3d/trainings/stop`` with {"prompt_id", "node_id"} ends a training with what it has learned so far.
"""

import base64
import contextlib
import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from aiohttp import web
from torch import Tensor

from ..invert3d_core.inversion import InversionResult
from ..invert3d_core.progress import StopAndKeep
from . import host

EVENT = "invert3d.training"
CURVE_POINTS = 400  # a curve in the page is as many pixels wide
REMEMBERED = 16  # trainings, the running one included
RATE_WINDOW = 40  # messages over which the speed is measured
RUNNING = ("preparing", "training", "stopping")


def thin(values: list[float], first_step: int) -> list[list[float]]:
    """A curve as at most CURVE_POINTS pairs [step, mean of the values since the pair before]; values: one a step."""
    stride = max(1, math.ceil(len(values) / CURVE_POINTS))
    chunks = [values[i : i + stride] for i in range(0, len(values), stride)]
    ends = [first_step + min((i + 1) * stride, len(values)) - 1 for i in range(len(chunks))]
    return [[end, float(f"{sum(chunk) / len(chunk):.5g}")] for end, chunk in zip(ends, chunks, strict=True)]


class Training:
    """One training as the page sees it. It is the progress callback of the trainer, and passes all on to the host's.

    workflow: the id of the page's graph that was queued, None for a prompt that did not come from a page.
    """

    def __init__(self, name: str, total: int, workflow: str | None) -> None:
        self.prompt_id, self.node_id = host.running_node()
        self._name, self._total, self._workflow = name, total, workflow
        has_panel = workflow is not None and _panels_exist.is_set()
        self._host_progress = host.HostProgress(bar_alone=has_panel)
        self._lock = threading.Lock()  # the routes read in another thread
        self._status = "preparing"
        self._version = 0
        self._step, self._best_step = 0, None
        self._first_step = 1
        self._losses: list[float] = []
        self._validation: list[list[float]] = []
        self._preview: dict[str, Any] | None = None
        self._sent_preview: dict[str, Any] | None = None
        self._last_sent = float("-inf")
        self._marks: deque[tuple[float, int]] = deque(maxlen=RATE_WINDOW)

    def __call__(
        self,
        step: int,
        total: int,
        *,
        metrics: Mapping[str, float] | None = None,
        preview: Callable[[], Tensor] | None = None,
    ) -> None:
        drawn: list[Tensor] = []

        def draw() -> Tensor:
            assert preview is not None
            drawn.append(preview())
            return drawn[-1]

        now = time.monotonic()
        due = now - self._last_sent >= host.SHOW_INTERVAL_S or step == total
        self._host_progress(step, total, metrics=metrics, preview=draw if preview is not None else None)
        with self._lock:
            self._step, self._total = step, total
            if metrics is not None:
                self._record(step, metrics)
            if drawn:
                self._preview = _preview(step, drawn[-1])
            stop = self._status == "stopping" and metrics is not None
        if drawn or due:
            self._last_sent = now
            if metrics is not None:
                self._marks.append((now, step))
            self._send()
        if stop:
            raise StopAndKeep

    def finish(self, result: InversionResult, picture: Tensor) -> None:  # (H,4·W,3) in [0,1]
        """The training has a result: the page shows all of its curve, earlier runs' part included."""
        with self._lock:
            self._status = "kept" if self._status == "stopping" else "done"
            self._step, self._first_step, self._losses = len(result.losses), 1, list(result.losses)
            self._validation = [[step, loss] for step, loss in result.validation_losses]
            self._best_step = result.best_step
            self._preview = _preview(result.best_step, picture)
        self._send()

    def fail(self, status: str) -> None:
        """The training has ended without a result."""
        with self._lock:
            self._status = status
        self._send()

    def stop_and_keep(self) -> bool:
        """Ask the training to end after the step it is at; whether it still runs."""
        with self._lock:
            if self._status not in RUNNING:
                return False
            self._status = "stopping"
        self._send()
        return True

    def state(self) -> dict[str, Any]:
        """What the page needs to draw it."""
        with self._lock:
            return {
                "prompt_id": self.prompt_id,
                "node_id": self.node_id,
                "workflow": self._workflow,
                "name": self._name,
                "version": self._version,
                "status": self._status,
                "step": self._step,
                "total": self._total,
                "best_step": self._best_step,
                "seconds_left": self._seconds_left(),
                "loss": thin(self._losses, self._first_step),
                "validation": self._validation[-CURVE_POINTS:],
                "preview": self._preview,
            }

    def _record(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._status == "preparing":
            self._status = "training"
        loss, validation = metrics.get("loss", math.nan), metrics.get("validation_loss", math.nan)
        if math.isfinite(loss):
            if not self._losses:
                self._first_step = step
            self._losses.append(loss)
        if math.isfinite(validation):
            self._validation.append([step, validation])

    def _seconds_left(self) -> float | None:
        if self._status != "training" or len(self._marks) < 2:
            return None
        (start, first), (end, last) = self._marks[0], self._marks[-1]
        return (self._total - self._step) * (end - start) / (last - first) if last > first else None

    def _send(self) -> None:
        with self._lock:
            self._version += 1
        state = self.state()
        # A picture is large, and the page keeps the one it has.
        if state["preview"] is self._sent_preview:
            del state["preview"]
        else:
            self._sent_preview = state["preview"]
        host.send_to_pages(EVENT, state)


_trainings: deque[Training] = deque(maxlen=REMEMBERED)
_panels_exist = threading.Event()  # a page has asked for the trainings: it shows them


@contextlib.contextmanager
def training(name: str, total: int, extra_pnginfo: Any) -> Iterator[Training]:
    """A training on the desk for as long as it runs, and a while afterwards; give it to the trainer as `progress`.

    total: its steps. extra_pnginfo: the hidden input of that name, for the id of the workflow.
    """
    workflow = extra_pnginfo.get("workflow") if isinstance(extra_pnginfo, Mapping) else None
    graph_id = workflow.get("id") if isinstance(workflow, Mapping) else None
    shown = Training(name, total, graph_id if isinstance(graph_id, str) else None)
    _trainings.append(shown)
    try:
        yield shown
    except Exception:
        shown.fail("failed")
        raise
    except BaseException:  # the host's cancel
        shown.fail("cancelled")
        raise


def _preview(step: int, picture: Tensor) -> dict[str, Any]:
    return {"step": step, "url": "data:image/jpeg;base64," + base64.b64encode(host.jpeg_of(picture)).decode()}


# -------------------------------------------------------------------------------------------------------------- routes


def _refuse(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)


@host.page_routes().get("/invert3d/trainings")
async def list_trainings(request: web.Request) -> web.Response:
    """The trainings on the desk, the oldest first."""
    _panels_exist.set()
    return web.json_response({"trainings": [shown.state() for shown in list(_trainings)]})


@host.page_routes().post("/invert3d/trainings/stop")
async def stop_training(request: web.Request) -> web.Response:
    """Ends a running training with what it has learned so far."""
    try:
        body = await request.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        return _refuse(400, 'the body is not JSON: send {"prompt_id": "…", "node_id": "…"}')
    wanted = [body.get(key) for key in ("prompt_id", "node_id")] if isinstance(body, dict) else []
    if not wanted or not all(isinstance(value, str) for value in wanted):
        return _refuse(400, 'the body names no training: send {"prompt_id": "…", "node_id": "…"}, both texts')
    for shown in reversed(list(_trainings)):
        if [shown.prompt_id, shown.node_id] == wanted:
            if shown.stop_and_keep():
                return web.json_response({"stopping": True})
            return _refuse(409, "this training has ended already: there is nothing to stop")
    return _refuse(404, "no training of this prompt and node is on the desk: GET /invert3d/trainings lists them")
