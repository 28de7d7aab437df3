"""An additional layer store (FORMAT 8.4) over FUSE: ``python -m tests.support.layer_store MOUNTPOINT LOG``.

It serves ``<DIGEST>/{diff/file,info,blob}`` and, for stores looked up by reference, the same below
``<BASE64>``. Uses and releases are answered with ENOENT and written to LOG, one word a line.
"""

from __future__ import annotations

import base64
import errno
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyfuse3
import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

DIGEST = "sha256:" + "5a" * 32
REFERENCE = "registry.example/image:1"
CONTENT = b"served by the layer store\n"
INFO = b'{"compressed-diff-digest":"sha256:' + b"5a" * 32 + b'","diff-size":1024}'
BLOB = b"the archive as it was distributed"


@dataclass
class Node:
    """A directory by its children, or a file by its content."""

    content: bytes = b""
    children: dict[bytes, Node] | None = None
    inode: int = field(default=0)


def tree() -> Node:
    """What the store serves."""
    reference = base64.b64encode(REFERENCE.encode())
    return Node(children={DIGEST.encode(): _layer(), reference: Node(children={DIGEST.encode(): _layer()})})


def _layer() -> Node:
    diff = Node(children={b"file": Node(CONTENT)})
    return Node(children={b"diff": diff, b"info": Node(INFO), b"blob": Node(BLOB)})


class Server(pyfuse3.Operations):
    """The tree as a read-only filesystem."""

    def __init__(self, log: Path) -> None:
        super().__init__()
        self._log = log
        self._nodes: dict[int, Node] = {}
        for number, node in enumerate(_walk(tree()), pyfuse3.ROOT_INODE):
            node.inode = number
            self._nodes[number] = node

    def _child(self, parent: int, name: bytes) -> Node:
        found = (self._nodes[parent].children or {}).get(name)
        if found is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return found

    def _attributes(self, node: Node) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        is_directory = node.children is not None
        entry.st_mode = stat.S_IFDIR | 0o755 if is_directory else stat.S_IFREG | 0o644
        entry.st_ino, entry.st_size, entry.st_nlink = node.inode, len(node.content), 1 + is_directory
        return entry

    async def lookup(self, parent_inode, name, ctx=None):  # type: ignore[no-untyped-def]
        return self._attributes(self._child(parent_inode, name))

    async def getattr(self, inode, ctx=None):  # type: ignore[no-untyped-def]
        return self._attributes(self._nodes[inode])

    async def opendir(self, inode, ctx):  # type: ignore[no-untyped-def]
        return inode

    async def readdir(self, fh, start_id, token):  # type: ignore[no-untyped-def]
        for number, (name, node) in enumerate((self._nodes[fh].children or {}).items()):
            if number >= start_id and not pyfuse3.readdir_reply(
                token, name, self._attributes(node), number + 1
            ):
                return

    async def open(self, inode, flags, ctx):  # type: ignore[no-untyped-def]
        return pyfuse3.FileInfo(fh=inode)

    async def read(self, fh, off, size):  # type: ignore[no-untyped-def]
        return self._nodes[fh].content[off : off + size]

    async def statfs(self, ctx):  # type: ignore[no-untyped-def]
        return pyfuse3.StatvfsData()

    async def create(self, parent_inode, name, mode, flags, ctx):  # type: ignore[no-untyped-def]
        self._count(name.decode())

    async def mknod(self, parent_inode, name, mode, rdev, ctx):  # type: ignore[no-untyped-def]
        self._count(name.decode())

    async def rmdir(self, parent_inode, name, ctx):  # type: ignore[no-untyped-def]
        self._child(parent_inode, name)
        self._count("release")

    def _count(self, word: str) -> None:
        with self._log.open("a") as log:
            log.write(word + "\n")
        raise pyfuse3.FUSEError(errno.ENOENT)


def _walk(node: Node) -> Iterator[Node]:
    yield node
    for child in (node.children or {}).values():
        yield from _walk(child)


def main(mountpoint: str, log: str) -> None:
    """Serve until unmounted."""
    pyfuse3.init(Server(Path(log)), mountpoint, {*pyfuse3.default_options, "fsname=layers", "allow_other"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
