"""Conformance: changes between layers, and layer archives out and in."""

from __future__ import annotations

import hashlib
import io
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from drivers import conformance_trees as trees
from drivers.base import ChangeKind
from drivers.conformance_archives import archive_of, layer_archive
from drivers.conformance_harness import BASE, CHILD, Harness, check
from drivers.conformance_trees import census, difference
from drivers.errors import DriverError


def _edited(harness: Harness) -> None:
    harness.driver.create(BASE)
    harness.apply(BASE, trees.plain_files)
    harness.driver.create(CHILD, BASE)
    with harness.driver.mounted(CHILD) as root:
        trees.edits(root)
    trees.edits(harness.oracle)


@check()
def changes_are_those_of_the_rules(harness: Harness) -> None:
    """Modified, added and deleted paths as FORMAT 6.2 defines them."""
    _edited(harness)
    found = {change.path: change.kind.value for change in harness.driver.changes(CHILD, BASE)}
    # Whether the root itself is listed is the one thing drivers of containers/storage differ in.
    wanted = {path: kind for path, kind in trees.EDITED.items() if path != b"/"}
    found.pop(b"/", None)
    assert found == wanted, sorted(found.items() ^ wanted.items())


@check()
def unchanged_child_has_no_changes(harness: Harness) -> None:
    """A fresh child differs in nothing."""
    harness.driver.create(BASE)
    harness.apply(BASE, trees.plain_files, trees.links_and_names, trees.special_files)
    harness.driver.create(CHILD, BASE)
    assert harness.driver.changes(CHILD, BASE) == []


@check()
def trees_compare_by_directory_like_layers(harness: Harness) -> None:
    """A comparison of two directories gives the changes, and the size of their archive beforehand."""
    _edited(harness)
    driver = harness.driver
    with driver.mounted(CHILD) as new, driver.mounted(BASE) as old, driver.compared(new, old) as found:
        changes = [change for change in driver.changes(CHILD, BASE) if change.path != b"/"]
        assert [change for change in found.changes if change.path != b"/"] == changes
        for _ in range(2):
            with found.archive() as archive:
                assert len(archive.read()) == found.archive_size()
    assert not driver.is_untouched(CHILD, BASE)


@check()
def layer_called_untouched_has_no_changes(harness: Harness) -> None:
    """A driver may not know that a copy was never written, but it must not be wrong."""
    driver = harness.driver
    driver.create(BASE)
    harness.apply(BASE, trees.plain_files)
    with driver.mounted(BASE) as root:
        os.sync()
    driver.create(CHILD, BASE)
    if driver.is_untouched(CHILD, BASE):
        assert driver.changes(CHILD, BASE) == []
    with driver.mounted(CHILD) as root:
        (root / "written").write_bytes(b"x")
    assert not driver.is_untouched(CHILD, BASE)


@check()
def base_layers_changes_are_all_additions(harness: Harness) -> None:
    """Without a parent everything is added."""
    harness.driver.create(BASE)
    harness.apply(BASE, trees.plain_files)
    changes = harness.driver.changes(BASE, None)
    assert {change.kind for change in changes} == {ChangeKind.ADDED}
    wanted = {b"/" + path for path in harness.census(BASE) if path != b"."}
    assert {change.path for change in changes} == wanted


@check()
def diff_applied_to_the_parent_gives_the_same_tree(harness: Harness) -> None:
    """A diff carries all that changed, and its digests are true."""
    harness.driver.create(BASE)
    harness.apply(BASE, trees.plain_files)
    harness.driver.create(CHILD, BASE)
    harness.apply(CHILD, trees.edits, when=trees.EPOCH + 1000)
    with harness.driver.diff(CHILD, BASE) as stream:
        archive = stream.read()
    harness.driver.create("copy", BASE)
    applied = harness.driver.apply_diff("copy", io.BytesIO(archive))
    assert applied.diff_digest == "sha256:" + hashlib.sha256(archive).hexdigest()
    assert applied.diff_size == len(archive)
    _same_but_for_root_time(harness, "copy")


@check()
def diff_of_a_base_layer_rebuilds_it(harness: Harness) -> None:
    """A base layer's archive rebuilds it from nothing."""

    def build(root: Path) -> None:
        for step in (trees.plain_files, trees.links_and_names, trees.extended_attributes):
            step(root)
        os.mkfifo(root / "fifo")
        os.mknod(root / "null", 0o020666, os.makedev(1, 3))
        # containers/storage archives only security.capability and user attributes.
        os.removexattr(root / "attributes", "trusted.note")
        for name, kind in (("attributes", "access"), ("directory", "default")):
            os.removexattr(root / name, f"system.posix_acl_{kind}")

    harness.driver.create(BASE)
    harness.apply(BASE, build)
    harness.driver.create("copy")
    with harness.driver.diff(BASE, None) as stream:
        harness.driver.apply_diff("copy", stream)
    _same_but_for_root_time(harness, "copy")


def _same_but_for_root_time(harness: Harness, layer_id: str) -> None:
    """Archives need not carry the root directory, whose time moves when they are unpacked."""
    found, wanted = harness.census(layer_id), census(harness.oracle)
    wanted[b"."] = replace(wanted[b"."], mtime_ns=found[b"."].mtime_ns)
    text = difference(found, wanted)
    assert not text, text


@check()
def archive_with_whiteouts_is_applied(harness: Harness) -> None:
    """Whiteouts and opaque directories delete, compression is undone, digests are of both forms."""
    harness.driver.create(BASE)
    harness.apply(BASE, trees.plain_files)
    harness.driver.create(CHILD, BASE)
    raw, packed = layer_archive(), layer_archive("gz")
    applied = harness.driver.apply_diff(CHILD, io.BytesIO(packed))
    assert applied.diff_digest == "sha256:" + hashlib.sha256(raw).hexdigest()
    assert applied.compressed_digest == "sha256:" + hashlib.sha256(packed).hexdigest()
    assert (applied.diff_size, applied.compressed_size) == (len(raw), len(packed))
    with harness.driver.mounted(CHILD) as root:
        assert not (root / "file0").exists()
        assert [entry.name for entry in (root / "d0").iterdir()] == ["fresh"]
        assert (root / "new").read_text() == "new file"
        assert (root / "new").stat().st_uid == 11


@check()
def diff_size_counts_the_changed_content(harness: Harness) -> None:
    """Bytes of changed files only."""
    harness.driver.create(BASE)
    harness.apply(BASE, trees.plain_files)
    harness.driver.create(CHILD, BASE)
    with harness.driver.mounted(CHILD) as root:
        (root / "one").write_bytes(bytes(100_000))
        (root / "d0" / "two").write_bytes(bytes(23))
        (root / "file1").unlink()
    assert harness.driver.diff_size(CHILD, BASE) == 100_023


@check()
def archive_reaching_outside_changes_nothing_outside(harness: Harness) -> None:
    """Neither ``..`` nor planted links lead out of a layer."""
    victim = harness.graphroot.parent / "victim"
    victim.mkdir()
    (victim / "file").write_text("untouched")
    up = "../" * 40 + str(victim).lstrip("/")
    entries = [(f"{up}/file", "overwritten"), ("link", f"-> {victim}"), ("link/file", "through the link")]
    for entry in entries[:1], entries[1:]:
        harness.driver.create(CHILD)
        with suppress(DriverError, OSError):
            harness.driver.apply_diff(CHILD, io.BytesIO(archive_of(entry)))
        harness.driver.remove(CHILD)
        assert (victim / "file").read_text() == "untouched"
        assert [entry.name for entry in victim.iterdir()] == ["file"]
