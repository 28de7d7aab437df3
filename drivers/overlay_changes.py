"""What an overlay layer changes, found in its upper directory alone.

Everything a layer changes against its parent is in its upper directory, which so holds all candidates; what
became of each is decided by looking at it through the mounts of both, so that whiteouts, attributes copied up
alone (``metacopy``) and copies without a change need no rules of their own. Only below a directory that hides
or moves what is under it (``opaque``, ``redirect``) are the mounted trees compared whole.
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from typing import TYPE_CHECKING

from drivers.base import Change, ChangeKind
from drivers.changes import (
    Collector,
    Cursor,
    Entry,
    Owners,
    TreeWalk,
    directory,
    entry_differs,
    is_directory_like,
)
from drivers.overlay_features import xattr_prefix
from drivers.overlay_upper import get_mark

if TYPE_CHECKING:
    from pathlib import Path

    from drivers.idmap import IDMappings

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def upper_changes(
    upper: Path,
    new: Path,
    old: Path,
    new_mappings: IDMappings | None = None,
    old_mappings: IDMappings | None = None,
) -> list[Change]:
    """Changes of the layer mounted at ``new`` against its parent mounted at ``old``, sorted by path.

    The same as :func:`drivers.changes.tree_changes` of the two mounts, in time proportional to the content
    of ``upper``.

    Raises:
        OSError: a directory cannot be read, or moved during the walk (``ESTALE``).
    """
    walk = _UpperWalk(Owners(new_mappings, old_mappings))
    with ExitStack() as stack:
        roots = [stack.enter_context(directory(place)) for place in (upper, new, old)]
        cursors = [Cursor(fd) for fd in roots]
        for cursor in cursors:
            stack.callback(cursor.close)
        walk.run(*cursors)
    return walk.found.finish()


class _UpperWalk:
    """Descends three trees in step: the candidates, and both mounts as far as they have the directory."""

    def __init__(self, owners: Owners) -> None:
        self.found = Collector()
        self._owners = owners
        self._trees = TreeWalk(self.found, owners)
        self._marks = tuple(xattr_prefix() + mark for mark in ("opaque", "redirect"))

    def run(self, upper: Cursor, new: Cursor, old: Cursor) -> None:
        """Compare everything below the three roots."""
        frames = [(b"", iter(self._directory(b"", upper, new, old)), True)]
        while frames:
            path, waiting, _ = frames[-1]
            step = next(waiting, None)
            if step is None:
                both = frames.pop()[2]
                if frames:
                    for cursor in (upper, new, old) if both else (upper, new):
                        cursor.up()
                continue
            name, both = step
            for cursor in (upper, new, old) if both else (upper, new):
                cursor.down(name)
            below = path + b"/" + name
            frames.append((below, iter(self._directory(below, upper, new, old if both else None)), both))

    def _directory(
        self, path: bytes, upper: Cursor, new: Cursor, old: Cursor | None
    ) -> list[tuple[bytes, bool]]:
        """Decide the candidates of one directory; returns what to descend to, and if ``old`` has it too."""
        below = []
        for name in map(os.fsencode, os.listdir(upper.fd)):
            here = path + b"/" + name
            mine, theirs = _look(new, name), _look(old, name) if old is not None else None
            self._candidate(here, mine, theirs)
            if mine is None or not stat.S_ISDIR(mine.stat.st_mode):
                continue
            both = theirs is not None and stat.S_ISDIR(theirs.stat.st_mode)
            if self._is_merged(upper, name):
                below.append((name, both))
            else:
                self._whole(here, new, old if both else None, name)
        return below

    def _candidate(self, path: bytes, new: Entry | None, old: Entry | None) -> None:
        if new is None:
            if old is not None:
                self.found.add(path, ChangeKind.DELETED)
        elif old is None:
            self.found.add(path, ChangeKind.ADDED)
        else:
            if entry_differs(new, old, self._owners):
                self.found.add(path, ChangeKind.MODIFIED)
            if not stat.S_ISDIR(new.stat.st_mode) and is_directory_like(new.stat.st_mode):
                self._emptied(path, old)

    def _emptied(self, path: bytes, old: Entry) -> None:
        """What a directory held that became a block device or socket, as the walk of both trees lists it."""
        if stat.S_ISDIR(old.stat.st_mode):
            for name in os.listdir(old.path):
                self.found.add(path + b"/" + name, ChangeKind.DELETED)

    def _is_merged(self, upper: Cursor, name: bytes) -> bool:
        """Whether what is below shows through the candidate directory where it is."""
        path = b"/proc/self/fd/%d/" % upper.fd + name
        return all(get_mark(path, mark) is None for mark in self._marks)

    def _whole(self, path: bytes, new: Cursor, old: Cursor | None, name: bytes) -> None:
        with ExitStack() as stack:
            fds = []
            for cursor in (new, old):
                if cursor is not None:
                    fds.append(os.open(name, _DIRECTORY, dir_fd=cursor.fd))
                    stack.callback(os.close, fds[-1])
            self._trees.compare(fds[0], fds[1] if len(fds) > 1 else None, path)


def _look(cursor: Cursor, name: bytes) -> Entry | None:
    try:
        status = os.lstat(name, dir_fd=cursor.fd)
    except FileNotFoundError:
        return None
    return Entry(b"/proc/self/fd/%d/" % cursor.fd + name, status, status.st_ino)
