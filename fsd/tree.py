"""What the mount looks like, as data: every entry's name and the function that makes its content."""

from __future__ import annotations

from fsd import drafts
from fsd import render as r
from fsd.bigdata import BigData
from fsd.children import Children
from fsd.compared import CHANGES, DIFF, DIFF_OF_LAYER, DiffTable
from fsd.control import (
    choose_prune,
    commit_to,
    fill_from,
    roll_back,
    run_prune,
    set_limit,
    set_metadata,
    set_names,
    set_on_write,
    set_pinned,
    set_snapshot_pinned,
)
from fsd.events import EventFile
from fsd.health import health
from fsd.images import IMAGE_TAR, Layout
from fsd.metrics import metrics
from fsd.nodes import Directory, Flag, FreeText, Link, Many, Node, RealTree, SlowText, Text, UnseenText
from fsd.removed import (
    OrphanTable,
    Removed,
    TrashTable,
    broken_records,
    broken_text,
    expires,
    has_tree,
    moment,
    orphan_size,
    orphan_view,
    pin_trash,
    trash_pinned_ns,
    trash_view,
    what,
)
from fsd.site import Site, Subject
from fsd.snapshots import SnapshotDirectory, SnapshotTable
from fsd.tables import Table
from store.locks import locks

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
        "metadata": FreeText(lambda s: s.record.metadata, set_metadata),
        "flags": Text(r.flags, length=r.flags_length),
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
        "size": Text(r.size),
        "exclusive": Text(r.exclusive),
        "measured": Text(r.measured),
        "json": Text(r.record_json, length=r.record_json_length),
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
        "metadata": FreeText(lambda s: s.record.metadata, set_metadata),
        "size": Text(r.image_size),
        "json": Text(r.record_json, length=r.record_json_length),
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
        "on-write": Text(drafts.on_write, drafts.set_on_write),
        "pinned": PINNED,
        "rootfs": RealTree(r.image_view),
    },
    present={"rootfs": lambda s: bool(s.record.layer), "changes": lambda s: bool(s.record.layer)},
)

SNAPSHOT = SnapshotDirectory(
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
        "metadata": FreeText(lambda s: s.record.metadata, set_metadata),
        "flags": Text(r.flags, length=r.flags_length),
        "json": Text(r.record_json, length=r.record_json_length),
        "image": Link(r.image_of_container),
        "layer": Link(r.top_layer),
        "from": Text(r.source_of_container, fill_from),
        "mount-count": Text(lambda s: str(s.site.now.catalog.mount_count(s.record.layer))),
        "uidmap": Text(lambda s: r.id_map(s.record.uidmap)),
        "gidmap": Text(lambda s: r.id_map(s.record.gidmap)),
        "path": Link(r.layer_directory),
        "limit": UnseenText(r.limit, set_limit),
        "size": Text(r.size),
        "exclusive": Text(r.exclusive),
        "measured": Text(r.measured),
        "on-write": Text(r.on_write, set_on_write),
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

TRASH = Removed(
    {
        "what": SlowText(what),
        "removed": SlowText(lambda s: moment(s.entry.removed_ns)),
        "expires": SlowText(expires),
        "pinned": Flag(trash_pinned_ns, pin_trash),
        "rootfs": RealTree(trash_view),
    },
    present={"rootfs": has_tree},
)

ORPHAN = Directory(
    {
        "reason": SlowText(lambda s: s.orphan.reason),
        "size": SlowText(orphan_size),
        "since": SlowText(lambda s: moment(s.orphan.born_ns)),
        "rootfs": RealTree(orphan_view),
    },
    present={"rootfs": lambda s: s.orphan.path is not None},
)

ROOT = Directory(
    {
        "README": Text(lambda s: README),
        "layers": Table("layers", LAYER),
        "images": Table("images", IMAGE),
        "containers": Table("containers", CONTAINER),
        "diff": DiffTable(Directory({"changes": CHANGES, "diff.tar": DIFF})),
        "trash": TrashTable(TRASH),
        "orphans": OrphanTable(ORPHAN),
        "broken": Many(broken_records, Text(broken_text)),
        "control": Directory(
            {
                "status": SlowText(r.status),
                "health": SlowText(lambda s: health(s.site)),
                "metrics": SlowText(lambda s: metrics(s.site)),
                "errors": Text(lambda s: str(s.site.errors)),
                "locks": SlowText(lambda s: r.lines(map(str, locks(s.site.store)))),
                "config": Text(r.config),
                "graph.dot": SlowText(r.graph_dot),
                "graph.svg": SlowText(r.graph_svg),
                "prune": Directory(
                    {
                        "preview": SlowText(r.prune_preview, choose_prune),
                        "run": Text(lambda s: "", run_prune),
                    }
                ),
                "events": EventFile(),
            }
        ),
    }
)

README = """\
fsd: container storage as files.

layers/<id>/             metadata files, links to parent and children, changes, diff.tar, rootfs (read-only)
images/<name>:<tag>/     manifest.json, config.json, history, layers/, oci/, image.tar, rootfs (read-only)
containers/<name>/       rootfs (writable), snapshots/, changes, diff.tar, from, rollback, commit, limit
diff/A..B/               what B changes against A: any two layers, images, containers, CONTAINER@SNAPSHOT
trash/  orphans/         what was removed lately; content that nothing names, and why
control/                 status health errors metrics events locks config prune/ graph.svg

Every name, ID, ID prefix (3 digits or more), digest and short image name also resolves:
cd containers/3f2

mkdir containers/NAME                    a new container with an empty rootfs
echo SOURCE > containers/NAME/from       fill it from an image, layer, container or CONTAINER/snapshots/NAME
rmdir containers/NAME                    remove it to the trash (also images/…, layers/…, unless used)
mv trash/X containers/NAME               bring it back; rmdir trash/X purges it
mv containers/A containers/B             rename it
echo N > …/names    echo N >> …/names    set, or add, names
ln -s IMAGE images/NAME:TAG              a further name; rm takes it away
mkdir containers/X/snapshots/N           take a snapshot (rmdir deletes it, mv renames it)
echo N > containers/X/rollback           back to snapshot N; the state before is kept as a snapshot
echo NAME:TAG > containers/X/commit      make an image of it
echo 10G > containers/X/limit            bound its size; 0 lifts the limit
touch …/pinned                           protect an image or container; rm …/pinned ends that
mkdir layers/N                           a new layer; cp layer.tar layers/N/diff.tar fills it
cp image.tar images/.import/ANY          load an image archive

The first write of a burst in a container's rootfs takes a snapshot before it lands
(echo none > on-write: it does not). echo draft > images/X/on-write lets the rootfs of an
image be written: the first write makes a container, which it shows from then on until that
is committed or removed; the image never changes. A running container writes past this
mount; a timer takes a snapshot of what changed every hour.
Image, layer and snapshot views cannot be written (EROFS). After a refused operation read
control/errors, or: getfattr --only-values -n user.fsd.error PATH
"""


def root(site: Site) -> Node:
    """The root of a mount's tree."""
    return Node(ROOT, Subject(site), "/", "")
