"""The FUSE adapter: translates each request on a synthetic node to one call on it.

Requests below the ``rootfs``, ``userdata`` and ``rundata`` of an object never get here: the data plane
(``fsd.plane``) serves them. Of those trees only the text of the last error is asked.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import select
import stat
from typing import TYPE_CHECKING, Any, cast

import pyfuse3
import trio
from pyfuse3 import FileHandleT, FileInfo, FUSEError, InodeT

from fsd.contents import Stream
from fsd.errnos import ERROR_XATTR, barrier
from fsd.inodes import Inodes
from fsd.listings import KeptListings, Lister, Listing, root_attributes, shown
from fsd.naming import NAME_MAX
from fsd.nodes import RealTree
from fsd.opened import Opened
from fsd.plane import PUBLISHED_HANDLE
from fsd.processes import has_signal
from fsd.publisher import Publisher
from fsd.realtrees import OF_A_NAME, RealTrees
from fsd.tree import root

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyfuse3 import EntryAttributes, PollHandle, RequestContext

    from fsd.nodes import Node
    from fsd.site import Site
    from fsd.views import Views

SIGNAL_SECONDS = 0.3
"""How often the readers of a stream are looked at."""
READY = select.POLLIN | select.POLLOUT
_GONE_AGAIN = "it was made, and removed by another process at once"
_TRUNCATE_ONLY = ("update_mode", "update_uid", "update_gid")


@barrier
class Operations(pyfuse3.Operations):
    """One mounted store. All methods run in the event loop; blocking work goes to threads."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = True

    def __init__(self, site: Site, views: Views) -> None:
        super().__init__()
        self.site = site
        self.views = views
        self.inodes = Inodes(root(site))
        self.real = RealTrees(site, views)
        self._handles: dict[int, Opened | Listing] = {}
        self._numbers = itertools.count(1)
        self._kept = KeptListings()
        self._lister = Lister(site, self.inodes)
        self.publisher = Publisher(site, self.inodes)
        site.entries_held = self._held
        views.exports.opened = self.publisher.reached

    # -- looking up ----------------------------------------------------------------------------

    async def lookup(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """The entry ``name``; ENOENT is not remembered by the kernel, as any process may make it."""
        parent = self._node(parent_inode)
        child = await self._call(parent, parent.kind.lookup, _entry_name(name))
        if child is None:
            raise FUSEError(errno.ENOENT)
        return await self._entry(child)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Lookups the kernel gives back."""
        self.inodes.forget(inode_list)

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        """Attributes as they are now."""
        self.views.exports.drain()
        return await self._attributes(self._node(inode))

    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Truncating a writable attribute is part of writing it; anything else is refused.

        What takes whole files takes no notice of their mode and owner: ``cp -p`` and ``mv`` set both.
        """
        node = self._node(inode)
        opened = self._handles.get(fh) if fh is not None else None
        takes_size = node.kind.takes_empty or (isinstance(opened, Opened) and opened.sink is not None)
        if fields.update_size and takes_size:
            await self._truncate(node, inode, opened, attr.st_size, ctx)
        elif not node.kind.takes_attributes and (
            not node.kind.writable or any(getattr(fields, name) for name in _TRUNCATE_ONLY)
        ):
            node.refuse(errno.EPERM, "mode, owner and times of this entry are fsd's own")
        return await self._attributes(node)

    async def _truncate(
        self,
        node: Node,
        inode: InodeT,
        opened: Opened | Listing | None,
        size: int,
        ctx: RequestContext,
    ) -> None:
        """Cut an open file; one that is not open by its handle is opened for that, and closed."""
        if isinstance(opened, Opened):
            await opened.truncate(size, self._work)
            return
        opened = await self._opened(node, inode, os.O_WRONLY, ctx)
        try:
            await opened.truncate(size, self._work)
            await opened.flush(self._work, last=True)
        finally:
            await opened.close(self._work)

    async def readlink(self, inode: InodeT, ctx: RequestContext) -> bytes:
        """Target of a symlink."""
        node = self._node(inode)
        return os.fsencode(await self._call(node, node.kind.target))

    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        """The file system that holds the graphroot."""
        found = os.statvfs(self.site.store.graphroot)
        data = pyfuse3.StatvfsData()
        for name in ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail", "namemax"):
            setattr(data, f"f_{name}", getattr(found, f"f_{name}"))
        return data

    # -- directories ---------------------------------------------------------------------------

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """Open a listing."""
        node = self._node(inode)
        self.real.remember_listing(node.key, ctx.pid)
        await self.publisher.opened(node)
        return self._open(Listing(node, inode), self._kept.flags(node))

    async def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Entries from ``start_id`` on, with their attributes; entries gone meanwhile are skipped."""
        listing = self._listing(fh)
        if start_id == 0 or listing.entries is None:
            listing.entries = await self._call(listing.node, _list_entries)
        await self._lister.reply(listing, start_id, token)

    def _listing(self, fh: FileHandleT) -> Listing:
        """What is listed; of a handle the plane gave, what the directory shows now."""
        if fh & PUBLISHED_HANDLE:
            inode = InodeT(fh & ~PUBLISHED_HANDLE)
            return Listing(self._node(inode), inode)
        return cast("Listing", self._handles[fh])

    async def releasedir(self, fh: FileHandleT) -> None:
        """Close a listing."""
        self._handles.pop(fh, None)

    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        """Commands are on disk when they return."""

    async def mkdir(
        self, parent_inode: InodeT, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        """Make an object or snapshot; everything in it is there on return."""
        parent = self._node(parent_inode)
        child = await self._work(parent.kind.mkdir, parent, _entry_name(name))
        if child is None:
            child = await self._call(parent, parent.kind.lookup, _entry_name(name))
        if child is None:
            parent.refuse(errno.ESTALE, _GONE_AGAIN)
        return await self._entry(child)

    async def rmdir(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> None:
        """Remove an object or snapshot, unless that is how a recursive removal ends."""
        parent = self._node(parent_inode)
        self.views.exports.drain()
        self.real.check_removal(parent.key.split("/", 1)[0], ctx, parent.path)
        child = await self._call(parent, parent.kind.lookup, _entry_name(name))
        if child is not None:
            self.real.check_removal(child.key, ctx, child.path)
            await self.views.release(child.subject.layer_ids())
        await self._removal(parent.kind.rmdir, parent, name, ctx)
        if child is not None:
            self.publisher.retract(child.key)
            self.inodes.retire(child.key)

    async def unlink(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> None:
        """Attributes cannot be unlinked; who tries will not empty the object's trees either."""
        parent = self._node(parent_inode)
        self.real.check_removal(parent.key.split("/", 1)[0], ctx, parent.path)
        await self._removal(parent.kind.unlink, parent, name, ctx)

    async def _removal(
        self, method: Callable[..., Any], parent: Node, name: bytes, ctx: RequestContext
    ) -> None:
        try:
            await self._work(method, parent, _entry_name(name))
        except PermissionError:
            self.real.remember_refusal(parent.key, ctx.pid)
            raise

    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: bytes,
        parent_inode_new: InodeT,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        """Rename an object or snapshot."""
        parent, into = self._node(parent_inode_old), self._node(parent_inode_new)
        if flags & ~pyfuse3.RENAME_NOREPLACE:
            parent.refuse(errno.EINVAL, "objects cannot be exchanged")
        await self._work(parent.kind.rename, parent, _entry_name(name_old), into, _entry_name(name_new))

    async def create(
        self, parent_inode: InodeT, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """Make a file, where the directory takes new ones."""
        parent = self._node(parent_inode)
        node = await self._work(parent.kind.create, parent, _entry_name(name), True)
        opened = await self._opened(node, self.inodes.number(node), flags | os.O_TRUNC, ctx)
        entry = await self._entry(node)
        return FileInfo(fh=self._open(opened), direct_io=True), entry

    async def mknod(
        self, parent_inode: InodeT, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a file, where the directory takes new ones."""
        parent = self._node(parent_inode)
        node = await self._work(parent.kind.create, parent, _entry_name(name), stat.S_ISREG(mode))
        return await self._entry(node)

    async def symlink(
        self, parent_inode: InodeT, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a symlink, where that says something: a further name of an object."""
        parent, entry = self._node(parent_inode), _entry_name(name)
        await self._work(parent.kind.symlink, parent, entry, os.fsdecode(target))
        child = await self._call(parent, parent.kind.lookup, entry)
        if child is None:
            parent.refuse(errno.ESTALE, _GONE_AGAIN)
        return await self._entry(child)

    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """Synthetic files have one name."""
        why = "an entry has one name; further names are lines of 'names', those of images symlinks too"
        self._node(inode).refuse(errno.EPERM, why)

    # -- files ---------------------------------------------------------------------------------

    async def open(self, inode: InodeT, flags: int, ctx: RequestContext) -> FileInfo:
        """Render the content now: what is read later is of one piece and of the size told."""
        self.views.exports.drain()
        node = self._node(inode)
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if writes and not node.kind.writable:
            node.refuse(errno.EPERM, "this file is made by fsd and cannot be written")
        opened = await self._opened(node, inode, flags, ctx)
        seekable = not isinstance(opened.content, Stream)
        return FileInfo(fh=self._open(opened), direct_io=True, nonseekable=not seekable)

    async def _opened(self, node: Node, inode: InodeT, flags: int, ctx: RequestContext) -> Opened:
        opened = Opened(node, inode, ctx.pid, ctx.uid, bool(flags & os.O_APPEND))
        opened.impatient = bool(flags & os.O_NONBLOCK)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            opened.sink = await self._call(node, node.kind.open_sink, bool(flags & os.O_TRUNC))
            if flags & os.O_TRUNC:
                opened.begin_empty()
        if flags & os.O_ACCMODE == os.O_RDONLY or (flags & os.O_ACCMODE == os.O_RDWR and _readable(node)):
            try:
                opened.content = await self._call(node, node.kind.open_content)
            except BaseException:
                await opened.drop(self._work)
                raise
        return opened

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """A part of the content."""
        opened = cast("Opened", self._handles[fh])
        content = opened.content
        if isinstance(content, Stream):
            return await _next_bytes(content, size, opened.pid, wait=not opened.impatient)
        if content.blocking:
            return await trio.to_thread.run_sync(content.read_at, off, size)
        return content.read_at(off, size)

    async def poll(
        self, inode: InodeT, fh: FileHandleT, poll_handle: PollHandle | None, ctx: RequestContext
    ) -> int:
        """Whether a read would wait; everything but a stream is always ready, as a regular file is."""
        content = cast("Opened", self._handles[fh]).content
        if not isinstance(content, Stream):
            return READY
        return select.POLLIN if content.ready(poll_handle.notify if poll_handle else None) else 0

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """One whole value, which is put to use now. A sink takes the bytes."""
        opened = cast("Opened", self._handles[fh])
        if await opened.write(off, bytes(buf), self._work):
            await self._replaced(opened.node)
        return len(buf)

    async def flush(self, fh: FileHandleT) -> None:
        """Put to use what a sink took; ``close`` reports a failure."""
        opened = cast("Opened", self._handles[fh])
        if await opened.flush(self._work):
            await self._replaced(opened.node)

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        """As for flush: a program that syncs wants to know. A sink waits for the end."""
        if cast("Opened", self._handles[fh]).sink is None:
            await self.flush(fh)

    async def release(self, fh: FileHandleT) -> None:
        """Close a file."""
        await cast("Opened", self._handles.pop(fh)).close(self._work)

    # -- extended attributes -------------------------------------------------------------------

    async def getxattr(self, inode: InodeT, name: bytes, ctx: RequestContext) -> bytes:
        """``user.fsd.error``: why the last operation on this path failed, also below a rootfs."""
        self.views.exports.drain()
        text = self.site.errors.text_for(inode) if name == ERROR_XATTR else None
        if text is None:
            raise FUSEError(errno.ENODATA)
        return text.encode()

    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> list[bytes]:
        """Only the error text, where there is one."""
        return [ERROR_XATTR] if self.site.errors.text_for(inode) else []

    async def setxattr(self, inode: InodeT, name: bytes, value: bytes, ctx: RequestContext) -> None:
        """Synthetic entries keep no attributes of others; who copies a file here is told so gently."""
        node = self._node(inode)
        if node.kind.takes_attributes:
            raise FUSEError(errno.EOPNOTSUPP)
        node.refuse(errno.EPERM, "extended attributes can be set below a rootfs only")

    async def removexattr(self, inode: InodeT, name: bytes, ctx: RequestContext) -> None:
        """Synthetic entries keep no attributes of others."""
        raise FUSEError(errno.ENODATA)

    # -- inside --------------------------------------------------------------------------------

    async def report(self, operation: str, args: tuple[Any, ...], number: int, text: str) -> None:
        """Keep the text of a failure for ``control/errors`` and the path's xattr."""
        child = await self._child(args[0], args[1]) if operation in OF_A_NAME else 0
        self.real.report(operation, args, number, text, self._place, child)

    async def _child(self, inode: InodeT, name: bytes) -> int:
        """The node of an entry; 0 when there is none."""
        try:
            parent = self._node(inode)
            child = await self._call(parent, parent.kind.lookup, _entry_name(name))
            return self.inodes.number(child) if child is not None else 0
        except Exception:  # it is asked because something failed already
            return 0

    def _held(self) -> int:
        return len(self.inodes) + (self.site.plane.stats().held if self.site.plane is not None else 0)

    def _place(self, first: int) -> tuple[str, InodeT, int, int]:
        """Path and node of what a request was about; pid and uid where only its handle knows them."""
        held = self._handles.get(first)
        if held is not None:
            pid, uid = (held.pid, held.uid) if isinstance(held, Opened) else (0, 0)
            return held.node.path, held.inode, pid, uid
        try:
            return self.inodes.node(first).path, InodeT(first), 0, 0
        except KeyError:
            return f"inode {first}", InodeT(first), 0, 0

    def _node(self, inode: InodeT) -> Node:
        try:
            return self.inodes.node(inode)
        except KeyError:
            raise OSError(errno.ESTALE, "what this entry showed is gone; look it up again") from None

    async def _call(self, node: Node, method: Callable[..., Any], *args: Any) -> Any:
        if node.kind.blocking:
            return await trio.to_thread.run_sync(self._at_once, method, node, *args)
        return self._at_once(method, node, *args)

    def _at_once(self, method: Callable[..., Any], *args: Any) -> Any:
        """The result of a method that sees the store as it is at one moment."""
        with self.site.live.held():
            return method(*args)

    async def _work(self, method: Callable[..., Any], *args: Any) -> Any:
        """Do what changes something, in a thread; nothing published before is shown after it."""
        try:
            return await trio.to_thread.run_sync(method, *args)
        finally:
            self.publisher.outdate()

    async def _entry(self, node: Node) -> EntryAttributes:
        attributes = await self._attributes(node)
        self._remember(node)
        return attributes

    def _remember(self, node: Node) -> None:
        """Count a lookup the kernel holds now; those of real trees are counted by the plane."""
        if not isinstance(node.kind, RealTree):
            self.inodes.remember(node)

    async def _attributes(self, node: Node) -> EntryAttributes:
        if isinstance(node.kind, RealTree):
            number = await self.views.export(functools.partial(node.kind.view, node.subject))
            keep = node.kind.keep_name if self.views.keeps_place(number) else 0.0
            return root_attributes(InodeT(number), keep)
        found = await self._call(node, node.kind.attributes)
        return shown(self.inodes, node, found)

    async def _replaced(self, node: Node) -> None:
        """A command may have put another directory behind ``rootfs``: the kernel must ask again."""
        number = self.inodes.find(node.key.rpartition("/")[0])
        if number is not None:
            with contextlib.suppress(OSError):  # it may hold no such name
                name = pyfuse3.FileNameT(b"rootfs")
                await trio.to_thread.run_sync(pyfuse3.invalidate_entry, number, name)

    def _open(self, handle: Opened | Listing, flags: int = 0) -> FileHandleT:
        number = next(self._numbers) | flags
        self._handles[number] = handle
        return FileHandleT(number)


async def _next_bytes(stream: Stream, size: int, pid: int, *, wait: bool) -> bytes:
    """What a stream gives next; a reader that got a signal meanwhile is not kept waiting.

    The kernel waits for the answer to a read even when the process is being killed, and pyfuse3 does not
    hand on that it was interrupted, so whoever opened the file is looked at now and then.
    """
    while True:
        with trio.move_on_after(SIGNAL_SECONDS if wait else 0):
            return await stream.next_bytes(size)
        if not wait:
            raise FUSEError(errno.EAGAIN)
        if has_signal(pid):
            raise FUSEError(errno.EINTR)


def _readable(node: Node) -> bool:
    """Tools open what they make for both, as mkstemp(3) does, also where nothing can be read."""
    return bool(node.kind.mode & stat.S_IRUSR)


def _list_entries(node: Node) -> list[tuple[str, Node]]:
    return list(node.kind.entries(node))


def _entry_name(name: bytes) -> str:
    """A name as text; the kernel lets FUSE have up to 1,024 bytes, other file systems 255."""
    if len(name) > NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, f"a name has at most {NAME_MAX} bytes, this one has {len(name)}")
    return os.fsdecode(name)
