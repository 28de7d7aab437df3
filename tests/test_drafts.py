"""Drafts: the first write to an image goes to a container made from it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from tests.support.filled import TOP, errname_of, write
from tests.support.trees import snapshot_tree


def test_first_write_to_an_image_opens_its_draft(tree):
    image = tree.path / "images" / TOP
    before = snapshot_tree(image / "rootfs")
    assert (image / "on-write").read_text() == "deny\n"
    assert errname_of(write, image / "rootfs/etc/hostname", "x") == "EROFS"
    write(image / "on-write", "draft\n")
    assert (image / "on-write").read_text() == "draft\n"
    assert snapshot_tree(image / "rootfs") == before
    assert "draft-top-1" not in os.listdir(tree.path / "containers")
    write(image / "rootfs/etc/hostname", "drafted\n")
    assert (image / "on-write").read_text() == "draft containers/draft-top-1\n"
    draft = tree.path / "containers/draft-top-1"
    assert (draft / "rootfs/etc/hostname").read_text() == "drafted\n"
    assert snapshot_tree(image / "layer/rootfs") == before
    write(draft / "commit", "localhost/drafted:1")
    assert (tree.path / "images/localhost/drafted:1/rootfs/etc/hostname").read_text() == "drafted\n"
    assert (image / "on-write").read_text() == "draft\n"
    assert snapshot_tree(image / "rootfs") == before
    assert errname_of(write, image / "on-write", "perhaps") == "EINVAL"


def test_removal_of_a_draft_shows_the_image_again_and_another_write_opens_another(tree):
    image = tree.path / "images" / TOP
    before = snapshot_tree(image / "rootfs")
    write(image / "on-write", "draft")
    for number in range(2):
        write(image / f"rootfs/etc/{number}", "drafted")
        assert snapshot_tree(image / "rootfs") != before
        (tree.path / "containers/draft-top-1").rmdir()
        assert snapshot_tree(image / "rootfs") == before
    write(image / "on-write", "deny")
    assert errname_of(write, image / "rootfs/etc/hostname", "x") == "EROFS"
    assert snapshot_tree(image / "layer/rootfs") == before


def test_first_writers_of_an_image_at_once_share_one_draft(tree):
    image = tree.path / "images" / TOP
    write(image / "on-write", "draft")
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: write(image / f"rootfs/etc/{number}.swp", str(number)), range(16)))
    drafts = [name for name in os.listdir(tree.path / "containers") if name.startswith("draft-")]
    assert drafts == ["draft-top-1"]
    for root in (image / "rootfs", tree.path / "containers/draft-top-1/rootfs"):
        assert all((root / f"etc/{number}.swp").read_text() == str(number) for number in range(16))
    assert not list((image / "layer/rootfs/etc").glob("*.swp"))


def test_what_was_open_in_an_image_goes_over_to_its_draft(tree):
    image = tree.path / "images" / TOP
    write(image / "on-write", "draft")
    directory = os.open(image / "rootfs/etc", os.O_RDONLY | os.O_DIRECTORY)
    with open(image / "rootfs/etc/hostname", "rb", buffering=0) as file:
        number = os.fstat(file.fileno()).st_ino
        content = file.read()
        made = os.open("made", os.O_CREAT | os.O_WRONLY, dir_fd=directory)
        os.write(made, b"in the draft")
        os.close(made)
        assert os.pread(file.fileno(), 100, 0) == content
        changed = os.open("hostname", os.O_WRONLY | os.O_APPEND, dir_fd=directory)
        os.write(changed, b"more")
        os.close(changed)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(file.fileno(), 100, 0) == content + b"more"
        assert os.stat(image / "rootfs/etc/hostname").st_ino == number
    assert "made" in os.listdir(directory)
    os.close(directory)
    os.utime(image / "rootfs/etc/hostname", (1, 1))
    assert (tree.path / "containers/draft-top-1/rootfs/etc/made").read_text() == "in the draft"
    assert "made" not in os.listdir(image / "layer/rootfs/etc")
