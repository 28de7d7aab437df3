"""A store that podman and buildah filled, and small helpers of the tests that look at it through a mount."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.tools import StoreDirs, Tool

BASE = "localhost/base:1"
TOP = "localhost/top:1"
CONTAINER = "made-by-podman"


def fill(podman: Tool, buildah: Tool, rootfs_tar: Path, store_dirs: StoreDirs) -> StoreDirs:
    """A one-layer and a two-layer image and a container, all made by podman and buildah."""
    podman("import", rootfs_tar, BASE)
    work = buildah("from", "--name", "work", BASE).stdout.strip()
    buildah("copy", work, rootfs_tar, "/srv/rootfs.tar")
    buildah("config", "--label", "made=by-buildah", work)
    buildah("commit", "--rm", work, TOP)
    podman("create", "--name", CONTAINER, TOP, "true")
    return store_dirs


def errno_of(call: Callable[..., object], *args: object) -> int:
    """The errno with which a call fails."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 (the number is the caller's to check)
        call(*args)
    assert caught.value.errno is not None
    return caught.value.errno


def errname_of(call: Callable[..., object], *args: object) -> str:
    """The name of the errno with which a call fails."""
    return errno.errorcode[errno_of(call, *args)]


def write(path: Path, text: str, mode: str = "w") -> None:
    """``echo TEXT > path``."""
    with open(path, mode) as file:
        file.write(text)


def eventually(check: Callable[[], bool], seconds: float = 15.0) -> bool:
    """Whether ``check`` comes true in time."""
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
