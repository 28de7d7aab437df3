"""The files inside an image archive: a tar that is looked into at any place, compressed or not."""

from __future__ import annotations

import io
import os
import posixpath
import tarfile
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from drivers.archive_input import END
from drivers.base import Compression
from drivers.compress import MAGIC_SIZE, chunks_of, decompress, detect
from drivers.confine import Root
from drivers.errors import HostileArchive, MalformedArchive
from store.blobs import NO_END, unnamed_file
from store.codec import loads
from store.placed import Placed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Progress = Callable[[int], None]
    """Told of every further number of bytes that was moved."""

MEMBERS = 100_000
"""Most members an image archive may have; real ones have three per layer."""
DOCUMENT_SIZE = 4 << 20
"""Most bytes of a JSON document, which is also containers/image's bound for manifests."""
LINKS = 16
"""Most symbolic links followed from one member to another."""


class Window(Placed):
    """A range of a seekable file as a readable, seekable stream of its own.

    Several windows may share a file as long as one thread reads at a time.
    """

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        super().__init__(size)
        self._file = file
        self._offset = offset

    def read_piece(self, at: int, size: int) -> bytes:
        """Bytes from a place in the range; ``MalformedArchive`` if the file ends before it."""
        self._file.seek(self._offset + at)
        piece = self._file.read(size)
        if not piece:
            raise MalformedArchive("the archive is truncated")
        return piece


@dataclass(frozen=True, slots=True)
class _Member:
    offset: int
    size: int
    link: str


class ImageFiles(ABC):
    """The files an image is made of, by name."""

    @abstractmethod
    def __contains__(self, name: str) -> bool:
        """Whether there is such a file."""

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """A file's content; ``MalformedArchive`` if there is no such file."""

    def read(self, name: str) -> bytes:
        """A small file whole; ``HostileArchive`` if it is larger than a document may be."""
        with self.open(name) as file:
            data = file.read(DOCUMENT_SIZE + 1)
        if len(data) > DOCUMENT_SIZE:
            raise HostileArchive(f"{name!r:.120} has more than {DOCUMENT_SIZE} bytes")
        return data

    def document(self, name: str) -> Any:
        """A JSON file, parsed."""
        return parse_document(self.read(name), name)


class ArchiveFiles(ImageFiles):
    """The members of a tar by their cleaned names (``./a//b`` is ``a/b``); symbolic links are followed.

    Args:
        file: the uncompressed tar, seekable.

    Raises:
        MalformedArchive, HostileArchive
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._members: dict[str, _Member] = {}
        try:
            self._read()
        except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
            raise MalformedArchive(f"this is no image archive: {error}") from None

    def _read(self) -> None:
        self._file.seek(0)
        with tarfile.open(fileobj=self._file, mode="r:") as archive:
            for member in archive:
                if len(self._members) >= MEMBERS:
                    raise HostileArchive(f"an image archive with more than {MEMBERS} members")
                if member.isreg() or member.issym() or member.islnk():
                    self._members[_clean(member.name)] = _member(member)
        end = self._file.seek(0, os.SEEK_END)
        if any(m.offset + m.size > end for m in self._members.values()):
            raise MalformedArchive("the archive is truncated")
        self._file.seek(max(0, end - len(END)))
        if self._file.read(len(END)) != END:
            raise MalformedArchive(NO_END)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def open(self, name: str) -> BinaryIO:
        """A member's content; ``MalformedArchive`` if there is no such file."""
        wanted = _clean(name)
        for _ in range(LINKS):
            member = self._members.get(wanted)
            if member is None:
                break
            if not member.link:
                return io.BufferedReader(Window(self._file, member.offset, member.size), 1 << 16)
            wanted = _clean(posixpath.join(posixpath.dirname(wanted), member.link))
        raise MalformedArchive(f"the archive has no file {name!r:.120}, although its index names it")


class DirectoryFiles(ImageFiles):
    """The files below a directory, as :class:`ArchiveFiles` shows those of an archive.

    Nothing outside the directory is ever read, whatever links lie in it. Close it or use ``with``.

    Raises:
        OSError: it is no directory, or cannot be read
    """

    def __init__(self, directory: Path) -> None:
        self._root = Root(directory)

    def __enter__(self) -> DirectoryFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._root.close()

    def __contains__(self, name: str) -> bool:
        try:
            self.open(name).close()
        except MalformedArchive:
            return False
        return True

    def open(self, name: str) -> BinaryIO:
        """A file's content; ``MalformedArchive`` if there is no such file."""
        try:
            return os.fdopen(self._root.open_file(os.fsencode(_clean(name))), "rb")
        except OSError as error:
            raise MalformedArchive(f"the layout has no file {name!r:.120}: {error.strerror}") from None


def parse_document(data: bytes, name: str) -> Any:
    """Parsed JSON; ``MalformedArchive`` names the document."""
    try:
        return loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedArchive(f"{name!r:.120} is not JSON: {error}") from None


@contextmanager
def archive_files(archive: BinaryIO, graphroot: Path) -> Iterator[ArchiveFiles]:
    """Look into ``archive``, plain or compressed, from a file or a pipe; read to its end.

    What is compressed, or cannot be read twice, is unpacked to an unnamed file meanwhile.

    Raises:
        MalformedArchive, HostileArchive, OSError
    """
    head = archive.read(MAGIC_SIZE)
    kind = detect(head)
    if kind is Compression.NONE and archive.seekable():
        yield ArchiveFiles(archive)
        return
    with unnamed_file(graphroot) as plain:
        for piece in decompress(kind, _prefixed(head, archive)):
            plain.write(piece)
        yield ArchiveFiles(plain)


def _prefixed(head: bytes, rest: BinaryIO) -> Iterator[bytes]:
    yield head
    yield from chunks_of(rest)


def _member(member: tarfile.TarInfo) -> _Member:
    link = member.linkname if member.issym() else f"/{member.linkname}" if member.islnk() else ""
    return _Member(member.offset_data, member.size, link)


def _clean(name: str) -> str:
    """The name from the archive's root; ``..`` stops there."""
    return posixpath.normpath(f"/{name}").lstrip("/")


def counted(file: BinaryIO, progress: Progress | None) -> BinaryIO:
    """``file``, with every byte read from it told to ``progress``."""
    return file if progress is None else _Counted(file, progress)  # type: ignore[return-value]


class _Counted:
    """A readable stream that tells what went through it; what is read twice counts twice."""

    def __init__(self, file: BinaryIO, progress: Progress) -> None:
        self._file, self._progress = file, progress

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._progress(len(data))
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
