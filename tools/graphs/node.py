"""A node of a graph, as `tools/make_workflows.py` builds it in the page."""

from dataclasses import dataclass, field

MUTED = 2  # LiteGraph's mode of a node that does not run
NOTE = "MarkdownNote"

Model = dict[str, str]  # a file that the page offers to download: its name, url and directory


@dataclass
class Node:
    """A node of a graph. place, size: pixels of its corner and, where not its own, of itself. inputs: of links, by
    name, (key of the node, name that the page shows for its output). models: files that the page offers to download
    when the node names them and they are not there.
    """

    type: str
    place: tuple[int, int]
    widgets: dict[str, object] = field(default_factory=dict)
    inputs: dict[str, tuple[str, str]] = field(default_factory=dict)
    title: str = ""
    size: tuple[int, int] | None = None
    mode: int = 0
    models: list[Model] = field(default_factory=list)


Graph = dict[str, Node]


def note(place: tuple[int, int], size: tuple[int, int], text: str) -> Node:
    """A note that says what to do with a graph."""
    return Node(NOTE, place, {"": text}, title="Read me", size=size)
