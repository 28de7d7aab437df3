"""Deciding candidate paths: the cheap half of finding changes.

Something that knows where two trees may differ (a send stream, a tree search) names *candidate* paths;
this module looks at each on both sides and lists it by the same rules as the complete walk. A candidate that
turns out equal is not listed, and below a directory that is not the same object on both sides
everything is compared, so the result is :func:`~drivers.changes.tree_changes`' as long as each difference
is a candidate or below one.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from contextlib import ExitStack
from typing import TYPE_CHECKING

from drivers.base import Change, ChangeKind
from drivers.changes import (
    RULES,
    SAME_OWNERS,
    Collector,
    Entry,
    Owners,
    Rules,
    TreeWalk,
    directory,
    entry_differs,
    located,
)
from drivers.changes import is_directory_like as directory_like

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    Aliases = Callable[[int], Iterable[bytes]]
    SameObject = Callable[[Entry, Entry], bool]


def same_inode(new: Entry, old: Entry) -> bool:
    """Whether a path is one object in two snapshots of one subvolume: inode numbers are not reused."""
    return new.stat.st_ino == old.stat.st_ino


def no_aliases(inode: int) -> Iterable[bytes]:
    """For trees without hard links, and candidates that already include every name of a file."""
    return ()


class Places:
    """Looks paths of one tree up, with the directory of the last one kept open.

    Candidates come sorted, so most are in the same directory as the one before. No symbolic link is
    followed; an entry is valid until the next call.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._path: bytes | None = None
        self._fd = -1

    def entry(self, path: bytes) -> Entry | None:
        """What is at an absolute path other than the root's, or ``None``."""
        directory_path, _, name = path.rpartition(b"/")
        if not self.enter(directory_path):
            return None
        try:
            status = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return Entry(b"/proc/self/fd/%d/%s" % (self._fd, name), status, status.st_ino)

    def enter(self, path: bytes) -> bool:
        """Open a directory for the lookups to come; false when there is none at ``path``."""
        if path != self._path:
            self.close()
            with located(self._root, path) as found:
                if found is not None and stat.S_ISDIR(found.stat.st_mode):
                    self._fd = os.open(found.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._path = path
        return self._fd >= 0

    def close(self) -> None:
        """Close the directory kept open."""
        if self._fd >= 0:
            os.close(self._fd)
        self._path, self._fd = None, -1


class CandidateComparison:
    """Compares two trees at candidate paths only.

    Args:
        new, old: root directories.
        same: whether a directory present on both sides is one object, so that only the candidates
            below it can differ.
        aliases: all paths of a file in the new tree by inode number; asked for touched files with
            several links, since what changed under one name changed under all.
    """

    def __init__(
        self,
        new: int,
        old: int,
        *,
        owners: Owners = SAME_OWNERS,
        rules: Rules = RULES,
        same: SameObject = same_inode,
        aliases: Aliases = no_aliases,
    ) -> None:
        self._new, self._old = new, old
        self._new_places, self._old_places = Places(new), Places(old)
        self._owners, self._rules = owners, rules
        self._same, self._aliases = same, aliases
        self._found = Collector()
        self._walk = TreeWalk(self._found, self._owners, rules)
        self._seen: set[bytes] = set()
        self._settled: set[bytes] = set()
        self._touched: Collection[bytes] = ()
        self._linked: set[int] = set()
        self._balance: dict[bytes, int] = defaultdict(int)
        self._directories: dict[bytes, int] = {}

    def run(self, candidates: Iterable[bytes], touched: Collection[bytes] = ()) -> list[Change]:
        """Changes at and below the candidates, absolute paths in any order.

        Args:
            touched: candidates whose other names may not be among the candidates.
        """
        self._touched = touched
        try:
            self._take(candidates)
            # Sizes can be judged only when every named entry is counted, and may name more candidates.
            while unbalanced := [p for p, excess in self._directories.items() if excess != self._balance[p]]:
                for path in unbalanced:
                    del self._directories[path]
                    self._take(self.differing_names(path))
        finally:
            self._new_places.close()
            self._old_places.close()
        return self._found.finish()

    def _take(self, candidates: Iterable[bytes]) -> None:
        # Bytewise order puts every directory before what is in it.
        pending = sorted(set(candidates) - self._seen)
        while pending:
            more: list[bytes] = []
            for path in pending:
                if path in self._seen:
                    continue
                self._seen.add(path)
                if not self._is_settled(path):
                    more += self._decide(path)
                elif path in self._touched:
                    more += self._other_names(path)
            pending = sorted(set(more) - self._seen)

    def _is_settled(self, path: bytes) -> bool:
        """Whether a directory above was compared completely, or is on one side only."""
        while path:
            path = path.rpartition(b"/")[0]
            if path in self._settled:
                return True
        return False

    def _decide(self, path: bytes) -> Iterable[bytes]:
        """List one candidate; returns further candidates."""
        if path in (b"", b"/"):
            self._note_directory(b"")
            return ()
        new, old = self._new_places.entry(path), self._old_places.entry(path)
        self._weigh(path, new, old)
        if new is not None and old is not None:
            return self._both(path, new, old)
        if new is not None:
            self._only_new(path, new)
        elif old is not None:
            self._only_old(path)
        else:
            self._settled.add(path)
        return ()

    def _weigh(self, path: bytes, new: Entry | None, old: Entry | None) -> None:
        # btrfs counts each name twice in its directory's size: once by hash and once by index.
        parent, _, name = path.rpartition(b"/")
        self._balance[parent] += 2 * len(name) * ((new is not None) - (old is not None))

    def _both(self, path: bytes, new: Entry, old: Entry) -> Iterable[bytes]:
        if entry_differs(new, old, self._owners, self._rules):
            self._found.add(path, ChangeKind.MODIFIED)
        new_is, old_is = (stat.S_ISDIR(entry.stat.st_mode) for entry in (new, old))
        if new_is and old_is and self._same(new, old):
            self._directories[path] = new.stat.st_size - old.stat.st_size
            return ()
        if new_is:
            self._settled.add(path)
            self._compare_below(path, new, old if old_is else None)
        elif old_is:
            self._settled.add(path)
            if directory_like(new.stat.st_mode):
                self._walk.emptied(path, old)
        return self._links(path, new)

    def _other_names(self, path: bytes) -> Iterable[bytes]:
        new = self._new_places.entry(path)
        return () if new is None or stat.S_ISDIR(new.stat.st_mode) else self._links(path, new)

    def _links(self, path: bytes, new: Entry) -> Iterable[bytes]:
        inode = new.stat.st_ino
        if path not in self._touched or new.stat.st_nlink == 1 or inode in self._linked:
            return ()
        self._linked.add(inode)
        return self._aliases(inode)

    def _only_new(self, path: bytes, new: Entry) -> None:
        self._found.add(path, ChangeKind.ADDED)
        if stat.S_ISDIR(new.stat.st_mode):
            self._settled.add(path)
            self._compare_below(path, new, None)

    def _only_old(self, path: bytes) -> None:
        self._settled.add(path)
        # Where the directory above is gone or no directory, it is the one listed.
        if self._new_places.enter(path.rpartition(b"/")[0]):
            self._found.add(path, ChangeKind.DELETED)

    def _compare_below(self, path: bytes, new: Entry, old: Entry | None) -> None:
        with ExitStack() as stack:
            new_fd = stack.enter_context(directory(new.path))
            old_fd = stack.enter_context(directory(old.path)) if old is not None else None
            self._walk.compare(new_fd, old_fd, path)

    def _note_directory(self, path: bytes) -> None:
        with located(self._new, path) as new, located(self._old, path) as old:
            if new is not None and old is not None:
                self._directories[path] = new.stat.st_size - old.stat.st_size

    def differing_names(self, path: bytes) -> list[bytes]:
        """Paths in a directory that are on one side only, or are another object on each."""
        with located(self._new, path) as new, located(self._old, path) as old:
            mine, theirs = _listing(new), _listing(old)
        names = {name for name, _ in mine.items() ^ theirs.items()}
        return [path + b"/" + name for name in names]


def _listing(entry: Entry | None) -> dict[bytes, int]:
    """Names of a directory with their inode numbers."""
    if entry is None or not stat.S_ISDIR(entry.stat.st_mode):
        return {}
    with os.scandir(entry.path) as listing:
        return {os.fsencode(item.name): item.inode() for item in listing}
