"""Changes of btrfs layers in time proportional to the change.

Both sides are copied to read-only snapshots, which also makes the answer one point in time; the send stream
between the two, or the generations in their metadata, name the paths that can differ; each of those is
decided by ``stat``. Where the kernel refuses (no privilege, no common ancestor, a balance running), the
next cheapest way is taken, and all of them give the same list.

What send cannot see is handled here: nested subvolumes, which are absent from a snapshot, are compared in
place; and a directory whose size disagrees with the names the stream told of is listed.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import struct
from abc import abstractmethod
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, BinaryIO

from drivers import btrfs_ioctl, btrfs_tree, pruned
from drivers.btrfs_lineage import Origins, generation_parted
from drivers.btrfs_names import Namespace
from drivers.btrfs_removal import destroy_tree
from drivers.btrfs_send import MalformedStream, sent_commands
from drivers.changes import SAME_OWNERS, Entry, Owners, changes_size, directory, tree_changes
from drivers.naive import NaiveDiff
from drivers.sparse import CandidateComparison
from drivers.tarwriter import open_diff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from drivers.base import Change, Compared
    from drivers.btrfs_quota import Quotas
    from drivers.idmap import IDMappings

_log = logging.getLogger(__name__)
_GETVERSION = 0x80087601
"""FS_IOC_GETVERSION: on btrfs the transaction in which the inode was created."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of two compared layers: where it lives, and its read-only copy."""

    live: Path
    copy: Path
    id: int
    """Subvolume ID of the copy."""
    generation: int
    """The last transaction that changed the content the copy has."""

    @property
    def nested(self) -> list[bytes]:
        """Absolute paths of the subvolumes nested in the layer; a copy has empty directories there."""
        found = btrfs_tree.nested_subvolumes(self.live, btrfs_ioctl.subvolume_id(self.live))
        return [b"/" + os.fsencode(item.path) for item in found]


class Pair:
    """Two layers with a common past, and the ways to find what they differ in.

    Args:
        fork: the last transaction both have in common.
        owners: the ID mappings of both.

    Attributes:
        root: the tree whose content is the new side's.
    """

    def __init__(self, new: Side, old: Side, fork: int, owners: Owners) -> None:
        self._new, self._old, self._fork, self._owners = new, old, fork, owners
        self._nested = [*new.nested, *old.nested]
        # A copy lacks what nested subvolumes hold: with any there, the layers themselves are looked at.
        self.root = new.live if self._nested else new.copy
        self._old_root = old.live if self._nested else old.copy

    @property
    def generations(self) -> tuple[int, int] | None:
        """Of the content of both sides; ``None`` where some of it is not in the copies."""
        return None if self._nested else (self._new.generation, self._old.generation)

    def changes(self) -> list[Change]:
        """The changes, by the cheapest way that works."""
        for way in (self.by_send, self.by_generation):
            try:
                return way()
            except (OSError, MalformedStream) as error:
                _log.info("%s did not work for %s: %s", way.__name__, self._new.live, error)
        return self.by_walk()

    def by_send(self) -> list[Change]:
        """Candidates from the send stream.

        Send takes inodes of equal number and generation for one object. Where both sides changed after
        they parted, two different files can look like that, so the generations decide alone.

        Raises:
            BtrfsError, MalformedStream
        """
        if all(pruned.changed_after(side.copy, self._fork) for side in (self._old, self._new)):
            return self.by_generation()
        namespace = Namespace()
        with sent_commands(self._new.copy, self._old.id) as commands:
            namespace.apply(commands)
        candidates = namespace.candidates()
        with self._comparison() as comparison:
            return comparison.run([*candidates.paths, *self._nested], candidates.touched)

    def by_generation(self) -> list[Change]:
        """Candidates from what either side wrote after they parted; ``BtrfsError``."""
        sides = [pruned.young_paths(side.copy, self._fork) for side in (self._new, self._old)]
        with self._comparison() as comparison:
            candidates = [*self._nested]
            for side in sides:
                candidates += side.paths
                for place in side.directories:
                    candidates += comparison.differing_names(place)
            return comparison.run(candidates)

    def by_walk(self) -> list[Change]:
        """Everything compared; ``OSError``."""
        return tree_changes(self.root, self._old_root, self._owners.new, self._owners.old)

    @contextmanager
    def _comparison(self) -> Iterator[CandidateComparison]:
        with directory(self.root) as new, directory(self._old_root) as old:
            yield CandidateComparison(
                new,
                old,
                owners=self._owners,
                same=self._same_directory(os.fstat(new).st_dev, os.fstat(old).st_dev),
                aliases=pruned.Names(self._new.copy).paths,
            )

    def _same_directory(self, new_device: int, old_device: int) -> Callable[[Entry, Entry], bool]:
        """The test for one directory on both sides: one inode, made before they parted, not nested."""

        def same(new: Entry, old: Entry) -> bool:
            if new.stat.st_ino != old.stat.st_ino:
                return False
            if (new.stat.st_dev, old.stat.st_dev) != (new_device, old_device):
                return False
            return _created(new) == _created(old) <= self._fork

        return same


def _created(entry: Entry) -> int:
    with directory(entry.path) as fd:
        answer = fcntl.ioctl(fd, _GETVERSION, bytes(8))
    return int(struct.unpack("<q", answer)[0])


class BtrfsChanges(NaiveDiff):
    """``changes``, ``diff`` and ``diff_size`` of subvolumes, quick where the kernel allows it.

    To be mixed into a driver whose layers are subvolumes of one filesystem.
    """

    quotas: Quotas

    @abstractmethod
    def present(self, layer_id: str) -> Path:
        """The directory of a layer that exists; ``BadLayerID``, ``LayerUnknown``."""

    @abstractmethod
    def opened(self, layer_id: str) -> AbstractContextManager[int]:
        """A descriptor of the directory of a layer that exists; raises as :meth:`present`."""

    @abstractmethod
    def scratch_path(self) -> Path:
        """A place for a temporary copy that no one else uses."""

    @abstractmethod
    def older_path(self) -> Path:
        """Another one, in another directory."""

    @cached_property
    def origins(self) -> Origins:
        """Where the past of replaced subvolumes is written down."""
        return Origins(self.home / "fsd" / "origins")

    def changes(
        self,
        layer_id: str,
        parent: str | None,
        mappings: IDMappings | None = None,
        parent_mappings: IDMappings | None = None,
    ) -> list[Change]:
        """What the layer changes against any other; see :meth:`drivers.base.Driver.changes`."""
        with self._compared(layer_id, parent, Owners(mappings, parent_mappings)) as found:
            if found is not None:
                return found[1]
        return super().changes(layer_id, parent, mappings, parent_mappings)

    def diff_size(
        self,
        layer_id: str,
        parent: str | None,
        mappings: IDMappings | None = None,
        parent_mappings: IDMappings | None = None,
    ) -> int:
        """Sum of the sizes of added and modified files, each inode once."""
        with self._compared(layer_id, parent, Owners(mappings, parent_mappings)) as found:
            if found is not None:
                return changes_size(*found)
        return super().diff_size(layer_id, parent, mappings, parent_mappings)

    def diff(
        self,
        layer_id: str,
        parent: str | None,
        mappings: IDMappings | None = None,
        parent_mappings: IDMappings | None = None,
    ) -> BinaryIO:
        """Archive the changes out of a read-only copy, which lasts until the stream is closed."""
        with ExitStack() as stack:
            compared = self._compared(layer_id, parent, Owners(mappings, parent_mappings))
            found = stack.enter_context(compared)
            if found is not None:
                root, changes = found
                release = stack.pop_all()
                return open_diff(
                    root, changes, mappings=mappings, generation=self.header_style, on_close=release.close
                )
        return super().diff(layer_id, parent, mappings, parent_mappings)

    @contextmanager
    def compared(
        self,
        new: Path,
        old: Path | None,
        mappings: IDMappings | None = None,
        old_mappings: IDMappings | None = None,
    ) -> Iterator[Compared]:
        """Compare read-only copies of two trees; see :meth:`drivers.base.Driver.compared`."""
        with ExitStack() as copies:
            owners = Owners(mappings, old_mappings)
            pair = None if old is None else self._pair_of(copies, new, old, owners)
            if pair is not None:
                found = self.comparison(pair.root, pair.changes(), mappings)
                yield replace(found, generations=pair.generations)
                return
            with super().compared(new, old, mappings, old_mappings) as found:
                yield found

    def is_untouched(self, layer_id: str, parent: str) -> bool:
        """Whether neither was written since one was copied from the other, by their root items."""
        with self.opened(layer_id) as side, self.opened(parent) as other:
            return btrfs_ioctl.is_untouched(side, other)

    @contextmanager
    def _compared(
        self, layer_id: str, parent: str | None, owners: Owners
    ) -> Iterator[tuple[Path, list[Change]] | None]:
        """A tree with the layer's content and its changes, or ``None`` where only a walk can tell."""
        with ExitStack() as copies:
            pair = None if parent is None else self.pair(copies, layer_id, parent, owners)
            yield None if pair is None else (pair.root, pair.changes())

    def pair(
        self, copies: ExitStack, layer_id: str, parent: str, owners: Owners = SAME_OWNERS
    ) -> Pair | None:
        """Read-only copies of two layers, gone when ``copies`` is closed; ``None`` without a common past."""
        return self._pair_of(copies, self.present(layer_id), self.present(parent), owners)

    def _pair_of(self, copies: ExitStack, new: Path, old: Path, owners: Owners) -> Pair | None:
        try:
            fork = generation_parted(new, old, self.origins)
            if fork is None:
                return None
            older, newer = self._copies(copies, old, new)
            return Pair(newer, older, fork, owners)
        except OSError as error:
            _log.info("%s and %s cannot be copied to compare them: %s", new, old, error)
            return None

    def _copies(self, copies: ExitStack, old: Path, new: Path) -> tuple[Side, Side]:
        """Read-only copies of both sides, made by one commit of the filesystem if both are asked for in time.

        The kernel makes one snapshot at a time in a directory, so each side has its own; and data that are
        still to be written, most likely the new side's, would let it come too late.
        """
        with suppress(OSError):
            btrfs_ioctl.flush(new)
        with ThreadPoolExecutor(1, "btrfs-copy") as thread:
            older = thread.submit(copies.enter_context, self._copied(old, self.older_path()))
            newer = copies.enter_context(self._copied(new, self.scratch_path()))
            return older.result(), newer

    @contextmanager
    def _copied(self, live: Path, copy: Path) -> Iterator[Side]:
        btrfs_ioctl.snapshot(live, copy.parent, copy.name, read_only=True)
        try:
            info = btrfs_ioctl.subvolume_info(copy)
            yield Side(live, copy, info.id, info.ctransid)
        finally:
            self.discard_copy(copy)

    def discard_copy(self, copy: Path) -> None:
        """Destroy a temporary subvolume; one that cannot be destroyed stays until the next start."""
        try:
            with self.quotas.removing(copy):
                destroy_tree(copy)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EACCES, errno.EBUSY):
                raise
            _log.warning("a temporary copy stays until the next start: %s", error)
