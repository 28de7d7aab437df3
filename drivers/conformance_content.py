"""Conformance: what layers contain, and that a child is a copy of its parent."""

from __future__ import annotations

import os
from pathlib import Path

from drivers import conformance_trees as trees
from drivers.conformance_harness import BASE, CHILD, Harness, check
from drivers.conformance_trees import Step, census

CHAIN = 128


def _follow(harness: Harness, base: Step, child: Step | None = None) -> None:
    """A base layer and a child that changes it: both equal the oracle, and the base stays as it was."""
    harness.driver.create(BASE)
    harness.apply(BASE, base)
    harness.same(BASE)
    before = census(harness.oracle)
    harness.driver.create(CHILD, BASE)
    harness.same(CHILD)
    if child is not None:
        harness.apply(CHILD, child)
        harness.same(CHILD)
        harness.same(BASE, before)


@check()
def base_layer_is_empty_with_root_mode_0555(harness: Harness) -> None:
    """A layer without a parent holds nothing; its root has mode 0555 and belongs to root."""
    harness.driver.create(BASE)
    with harness.driver.mounted(BASE) as root:
        assert not list(root.iterdir())
    harness.oracle.chmod(0o555)
    root_fact = harness.census(BASE)[b"."]
    assert (root_fact.mode, root_fact.owner) == (0o555, (0, 0))


@check()
def files_modes_owners_and_times_are_inherited_and_diverge(harness: Harness) -> None:
    """A child equals its parent, then only itself changes."""
    _follow(harness, trees.plain_files, trees.edits)


@check()
def links_and_awkward_names_are_inherited_and_diverge(harness: Harness) -> None:
    """Hard and symbolic links, 255-byte, non-UTF-8 and shell-hostile names."""
    _follow(harness, trees.links_and_names, trees.relinked)


@check()
def special_files_are_inherited(harness: Harness) -> None:
    """FIFOs, sockets and devices."""
    _follow(harness, trees.special_files, lambda root: (root / "fifo").unlink())


@check()
def extended_attributes_acls_and_capabilities_are_inherited(harness: Harness) -> None:
    """Attributes of every namespace, access and default ACLs, file capabilities."""

    def change(root: Path) -> None:
        os.removexattr(root / "attributes", "user.note")
        os.setxattr(root / "attributes", "system.posix_acl_access", trees.acl(user=5, group=6))
        os.setxattr(root / "directory", "user.more", b"later")

    _follow(harness, trees.extended_attributes, change)


@check()
def sparse_files_stay_sparse(harness: Harness) -> None:
    """Holes are holes in the child too."""
    _follow(harness, trees.sparse_files)
    assert harness.census(CHILD)[b"hole"].sparse


@check()
def trees_deeper_than_path_max_are_inherited_and_removed(harness: Harness) -> None:
    """No operation depends on path length or recursion depth."""
    _follow(harness, trees.deep_tree)
    for layer_id in (CHILD, BASE):
        harness.driver.remove(layer_id)
    assert not list(harness.driver.layer_ids())


@check()
def chain_of_128_layers_shows_every_layers_work(harness: Harness) -> None:
    """Each of 128 layers adds, changes and deletes; the top shows the sum, the first only its own."""
    parent = None
    for number in range(CHAIN):
        layer_id = f"{number:064x}"
        harness.driver.create(layer_id, parent)
        harness.apply(layer_id, _link_of_chain(number))
        parent = layer_id
    harness.same(f"{CHAIN - 1:064x}")
    with harness.driver.mounted(f"{0:064x}") as root:
        assert sorted(entry.name for entry in root.iterdir()) == ["counter", "file0"]


def _link_of_chain(number: int) -> Step:
    def step(root: Path) -> None:
        (root / f"file{number}").write_text(str(number))
        (root / "counter").write_text(str(number))
        if number >= 3 and number % 3 == 0:
            (root / f"file{number - 2}").unlink()

    return step


@check()
def siblings_do_not_see_each_other(harness: Harness) -> None:
    """Two children of one parent are independent."""
    harness.driver.create(BASE)
    for sibling in ("one", "two"):
        harness.driver.create(sibling, BASE)
        with harness.driver.mounted(sibling) as root:
            (root / sibling).touch()
    for sibling in ("one", "two"):
        with harness.driver.mounted(sibling) as root:
            assert [entry.name for entry in root.iterdir()] == [sibling]


@check()
def read_write_layer_is_made_like_any_other(harness: Harness) -> None:
    """A container's layer inherits and diverges as any other."""
    harness.driver.create(BASE)
    harness.apply(BASE, trees.plain_files)
    harness.driver.create_read_write(CHILD, BASE)
    harness.same(CHILD)
    harness.apply(CHILD, trees.edits)
    harness.same(CHILD)


@check()
def layer_from_a_template_equals_the_template(harness: Harness) -> None:
    """The template's content counts, not the parent's."""
    harness.driver.create(BASE)
    harness.driver.create(CHILD, BASE)
    harness.apply(CHILD, trees.plain_files, trees.extended_attributes)
    harness.driver.create_from_template("copy", CHILD, BASE)
    harness.same("copy")


@check()
def another_driver_object_sees_the_same_layers(harness: Harness) -> None:
    """All state is on disk."""
    harness.driver.create(BASE)
    harness.apply(BASE, trees.plain_files)
    harness.driver.cleanup()
    harness.driver = harness.open()
    assert list(harness.driver.layer_ids()) == [BASE]
    harness.same(BASE)
