"""Conformance: ID mappings, snapshots and quotas."""

from __future__ import annotations

import os

from drivers import conformance_trees as trees
from drivers.base import Creation, MountOptions
from drivers.conformance_harness import BASE, CHILD, SHIFTED, Harness, check, raises
from drivers.conformance_trees import census, difference
from drivers.errors import (
    BadLayerID,
    BadOption,
    LayerExists,
    LayerMounted,
    LayerUnknown,
    SnapshotExists,
    SnapshotUnknown,
)
from drivers.idmap import IDMappings


@check()
def rewriting_owners_keeps_modes_capabilities_and_acls(harness: Harness) -> None:
    """Owners move, and ACL entries with them; nothing else does; back again is the identity."""
    harness.driver.create(BASE)
    harness.apply(BASE, trees.plain_files, trees.extended_attributes, trees.links_and_names)
    before = harness.census(BASE)
    harness.driver.update_id_map(BASE, IDMappings(), SHIFTED)
    after = harness.census(BASE)
    for path, fact in before.items():
        uid, gid = fact.owner
        assert after[path].owner == (uid + 200000, gid + 300000), path
        assert (after[path].mode, after[path].content) == (fact.mode, fact.content), path
        assert after[path].links == fact.links, path
    assert dict(after[b"tool"].xattrs) == dict(before[b"tool"].xattrs)
    named = dict(after[b"attributes"].xattrs)["system.posix_acl_access"]
    assert named == trees.acl(user=201000, group=301001)
    harness.driver.update_id_map(BASE, SHIFTED, IDMappings())
    assert not difference(harness.census(BASE), before)


@check()
def template_with_other_mappings_is_shifted(harness: Harness) -> None:
    """A layer made for other mappings has their owners."""
    harness.driver.create(BASE)
    harness.apply(BASE, trees.plain_files)
    harness.driver.create_from_template(
        CHILD, BASE, creation=Creation(mappings=SHIFTED), template_mappings=IDMappings()
    )
    shifted, plain = harness.census(CHILD), harness.census(BASE)
    assert {path: fact.owner for path, fact in shifted.items()} == {
        path: (fact.owner[0] + 200000, fact.owner[1] + 300000) for path, fact in plain.items()
    }
    assert shifted[b"file3"].mode == 0o4755


@check()
def base_layer_with_mappings_belongs_to_their_root(harness: Harness) -> None:
    """The root directory belongs to the mapped root user."""
    harness.driver.create(BASE, creation=Creation(mappings=SHIFTED))
    assert harness.census(BASE)[b"."].owner == (200000, 300000)


@check("shifting")
def mount_with_mappings_shifts_owners_both_ways(harness: Harness) -> None:
    """A shifted mount shows and stores owners through the mapping."""
    if not harness.driver.supports_shifting():
        return
    harness.driver.create(BASE)
    harness.apply(BASE, trees.plain_files)
    mount = MountOptions(mappings=SHIFTED)
    with harness.driver.mounted(BASE, mount) as root:
        status = os.stat(root / "file1")
        assert (status.st_uid, status.st_gid) == (200001, 300101)
        os.chown(root / "d0" / "inside", 200042, 300043)
        with raises(LayerMounted):
            harness.driver.remove(BASE)
    assert harness.census(BASE)[b"d0/inside"].owner == (42, 43)
    harness.driver.remove(BASE)


# -- snapshots and quotas ------------------


@check("snapshots")
def layer_set_aside_comes_back_as_it_was(harness: Harness) -> None:
    """Set aside it is no layer; keys are unique; taken back it is the same; discarded it is gone."""
    driver, aside = harness.driver, harness.driver.aside()
    driver.create(BASE)
    harness.apply(BASE, trees.plain_files, trees.extended_attributes, trees.links_and_names)
    then = census(harness.oracle)
    aside.put(BASE, "entry/base")
    assert not driver.exists(BASE)
    assert list(aside.keys()) == ["entry/base"]
    assert not difference(census(aside.path("entry/base")), then)
    driver.create(BASE)
    with raises(LayerExists):
        aside.take_back("entry/base", BASE)
    with raises(LayerExists):
        aside.put(BASE, "entry/base")
    driver.remove(BASE)
    aside.take_back("entry/base", BASE)
    harness.same(BASE, then)
    aside.put(BASE, "entry/base")
    aside.discard("entry/base")
    for call in (aside.discard, lambda key: aside.take_back(key, BASE)):
        with raises(LayerUnknown):
            call("entry/base")
    assert list(aside.keys()) == []


@check("snapshots")
def snapshot_holds_what_was_there(harness: Harness) -> None:
    """Taken, compared after changes, refused to writers, copied to a layer, and restored."""
    snapshots = harness.driver.snapshots()
    harness.driver.create(BASE)
    harness.apply(BASE, trees.plain_files, trees.extended_attributes, trees.links_and_names)
    then = census(harness.oracle)
    snapshots.take(BASE, "container/first")
    harness.apply(BASE, trees.edits)
    assert not difference(census(snapshots.path("container/first")), then)
    with raises(OSError):
        (snapshots.path("container/first") / "new").touch()
    snapshots.create_layer("container/first", CHILD)
    harness.same(CHILD, then)
    snapshots.restore("container/first", BASE)
    harness.same(BASE, then)
    with harness.driver.mounted(BASE) as root:
        (root / "writable again").touch()
    assert set(harness.driver.layer_ids()) == {BASE, CHILD}


@check("snapshots")
def snapshots_are_listed_renamed_and_removed(harness: Harness) -> None:
    """Keys of one and two components."""
    snapshots = harness.driver.snapshots()
    harness.driver.create(BASE)
    for key in ("a/one", "a/two", "single"):
        snapshots.take(BASE, key)
    snapshots.rename("a/one", "a/three")
    snapshots.rename("a/two", "b/two")
    assert set(snapshots.keys()) == {"a/three", "b/two", "single"}
    assert snapshots.exists("b/two")
    assert not snapshots.exists("a/one")
    for key in ("a/three", "b/two", "single"):
        snapshots.remove(key)
    assert not list(snapshots.keys())
    assert list(harness.driver.layer_ids()) == [BASE]


@check("snapshots")
def impossible_snapshot_requests_are_refused(harness: Harness) -> None:
    """Taken and missing keys, missing layers, keys that are no paths."""
    snapshots = harness.driver.snapshots()
    harness.driver.create(BASE)
    snapshots.take(BASE, "c/s")
    snapshots.take(BASE, "c/t")
    with raises(SnapshotExists):
        snapshots.take(BASE, "c/s")
    with raises(SnapshotExists):
        snapshots.rename("c/s", "c/t")
    with raises(LayerUnknown):
        snapshots.take("missing", "c/u")
    for call in (snapshots.remove, snapshots.path):
        with raises(SnapshotUnknown):
            call("c/missing")
    for bad in ("", "a/", "/a", "..", "a/..", "a/b/c", "a\0"):
        with raises(BadLayerID):
            snapshots.take(BASE, bad)
    assert set(snapshots.keys()) == {"c/s", "c/t"}


@check("snapshots")
def generation_moves_with_changes_only(harness: Harness) -> None:
    """Equal generations mean equal content."""
    snapshots = harness.driver.snapshots()
    harness.driver.create(BASE)
    first = snapshots.generation(BASE)
    assert snapshots.generation(BASE) == first
    harness.driver.create(CHILD)
    with harness.driver.mounted(CHILD) as root:
        (root / "elsewhere").touch()
    assert snapshots.generation(BASE) == first
    with harness.driver.mounted(BASE) as root:
        (root / "here").write_text("x")
    assert snapshots.generation(BASE) > first


@check("quota")
def limited_layer_cannot_grow_beyond_its_size(harness: Harness) -> None:
    """Writing past the limit fails, and a size that is none is refused."""
    limited = Creation(storage_opts={"size": "8m"})
    harness.driver.create_read_write(CHILD, creation=limited)
    with harness.driver.mounted(CHILD) as root:
        (root / "fits").write_bytes(os.urandom(1 << 20))
        with raises(OSError), (root / "too much").open("wb") as file:
            for _ in range(32):
                file.write(os.urandom(1 << 20))
                file.flush()
                os.fsync(file.fileno())
    assert harness.driver.limit(CHILD) == 8 << 20
    harness.driver.set_limit(CHILD, 0)
    assert harness.driver.limit(CHILD) == 0
    with harness.driver.mounted(CHILD) as root:
        (root / "fits now").write_bytes(os.urandom(16 << 20))
    for bad in ("8 elephants", "-1", "1e9", "99999999t"):
        with raises(BadOption):
            harness.driver.create("other", creation=Creation(storage_opts={"size": bad}))
    harness.driver.remove(CHILD)
