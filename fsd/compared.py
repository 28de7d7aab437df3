"""``changes`` and ``diff.tar`` of layers, images, containers and snapshots, and ``diff/A..B/``."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast
from urllib.parse import unquote

from fsd.contents import Rendered
from fsd.diffs import Pair, exact_archive, has_exact_archive
from fsd.nodes import DirectoryKind
from fsd.site import ContainerSubject, ImageSubject, LayerSubject, ObjectSubject, PartSubject, Subject
from fsd.uploads import LayerUpload
from fsd.virtual import LargeFile
from store.comparison import Side, history_side, side_of
from store.errors import LayerUnknown, NoSuchSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fsd.contents import Content
    from fsd.diffs import Sizes
    from fsd.nodes import Kind, Node
    from store.records import Layer

SEPARATOR = ".."


@dataclass(frozen=True, slots=True)
class PairSubject(Subject):
    """Two trees people asked to compare."""

    pair: Pair


def layer_of(subject: Subject) -> Layer:
    """The layer whose changes a layer, image or container shows; ``LayerUnknown``."""
    if isinstance(subject, LayerSubject):
        return subject.record
    layer_id = cast("ImageSubject | ContainerSubject", subject).record.layer
    layer = subject.site.now.catalog.layer(layer_id)
    if layer is None:
        raise LayerUnknown(f"layer {layer_id} is gone")
    return layer


def pair_of(subject: Subject) -> Pair:
    """The trees to compare: a layer with its parent, a container as it is now with its snapshot."""
    if isinstance(subject, PairSubject):
        return subject.pair
    if isinstance(subject, PartSubject):
        layer = layer_of(subject.owner)
        return Pair(Side(layer=layer.id), history_side(subject.owner.id, subject.name, layer.id))
    layer = layer_of(subject)
    return Pair(Side(layer=layer.id), Side(layer=layer.parent) if layer.parent else None)


# -- files -------------------------------------------------------------------------------------


def _sizes(subject: Subject) -> Sizes:
    """Sizes of both files; a listing asks for them one after the other."""
    site = subject.site
    own = (subject.table, subject.id) if isinstance(subject, ObjectSubject) else pair_of(subject).key

    def find() -> Sizes:
        return site.diffs.sizes(pair_of(subject), final=not is_written(subject))

    return site.live.once(("differences", own), find)


def _changes_size(subject: Subject) -> int:
    return _sizes(subject).changes


def _changes(subject: Subject) -> Content:
    return Rendered(subject.site.diffs.changes(pair_of(subject)))


def _exact_layer(subject: Subject) -> Layer | None:
    """The layer, where it was made from an archive that can be rebuilt."""
    layer = subject.record if isinstance(subject, LayerSubject) else None
    return layer if layer is not None and has_exact_archive(subject.site.store, layer) else None


def archive_size(subject: Subject) -> int:
    """Bytes of ``diff.tar``."""
    layer = _exact_layer(subject)
    return layer.diff_size if layer else _sizes(subject).archive


def archive(subject: Subject) -> Content:
    """What ``diff.tar`` holds: the very archive a layer was made from, else one of its changes now."""
    layer = _exact_layer(subject)
    exact = exact_archive(subject.site.store, layer) if layer else None
    return exact or subject.site.diffs.archive(pair_of(subject))


def is_written(subject: Subject) -> bool:
    """Whether somebody may write to the tree compared: a container, or a layer nothing is built on yet."""
    if not isinstance(subject, LayerSubject | ImageSubject):
        return True
    layer, catalog = layer_of(subject), subject.site.now.catalog
    used = catalog.children(layer.id) or catalog.images_on(layer.id)
    return not used or bool(catalog.containers_on(layer.id))


def guard(subject: Subject) -> tuple[str, int] | None:
    """The subvolume and its generation, for as long as the sizes hold; ``None`` if they are not of now."""
    generation = _sizes(subject).generation
    if generation is None or isinstance(subject, PartSubject | PairSubject):
        return None
    return str(subject.site.store.driver.path_of(layer_of(subject).id)), generation


CHANGES = LargeFile(_changes_size, _changes, unseen=is_written, guard=guard)
DIFF = LargeFile(archive_size, archive, unseen=is_written, guard=guard)
DIFF_OF_LAYER = LargeFile(archive_size, archive, LayerUpload, is_written, guard)


# -- diff/A..B ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class DiffTable(DirectoryKind):
    """``diff/``: lists nothing, and compares any two objects whose names are looked up as ``A..B``."""

    each: Kind
    blocking = True

    def lookup(self, node: Node, name: str) -> Node | None:
        """What ``B`` changes against ``A``; ``/`` in a name is written ``%2F``."""
        if SEPARATOR not in name:
            return None
        store = node.subject.site.store
        failure: NoSuchSource | None = None
        for old, new in _splits(name):
            try:
                pair = Pair(side_of(store, unquote(new)), side_of(store, unquote(old)))
            except NoSuchSource as exc:
                failure = failure or exc
            else:
                return node.child(name, self.each, PairSubject(node.subject.site, pair), key=f"diff:{name}")
        if failure is not None:
            raise failure
        node.refuse(errno.EINVAL, f"{name!r} is not of the form A..B")

    def entries(self, node: Node) -> Iterator[tuple[str, Node]]:
        """Nothing: there are as many as pairs of objects."""
        return iter(())


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """Every way to read ``name`` as two names; names of containers may hold dots themselves."""
    at = name.find(SEPARATOR)
    while at >= 0:
        if at and at + len(SEPARATOR) < len(name):
            yield name[:at], name[at + len(SEPARATOR) :]
        at = name.find(SEPARATOR, at + 1)
