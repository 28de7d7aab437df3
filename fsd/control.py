"""What writes to the tree ask for: one function per command, each one whole call into the store.

Functions that return ``Work`` check a written value first (their errors fail the ``write``) and do
the work when it is called (its errors fail the ``close``). All of them may block; callers run them in
a worker thread.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Literal, cast

from fsd.drafts import end_draft
from fsd.settings import ON_WRITE
from store import objects
from store.commit import commit
from store.errors import BadName, BadValue
from store.fill import check_pristine, fill, resolve_source
from store.limits import Limits, parse_limit
from store.names import normalize, parse
from store.prune import DEFAULT_KINDS, parse_kinds
from store.timer import ON_WRITE as ON_WRITE_SETTING

if TYPE_CHECKING:
    from collections.abc import Callable

    from fsd.live import Table
    from fsd.site import ContainerSubject, ImageSubject, ObjectSubject, PartSubject, Site, Subject
    from store.history import Snapshot
    from store.records import Layer

# -- tables ------------------------------------------------------------------------------------


def make(site: Site, table: Table, name: str) -> None:
    """``mkdir`` in a table: an empty container, an empty layer, or a directory of image names."""
    if table == "containers":
        objects.make_container(site.store, name)
    elif table == "layers":
        make_layer(site, name)
    else:
        site.prefixes.add(_prefix(name))


def make_layer(site: Site, name: str, parent: str | None = None) -> Layer:
    """A new layer, empty or on top of ``parent``: 64 hex digits are its ID, anything else its name."""
    return objects.make_layer(site.store, name, parent)


def _prefix(name: str) -> str:
    """A directory that image names may have; it lasts as long as the mount, or until one is in it."""
    if ":" in name.rpartition("/")[2] or name.startswith("."):
        raise BadName(
            f"{name!r}: images are not made by mkdir; copy an archive to images/.import/, or write a name "
            "to the 'commit' of a container"
        )
    parse(f"{name.lower()}/x:y")
    return name


def remove(site: Site, table: Table, id_: str) -> None:
    """``rmdir`` in a table: to the trash, if the store's own deletion rules allow it."""
    site.trash.remove(table, id_)


def rename(site: Site, table: Table, id_: str, listed: str, name: str) -> None:
    """``mv`` in a table: replace the name an object is listed under; other names stay."""
    objects.rename(site.store, table, id_, listed, name)


def add_image_name(site: Site, name: str, target: str) -> None:
    """``ln -s IMAGE images/NAME:TAG`` adds a name; ``target`` is whatever podman would take for the image."""
    objects.tag(site.store, target, [name])


def remove_image_name(site: Site, name: str) -> bool:
    """``rm images/NAME:TAG`` of a further name takes it away; false if ``name`` is no image's own name."""
    if not any(name in image.names[1:] for image in site.now.catalog.images):
        return False
    objects.untag(site.store, [name])
    return True


# -- attributes --------------------------------------------------------------------------------


def set_names(subject: ObjectSubject, value: str, append: bool) -> Callable[[], object]:
    """``echo NAME > names`` sets all names (one a line), ``>>`` adds to them."""
    names = [line.strip() for line in value.splitlines() if line.strip()]
    found = objects.Found(subject.table, subject.found())
    objects.check_names(subject.site.now.catalog, subject.table, subject.id, names, append)
    return functools.partial(objects.change_names, subject.site.store, found, names, append)


def set_metadata(subject: ObjectSubject, value: str, append: bool) -> Callable[[], object]:
    """``echo TEXT > metadata`` replaces the metadata string, ``>>`` appends to it."""
    text = subject.found().metadata + value if append else value
    return functools.partial(subject.site.store.set_metadata, subject.id, text)


def fill_from(subject: ContainerSubject, value: str, append: bool) -> Callable[[], object]:
    """``echo SOURCE > from`` fills a pristine container."""
    source = value.strip()
    if not source:
        return _nothing
    store = subject.site.store
    resolve_source(store, source)
    check_pristine(store, subject.id)
    return functools.partial(fill, store, subject.id, source, state=subject.site.history.state)


def roll_back(subject: ContainerSubject, value: str, append: bool) -> Callable[[], object]:
    """``echo SNAPSHOT > rollback`` swaps the rootfs for a writable copy of a snapshot."""
    name = value.strip()
    if not name:
        return _nothing
    history = subject.site.history
    history.get(subject.id, name)
    return functools.partial(_roll_back, subject, name)


def _roll_back(subject: ContainerSubject, name: str) -> None:
    before = subject.site.history.rollback(subject.id, name)
    _told(subject, "rollback", name, before=before.name)


def commit_to(subject: ContainerSubject, value: str, append: bool) -> Callable[[], object]:
    """``echo NAME:TAG > commit`` makes an image of the container as it is now."""
    name = value.strip()
    if not name:
        return _nothing
    normalize(name)
    return functools.partial(_commit, subject, name)


def _commit(subject: ContainerSubject, name: str) -> None:
    commit(subject.site.store, subject.id, name, state=subject.site.history.state)
    end_draft(subject)


def set_limit(subject: ContainerSubject, value: str, append: bool) -> Callable[[], object]:
    """``echo 10G > limit`` bounds the container's size on disk, ``0`` lifts it."""
    text = value.strip()
    if not text:
        return _nothing
    parse_limit(text)
    return functools.partial(Limits(subject.site.store).set, subject.id, text)


def set_on_write(subject: ContainerSubject, value: str, append: bool) -> Callable[[], object]:
    """``echo none > on-write``: no automatic snapshots of this container; ``snapshot`` brings them back."""
    choice = value.strip()
    if not choice:
        return _nothing
    if choice not in ON_WRITE:
        raise BadValue(f"{choice!r:.80} is none of {', '.join(ON_WRITE)}")
    return functools.partial(_set_on_write, subject, choice)


def _set_on_write(subject: ContainerSubject, choice: str) -> None:
    subject.site.history.state.set_setting(f"containers/{subject.id}", ON_WRITE_SETTING, choice)
    subject.site.configure_bursts(subject.id, choice)


def choose_prune(subject: Subject, value: str, append: bool) -> Callable[[], object]:
    """``echo KIND… > control/prune/preview`` chooses what the preview looks for; ``all`` is everything."""
    kinds = parse_kinds(value.split()) or DEFAULT_KINDS
    return functools.partial(setattr, subject.site, "prune_kinds", kinds)


def run_prune(subject: Subject, value: str, append: bool) -> Callable[[], object]:
    """``echo TOKEN > control/prune/run`` removes exactly what the preview of that token listed."""
    token = value.strip()
    if not token:
        return _nothing
    subject.site.prune.check(token)
    return functools.partial(_run_prune, subject.site, token)


def _run_prune(site: Site, token: str) -> None:
    outcome = site.prune.run(token)
    spared = [f"{item.kind.value} {item.name or item.id}: {why}" for item, why in outcome.spared]
    site.events.emit("prune", "run", token, removed=len(outcome.removed), spared=spared)


def set_pinned(subject: ImageSubject | ContainerSubject, pinned: bool) -> None:
    """``touch pinned`` protects from prune, expiry and rmdir; ``rm pinned`` ends that."""
    pins = subject.site.history.pins
    kind: Literal["images", "containers"] = "images" if subject.table == "images" else "containers"
    (pins.pin if pinned else pins.unpin)(kind, subject.found().id)


def set_snapshot_pinned(part: PartSubject, pinned: bool) -> None:
    """``touch snapshots/NAME/pinned`` keeps a snapshot from retention; ``rm`` ends that."""
    part.site.history.pin(part.owner.id, part.name, pinned)


def _nothing() -> None:
    """The work of an empty write."""


# -- snapshots ---------------------------------------------------------------------------------


def take_snapshot(subject: ContainerSubject, name: str) -> Snapshot:
    """``mkdir snapshots/NAME`` takes a snapshot now."""
    snapshot = subject.site.history.take(subject.id, name, reason="manual")
    _told(subject, "create", name, reason="manual")
    return snapshot


def remove_snapshot(subject: ContainerSubject, name: str) -> None:
    """``rmdir snapshots/NAME`` deletes it."""
    subject.site.history.remove(subject.id, name)
    _told(subject, "remove", name)


def rename_snapshot(subject: ContainerSubject, name: str, new_name: str) -> None:
    """``mv snapshots/A snapshots/B`` gives it another name."""
    subject.site.history.rename(subject.id, name, new_name)
    _told(subject, "rename", new_name, before=name)


def _told(subject: ContainerSubject, action: str, name: str, **more: str) -> None:
    subject.site.events.emit("snapshots", action, subject.id, (name,), **more)


def snapshot_before_write(
    site: Site, container: str, landed: Callable[[], None] | None = None
) -> Snapshot | None:
    """The automatic snapshot of a burst; none when nothing changed since the last one.

    Args:
        landed: called when the snapshot is on disk, so that writes need not wait for the rest.
    """
    if site.plane is not None:
        site.plane.await_taking(container)  # it is at it, and it takes long: else nobody asked for this one
    snapshot = site.history.take_if_changed(container, reason="write", landed=landed)
    if snapshot is not None:
        tell_of_write(site, snapshot)
    return snapshot


def tell_of_write(site: Site, snapshot: Snapshot) -> None:
    """The event of a snapshot that a write took."""
    site.events.emit("snapshots", "create", snapshot.container_id, (snapshot.name,), reason="write")


def snapshot_of(subject: PartSubject) -> Snapshot:
    """The snapshot a subject names; ``SnapshotUnknown`` when it is gone."""
    return subject.site.history.get(subject.owner.id, subject.name)


def container_of(part: PartSubject) -> ContainerSubject:
    """The container a part belongs to."""
    return cast("ContainerSubject", part.owner)
