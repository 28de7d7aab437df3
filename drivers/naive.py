"""Changes, diff and apply for any driver that can hand out a layer's directory.

:class:`NaiveDiff` is containers/storage's part of that name: compare two trees completely, archive what
differs, unpack an archive into the tree. A driver mixes it in before :class:`~drivers.base.Driver` and
overrides what it can do better.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, BinaryIO

from drivers.archive import apply_archive
from drivers.base import Applied, Change, Compared, Driver, MountOptions
from drivers.changes import changes_size, tree_changes
from drivers.tarwriter import HeaderStyle, archive_size, open_diff

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from drivers.idmap import IDMappings


class NaiveDiff(Driver):
    """The four difference methods on top of :meth:`~drivers.base.Driver.get` and ``put``."""

    header_style = HeaderStyle.V1_43
    """Whose header conventions fresh archives follow."""
    ignore_chown_errors = False
    """Leave an unpacked file's owner as it is where the system refuses to set it."""

    def changes(
        self,
        layer_id: str,
        parent: str | None,
        mappings: IDMappings | None = None,
        parent_mappings: IDMappings | None = None,
    ) -> list[Change]:
        """Compare two trees; see :meth:`drivers.base.Driver.changes`."""
        with ExitStack() as mounts:
            new = self._read_only(mounts, layer_id)
            old = None if parent is None else self._read_only(mounts, parent)
            return tree_changes(new, old, mappings, parent_mappings)

    def diff(
        self,
        layer_id: str,
        parent: str | None,
        mappings: IDMappings | None = None,
        parent_mappings: IDMappings | None = None,
    ) -> BinaryIO:
        """Archive the changes; the layer stays mounted until the stream is closed."""
        changes = None if parent is None else self.changes(layer_id, parent, mappings, parent_mappings)
        with ExitStack() as mounts:
            tree = self._read_only(mounts, layer_id)
            release = mounts.pop_all()
            return open_diff(
                tree, changes, mappings=mappings, generation=self.header_style, on_close=release.close
            )

    def diff_size(
        self,
        layer_id: str,
        parent: str | None,
        mappings: IDMappings | None = None,
        parent_mappings: IDMappings | None = None,
    ) -> int:
        """Sum of the sizes of added and modified files, each inode once."""
        changes = self.changes(layer_id, parent, mappings, parent_mappings)
        with ExitStack() as mounts:
            return changes_size(self._read_only(mounts, layer_id), changes)

    def apply_diff(
        self,
        layer_id: str,
        archive: BinaryIO,
        *,
        mappings: IDMappings | None = None,
        tar_split: BinaryIO | None = None,
    ) -> Applied:
        """Unpack an archive into the layer; see :meth:`drivers.base.Driver.apply_diff`."""
        with self.mounted(layer_id) as tree:
            return apply_archive(
                tree,
                archive,
                mappings=mappings,
                tar_split=tar_split,
                ignore_chown_errors=self.ignore_chown_errors,
            )

    @contextmanager
    def compared(
        self,
        new: Path,
        old: Path | None,
        mappings: IDMappings | None = None,
        old_mappings: IDMappings | None = None,
    ) -> Iterator[Compared]:
        """Compare two trees completely; see :meth:`drivers.base.Driver.compared`."""
        yield self.comparison(new, tree_changes(new, old, mappings, old_mappings), mappings)

    def comparison(self, root: Path, changes: list[Change], mappings: IDMappings | None) -> Compared:
        """The result of a comparison, with archives in this driver's style."""
        style = self.header_style
        return Compared(
            changes=changes,
            archive=lambda: open_diff(root, changes, mappings=mappings, generation=style),
            archive_size=lambda: archive_size(root, changes, mappings=mappings, generation=style),
        )

    def _read_only(self, mounts: ExitStack, layer_id: str) -> Path:
        return mounts.enter_context(self.mounted(layer_id, MountOptions(options=("ro",))))
