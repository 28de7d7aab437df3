"""The kinds of entries the tree is made of.

A :class:`Kind` is one sort of entry (a text file, a symlink, a table of objects …); an instance of
it is a *route*: it holds the functions that make the content and never any state. A :class:`Node` is
a route bound to the *subject* it shows (a layer, an image, one snapshot …) and to its place.

Each operation is defined once on ``Kind`` with an honest default: it fails with the errno a real file
system would give. Methods are synchronous; those of a kind with ``blocking`` set read disks or take
store locks and are called in a worker thread. None of them knows pyfuse3.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from fsd.contents import Rendered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from fsd.contents import Content, Sink
    from fsd.site import Subject
    from fsd.views import ViewSpec

LISTED_SECONDS = 0.02
"""How long what a listing says of an entry holds: whoever lists a directory stats its entries next."""
KEEP_SECONDS = 1.0
"""How long names and directories are kept: every path walks through them. What another process changes
is taken back at once by ``fsd.followers``; this bounds what it could miss."""
MAX_VALUE = 65536
"""Longest value of an attribute file, in bytes; longer writes fail with EFBIG."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """What ``stat`` shows of a synthetic entry; times are nanoseconds since the epoch."""

    mode: int
    size: int
    mtime_ns: int
    nlink: int = 1
    keep: float = 0.0
    """Seconds the kernel may keep them without asking."""
    generation: int = 0
    """Of the inode: what the kernel keeps without end belongs to one only (fuse.h, ``fuse_entry_out``)."""


@dataclass(frozen=True, slots=True)
class Node:
    """One entry of the tree.

    ``key`` identifies it wherever it is listed; ``path`` is where it was last found, relative to the
    mount point, and serves messages and relative symlinks. A fixed entry can be made again from the directory
    it is ``fixed_in`` and its ``place`` there (:meth:`Kind.fixed`).
    """

    kind: Kind
    subject: Subject
    key: str
    path: str
    fixed_in: Node | None = field(default=None, compare=False, repr=False)
    place: int = field(default=-1, compare=False, repr=False)

    def child(self, name: str, kind: Kind, subject: Subject | None = None, key: str | None = None) -> Node:
        """A node below this one; by default it shows the same subject."""
        return Node(
            kind,
            self.subject if subject is None else subject,
            f"{self.key}/{name}" if key is None else key,
            f"{self.path}/{name}" if self.path else name,
        )

    def refuse(self, number: int, why: str) -> NoReturn:
        """Raise the ``OSError`` of a refused operation; its text says why and what to do instead."""
        raise OSError(number, why, "/" + self.path)


class Kind:
    """One sort of entry; subclasses override what they can do."""

    mode: int = stat.S_IFREG | 0o444
    blocking: ClassVar[bool] = False
    keep_name: ClassVar[float] = KEEP_SECONDS
    """Seconds the kernel may keep an entry's name without asking."""

    takes_empty: ClassVar[bool] = False
    """Whether a file may be empty: making it, or truncating it, is a command although nothing is written."""
    keeps_listing: ClassVar[bool] = False
    """Whether the kernel may keep a directory's listing as long as its time stays as it is."""

    @property
    def writable(self) -> bool:
        """Whether writing the entry is a command."""
        return False

    @property
    def takes_attributes(self) -> bool:
        """Whether setting mode, owner and times is let pass, without effect."""
        return False

    def changes_unseen(self, node: Node) -> bool:
        """Whether what it shows may change although neither the store's tables nor fsd's state do."""
        return False

    def attributes(self, node: Node) -> Attributes:
        """Mode, true size and time of the last change."""
        return Attributes(self.mode, len(self.content(node)), node.subject.changed_ns())

    def content(self, node: Node) -> bytes:
        """The bytes of a file, rendered now."""
        node.refuse(errno.EISDIR if stat.S_ISDIR(self.mode) else errno.EINVAL, "it has no content to read")

    def open_content(self, node: Node) -> Content:
        """What an open file is read from; by default its content, rendered now."""
        return Rendered(self.content(node))

    def open_sink(self, node: Node, emptied: bool) -> Sink | None:
        """What takes a file's worth of bytes; ``None`` where each write is one value (:meth:`accept`).

        Args:
            emptied: the file was made, or truncated, by being opened.
        """
        return None

    def target(self, node: Node) -> str:
        """Where a symlink points."""
        node.refuse(errno.EINVAL, "it is not a symbolic link")

    def lookup(self, node: Node, name: str) -> Node | None:
        """The entry ``name``, listed or not."""
        node.refuse(errno.ENOTDIR, "it is not a directory")

    def entries(self, node: Node) -> Iterable[tuple[str, Node]]:
        """The listed entries, in listing order."""
        node.refuse(errno.ENOTDIR, "it is not a directory")

    def place(self, name: str) -> int | None:
        """Which of the fixed entries is called ``name``, counted from 0."""
        return None

    def fixed(self, node: Node, place: int) -> Node:
        """The fixed entry at ``place``, whether the subject has it now or not."""
        node.refuse(errno.ESTALE, "it has no fixed entries")

    def accept(self, node: Node, data: bytes, append: bool) -> Callable[[], object]:
        """Check one written value and return the work it asks for, done before the write returns."""
        node.refuse(errno.EPERM, "this file is made by fsd and cannot be written")

    def mkdir(self, node: Node, name: str) -> Node | None:
        """Make the entry ``name``; the directory to answer with, if looking ``name`` up gives none."""
        node.refuse(errno.EPERM, f"nothing can be made here; {name!r} was not created")

    def create(self, node: Node, name: str, regular: bool) -> Node:
        """Make the file ``name``, a regular one or a special one, and return its entry."""
        node.refuse(errno.EPERM, f"{name!r}: files can be made below a rootfs only")

    def symlink(self, node: Node, name: str, target: str) -> None:
        """Make the symlink ``name``."""
        node.refuse(errno.EPERM, f"{name!r}: symbolic links can be made below a rootfs only")

    def rmdir(self, node: Node, name: str) -> None:
        """Remove the directory ``name``."""
        node.refuse(errno.EPERM, f"{name!r} belongs to its object and cannot be removed alone")

    def unlink(self, node: Node, name: str) -> None:
        """Remove the file ``name``."""
        node.refuse(
            errno.EPERM, f"{name!r} is an attribute and cannot be unlinked; use rmdir on the object itself"
        )

    def rename(self, node: Node, name: str, into: Node, new_name: str) -> None:
        """Move the entry ``name`` to ``into`` as ``new_name``."""
        node.refuse(errno.EPERM, f"{name!r} cannot be renamed")


def text_value(node: Node, data: bytes) -> str:
    """A written value as text: UTF-8, one trailing newline dropped; ``EINVAL``, ``EFBIG``."""
    if len(data) > MAX_VALUE:
        node.refuse(errno.EFBIG, f"a value has at most {MAX_VALUE} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        node.refuse(errno.EINVAL, "the value is not UTF-8 text")
    if "\0" in text:
        node.refuse(errno.EINVAL, "the value holds a NUL byte")
    return text.removesuffix("\n")


@dataclass(frozen=True)
class Text(Kind):
    """A file of text made from its subject.

    ``render`` gives the text; a newline is added unless it is empty or ends in one. ``command`` makes
    the file writable: it takes the subject, the written value and whether the file was opened for
    appending, checks them, and returns the work to do. ``length`` gives the number of bytes where that is
    cheaper to find than the text.
    """

    render: Callable[[Any], str]
    command: Callable[[Any, str, bool], Callable[[], object]] | None = None
    length: Callable[[Any], int] | None = None
    mode: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", stat.S_IFREG | (0o644 if self.command else 0o444))

    @property
    def writable(self) -> bool:
        """Whether the route has a command."""
        return self.command is not None

    def content(self, node: Node) -> bytes:
        """The text as UTF-8."""
        return self.rendered(node.subject)

    def rendered(self, subject: Any) -> bytes:
        """The content for a subject."""
        return _lines(self.render(subject)).encode("utf-8", "surrogateescape")

    def size(self, subject: Any) -> int:
        """Bytes of the content for a subject."""
        if self.length is not None:
            return self.length(subject)
        text = _lines(self.render(subject))
        return len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape"))

    def accept(self, node: Node, data: bytes, append: bool) -> Callable[[], object]:
        """Check the value by the route's command; an empty write asks for nothing."""
        if self.command is None:
            return super().accept(node, data, append)
        value = text_value(node, data)
        return self.command(node.subject, value, append)


def _lines(text: str) -> str:
    """The text with a newline at its end, unless it is empty."""
    return text + "\n" if text and text[-1] != "\n" else text


class FreeText(Text):
    """A text that may be empty, so that truncating the file is a command too."""

    takes_empty = True


class SlowText(Text):
    """A text that needs a disk or a lock to render."""

    blocking = True


class UnseenText(SlowText):
    """A text about what is neither in the store's tables nor in fsd's state."""

    def changes_unseen(self, node: Node) -> bool:
        """Always: whoever changes it tells nobody."""
        return True


@dataclass(frozen=True)
class Link(Kind):
    """A symlink; ``to`` gives an absolute path, or a path in the tree that is made relative.

    ``to`` returns ``None`` where there is nothing to point at; the entry is then left out.
    """

    to: Callable[[Any], str | None]
    mode = stat.S_IFLNK | 0o777
    keep_name = LISTED_SECONDS

    def attributes(self, node: Node) -> Attributes:
        """The size of a symlink is the length of its target."""
        return self.leading_to(os.fsencode(self.target(node)), node.subject.changed_ns())

    def leading_to(self, target: bytes, changed_ns: int) -> Attributes:
        """Attributes with that target. The kernel keeps a target, so another one is another inode's."""
        return Attributes(self.mode, len(target), changed_ns, generation=zlib.crc32(target))

    def target(self, node: Node) -> str:
        """The target as the kernel will follow it."""
        target = self.to(node.subject)
        if target is None:
            node.refuse(errno.ENOENT, "its target is gone")
        return relative_target(target, node.path.rpartition("/")[0])


def relative_target(target: str, directory: str) -> str:
    """A path in the tree as seen from one of its directories; an absolute path as it is."""
    if target.startswith("/"):
        return target
    there, here = target.split("/"), directory.split("/") if directory else []
    same = 0
    while same < len(there) and same < len(here) and there[same] == here[same]:
        same += 1
    return "/".join([".."] * (len(here) - same) + there[same:]) or "."


class Alias(Link):
    """A symlink that lookup makes up: another way to say a listed name.

    What it means may change with any object of the table, so nobody keeps it.
    """

    keep_name = 0.0


class DirectoryKind(Kind):
    """What all synthetic directories share."""

    mode = stat.S_IFDIR | 0o755

    def attributes(self, node: Node) -> Attributes:
        """Directories of the tree have no size of their own."""
        return Attributes(self.mode, 0, self.mtime_ns(node), nlink=2, keep=KEEP_SECONDS)

    def mtime_ns(self, node: Node) -> int:
        """When the listing last changed."""
        return node.subject.changed_ns()


@dataclass(frozen=True)
class Flag(Kind):
    """An empty file that is there while something is so: ``touch`` sets it, ``rm`` takes it away.

    ``since_ns`` tells since when, ``None`` while it is not so; ``change`` makes it so or not.
    """

    since_ns: Callable[[Any], int | None]
    change: Callable[[Any, bool], object]
    mode = stat.S_IFREG | 0o644
    writable = True
    takes_attributes = True

    def attributes(self, node: Node) -> Attributes:
        """Its time is when it was set."""
        return Attributes(self.mode, 0, self.since_ns(node.subject) or node.subject.changed_ns())

    def content(self, node: Node) -> bytes:
        """Nothing: that it is there is what it says."""
        return b""

    def accept(self, node: Node, data: bytes, append: bool) -> Callable[[], object]:
        """Let ``echo > pinned`` pass as ``touch`` does; what is written says nothing more."""
        return functools.partial(self.change, node.subject, True)


@dataclass(frozen=True)
class Directory(DirectoryKind):
    """A directory with a fixed set of routes, in listing order.

    Left out are a ``Link`` without a target, a ``Flag`` that is not set, and what ``present`` says no to.
    """

    routes: dict[str, Kind]
    present: dict[str, Callable[[Any], bool]] = field(default_factory=dict)
    _places: dict[str, int] = field(init=False, compare=False, repr=False)
    _ordered: list[tuple[str, Kind]] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_places", {name: place for place, name in enumerate(self.routes)})
        object.__setattr__(self, "_ordered", list(self.routes.items()))

    def place(self, name: str) -> int | None:
        """Its place among the routes."""
        return self._places.get(name)

    def fixed(self, node: Node, place: int) -> Node:
        """The route at that place."""
        name, kind = self._ordered[place]
        path = f"{node.path}/{name}" if node.path else name
        return Node(kind, node.subject, f"{node.key}/{name}", path, node, place)

    def lookup(self, node: Node, name: str) -> Node | None:
        """The route ``name``, if the subject has it."""
        kind = self.routes.get(name)
        if kind is None or not self._has(node, name, kind):
            return None
        return self.fixed(node, self._places[name])

    def entries(self, node: Node) -> Iterator[tuple[str, Node]]:
        """Routes the subject has."""
        for place, (name, kind) in enumerate(self._ordered):
            if self._has(node, name, kind):
                yield name, self.fixed(node, place)

    def create(self, node: Node, name: str, regular: bool) -> Node:
        """Set the flag ``name``; nothing else can be made."""
        kind = self.routes.get(name)
        if not isinstance(kind, Flag) or not regular:
            return super().create(node, name, regular)
        child = self.fixed(node, self._places[name])
        kind.change(child.subject, True)
        return child

    def unlink(self, node: Node, name: str) -> None:
        """Take the flag ``name`` away; attributes stay."""
        kind = self.routes.get(name)
        if not isinstance(kind, Flag):
            return super().unlink(node, name)
        kind.change(node.subject, False)

    def _has(self, node: Node, name: str, kind: Kind) -> bool:
        test = self.present.get(name)
        if test is not None and not test(node.subject):
            return False
        if isinstance(kind, Flag):
            return kind.since_ns(node.subject) is not None
        return not isinstance(kind, Link) or kind.to(node.subject) is not None


@dataclass(frozen=True)
class Many(DirectoryKind):
    """A directory with one entry per item: ``items`` maps entry names to item subjects or targets.

    The route of every entry is ``each``.
    """

    items: Callable[[Any], dict[str, Any]]
    each: Kind

    def lookup(self, node: Node, name: str) -> Node | None:
        """The item of that name."""
        items = self.items(node.subject)
        return node.child(name, self.each, items[name]) if name in items else None

    def entries(self, node: Node) -> Iterator[tuple[str, Node]]:
        """All items."""
        for name, subject in self.items(node.subject).items():
            yield name, node.child(name, self.each, subject)


@dataclass(frozen=True)
class RealTree(Kind):
    """The root of a real directory tree (``rootfs``, ``userdata``), served by ``fsd.plane``."""

    view: Callable[[Any], ViewSpec]
    mode = stat.S_IFDIR | 0o755
