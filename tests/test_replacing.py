"""Contents that wait for a commit, and what of a file is shared with the one it replaces."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from drivers import btrfs_commits, btrfs_ioctl, syscalls
from store import durable
from store.durable import file_state
from store.replacing import Kept, prepare, publish, replace_file, secure, settle

PIECE = 64 << 10
"""What is shared is shared in such pieces."""


def secured_without_commit(directory: Path) -> bool:
    """Whether content that a commit had is secured without another one, though there is what to commit."""
    made = prepare(directory / "file", b"", lambda: b"content")
    settle([made])
    btrfs_ioctl.commit(directory)
    (directory / "more").write_bytes(os.urandom(8))
    running = btrfs_ioctl.filesystem_info(directory).generation
    assert made.commit is not None
    assert 0 < made.commit <= running
    secure([made])
    unchanged = btrfs_ioctl.filesystem_info(directory).generation == running
    publish([made], lambda _: None)
    assert (directory / "file").read_bytes() == b"content"
    return unchanged


def test_settled_content_is_secured_by_any_later_commit_and_by_no_second_one(btrfs_dir):
    # the kernel may commit at any moment by itself, though hardly every time
    assert any(secured_without_commit(btrfs_dir) for _ in range(10))


def test_content_settles_at_once_where_nothing_is_committed_together(ext4_dir):
    made = prepare(ext4_dir / "file", b"", lambda: b"content")
    assert not btrfs_commits.commits(made.fd)
    settle([made])
    assert made.commit == 0
    secure([made])
    publish([made], lambda _: None)
    assert made.fd == -1
    assert (ext4_dir / "file").read_bytes() == b"content"


@pytest.mark.parametrize("home", ["btrfs_dir", "ext4_dir"])
@pytest.mark.parametrize("size", [0, 10, 3 * PIECE, 3 * PIECE + 7])
def test_what_is_kept_stays_and_the_tail_follows(request, home, size):
    path: Path = request.getfixturevalue(home) / "file"
    old = os.urandom(size + 100)
    path.write_bytes(old)
    kept = Kept(path, file_state(path), size)
    made = prepare(path, b"tail", lambda: old[:size] + b"tail", kept=kept)
    assert made.state == file_state(made.temporary)
    replace_file(made)
    assert path.read_bytes() == old[:size] + b"tail"
    assert made.state == file_state(path)
    assert not list(path.parent.glob(".tmp-*"))
    assert path.stat().st_mode & 0o777 == 0o600


def test_nothing_is_kept_of_a_file_that_changed(btrfs_dir):
    path = btrfs_dir / "file"
    path.write_bytes(b"a" * 3 * PIECE)
    kept = Kept(path, file_state(path), 3 * PIECE)
    path.write_bytes(b"b" * 3 * PIECE)
    os.utime(path, ns=(1, 1))
    replace_file(prepare(path, b"tail", lambda: b"whole", kept=kept))
    assert path.read_bytes() == b"whole"


def shared_after(path: Path, size: int) -> int:
    """Bytes of a file that are still those of another after a save that keeps ``size`` of them."""
    old = path.read_bytes()
    made = prepare(path, b"tail", lambda: old[:size] + b"tail", kept=Kept(path, file_state(path), size))
    os.fdatasync(made.fd)
    shared = sum(extent.length for extent in syscalls.extents(made.fd) if extent.shared)
    replace_file(made)
    assert path.read_bytes() == old[:size] + b"tail"
    return shared


def test_only_whole_pieces_are_shared_so_that_a_growing_file_has_few(btrfs_dir):
    path = btrfs_dir / "file"
    path.write_bytes(os.urandom(4 * PIECE))
    durable.sync_filesystem(btrfs_dir)
    assert shared_after(path, 3 * PIECE + 20_000) == 3 * PIECE


def test_what_has_many_pieces_is_written_as_one_again(btrfs_dir):
    path = btrfs_dir / "file"
    with path.open("wb", buffering=0) as file:
        for number in reversed(range(40)):  # no piece is beside its neighbour
            os.pwrite(file.fileno(), os.urandom(8192), number * 8192)
            os.fdatasync(file.fileno())
        assert btrfs_commits.extents(file.fileno()) > 16
    assert shared_after(path, 39 * 8192) == 0
    with path.open("rb") as file:
        assert btrfs_commits.extents(file.fileno()) <= 2
