"""``control/graph.dot`` and ``control/graph.svg``: layers, images and containers, and what stands on what.

Base layers are at the bottom and what is made from them above; the area of a layer's box grows with the
bytes only it refers to. Images and containers are at the top, each in a column of its own above its layer,
so that no line crosses a box. Colours are chosen to be read on a light and on a dark background.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from store.catalog import Catalog

COLUMN, ROW_GAP, GAP, MARGIN = 168.0, 28.0, 16.0, 20.0
LABEL_HEIGHT, BOX_MIN, BOX_MAX = 34.0, 58.0, 150.0
CHARACTERS = 20
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(slots=True)
class Item:
    """One box; sizes and places are pixels, ``children`` stand on it."""

    kind: str
    id: str
    label: str
    note: str = ""
    width: float = COLUMN - GAP
    height: float = LABEL_HEIGHT
    children: list[Item] = field(default_factory=list)
    x: float = 0.0
    y: float = 0.0
    span: float = 0.0


def human(size: int | None) -> str:
    """A size for people; empty where it is not known."""
    if size is None:
        return ""
    value, unit = float(size), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 or value >= 100 else f"{value:.1f} {_UNITS[unit]}"


def forest(catalog: Catalog, exclusive: Callable[[str], int | None]) -> list[Item]:
    """The base layers with everything that stands on them; ``exclusive`` gives a layer's own bytes."""
    sizes = {layer.id: exclusive(layer.id) for layer in catalog.layers}
    largest = max((size for size in sizes.values() if size), default=1)
    items = {layer.id: _layer(layer.id, layer.names, sizes[layer.id], largest) for layer in catalog.layers}
    roots: list[Item] = []
    for layer in catalog.layers:
        below = items.get(layer.parent)
        (roots if below is None else below.children).append(items[layer.id])
    for image in catalog.images:
        label = image.names[0] if image.names else image.id[:12]
        box = Item("image", image.id, label, f"image {image.id[:12]}")
        (items[image.layer].children if image.layer in items else roots).append(box)
    for container in catalog.containers:
        label = container.names[0] if container.names else container.id[:12]
        box = Item("container", container.id, label, f"container {container.id[:12]}")
        (items[container.layer].children if container.layer in items else roots).append(box)
    return roots


def _layer(id_: str, names: tuple[str, ...], size: int | None, largest: int) -> Item:
    side = BOX_MIN + (BOX_MAX - BOX_MIN) * math.sqrt((size or 0) / largest)
    return Item("layer", id_, names[0] if names else id_[:12], human(size), side, side)


# -- DOT ---------------------------------------------------------------------------------------


def dot(roots: list[Item]) -> str:
    """The graph for Graphviz; edges lead from what stands to what it stands on."""
    lines = ["digraph store {", "  rankdir=BT;", '  node [fontname="sans-serif", style=filled];']
    for item, below in _everything(roots):
        label = f"{item.label}\\n{item.note}" if item.note else item.label
        shape = "box" if item.kind == "layer" else "note" if item.kind == "image" else "component"
        size = f", width={item.width / 72:.2f}, height={item.height / 72:.2f}" if item.kind == "layer" else ""
        lines.append(
            f'  "{item.id}" [label="{_quoted(label)}", shape={shape}, fillcolor="{_FILL[item.kind]}"{size}];'
        )
        if below is not None:
            lines.append(f'  "{below.id}" -> "{item.id}" [dir=back];')
    return "\n".join([*lines, "}"])


def _quoted(text: str) -> str:
    return text.replace('"', '\\"')


def _everything(roots: list[Item]) -> Iterator[tuple[Item, Item | None]]:
    todo: list[tuple[Item, Item | None]] = [(item, None) for item in reversed(roots)]
    while todo:
        item, below = todo.pop()
        yield item, below
        todo += [(child, item) for child in reversed(item.children)]


# -- SVG ---------------------------------------------------------------------------------------

_FILL = {"layer": "#f2b84b", "image": "#7fb3e6", "container": "#86c98a"}
_TEXT, _LINE = "#14181d", "#8a8f98"


def svg(roots: list[Item]) -> str:
    """The graph as a picture, with a transparent background."""
    width, height = _arrange(roots)
    shapes: list[str] = []
    for item, below in _everything(roots):
        if below is not None:
            shapes.append(_line(below, item))
    for item, _ in _everything(roots):
        shapes.append(_box(item))
    if not roots:
        shapes.append(f'<text x="{MARGIN}" y="{MARGIN + 14}" fill="{_LINE}">the store is empty</text>')
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    style = 'font-family="sans-serif" font-size="12"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>', *shapes, "</svg>"])


def _arrange(roots: list[Item]) -> tuple[float, float]:
    """Give every box its place; returns width and height of the picture."""
    everything = list(_everything(roots))
    for item, _ in reversed(everything):
        item.span = max(COLUMN, sum(child.span for child in item.children))
    depth: dict[int, int] = {}
    for item, below in everything:
        depth[id(item)] = 0 if below is None else depth[id(below)] + 1
    layers = [item for item, _ in everything if item.kind == "layer"]
    rows = max((depth[id(item)] + 1 for item in layers), default=0)
    heights = [max(i.height for i in layers if depth[id(i)] == row) for row in range(rows)]
    tops = {"container": MARGIN, "image": MARGIN + LABEL_HEIGHT + ROW_GAP}
    floor = MARGIN + 2 * (LABEL_HEIGHT + ROW_GAP) + sum(heights) + ROW_GAP * rows
    bottoms = [floor - sum(heights[:row]) - ROW_GAP * row for row in range(rows)]
    at = MARGIN
    for root in roots:
        _place(root, at)
        at += root.span
    for item, _ in everything:
        item.y = bottoms[depth[id(item)]] - item.height if item.kind == "layer" else tops[item.kind]
    return at + MARGIN, floor + MARGIN


def _place(root: Item, left: float) -> None:
    todo = [(root, left)]
    while todo:
        item, start = todo.pop()
        item.x = start + (item.span - item.width) / 2
        for child in item.children:
            todo.append((child, start))
            start += child.span


def _line(below: Item, item: Item) -> str:
    x1, y1 = below.x + below.width / 2, below.y
    x2, y2 = item.x + item.width / 2, item.y + item.height
    middle = y1 - ROW_GAP / 2
    path = f"M{x1:.1f} {y1:.1f}V{middle:.1f}H{x2:.1f}V{y2:.1f}"
    return f'<path d="{path}" fill="none" stroke="{_LINE}" stroke-width="1.5"/>'


def _box(item: Item) -> str:
    radius = 3 if item.kind == "layer" else 12
    middle, centre = item.y + item.height / 2, item.x + item.width / 2
    baseline = middle - 2 if item.note else middle + 4
    fill = f'fill="{_FILL[item.kind]}" stroke="{_LINE}"'
    text = f'text-anchor="middle" fill="{_TEXT}"'
    label = item.label if len(item.label) <= CHARACTERS else f"…{item.label[1 - CHARACTERS :]}"
    if item.kind == "layer":
        label = label[: int(item.width / 9)]
    return (
        f"<g><title>{escape(f'{item.kind} {item.id} {item.label} {item.note}')}</title>"
        f'<rect x="{item.x:.1f}" y="{item.y:.1f}" width="{item.width:.1f}" height="{item.height:.1f}" '
        f'rx="{radius}" {fill}/>'
        f'<text x="{centre:.1f}" y="{baseline:.1f}" {text}>{escape(label)}</text>'
        f'<text x="{centre:.1f}" y="{middle + 12:.1f}" {text} font-size="10">{escape(item.note)}</text></g>'
    )
