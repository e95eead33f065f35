"""Fixtures of the tests against a real ComfyUI: one server for all of them, a client, and its page in a browser."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.host.client import Client
from tests.host.locate import HostNotFound, find_comfyui, find_python
from tests.host.page import ComfyPage, find_chromium
from tests.host.server import Server


@cache
def find_host() -> tuple[Path, Path]:
    """The ComfyUI checkout to test in and an interpreter that can run it; HostNotFound with the reason."""
    comfyui = find_comfyui()
    if comfyui is None:
        raise HostNotFound("there is no ComfyUI here: set COMFYUI_PATH to a checkout")
    return comfyui, find_python(comfyui)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what cannot run here, one line a file and reason; where a host was promised its fixture fails instead."""
    reasons = {}
    try:
        find_host()
    except HostNotFound as reason:
        if os.environ.get("INVERT3D_REQUIRE_HOST") != "1" and not os.environ.get("COMFYUI_PATH"):
            reasons["host"] = str(reason)
    if find_chromium() is None and os.environ.get("INVERT3D_REQUIRE_HOST") != "1":
        reasons["comfy_page"] = "there is no Chromium here (package `chromium`)"
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        for fixture in reasons.keys() & set(fixtures):
            item.add_marker(pytest.mark.skip(reason=reasons[fixture]))


@pytest.fixture(scope="session")
def host() -> tuple[Path, Path]:
    """The ComfyUI checkout and an interpreter for it."""
    try:
        return find_host()
    except HostNotFound as reason:
        pytest.fail(f"the host tests must run here, but {reason}", pytrace=False)


@pytest.fixture(scope="session")
def server(host: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running ComfyUI with the pack; its log is read for load failures at the start and at the end."""
    running = Server(*host, tmp_path_factory.mktemp("comfyui"))
    running.start()
    try:
        running.check_log()
        yield running
        running.check_log()
    finally:
        running.stop()


@pytest.fixture
def client(server: Server) -> Client:
    """A new client of the server."""
    return Client(server.url)


@pytest.fixture
def input_folder(server: Server) -> Path:
    """The server's input folder."""
    return server.base / "input"


@pytest.fixture(scope="session")
def browser_page(server: Server) -> Iterator[ComfyPage]:
    """The server's page in a headless Chromium, which is started once."""
    chromium = find_chromium()
    assert chromium is not None, "no Chromium"
    with ComfyPage(server.url, chromium) as opened:
        yield opened


@pytest.fixture(scope="module")
def comfy_page(browser_page: ComfyPage) -> Iterator[ComfyPage]:
    """The open page for one file of tests; between them it rests, since it draws all the time."""
    browser_page.open()
    yield browser_page
    browser_page.rest()
