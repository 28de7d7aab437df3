"""What the mount looks like, as data: every entry's name and the function that makes its content."""

from __future__ import annotations

from fsd import render as r
from fsd.bigdata import BigData
from fsd.children import Children
from fsd.compared import CHANGES, DIFF, DIFF_OF_LAYER, DiffTable
from fsd.control import (
    commit_to,
    fill_from,
    roll_back,
    set_limit,
    set_metadata,
    set_names,
    set_pinned,
    set_snapshot_pinned,
)
from fsd.images import IMAGE_TAR, Layout
from fsd.nodes import Directory, Flag, Link, Many, Node, RealTree, SlowText, Text
from fsd.site import Site, Subject
from fsd.snapshots import SnapshotTable
from fsd.tables import Table

LINK = Link(lambda s: s.path)
PINNED = Flag(r.pinned_ns, set_pinned)
BIG_DATA = BigData()

LAYER = Directory(
    {
        "id": Text(lambda s: s.id),
        "names": Text(lambda s: r.lines(s.record.names), set_names),
        "parent": Link(r.parent_path),
        "children": Children(),
        "used-by": Many(r.used_by, LINK),
        "created": Text(lambda s: s.record.created),
        "metadata": Text(lambda s: s.record.metadata, set_metadata),
        "flags": Text(lambda s: r.as_json(dict(s.record.flags))),
        "mount-label": Text(lambda s: s.record.mount_label),
        "read-only": Text(lambda s: r.yes_no(s.record.read_only)),
        "diff-digest": Text(lambda s: s.record.diff_digest),
        "diff-size": Text(r.diff_size),
        "compressed-digest": Text(lambda s: s.record.compressed_digest),
        "compressed-size": Text(r.compressed_size),
        "compression": Text(r.compression),
        "uidmap": Text(lambda s: r.id_map(s.record.uidmap)),
        "gidmap": Text(lambda s: r.id_map(s.record.gidmap)),
        "mount-count": Text(lambda s: str(s.site.now.catalog.mount_count(s.id))),
        "json": Text(r.record_json),
        "path": Link(r.layer_directory),
        "big-data": BIG_DATA,
        "changes": CHANGES,
        "diff.tar": DIFF_OF_LAYER,
        "rootfs": RealTree(r.layer_view),
    }
)

IMAGE = Directory(
    {
        "id": Text(lambda s: s.id),
        "names": Text(lambda s: r.lines(s.record.names), set_names),
        "names-history": Text(lambda s: r.lines(s.record.names_history)),
        "digest": Text(lambda s: s.record.digest),
        "digests": Text(r.image_digests),
        "created": Text(lambda s: s.record.created),
        "metadata": Text(lambda s: s.record.metadata, set_metadata),
        "size": Text(r.image_size),
        "json": Text(r.record_json),
        "layer": Link(r.top_layer),
        "layers": Many(r.layer_chain, LINK),
        "mapped-layers": Many(r.mapped_layers, LINK),
        "containers": Many(r.containers_of_image, LINK),
        "big-data": BIG_DATA,
        "manifest.json": SlowText(r.manifest),
        "config.json": SlowText(r.image_config),
        "history": SlowText(r.image_history),
        "changes": CHANGES,
        "oci": Layout(),
        "image.tar": IMAGE_TAR,
        "pinned": PINNED,
        "rootfs": RealTree(r.image_view),
    },
    present={"rootfs": lambda s: bool(s.record.layer), "changes": lambda s: bool(s.record.layer)},
)

SNAPSHOT = Directory(
    {
        "created": Text(r.snapshot_created),
        "reason": Text(r.snapshot_reason),
        "pinned": Flag(r.snapshot_pinned_ns, set_snapshot_pinned),
        "changes": CHANGES,
        "rootfs": RealTree(r.snapshot_view),
    }
)

CONTAINER = Directory(
    {
        "id": Text(lambda s: s.id),
        "names": Text(lambda s: r.lines(s.record.names), set_names),
        "created": Text(lambda s: s.record.created),
        "metadata": Text(lambda s: s.record.metadata, set_metadata),
        "flags": Text(lambda s: r.as_json(dict(s.record.flags))),
        "json": Text(r.record_json),
        "image": Link(r.image_of_container),
        "layer": Link(r.top_layer),
        "from": Text(r.source_of_container, fill_from),
        "mount-count": Text(lambda s: str(s.site.now.catalog.mount_count(s.record.layer))),
        "uidmap": Text(lambda s: r.id_map(s.record.uidmap)),
        "gidmap": Text(lambda s: r.id_map(s.record.gidmap)),
        "path": Link(r.layer_directory),
        "limit": SlowText(r.limit, set_limit),
        "rollback": Text(lambda s: "", roll_back),
        "commit": Text(lambda s: "", commit_to),
        "pinned": PINNED,
        "changes": CHANGES,
        "diff.tar": DIFF,
        "big-data": BIG_DATA,
        "userdata": RealTree(r.userdata_view),
        "rundata": RealTree(r.rundata_view),
        "snapshots": SnapshotTable(SNAPSHOT),
        "rootfs": RealTree(r.container_view),
    },
    present={
        "limit": r.has_limits,
        "userdata": r.has_userdata,
        "rundata": r.has_rundata,
    },
)

ROOT = Directory(
    {
        "README": Text(lambda s: README),
        "layers": Table("layers", LAYER),
        "images": Table("images", IMAGE),
        "containers": Table("containers", CONTAINER),
        "diff": DiffTable(Directory({"changes": CHANGES, "diff.tar": DIFF})),
        "control": Directory(
            {
                "status": SlowText(r.status),
                "errors": Text(lambda s: str(s.site.errors)),
            }
        ),
    }
)

README = """\
fsd: container storage as files.

layers/<id>/             one directory per layer: metadata files, links to parent and children, rootfs
images/<name>:<tag>/     one per image: manifest.json, config.json, history, layers/, rootfs (read-only)
containers/<name>/       one per container: rootfs (writable), snapshots/, rollback, from
control/status, errors   what this mount is, and why the last operations were refused

Every name, ID, ID prefix (3 digits or more), digest and short image name also resolves:
cd containers/3f2

mkdir containers/NAME                    a new container with an empty rootfs
echo SOURCE > containers/NAME/from       fill it from an image, layer, container or CONTAINER/snapshots/NAME
rmdir containers/NAME                    remove it (also images/…, layers/…, unless something uses it)
mv containers/A containers/B             rename it
echo N > …/names    echo N >> …/names    set, or add, names
mkdir containers/X/snapshots/N           take a snapshot (rmdir deletes it, mv renames it)
echo N > containers/X/rollback           back to snapshot N; the state before is kept as a snapshot

The first write of a burst in a container's rootfs takes a snapshot before it lands.
Image, layer and snapshot views cannot be written (EROFS). After a refused operation read
control/errors, or: getfattr --only-values -n user.fsd.error PATH
"""


def root(site: Site) -> Node:
    """The root of a mount's tree."""
    return Node(ROOT, Subject(site), "/", "")
