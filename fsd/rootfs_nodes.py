"""The nodes of exported directory trees: what the kernel knows about, and how to get at it again.

A *tree* is one filesystem (on btrfs, one subvolume) inside a view; a nested subvolume is a tree of its
own, because its inode numbers start anew. A *node* is one inode of a tree that the kernel holds.

Node id = bit 62 | number of the tree << 40 | inode number. The number belongs to the view's key and
the file handle of the tree's root, so it is the same at the next mount, and two views of one subvolume
have different ids (FUSE allows a directory inode one dentry only).

A node is reopened by file handle, so half a million nodes need no descriptors. Without the privilege
(or without handles) it is reopened as one name in its parent and must prove to be the same
inode. Either way a few descriptors are kept, bounded, because the next operation wants the same ones.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fsd import rootfs_calls as calls
from fsd.handles import handle_of, identity_of, open_handle

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    Gate = Callable[[bytes | None], Awaitable[None]]

OURS: Final = 1 << 62
"""Set in every node id and file handle number of an exported tree."""
_INODE_BITS: Final = 40
_NUMBER_BITS: Final = 21
_PATH: Final = os.O_PATH | os.O_NOFOLLOW
_PINNED_MAX: Final = 64
_CACHED_MAX: Final = 512


@dataclass(frozen=True, slots=True)
class View:
    """One directory tree to show.

    ``key`` is the same at every mount. ``gate`` is awaited before every mutating operation with the
    name it touches (``None`` when there is none to tell); what it raises fails the operation.
    """

    key: str
    path: Path
    read_only: bool
    gate: Gate | None = None


class Tree:
    """One filesystem or subvolume inside a view, with its number."""

    __slots__ = ("by_handle", "dev", "mount_fd", "mount_id", "nodes", "number", "root", "view")

    def __init__(self, view: View, number: int, dev: int, root: bytes) -> None:
        self.view = view
        self.number = number
        self.dev = dev
        self.root = root
        self.nodes = 0
        self.mount_id = self.mount_fd = -1
        self.by_handle = False

    def id_of(self, inode: int) -> int:
        """Node id of an inode number of this tree; ``EOVERFLOW`` beyond 40 bits."""
        if inode >> _INODE_BITS:
            raise OSError(errno.EOVERFLOW, f"inode number {inode} has more than {_INODE_BITS} bits")
        return OURS | self.number << _INODE_BITS | inode


class Node:
    """One inode the kernel holds ``lookups`` references to.

    ``name`` is where it was last met, for the gate and for reopening without handles (then in
    ``parent``). ``pinned`` is a descriptor that keeps a removed inode reachable, ``files`` the open
    descriptors on it, ``seen`` the state of the data the kernel may have cached.
    """

    __slots__ = ("files", "id", "identity", "inode", "lookups", "name", "parent", "pinned", "seen", "tree")

    def __init__(self, tree: Tree, inode: int, identity: bytes, name: bytes, parent: Node | None) -> None:
        self.tree = tree
        self.inode = inode
        self.id = tree.id_of(inode)
        self.identity = identity
        self.name = name
        self.parent = parent
        self.lookups = 0
        self.pinned = -1
        self.files: list[int] = []
        self.seen: tuple[int, int, int] | None = None

    def move(self, parent: Node, name: bytes) -> None:
        """Note under which name the node can be met from now on."""
        self.name = name
        if self.parent is not None:
            self.parent = parent

    @property
    def view(self) -> View:
        """The view the node belongs to."""
        return self.tree.view

    @property
    def generation(self) -> int:
        """Differs between two inodes that had the same number one after the other."""
        return zlib.crc32(self.identity)


class NodeTable:
    """All nodes of all views of one mount.

    Args:
        number: the stable number of a key, from 1 to 2**21 - 1; asked once per tree.
        descriptors: how many descriptors may be kept open; by default from RLIMIT_NOFILE.
        use_handles: ``False`` makes the table work as without privilege.
    """

    def __init__(
        self, number: Callable[[str], int], *, descriptors: int | None = None, use_handles: bool = True
    ) -> None:
        self.number = number
        self._limit = _default_limit() if descriptors is None else descriptors
        self._use_handles = use_handles
        self._nodes: dict[int, Node] = {}
        self._trees: dict[tuple[str, bytes], Tree] = {}
        self._mounts: dict[int, list[int]] = {}  # mount ID: [descriptor, trees using it]
        self._cached: OrderedDict[Node, int] = OrderedDict()
        self._pinned = 0

    def __len__(self) -> int:
        return len(self._nodes)

    def get(self, node_id: int) -> Node:
        """The node of an id the kernel sent; ``ESTALE`` when we do not know it."""
        try:
            return self._nodes[node_id]
        except KeyError:
            raise OSError(errno.ESTALE, f"node {node_id:#x} is not known") from None

    # -- finding -------------------------------------------------------------------------------

    def export(self, view: View) -> tuple[Node, os.stat_result]:
        """The root node of a view and its attributes; counts no lookup.

        Raises:
            OSError: the directory cannot be opened (``ENOENT``, ``ENOTDIR``, ...)
        """
        fd = os.open(view.path, _PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            info = os.fstat(fd)
            identity = identity_of(fd)
            tree = self._tree(view, fd, info.st_dev, identity)
            return self._node(tree, fd, info, identity, b"", None), info
        finally:
            os.close(fd)

    def child(self, parent: Node, directory: int, name: bytes) -> tuple[Node, os.stat_result]:
        """The node behind ``name`` in ``parent`` (open as ``directory``) and its attributes."""
        fd = calls.open_child(directory, name)
        try:
            return self.enter(parent, name, fd)
        finally:
            os.close(fd)

    def enter(self, parent: Node, name: bytes, fd: int) -> tuple[Node, os.stat_result]:
        """The node of an open entry of ``parent``, which stays the caller's to close; counts no lookup."""
        info = os.fstat(fd)
        identity = identity_of(fd)
        tree = parent.tree
        if info.st_dev != tree.dev:
            tree = self._tree(tree.view, fd, info.st_dev, identity)
        return self._node(tree, fd, info, identity, name, parent), info

    def _tree(self, view: View, fd: int, dev: int, root: bytes) -> Tree:
        """The tree whose root directory is open as ``fd``."""
        tree = self._trees.get((view.key, root))
        if tree is None:
            number = self.number(f"{view.key}/{root.hex()}")
            if not 0 < number < 1 << _NUMBER_BITS:  # 0 is left to file handles
                raise OSError(errno.EOVERFLOW, f"view number {number} is not in 1 … 2**{_NUMBER_BITS} - 1")
            tree = self._trees[view.key, root] = Tree(view, number, dev, root)
            self._anchor(tree, fd)
        tree.view, tree.dev = view, dev
        return tree

    def _node(
        self, tree: Tree, fd: int, info: os.stat_result, identity: bytes, name: bytes, parent: Node | None
    ) -> Node:
        known = self._nodes.get(tree.id_of(info.st_ino))
        if known is not None and known.identity == identity:
            if parent is not None:
                known.move(parent, name)
            return known
        return Node(tree, info.st_ino, identity, name, None if tree.by_handle else parent)

    # -- counting ------------------------------------------------------------------------------

    def count(self, node: Node) -> None:
        """Note one more lookup the kernel will forget later."""
        known = self._nodes.get(node.id)
        if known is not node:
            if known is None:
                node.tree.nodes += 1
            else:  # the inode number was used again; the kernel's count is per number
                node.lookups = known.lookups
                self._close(known)
            self._nodes[node.id] = node
        node.lookups += 1

    def forget(self, node_id: int, lookups: int) -> None:
        """Undo lookups; the last one drops the node."""
        node = self._nodes.get(node_id)
        if node is None:
            return
        node.lookups -= lookups
        if node.lookups > 0:
            return
        del self._nodes[node_id]
        self._close(node)
        node.tree.nodes -= 1
        if not node.tree.nodes:
            self._drop(node.tree)

    def release(self, view: View) -> None:
        """Close every descriptor kept on a view's trees, so that they can be unmounted or deleted."""
        for node in [n for n in self._cached if n.view.key == view.key]:
            os.close(self._cached.pop(node))
        if self._pinned:
            for node in [n for n in self._nodes.values() if n.pinned >= 0 and n.view.key == view.key]:
                self._unpin(node)
        for tree in [t for t in self._trees.values() if t.view.key == view.key and not t.nodes]:
            self._drop(tree)

    def close(self) -> None:
        """Close everything, when the mount is gone."""
        for node in list(self._nodes.values()):
            self.forget(node.id, node.lookups)
        for tree in list(self._trees.values()):
            self._drop(tree)

    # -- opening -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def path_fd(self, node: Node) -> Iterator[int]:
        """An ``O_PATH`` descriptor of the node, for the length of a block that does not await."""
        if node.files:
            yield node.files[-1]
        elif node.pinned >= 0:
            yield node.pinned
        else:
            yield from self._path_fd(node)

    def _path_fd(self, node: Node) -> Iterator[int]:
        fd = self._cached.get(node, -1)
        if fd >= 0:
            self._cached.move_to_end(node)
            yield fd
            return
        fd, info = self._reopen(node)
        if node.tree.by_handle and not stat.S_ISDIR(info.st_mode):
            try:
                yield fd
            finally:
                os.close(fd)
            return
        self._keep(node, fd)
        yield fd

    def open(self, node: Node, flags: int) -> int:
        """A real descriptor of a file or directory; the caller closes it.

        ``ESTALE`` for what was removed on the real path, so that the kernel looks its name up anew.
        """
        with self.path_fd(node) as path:
            fd = _unnoticed(calls.magic(path), flags | os.O_CLOEXEC | os.O_NONBLOCK)
        if not os.fstat(fd).st_nlink and node.pinned < 0:
            os.close(fd)
            raise OSError(errno.ESTALE, "the object was removed", node.name)
        return fd

    def pin(self, node: Node, fd: int) -> None:
        """Keep an inode that loses its last name reachable while the kernel holds it.

        Bounded: beyond that a removed inode that is not open answers ``ESTALE``.
        """
        if node.id in self._nodes and node.pinned < 0 and self._pinned < _PINNED_MAX:
            node.pinned = os.dup(fd)
            self._pinned += 1

    def _reopen(self, node: Node) -> tuple[int, os.stat_result]:
        tree = node.tree
        if tree.by_handle:
            fd = open_handle(tree.mount_fd, node.identity, _PATH)
        else:
            fd = self._reopen_by_name(node)
        try:
            info = os.fstat(fd)
            if not tree.by_handle and identity_of(fd) != node.identity:
                raise OSError(errno.ESTALE, "another object took the name", node.name)
        except BaseException:
            os.close(fd)
            raise
        return fd, info

    def _reopen_by_name(self, node: Node) -> int:
        if node.parent is None:
            return os.open(node.view.path, _PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._reopen_ancestors(node)
        try:
            with self.path_fd(node.parent) as directory:
                return calls.open_child(directory, node.name)
        except FileNotFoundError as exc:
            raise OSError(errno.ESTALE, "the object lost its name", node.name) from exc

    def _reopen_ancestors(self, node: Node) -> None:
        """Open what is missing above a node from the top, so that depth costs no recursion."""
        missing = []
        step = node.parent
        while step is not None and step not in self._cached and step.pinned < 0:
            missing.append(step)
            step = step.parent
        for step in reversed(missing[1:]):
            with self.path_fd(step):
                pass

    def _keep(self, node: Node, fd: int) -> None:
        while len(self._cached) >= self._limit:
            os.close(self._cached.popitem(last=False)[1])
        self._cached[node] = fd

    def _close(self, node: Node) -> None:
        fd = self._cached.pop(node, -1)
        if fd >= 0:
            os.close(fd)
        self._unpin(node)

    def _unpin(self, node: Node) -> None:
        if node.pinned >= 0:
            os.close(node.pinned)
            node.pinned = -1
            self._pinned -= 1

    # -- mounts --------------------------------------------------------------------------------

    def _anchor(self, tree: Tree, fd: int) -> None:
        """Find out whether the tree's handles can be opened, through one descriptor per mount."""
        if not self._use_handles:
            return
        try:
            handle, mount_id = handle_of(fd)
            if mount_id not in self._mounts:
                self._mounts[mount_id] = [_open_mount(mount_id, fd), 0]
            mount = self._mounts[mount_id]
            mount[1] += 1
            tree.mount_fd, tree.mount_id = mount[0], mount_id
            os.close(open_handle(tree.mount_fd, handle, _PATH))
            tree.by_handle = True
        except OSError as exc:
            self._release_mount(tree)
            if exc.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EOVERFLOW, errno.ESTALE):
                raise

    def _drop(self, tree: Tree) -> None:
        self._trees.pop((tree.view.key, tree.root), None)
        self._release_mount(tree)

    def _release_mount(self, tree: Tree) -> None:
        mount = self._mounts.get(tree.mount_id)
        tree.mount_id = tree.mount_fd = -1
        if mount is None:
            return
        mount[1] -= 1
        if mount[1] <= 0:
            os.close(mount[0])
            self._mounts = {key: value for key, value in self._mounts.items() if value is not mount}


def _default_limit() -> int:
    """A quarter of the descriptors the process may have; open files need the others."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _CACHED_MAX if soft == resource.RLIM_INFINITY else max(16, min(_CACHED_MAX, soft // 4))


def _unnoticed(path: str, flags: int) -> int:
    """Open without moving the access time where the owner's rights allow it."""
    with contextlib.suppress(PermissionError):
        return os.open(path, flags | os.O_NOATIME)
    return os.open(path, flags)


def _open_mount(mount_id: int, fd: int) -> int:
    """A descriptor on the mount's own root, which unlike a view's root is never deleted."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    with contextlib.suppress(OSError):
        root = os.open(_mount_point(mount_id), flags)
        if handle_of(root)[1] == mount_id:
            return root
        os.close(root)
    return os.open(calls.magic(fd), flags)


def _mount_point(mount_id: int) -> bytes:
    """Where a mount is attached (proc(5), mountinfo); ``ENOENT`` when it is not in our namespace."""
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields = line.split(b" ")
        if int(fields[0]) == mount_id:
            return fields[4].decode("unicode_escape").encode("latin-1")
    raise FileNotFoundError(errno.ENOENT, f"mount {mount_id} has no mount point")
