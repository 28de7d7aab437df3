"""Real directory trees in the mount: every FUSE request on a node below a ``rootfs``.

Many trees are served at once; each is a :class:`View`. A handler turns the kernel's node id into a
descriptor (``fsd.rootfs_nodes``), makes one system call relative to it and answers with what the
inode says now. No path is remembered, no symbolic link is followed, and the mount itself
is never touched. Metadata calls run on the event loop; data and fsync run in threads.

The mount must have ``default_permissions``: the kernel decides who may do what, from the real owner,
mode and (with ``enable_acl``) ACL. ``OSError`` becomes ``FUSEError`` here; any other exception is a
defect, or a gate's refusal, and goes to the caller's barrier.

pyfuse3 gives no access to FUSE_DONT_MASK, so in a directory with a default ACL the caller's umask
is applied although acl(5) says it is not; and to no FALLOCATE, LSEEK, COPY_FILE_RANGE and IOCTL, so
the kernel answers those itself.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyfuse3

from fsd import rootfs_calls as calls
from fsd.rootfs_files import OpenFiles, appends_only, drop_group_privilege, drop_privileges, real_flags
from fsd.rootfs_nodes import OURS, Node, NodeTable, View
from fsd.rootfs_reply import attributes, errors_as_fuse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pyfuse3 import EntryAttributes, FileInfo, ReaddirToken, RequestContext, SetattrFields, StatvfsData

__all__ = ["Rootfs", "View"]

log = logging.getLogger("fsd.rootfs")

_ACL_NAMES: Final = b"system.posix_acl_"
_ACCESS_ACL: Final = b"system.posix_acl_access"
_DEFAULT_ACL: Final = "system.posix_acl_default"


@dataclass(slots=True)
class _OpenDirectory:
    """An open directory; ``names`` is the listing its offsets count in, read at offset 0."""

    node: Node
    names: list[bytes] | None = None


@errors_as_fuse
class Rootfs:
    """The handlers of ``pyfuse3.Operations`` for every node id and file handle it :meth:`owns`.

    Args:
        number: the stable number of a key (below 2**21), asked once per tree; may touch a database.
        home: a path on the filesystem that statfs(2) of the mount reports.
        nodes: where nodes are kept; tests pass one without file handles.
    """

    def __init__(self, number: Callable[[str], int], home: Path, nodes: NodeTable | None = None) -> None:
        self._nodes = NodeTable(number) if nodes is None else nodes
        self._files = OpenFiles()
        self._directories: dict[int, _OpenDirectory] = {}
        self._home = home
        self._umask = os.umask(0o022)
        os.umask(self._umask)

    # -- views ---------------------------------------------------------------------------------

    @staticmethod
    def owns(number: int) -> bool:
        """Whether a node id or file handle number is of an exported tree."""
        return bool(number & OURS)

    async def export(self, view: View) -> EntryAttributes:
        """The root of a view: its real attributes and its node id, one lookup counted.

        Answer a LOOKUP with it; give the count back with :meth:`unref` when it did not reach the kernel.

        Raises:
            FUSEError: the directory cannot be opened.
        """
        try:
            return self._entry(*self._nodes.export(view))
        except OSError as exc:
            raise pyfuse3.FUSEError(exc.errno or errno.EIO) from exc

    def unexport(self, view: View) -> None:
        """Let go of a view's directories, so that they can be unmounted or deleted.

        Nodes the kernel still holds go on working as long as their inodes exist.
        """
        self._nodes.release(view)

    def view_of(self, number: int) -> View | None:
        """The view a node id or a file handle belongs to; ``None`` for one that is not known."""
        for find in (self._nodes.get, self._files.node_of):
            with contextlib.suppress(OSError):
                return find(number).view
        return None

    def unref(self, inode: int, lookups: int = 1) -> None:
        """Give back lookups the kernel did not get to count."""
        self._nodes.forget(inode, lookups)

    def close(self) -> None:
        """Close every descriptor, when the mount is gone."""
        self._files.close()
        self._directories.clear()
        self._nodes.close()

    # -- names ---------------------------------------------------------------------------------

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """``..`` is never asked: the kernel knows parents itself unless the mount is exported by NFS."""
        parent = self._nodes.get(parent_inode)
        if name == b"..":
            raise OSError(errno.ESTALE, "parents are not looked up", name)
        with self._nodes.path_fd(parent) as directory:
            return self._entry(*self._nodes.child(parent, directory, name))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Never raises (pyfuse3's rule)."""
        for inode, lookups in inode_list:
            try:
                self._nodes.forget(inode, lookups)
            except Exception:
                log.exception("forget of node %#x", inode)

    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        """The text of the link as it is; the kernel follows it, below the caller's root."""
        with self._nodes.path_fd(self._nodes.get(inode)) as fd:
            return os.readlink(b"", dir_fd=fd)

    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """A new symbolic link; ``target`` is not looked at."""
        parent = self._nodes.get(parent_inode)
        await self._begin(parent, name)
        with self._creating(parent, ctx) as directory:
            os.symlink(target, name, dir_fd=directory)
        return self._made(parent, name, 0)

    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        """A new file, FIFO, socket or device node; the mount's ``nodev`` keeps devices shut."""
        parent = self._nodes.get(parent_inode)
        await self._begin(parent, name)
        with self._creating(parent, ctx) as directory:
            os.mknod(name, mode, rdev, dir_fd=directory)
        return self._made(parent, name, mode)

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        """A new directory; inherits set-group-ID and default ACL as the real filesystem does it."""
        parent = self._nodes.get(parent_inode)
        await self._begin(parent, name)
        with self._creating(parent, ctx) as directory:
            os.mkdir(name, stat.S_IMODE(mode), dir_fd=directory)
        return self._made(parent, name, mode)

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        """Remove a name; an inode the kernel still holds stays usable."""
        parent = self._nodes.get(parent_inode)
        await self._begin(parent, name)
        with self._nodes.path_fd(parent) as directory, self._removing(parent, directory, name):
            os.unlink(name, dir_fd=directory)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        """Remove an empty directory."""
        parent = self._nodes.get(parent_inode)
        await self._begin(parent, name)
        with self._nodes.path_fd(parent) as directory, self._removing(parent, directory, name):
            os.rmdir(name, dir_fd=directory)

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        """renameat2(2); ``EXDEV`` between views."""
        old, new = self._pair(parent_inode_old, parent_inode_new)
        await self._begin(old, name_old, name_new)
        with self._nodes.path_fd(old) as source, self._nodes.path_fd(new) as target:
            moved = self._nodes.child(old, source, name_old)[0]
            with self._removing(new, target, name_new) as replaced:
                calls.rename(source, name_old, target, name_new, flags)
        moved.move(new, name_new)
        if replaced is not None and flags & pyfuse3.RENAME_EXCHANGE:
            replaced.move(old, name_old)

    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """A hard link; ``EXDEV`` between views."""
        node, parent = self._pair(inode, new_parent_inode)
        await self._begin(parent, new_name)
        with self._nodes.path_fd(node) as fd, self._nodes.path_fd(parent) as directory:
            os.link(calls.magic(fd), new_name, dst_dir_fd=directory, follow_symlinks=True)
        return self._made(parent, new_name, 0)

    # -- attributes ----------------------------------------------------------------------------

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        """What stat(2) of the real inode says, under the node id."""
        return self._attributes(self._nodes.get(inode))

    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        """Owner first, because chown(2) takes set-user-ID away; then mode, size and times."""
        node = self._nodes.get(inode)
        if fields.update_uid or fields.update_gid or fields.update_mode or fields.update_size:
            await self._begin(node, node.name or None)
        elif node.view.read_only:
            raise _read_only(node)
        with self._nodes.path_fd(node) as fd:
            if fields.update_uid or fields.update_gid:
                uid = attr.st_uid if fields.update_uid else -1
                gid = attr.st_gid if fields.update_gid else -1
                os.chown(calls.magic(fd), uid, gid)
            if fields.update_mode:
                os.chmod(calls.magic(fd), stat.S_IMODE(attr.st_mode))
        if fields.update_size:
            await self._truncate(node, fh, attr.st_size)
        if fields.update_atime or fields.update_mtime:
            atime = attr.st_atime_ns if fields.update_atime else None
            mtime = attr.st_mtime_ns if fields.update_mtime else None
            with self._nodes.path_fd(node) as fd:
                calls.set_times(fd, atime, mtime)
        return self._attributes(node)

    async def _truncate(self, node: Node, fh: int | None, size: int) -> None:
        if fh is not None:
            await self._files.in_thread(os.ftruncate, self._files.get(fh).fd, size)
            return
        fd = self._nodes.open(node, os.O_WRONLY)
        try:
            await self._files.in_thread(os.ftruncate, fd, size)
        finally:
            os.close(fd)

    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        """Asked only without ``default_permissions``; all we know then is what is read-only."""
        node = self._nodes.get(inode)
        if mode & os.W_OK and node.view.read_only:
            raise _read_only(node)
        return True

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """Space and inodes of the filesystem the store is on."""
        real, answer = os.statvfs(self._home), pyfuse3.StatvfsData()
        for name in ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail", "namemax"):
            setattr(answer, f"f_{name}", getattr(real, f"f_{name}"))
        return answer

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        """The value as it is; ``ENODATA`` and ``EOPNOTSUPP`` are the filesystem's own.

        Where it has no ACLs there is none: the kernel would refuse all access on any other answer.
        """
        try:
            with self._nodes.path_fd(self._nodes.get(inode)) as fd:
                return os.getxattr(calls.magic(fd), name)
        except OSError as exc:
            if exc.errno == errno.EOPNOTSUPP and name.startswith(_ACL_NAMES):
                raise OSError(errno.ENODATA, "no ACLs here", name) from exc
            raise

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        """Any namespace; the kernel checked already whether the caller may."""
        node = self._nodes.get(inode)
        await self._begin(node, node.name or None)
        with self._nodes.path_fd(node) as fd:
            os.setxattr(calls.magic(fd), name, value)
            if name == _ACCESS_ACL:
                drop_group_privilege(fd, ctx)

    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        """Names; those of the trusted namespace for root only, as xattr(7) has it."""
        with self._nodes.path_fd(self._nodes.get(inode)) as fd:
            names = [os.fsencode(name) for name in os.listxattr(calls.magic(fd))]
        return [name for name in names if ctx.uid == 0 or not name.startswith(b"trusted.")]

    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        """``ENODATA`` when there is none of that name."""
        node = self._nodes.get(inode)
        await self._begin(node, node.name or None)
        with self._nodes.path_fd(node) as fd:
            os.removexattr(calls.magic(fd), name)

    # -- files ---------------------------------------------------------------------------------

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        """Open for writing or truncating is a mutation, whether or not anything is written."""
        node = self._nodes.get(inode)
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            await self._begin(node, node.name or None)
        fd = self._nodes.open(node, real_flags(flags))
        if flags & os.O_TRUNC and ctx.uid != 0:
            drop_privileges(fd)
        return self._opened(node, fd, os.fstat(fd), flags, ctx)

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """Always exclusive: for a file that appeared meanwhile the kernel has to check permissions first."""
        how = real_flags(flags) | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        parent = self._nodes.get(parent_inode)
        await self._begin(parent, name)
        try:
            with self._creating(parent, ctx) as directory:
                fd = os.open(name, how, stat.S_IMODE(mode), dir_fd=directory)
        except FileExistsError as exc:
            raise OSError(exc.errno if flags & os.O_EXCL else errno.ESTALE, "exists by now", name) from exc
        try:
            self._restore_mode(parent, fd, mode)
            node, info = self._nodes.enter(parent, name, fd)
        except BaseException:
            os.close(fd)
            raise
        entry = self._entry(node, info)
        return self._opened(node, fd, info, flags, ctx), entry

    def _opened(self, node: Node, fd: int, info: os.stat_result, flags: int, ctx: RequestContext) -> FileInfo:
        """Tell the kernel to drop cached pages unless the data is what it was at the last open."""
        state = (info.st_mtime_ns, info.st_ctime_ns, info.st_size)
        keep, node.seen = node.seen == state, state
        direct = appends_only(flags)
        fh = self._files.add(node, fd, strips=direct and ctx.uid != 0)
        return pyfuse3.FileInfo(fh=fh, direct_io=direct, keep_cache=keep and not direct)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Short only at the end of the file."""
        return await self._files.read(fh, off, size)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """How much was written; less than all only when the disk is full."""
        return await self._files.write(fh, off, buf)

    async def flush(self, fh: int) -> None:
        """Close a copy of the descriptor, for filesystems that report late errors then."""
        os.close(os.dup(self._files.get(fh).fd))

    async def release(self, fh: int) -> None:
        """The last close."""
        await self._files.remove(fh)

    async def fsync(self, fh: int, datasync: bool) -> None:
        """Down to the disk."""
        await self._files.in_thread(os.fdatasync if datasync else os.fsync, self._files.get(fh).fd)

    # -- directories ---------------------------------------------------------------------------

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        """Costs no descriptor: the names are read when they are asked for."""
        fh = self._files.number()
        self._directories[fh] = _OpenDirectory(self._nodes.get(inode))
        return fh

    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        """Names with attributes, without ``.`` and ``..``. An offset counts names of one reading.

        A name that vanished since is left out; one that appeared shows after rewinddir(3).
        """
        directory = self._directory(fh)
        if directory.names is None or not start_id:
            directory.names = self._names(directory.node)
        with self._nodes.path_fd(directory.node) as fd:
            for position, name in enumerate(directory.names[start_id:], start_id + 1):
                if not self._reply(token, directory.node, fd, name, position):
                    return

    def _reply(self, token: ReaddirToken, parent: Node, directory: int, name: bytes, position: int) -> bool:
        """Add an entry to the answer; ``False`` when it is full."""
        try:
            node, info = self._nodes.child(parent, directory, name)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ESTALE):
                return True
            raise
        if not pyfuse3.readdir_reply(token, name, attributes(node, info), position):
            return False
        self._nodes.count(node)
        return True

    def _names(self, node: Node) -> list[bytes]:
        fd = self._nodes.open(node, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return [os.fsencode(name) for name in os.listdir(fd)]
        finally:
            os.close(fd)

    def _directory(self, fh: int) -> _OpenDirectory:
        try:
            return self._directories[fh]
        except KeyError:
            raise OSError(errno.EBADF, f"directory handle {fh:#x} is not open") from None

    async def releasedir(self, fh: int) -> None:
        """Forget the listing."""
        self._directories.pop(fh, None)

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Down to the disk."""
        fd = self._nodes.open(self._directory(fh).node, os.O_RDONLY | os.O_DIRECTORY)
        try:
            await self._files.in_thread(os.fdatasync if datasync else os.fsync, fd)
        finally:
            os.close(fd)

    # -- shared --------------------------------------------------------------------------------

    async def _begin(self, node: Node, *names: bytes | None) -> None:
        """What comes before every mutation: refuse it in a read-only view, else pass the gate."""
        view = node.view
        if view.read_only:
            raise _read_only(node)
        if view.gate is not None:
            for name in names:
                await view.gate(name)

    def _pair(self, one: int, other: int) -> tuple[Node, Node]:
        """Two nodes of one view; ``EXDEV`` when they are not."""
        if not (self.owns(one) and self.owns(other)):
            raise OSError(errno.EXDEV, "one side is not in a real tree")
        first, second = self._nodes.get(one), self._nodes.get(other)
        if first.view.key != second.view.key:
            raise OSError(errno.EXDEV, f"{first.view.key} and {second.view.key} are different trees")
        return first, second

    @contextlib.contextmanager
    def _creating(self, parent: Node, ctx: RequestContext) -> Iterator[int]:
        """The parent's descriptor, for one call that creates something on behalf of the caller."""
        with self._nodes.path_fd(parent) as directory, calls.acting_as(ctx.uid, ctx.gid):
            yield directory

    def _made(self, parent: Node, name: bytes, mode: int) -> EntryAttributes:
        """The answer to a request that made ``name``."""
        with self._nodes.path_fd(parent) as directory:
            fd = calls.open_child(directory, name)
            try:
                self._restore_mode(parent, fd, mode)
                return self._entry(*self._nodes.enter(parent, name, fd))
            finally:
                os.close(fd)

    def _restore_mode(self, parent: Node, fd: int, mode: int) -> None:
        """Give back the bits our own umask took; the caller's is applied by the kernel already.

        The real filesystem leaves the umask alone in a directory with a default ACL (acl(5)).
        """
        lost = mode & self._umask
        if not lost:
            return
        with self._nodes.path_fd(parent) as directory, contextlib.suppress(OSError):
            os.getxattr(calls.magic(directory), _DEFAULT_ACL)
            return
        os.chmod(calls.magic(fd), stat.S_IMODE(os.fstat(fd).st_mode) | lost)

    @contextlib.contextmanager
    def _removing(self, parent: Node, directory: int, name: bytes) -> Iterator[Node | None]:
        """Around a call that takes ``name`` away: its inode stays reachable while the kernel holds it."""
        try:
            fd = calls.open_child(directory, name)
        except OSError:
            yield None
            return
        try:
            node = self._nodes.enter(parent, name, fd)[0]
            yield node
            if not os.fstat(fd).st_nlink:
                self._nodes.pin(node, fd)
        finally:
            os.close(fd)

    def _attributes(self, node: Node) -> EntryAttributes:
        with self._nodes.path_fd(node) as fd:
            return attributes(node, os.fstat(fd))

    def _entry(self, node: Node, info: os.stat_result) -> EntryAttributes:
        """Attributes for an answer that makes the kernel hold the node once more."""
        self._nodes.count(node)
        return attributes(node, info)


def _read_only(node: Node) -> OSError:
    return OSError(errno.EROFS, f"{node.view.key} is read-only")
