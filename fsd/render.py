"""How each attribute of the tree is made from the store: small functions from a subject to its content."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from drivers.base import Compression
from fsd.control import container_of, snapshot_of
from fsd.drafts import draft_of, is_draftable, open_draft
from fsd.graph import dot, forest, svg
from fsd.lengths import indented_length, plain_indented_length
from fsd.removed import moment
from fsd.site import ContainerSubject, ImageSubject, LayerSubject, PartSubject, PathSubject
from fsd.views import PRIVATE, ViewSpec
from store.oci import history_of
from store.records import encode
from store.timer import ON_WRITE

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from drivers.idmap import IDMap
    from fsd.graph import Item
    from fsd.live import Table
    from fsd.site import ObjectSubject, Subject
    from store.sizes import Figures

# -- values ------------------------------------------------------------------------------------


def lines(values: Iterable[str]) -> str:
    """One value a line."""
    return "\n".join(values)


def yes_no(value: bool) -> str:
    """A truth value as podman's templates print it."""
    return "true" if value else "false"


def as_json(value: Any) -> str:
    """Indented JSON with sorted keys."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)


def flags(subject: LayerSubject | ContainerSubject) -> str:
    """The record's flags."""
    return as_json(dict(subject.record.flags))


def flags_length(subject: LayerSubject | ContainerSubject) -> int:
    """Bytes of :func:`flags` and the newline after it."""
    return indented_length(dict(subject.record.flags), 0) + 1 if subject.record.flags else len("{}\n")


def id_map(ranges: Iterable[IDMap]) -> str:
    """ID ranges in the form of ``/proc/PID/uid_map``: container ID, host ID, size."""
    return lines(f"{r.container_id} {r.host_id} {r.size}" for r in ranges)


def record_json(subject: ObjectSubject) -> str:
    """The record as it stands in its table, indented."""
    return json.dumps(json.loads(encode(subject.found())), indent=2, ensure_ascii=False)


def record_json_length(subject: ObjectSubject) -> int:
    """Bytes of :func:`record_json` and the newline after it."""
    text = encode(subject.found())
    return (plain_indented_length(text) or indented_length(json.loads(text), 0)) + 1


# -- links -------------------------------------------------------------------------------------


def _listed(subject: Subject, table: Table, id_: str) -> str | None:
    path = subject.site.now.places[table].paths.get(id_)
    return f"{table}/{path}" if path is not None else None


def _links(subject: ObjectSubject, table: Table, ids: Iterable[str]) -> dict[str, PathSubject]:
    """Symlinks to objects, named by their ID."""
    found = ((id_, _listed(subject, table, id_)) for id_ in ids)
    return {id_: PathSubject(subject.site, path, subject) for id_, path in found if path is not None}


def parent_path(layer: LayerSubject) -> str | None:
    """Where the parent layer is listed."""
    return _listed(layer, "layers", layer.record.parent) if layer.record.parent else None


def used_by(layer: LayerSubject) -> dict[str, PathSubject]:
    """Images and containers whose own layer this is."""
    catalog = layer.site.now.catalog
    return {
        **_links(layer, "images", (image.id for image in catalog.images_on(layer.id))),
        **_links(layer, "containers", (container.id for container in catalog.containers_on(layer.id))),
    }


def top_layer(subject: ImageSubject | ContainerSubject) -> str | None:
    """Where the object's layer is listed."""
    return _listed(subject, "layers", subject.record.layer)


def layer_chain(image: ImageSubject) -> dict[str, PathSubject]:
    """The image's layers, base first, as ``00``, ``01`` …"""
    chain = image.site.now.catalog.chain(image.record.layer)
    width = max(2, len(str(len(chain) - 1)))
    paths = ((f"{n:0{width}}", _listed(image, "layers", layer.id)) for n, layer in enumerate(chain))
    return {name: PathSubject(image.site, path, image) for name, path in paths if path is not None}


def mapped_layers(image: ImageSubject) -> dict[str, PathSubject]:
    """Copies of the top layer with shifted IDs."""
    return _links(image, "layers", image.record.mapped_layers)


def containers_of_image(image: ImageSubject) -> dict[str, PathSubject]:
    """Containers made from the image, under the names they are listed by."""
    found = (container.id for container in image.site.now.catalog.containers_of(image.id))
    return _links(image, "containers", found)


def image_of_container(container: ContainerSubject) -> str | None:
    """Where the container's image is listed."""
    return _listed(container, "images", container.record.image)


def layer_directory(subject: LayerSubject | ContainerSubject) -> str | None:
    """The real directory of the layer's content."""
    layer_id = subject.id if isinstance(subject, LayerSubject) else subject.record.layer
    return str(subject.site.store.driver.path_of(layer_id))


# -- layers ------------------------------------------------------------------------------------


def diff_size(layer: LayerSubject) -> str:
    """Bytes of the uncompressed diff; empty when it was never recorded (FORMAT 2.1)."""
    return str(layer.record.diff_size) if layer.record.diff_digest else ""


def compressed_size(layer: LayerSubject) -> str:
    """Bytes of the diff as it was given; empty when it was never recorded."""
    return str(layer.record.compressed_size) if layer.record.compressed_digest else ""


def compression(layer: LayerSubject) -> str:
    """How the diff was compressed when it came; empty when there was none."""
    if not layer.record.compressed_digest:
        return ""
    return Compression(layer.record.compression).name.lower()


def layer_view(layer: LayerSubject) -> ViewSpec:
    """A layer's content, read-only."""
    return ViewSpec(
        key=f"layers/{layer.id}",
        shown=f"{layer.path}/rootfs",
        layer_id=layer.id,
        read_only=True,
        refusal="layers cannot be written here; fill a container from this layer and write there",
    )


# -- images ------------------------------------------------------------------------------------


def image_digests(image: ImageSubject) -> str:
    """Every digest the image answers to, one a line."""
    return lines(image.record.digests)


def image_size(image: ImageSubject) -> str:
    """Bytes of all layers' diffs and all big data; empty when a diff's size is not recorded."""
    record = image.record
    chain = image.site.now.catalog.chain(record.layer)
    if not all(layer.diff_digest for layer in chain):
        return ""
    return str(sum(layer.diff_size for layer in chain) + sum(record.big_data_sizes.values()))


def _item(image: ImageSubject, name: str) -> bytes:
    if name not in image.record.big_data_names:
        return b""
    site = image.site
    return site.live.once(("item", image.id, name), lambda: site.store.image_big_data(image.id, name))


def manifest(image: ImageSubject) -> str:
    """The image's manifest, byte for byte; empty where it has none."""
    return _item(image, "manifest").decode("utf-8", "surrogateescape")


def image_config(image: ImageSubject) -> str:
    """The image's configuration, byte for byte; empty where it has none."""
    name = _config_name(image)
    return _item(image, name).decode("utf-8", "surrogateescape") if name else ""


def _config_name(image: ImageSubject) -> str | None:
    """containers/image stores the configuration under its own digest (FORMAT 4)."""
    names = image.record.big_data_names
    own = f"sha256:{image.id}"
    return own if own in names else next((name for name in names if name.startswith("sha256:")), None)


def image_history(image: ImageSubject) -> str:
    """One line for each step of the image's history: time, command, and whether it made a layer."""
    text = image_config(image)
    if not text:
        return ""
    return lines(
        "\t".join([step.created or "-", "empty" if step.empty else "layer", step.command or "-"])
        for step in history_of(json.loads(text))
    )


def image_view(image: ImageSubject) -> ViewSpec:
    """An image's content, read-only; that of its draft while one is open."""
    shown, draft = f"{image.path}/rootfs", draft_of(image)
    if draft is not None:
        return replace(container_view(draft), key=f"drafts/{image.id}", shown=shown, keeps_place=False)
    if is_draftable(image):
        return ViewSpec(
            key=f"drafts/{image.id}",
            shown=shown,
            layer_id=image.record.layer,
            read_only=False,
            keeps_place=False,
            begin=lambda: container_view(open_draft(image)),
        )
    return ViewSpec(
        key=f"images/{image.id}",
        shown=shown,
        layer_id=image.record.layer,
        read_only=True,
        refusal="images cannot be written; fill a container 'from' it, or write 'draft' to its on-write",
    )


# -- containers --------------------------------------------------------------------------------


def source_of_container(container: ContainerSubject) -> str:
    """What the container was filled from: its image's listed name, or ID if that is gone."""
    record = container.record
    if not record.image:
        return ""
    return container.site.now.places["images"].paths.get(record.image, record.image)


def container_view(container: ContainerSubject) -> ViewSpec:
    """A container's content, writable."""
    return ViewSpec(
        key=f"containers/{container.id}",
        shown=f"{container.path}/rootfs",
        owner=f"containers:{container.id}",
        layer_id=container.record.layer,
        read_only=False,
        container=container.id,
    )


def has_userdata(container: ContainerSubject) -> bool:
    """Whether the persistent private directory was made."""
    return os.path.isdir(userdata_path(container))


def has_rundata(container: ContainerSubject) -> bool:
    """Whether the run-time private directory was made (it is lost at reboot)."""
    return os.path.isdir(rundata_path(container))


def userdata_path(container: ContainerSubject) -> Path:
    """``<graphroot>/<driver>-containers/<id>/userdata`` (FORMAT 1.1)."""
    store = container.site.store
    return store.graphroot / f"{store.driver_name}-containers" / container.id / "userdata"


def rundata_path(container: ContainerSubject) -> Path:
    """``<runroot>/<driver>-containers/<id>/userdata`` (FORMAT 1.1)."""
    store = container.site.store
    return store.runroot / f"{store.driver_name}-containers" / container.id / "userdata"


def userdata_view(container: ContainerSubject) -> ViewSpec:
    """The persistent private directory, writable; writes there take no snapshot."""
    return ViewSpec(
        key=f"userdata/{container.id}",
        shown=f"{container.path}/userdata",
        owner=f"{PRIVATE}containers:{container.id}",
        directory=userdata_path(container),
        read_only=False,
    )


def rundata_view(container: ContainerSubject) -> ViewSpec:
    """The run-time private directory, writable; writes there take no snapshot."""
    return ViewSpec(
        key=f"rundata/{container.id}",
        shown=f"{container.path}/rundata",
        owner=f"{PRIVATE}containers:{container.id}",
        directory=rundata_path(container),
        read_only=False,
    )


def limit(container: ContainerSubject) -> str:
    """The size limit in bytes, 0 without one."""
    return str(container.site.store.driver.limit(container.record.layer))


def has_limits(container: ContainerSubject) -> bool:
    """Whether the driver can limit sizes."""
    return container.site.store.driver.capabilities.quota


def on_write(container: ContainerSubject) -> str:
    """What the first write of a burst does: ``snapshot`` or ``none``."""
    settings = container.site.history.state.settings(f"containers/{container.id}")
    return settings.get(ON_WRITE, container.site.settings.on_write.containers)


def _figures(subject: ObjectSubject) -> Figures | None:
    """What was last measured of the object; three of its files show a part of it."""
    site, table, id_ = subject.site, subject.table, subject.id
    return site.live.once(("figures", table, id_), lambda: site.sizes.get(table, id_))


def size(subject: ObjectSubject) -> str:
    """Bytes the object holds, as last measured; empty before."""
    figures = _figures(subject)
    return str(figures.size) if figures else ""


def exclusive(subject: ObjectSubject) -> str:
    """Bytes on disk that only this object refers to, as last measured; empty where that is not known."""
    figures = _figures(subject)
    return "" if figures is None or figures.exclusive is None else str(figures.exclusive)


def measured(subject: ObjectSubject) -> str:
    """When ``size`` and ``exclusive`` were measured; empty before."""
    figures = _figures(subject)
    return moment(figures.measured_ns) if figures else ""


def pinned_ns(subject: ImageSubject | ContainerSubject) -> int | None:
    """Since when the object is pinned."""
    pins = subject.site.history.pins
    return pins.pinned_ns("images" if subject.table == "images" else "containers", subject.id)


def snapshot_pinned_ns(part: PartSubject) -> int | None:
    """Since when at the latest the snapshot is pinned: nobody wrote down when."""
    snapshot = snapshot_of(part)
    return snapshot.created_ns if snapshot.pinned else None


# -- snapshots ---------------------------------------------------------------------------------


def snapshot_created(part: PartSubject) -> str:
    """When it was taken, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(snapshot_of(part).created_ns // 10**9))


def snapshot_reason(part: PartSubject) -> str:
    """Why it was taken: manual, write, timer or pre-rollback."""
    return snapshot_of(part).reason


def snapshot_view(part: PartSubject) -> ViewSpec:
    """A snapshot's content, read-only."""
    history = part.site.history
    return ViewSpec(
        key=f"snapshots/{part.owner.id}/{part.name}",
        shown=f"{part.owner.path}/snapshots/{part.name}/rootfs",
        directory=history.path(container_of(part).id, part.name),
        ids_of=container_of(part).record.layer,
        read_only=True,
        refusal="snapshots never change; fill a container 'from' it, or roll back to it",
    )


# -- control -----------------------------------------------------------------------------------


def status(subject: Subject) -> str:
    """What this mount is and how much there is: one ``name: value`` a line."""
    site = subject.site
    catalog = site.now.catalog
    snapshots = sum(len(site.history.list(container.id)) for container in catalog.containers)
    pairs: list[tuple[str, object]] = [
        ("mountpoint", site.mountpoint),
        ("graphroot", site.store.graphroot),
        ("runroot", site.store.runroot),
        ("driver", site.store.driver_name),
        ("history", "on" if site.store.driver.capabilities.snapshots else "off"),
        ("started", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(site.started_ns // 10**9))),
        ("layers", len(catalog.layers)),
        ("images", len(catalog.images)),
        ("containers", len(catalog.containers)),
        ("snapshots", snapshots),
        ("broken", len(catalog.broken)),
        ("errors", len(site.errors)),
    ]
    if site.plane is not None:
        pairs.append(("data plane", site.plane.describe()))
    pairs += [("upload", f"{up.what}: {up.bytes} bytes, {up.doing}") for up in site.uploads.active()]
    pairs += site.store.driver.status()
    return lines(f"{name}: {value}" for name, value in pairs)


def config(subject: Subject) -> str:
    """What is in force and where it comes from: the store's options as comments, then fsd's own numbers."""
    options = subject.site.store.options
    pairs = [
        ("storage.conf", ", ".join(options.sources) or "not found"),
        ("graphroot", options.graphroot),
        ("runroot", options.runroot),
        (
            "driver",
            f"{subject.site.store.driver_name}{'' if options.driver else ' (chosen by the graphroot)'}",
        ),
        ("driver options", " ".join(options.driver_options)),
        ("image store" if subject.site.store.split else "image store, only read", options.split),
        ("additional image stores", " ".join(options.additional_image_stores)),
        (
            "in force after the next start",
            " ".join((*subject.site.pending_options, *subject.site.pending_settings)),
        ),
        ("NOT IN FORCE AS IT IS NOW", " ".join(subject.site.unread_options.split())),
        ("NOT IN FORCE AS IT IS NOW", " ".join(subject.site.unread_settings.split())),
    ]
    return lines([*(f"# {name}: {value}" for name, value in pairs if value), str(subject.site.settings)])


def prune_preview(subject: Subject) -> str:
    """What would go, one object a line, and the token that removes exactly that."""
    site = subject.site
    plan = site.prune.preview(site.prune_kinds)
    listed = [f"{item.kind.value}\t{item.name}\t{item.id}\t{item.why}" for item in plan.items]
    spared = [f"# pinned, stays: {item.kind.value}\t{item.name}" for item in plan.pinned]
    kinds = " ".join(sorted(kind.value for kind in plan.kinds))
    return lines([f"token: {plan.token}", f"kinds: {kinds}", *listed, *spared])


def _forest(subject: Subject) -> list[Item]:
    figures = subject.site.sizes.all()

    def own(layer_id: str) -> int | None:
        found = figures.get(("layers", layer_id))
        return found.exclusive if found else None

    return forest(subject.site.now.catalog, own)


def graph_dot(subject: Subject) -> str:
    """The layer graph for Graphviz."""
    return dot(_forest(subject))


def graph_svg(subject: Subject) -> str:
    """The layer graph as a picture."""
    return svg(_forest(subject))
