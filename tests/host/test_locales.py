"""The nodes in other languages: nothing untranslated, nothing stale, and the real page shows it."""

import contextlib
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, TimeoutError

from tests.host.client import Client
from tests.host.page import ComfyPage
from tests.host.server import Server
from tools.make_locales import (
    MAIN_TEXTS,
    NODE_TEXTS,
    categories_of,
    languages,
    leaves,
    nodes_of,
    read,
    texts_of,
    work_left,
)

ASK = "run tools/make_locales.py: it says what to translate"
HAN = re.compile(r"[\u4e00-\u9fff]")
# The page compiles names and descriptions as messages, in which these mean something.
MESSAGE_SYNTAX = re.compile(r"[@${}|%\\]")


@pytest.fixture(scope="module")
def english(server: Server) -> dict[str, dict]:
    """The texts of all nodes as the nodes themselves have them."""
    return texts_of(nodes_of(Client(server.url)))


def test_english_file_says_what_the_nodes_say(english: dict[str, dict]) -> None:
    assert read("en", NODE_TEXTS) == english, ASK


@pytest.mark.parametrize("language", languages())
def test_translation_is_whole_and_has_nothing_too_much(english: dict[str, dict], language: str) -> None:
    assert work_left(language, english, changed=set()) == [], ASK


def test_there_is_a_chinese_translation(client: Client) -> None:
    assert "zh" in languages()
    for path, text in leaves(read("zh", NODE_TEXTS)):
        assert HAN.search(text) or not path.endswith(("tooltip", "description", "display_name")), f"{path}: {text}"
    categories = read("zh", MAIN_TEXTS)["nodeCategories"]
    assert sorted(categories) == categories_of(nodes_of(client))


@pytest.mark.parametrize("language", languages())
def test_translation_names_the_same_numbers(english: dict[str, dict], language: str) -> None:
    """A default or a range that changed in one language alone is wrong in the other."""
    translated = dict(leaves(read(language, NODE_TEXTS)))
    for path, text in leaves(english):
        assert sorted(re.findall(r"\d+", translated[path])) == sorted(re.findall(r"\d+", text)), path


@pytest.mark.parametrize("language", ["en", *languages()])
def test_texts_mean_what_they_are_to_the_page(language: str) -> None:
    for name in (NODE_TEXTS, MAIN_TEXTS):
        for path, text in leaves(read(language, name)):
            assert not MESSAGE_SYNTAX.search(text), f"{path}: {text}"
            assert text.strip() == text != ""


@pytest.fixture
def chinese_page(comfy_page: ComfyPage) -> Iterator[ComfyPage]:
    """The page with the Chinese setting; English again afterwards."""

    def choose(language: str) -> None:
        comfy_page.page.evaluate("language => app.extensionManager.setting.set('Comfy.Locale', language)", language)
        comfy_page.open()

    choose("zh")
    yield comfy_page
    comfy_page.page.evaluate("app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")
    choose("en")


def show_alone(page: Page, node_id: str) -> None:
    """Put one node on an empty canvas, in view."""
    page.evaluate(
        """id => {
            app.graph.clear()
            const node = LiteGraph.createNode(id)
            app.graph.add(node)
            node.pos = [300, 300]
            app.canvas.ds.scale = 1
            app.canvas.ds.offset = [0, 0]
        }""",
        node_id,
    )


def test_page_shows_every_node_in_chinese(chinese_page: ComfyPage) -> None:
    chinese = read("zh", NODE_TEXTS)
    shown = chinese_page.page.evaluate(
        """ids => {
            app.graph.clear()
            return Object.fromEntries(ids.map(id => {
                const node = LiteGraph.createNode(id)
                app.graph.add(node)
                const names = slots => slots.map(slot => slot.localized_name)
                const labelled = (node.widgets ?? []).filter(widget => widget.label)
                const labels = labelled.map(widget => [widget.name, widget.label])
                const sockets = node.inputs.map(slot => [slot.name, slot.localized_name])
                return [id, {title: node.title, outputs: names(node.outputs), inputs: {
                    ...Object.fromEntries(sockets), ...Object.fromEntries(labels)}}]
            }))
        }""",
        sorted(chinese),
    )
    for node_id, texts in chinese.items():
        assert shown[node_id]["title"] == texts["display_name"]
        assert shown[node_id]["outputs"] == [output["name"] for output in texts["outputs"].values()]
        for name, text in texts["inputs"].items():
            assert shown[node_id]["inputs"][name] == text["name"], f"{node_id}.{name}"


def test_chinese_names_are_drawn_in_nodes_2(chinese_page: ComfyPage) -> None:
    page = chinese_page.page
    page.evaluate("app.extensionManager.setting.set('Comfy.VueNodes.Enabled', true)")
    show_alone(page, "Invert3DRenderOrbitViews")
    node = page.locator(".lg-node", has_text="渲染视图")
    node.wait_for(timeout=20_000)
    for text in ("仰角（度）", "背景色", "遮罩", "深度"):
        assert node.get_by_text(text, exact=True).count() > 0, text


def test_help_page_is_shown_in_chinese_with_its_picture(chinese_page: ComfyPage) -> None:
    page = chinese_page.page
    info = page.locator('[data-testid="info-button"]')
    for _ in range(6):  # a page that is still busy with the graph before may drop what is selected meanwhile
        show_alone(page, "Invert3DTokenApply")
        page.evaluate("app.canvas.selectNode(app.graph.nodes[0])")
        with contextlib.suppress(TimeoutError):
            info.wait_for(timeout=10_000)
            break
    info.click()
    page.get_by_text("词元只适用于它所针对的文本编码器").first.wait_for(timeout=20_000)
    picture = page.locator('img[src*="pictures/Invert3DTokenApply.jpg"]')
    picture.wait_for(timeout=20_000)
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 300
