"""New layers, images and containers on the containers-storage command line."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drivers.errors import MalformedArchive
from drivers.idmap import IDMap
from fsd.storage_data import read_file
from fsd.storage_errors import archive_text, text_of
from fsd.storage_json import record_text
from fsd.storage_show import check_digest
from store.errors import DuplicateID, DuplicateName, ImageUnknown, LayerUnknown, ParentUnknown
from store.idranges import subordinate_ids
from store.options import ContainerOptions, ImageOptions, LayerOptions

if TYPE_CHECKING:
    from typing import BinaryIO

    from fsd.storage_context import Run
    from store.records import Container, Image, Layer


def create_layer(run: Run) -> int:
    """``create-layer``: an empty layer, or a copy of its parent."""
    options = LayerOptions(**_mappings(run))
    try:
        layer = run.store.create_layer(options=options, **_new_layer(run))
    except ParentUnknown:
        run.fail(LayerUnknown.original)
    return _made(run, "layers", layer)


def import_layer(run: Run) -> int:
    """``import-layer``: a layer from an archive."""
    with ExitStack() as stack:
        archive = _archive(run, stack)
        options = LayerOptions(**_mappings(run))
        try:
            layer, _ = run.store.put_layer(archive, options=options, **_new_layer(run))
        except ParentUnknown:
            run.fail(LayerUnknown.original)
        except MalformedArchive as error:
            run.fail(archive_text(error, run.store.driver_name))
    return _made(run, "layers", layer)


def _archive(run: Run, stack: ExitStack) -> BinaryIO:
    """The archive a command reads: the file of its flag, or standard input."""
    path = run.text("file")
    if not path:
        return sys.stdin.buffer
    try:
        return stack.enter_context(open(path, "rb"))
    except IsADirectoryError as error:
        run.fail(text_of(error, call="read"))
    except OSError as error:
        run.fail(text_of(error))


def applydiff(run: Run) -> int:
    """``applydiff``: unpack an archive into a layer."""
    with ExitStack() as stack:
        try:
            run.store.apply_diff(run.args[0], _archive(run, stack))
        except MalformedArchive as error:
            run.fail(archive_text(error, run.store.driver_name))
    return 0


def _new_layer(run: Run) -> dict[str, Any]:
    return {
        "id": run.text("id") or None,
        "parent": run.args[0] if run.args else None,
        "names": run.texts("name"),
        "mount_label": run.text("label"),
        "writeable": not run.on("readonly"),
    }


def create_image(run: Run) -> int:
    """``create-image``: a record over a layer, or over none."""
    digest = run.text("digest")
    metadata = _metadata(run)
    if digest:
        context = f'validating digests for new image: validating image digest "{digest}"'
        check_digest(run, digest, context)
    try:
        image = run.store.create_image(
            id=run.text("id") or None,
            names=run.texts("name"),
            layer=run.args[0] if run.args else "",
            metadata=metadata,
            options=ImageOptions(digest=digest),
        )
    except DuplicateID as error:
        run.fail(f'an image with ID "{run.text("id")}" already exists: {error.original}')
    except DuplicateName as error:
        name = _taken(run, "images", error.holder)
        run.fail(f'image name "{name}" is already associated with image "{error.holder}": {error.original}')
    return _made(run, "images", image)


def create_container(run: Run) -> int:
    """``create-container``: a writable layer over an image's."""
    metadata = _metadata(run)
    options = ContainerOptions(volatile=run.on("volatile"), **_mappings(run))
    try:
        container = run.store.create_container(
            id=run.text("id") or None,
            names=run.texts("name"),
            image=run.args[0],
            metadata=metadata,
            options=options,
        )
    except ImageUnknown as error:
        run.fail(f'locating image with ID "{run.args[0]}": {error.original}')
    except DuplicateName as error:
        name = _taken(run, "containers", error.holder)
        run.fail(
            f'the container name "{name}" is already in use by {error.holder}. You have to remove that '
            f"container to be able to reuse that name: {error.original}"
        )
    return _made(run, "containers", container)


def _taken(run: Run, kind: str, holder: str) -> str:
    """Which of the names wanted ``holder`` has."""
    record = run.store.image(holder) if kind == "images" else run.store.container(holder)
    return next((name for name in run.texts("name") if name in record.names), "")


def _metadata(run: Run) -> str:
    path = run.text("metadata-file")
    return read_file(run, path).decode("utf-8", "surrogateescape") if path else run.text("metadata")


def _made(run: Run, kind: str, record: Layer | Image | Container) -> int:
    """Print a new object; a container's names end without a newline, as in the original."""
    if run.json:
        from json import loads

        from store.records import encode

        run.say(record_text(kind, loads(encode(record))) + "\n")
        return 0
    end = "" if kind == "containers" else "\n"
    run.say(f"{record.id}\n" + "".join(f"\t{name}{end}" for name in record.names))
    return 0


# -- ID mappings ---------------------------------------------------------------------------------


def _mappings(run: Run) -> dict[str, Any]:
    """The mappings the flags ask for, as options."""
    _ = run.store
    for kind in ("uid", "gid"):
        if run.on(f"host{kind}map") and (run.text(f"{kind}map") or run.text(f"sub{kind}map")):
            run.fail(f"host {kind} map specified along with {kind.upper()} mapping")
    user = run.text("subuidmap") or run.text("subgidmap")
    group = run.text("subgidmap") or run.text("subuidmap")
    uidmap = _subordinate(run, "subuid", user) if user else ()
    gidmap = _subordinate(run, "subgid", group) if user else ()
    return {
        "uidmap": (*uidmap, *_parsed(run, "uid")),
        "gidmap": (*gidmap, *_parsed(run, "gid")),
        "host_uidmap": run.on("hostuidmap"),
        "host_gidmap": run.on("hostgidmap"),
    }


def _subordinate(run: Run, kind: str, name: str) -> tuple[IDMap, ...]:
    ranges = sorted(subordinate_ids(Path(f"/etc/{kind}"), name))
    if not ranges:
        what = "user" if kind == "subuid" else "group"
        run.fail(f'no {kind} ranges found for {what} "{name}" in /etc/{kind}')
    maps, start = [], 0
    for low, high in ranges:
        maps.append(IDMap(start, low, high - low))
        start += high - low
    return tuple(maps)


def _parsed(run: Run, kind: str) -> tuple[IDMap, ...]:
    """Mappings written ``CONTAINER:HOST:SIZE``, several of them separated by colons too."""
    text = run.text(f"{kind}map")
    if not text:
        return ()
    parts = text.split(":")
    if len(parts) % 3 or not all(p.isascii() and p.isdigit() and int(p) < 1 << 32 for p in parts):
        run.fail(
            f"initializing ID mappings: {kind} setting is malformed expected "
            f'["uint32:uint32:uint32"]: ["{text}"]'
        )
    numbers = [int(part) for part in parts]
    return tuple(IDMap(*numbers[at : at + 3]) for at in range(0, len(numbers), 3))
