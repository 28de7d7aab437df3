"""A table of records: JSON files, guarded by a lock file, replaced atomically.

:class:`View` is what a table holds at one moment and never changes. A table hands one out without
any lock (files are only ever replaced whole), or under the shared lock. :class:`Draft` exists only
under the exclusive lock; what it changed is saved once when the lock is released, or at
:meth:`Draft.flush`. Records that did not change are written back as the very text they were read
from, and so are records that cannot be understood (:class:`Broken`).
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from store.durable import ABSENT, read_with_state
from store.errors import BadRecord, DuplicateID, DuplicateName, StoreReadOnly, Unknown
from store.lockfile import LockFile, LockSet
from store.records import Identified, decode
from store.replacing import Replacement, replace_file
from store.saving import Staged
from store.segment import IN_IMAGE_STORE, VOLATILE, Broken, Segment
from store.view import settle_names

if TYPE_CHECKING:
    from store.view import View

R = TypeVar("R", bound=Identified)
V = TypeVar("V", bound="View[Any]")
D = TypeVar("D", bound="Draft[Any]")


class Draft(Generic[R]):
    """A table under its lock. ``view`` shows the state with all changes made so far.

    Attributes:
        writable: false under the shared lock; the mutators then raise ``RuntimeError``.
    """

    def __init__(self, table: Table[R, Any, Any], segments: list[Segment[R]], view: View[R], writable: bool):
        self._table = table
        self._segments = segments
        self._view: View[R] | None = view
        self._base = view
        # dict.copy() copies memory even where records were removed; dict() would insert one by one.
        self._records = view.by_id.copy() if writable else view.by_id
        self._changed: dict[str, R | None] = {}
        """What ``_base`` had of each record that changed."""
        self._unsaved: set[str] = set()
        self._dropped: set[Broken] = set()
        self.writable = writable

    @property
    def view(self) -> Any:
        """The present state; typed by the subclasses."""
        if self._view is None:
            broken = tuple(b for b in self._base.broken if b not in self._dropped)
            self._view = self._table.view_type(self._records.copy(), broken, self._base.changed_ns)
            self._view.inherit(self._base, self._changed)
            self._base, self._changed = self._view, {}
        return self._view

    @property
    def is_new(self) -> bool:
        """Whether the table was never saved."""
        return all(segment.state == ABSENT for segment in self._segments)

    def get(self, record_id: str) -> R | None:
        """The record of exactly this ID."""
        return self._records.get(record_id)

    def __iter__(self) -> Iterator[R]:
        return iter(list(self._records.values()))

    def _touch(self, record_id: str) -> None:
        if not self.writable:
            raise RuntimeError(f"{self._table.name} is locked for reading only")
        self._changed.setdefault(record_id, self._base.by_id.get(record_id))
        self._unsaved.add(record_id)
        self._view = None

    def check_id_free(self, record_id: str) -> None:
        """Raise :class:`DuplicateID` if a record, also one that is broken, has the ID."""
        if record_id in self._records or any(record_id == broken.id for broken in self._base.broken):
            raise DuplicateID(f"the ID {record_id} is already in use in {self._table.name}")

    def add(self, record: R) -> R:
        """Append a new record; :class:`DuplicateID`."""
        self.check_id_free(record.id)
        self._touch(record.id)
        self._records[record.id] = record
        return record

    def put(self, record: R) -> R:
        """Replace the record of the same ID."""
        if self._records[record.id] != record:
            self._touch(record.id)
            self._records[record.id] = record
        return record

    def remove(self, record_id: str) -> None:
        """Drop a record."""
        self._touch(record_id)
        del self._records[record_id]

    def drop_broken(self, broken: Broken) -> None:
        """Drop a record that cannot be used (repair)."""
        self._touch("")
        self._dropped.add(broken)

    def flush(self, *, anyway: bool = False) -> None:
        """Save now: stamp first, then each file that changed.

        Args:
            anyway: stamp and rewrite the main file even if it stays as it is.

        Raises:
            OSError
        """
        staged = self.stage(anyway=anyway)
        if staged is None:
            return
        with self._table.being_saved():
            try:
                staged.stamp()
                for made in staged.replacements:
                    replace_file(made)
            except BaseException:
                staged.discard()
                raise
            staged.adopt()

    def stage(self, *, anyway: bool = False) -> Staged[R] | None:
        """Write what a save would put in place; the draft then counts as saved.

        ``None`` if nothing changed.
        """
        if not self._unsaved and not anyway:
            return None
        self._unsaved |= self._table.settled
        staged = Staged(self._table, self, self._segments, frozenset(self._unsaved), self.view)
        try:
            written = {s.path: self._write(s, anyway, staged.replacements) for s in self._in_saving_order()}
            staged.segments = [written[segment.path] for segment in self._segments]
        except BaseException:
            for made in staged.replacements:
                made.discard()
            raise
        self._segments = staged.segments
        self._unsaved.clear()
        return staged

    def _in_saving_order(self) -> list[Segment[R]]:
        """The image store's file first when a record there gets a name that one elsewhere has, else last.

        So whoever dies between the two leaves a name with its old or its new owner, since the image store's
        counts, and of an image that was in both the one that counts.
        """
        first = self._segments[0]
        if first.mark != IN_IMAGE_STORE or any(self._gains_a_name(first, i) for i in self._unsaved):
            return self._segments
        return [*self._segments[1:], first]

    def _gains_a_name(self, segment: Segment[R], record_id: str) -> bool:
        number, record = segment.positions.get(record_id), self._records.get(record_id)
        if number is None or record is None:
            return False
        return not set(getattr(record, "names", ())) <= set(getattr(segment.items[number], "names", ()))

    def restore(self, segments: list[Segment[R]], unsaved: frozenset[str]) -> None:
        """What was staged is not put in place: the files are as they were, and the changes unsaved."""
        self._segments = segments
        self._unsaved |= unsaved

    def _write(self, segment: Segment[R], anyway: bool, made: list[Replacement]) -> Segment[R]:
        """The file as it will be, its content added to ``made`` unless it stays as it is."""
        replaced: dict[int, R] = {}
        removed = (
            {n for n, item in enumerate(segment.items) if self._is_dropped(item)} if self._dropped else set()
        )
        added = []
        for record_id in self._in_order(self._unsaved):
            record, number = self._records.get(record_id), segment.positions.get(record_id)
            if number is not None and record is not None:
                if self._is_first(segment, record_id):
                    replaced[number] = record
            elif number is not None:
                removed.add(number)
            elif record is not None and self._is_new_in(segment, record):
                added.append(record)
        if not (replaced or removed or added) and (segment.mark or not anyway):
            return segment
        durable = self._table.durable and segment.mark != VOLATILE
        result, replacement = segment.changed(replaced, removed, added, durable=durable)
        made.append(replacement)
        return result

    def _is_first(self, segment: Segment[R], record_id: str) -> bool:
        """Whether no file before this one has the record, which is the one that counts then."""
        return next(other for other in self._segments if record_id in other.positions) is segment

    def _is_dropped(self, item: R | Broken) -> bool:
        return isinstance(item, Broken) and item in self._dropped

    def _in_order(self, ids: set[str]) -> list[str]:
        """IDs in the order the records were added."""
        if len(ids) == 1:
            return list(ids)
        return [*(i for i in self._records if i in ids), *(ids - self._records.keys())]

    def _is_new_in(self, segment: Segment[R], record: R) -> bool:
        if any(getattr(record, mark, False) != (mark == segment.mark) for mark in (VOLATILE, IN_IMAGE_STORE)):
            return False
        return all(record.id not in other.positions for other in self._segments)


class NamedDraft(Draft[R]):
    """A table whose records have names: layers, images or containers.

    Attributes:
        kind: the word for one record.
        unknown: raised where there is no such record.
    """

    kind: ClassVar[str]
    unknown: ClassVar[type[Unknown]]

    def check_names(self, names: tuple[str, ...]) -> None:
        """Raise :class:`DuplicateName` if another record has one of ``names``."""
        for name in names:
            owner = self.view.by_name(name)
            if owner is not None:
                raise DuplicateName(
                    f"the {self.kind} name {name!r} is already in use by {self.kind} {owner.id}",
                    holder=owner.id,
                )

    def existing(self, text: str) -> R:
        """The record :meth:`View.resolve` finds; :attr:`unknown` if there is none."""
        record: R | None = self.view.resolve(text)
        if record is None:
            raise self.unknown(f"no {self.kind} is called {text!r}")
        return record


class Table(Generic[R, V, D]):
    """One table of a store, or of an additional read-only store.

    Args:
        directory: where its files are.
        image_directory: where the split image store's are, which come first (FORMAT 1.1).
        name: ``layers``, ``images``, ``containers`` or ``mountpoints``.
        record_type: class of its records.
        view_type, draft_type: what queries and changes it.
        volatile_directory: where that file is, if not there too.
        lock_directories: where lock files are, if not there too; they are taken in this order.
        durable: whether a save waits for the disk; off for state a reboot loses anyhow.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        record_type: type[R],
        view_type: Callable[[dict[str, R], tuple[Broken, ...], int], V],
        draft_type: Callable[[Table[R, V, D], list[Segment[R]], V, bool], D],
        *,
        read_only: bool = False,
        durable: bool = True,
        volatile_file: bool = False,
        volatile_directory: Path | None = None,
        image_directory: Path | None = None,
        lock_directories: tuple[Path, ...] = (),
    ) -> None:
        self.directory = directory
        self.name = name
        self.record_type = record_type
        self.view_type = view_type
        self.draft_type = draft_type
        self.read_only = read_only
        self.durable = durable
        homes = lock_directories or (directory,)
        self.locks = tuple(LockFile.get(home / f"{name}.lock", read_only=read_only) for home in homes)
        self.lock = self.locks[0] if len(self.locks) == 1 else LockSet(self.locks)
        self._files = [(directory / f"{name}.json", "")]
        if image_directory is not None:
            self._files.insert(0, (image_directory / f"{name}.json", IN_IMAGE_STORE))
        if volatile_file:
            self._files.append(((volatile_directory or directory) / f"volatile-{name}.json", VOLATILE))
        self.settled: frozenset[str] = frozenset()
        """Records that lost a name to a later one, which the file does not show yet."""
        self.saving = False
        """A draft of this process is being saved: others go on seeing the table as it was before."""
        self._guard = threading.Lock()
        self._loaded: tuple[list[Segment[R]], V] | None = None
        """The files as last parsed or written, and what they mean; one object, as readers take no lock."""

    @property
    def path(self) -> Path:
        """The table's main file."""
        return self.directory / f"{self.name}.json"

    def peek(self) -> V:
        """The table now, without any lock; costs a stat per file when nothing changed."""
        loaded = self._loaded
        if loaded is not None and (self.saving or all(segment.fresh for segment in loaded[0])):
            return loaded[1]
        return self._load()[1]

    def _load(self) -> tuple[list[Segment[R]], V]:
        with self._guard:
            loaded = self._loaded
            old = {segment.path: segment for segment in loaded[0]} if loaded is not None else {}
            if loaded is not None and all(segment.fresh for segment in old.values()):
                return loaded
            segments = [
                old[path] if path in old and old[path].fresh else self._parse(path, mark, old.get(path))
                for path, mark in self._files
            ]
            self._loaded = (segments, self._build(segments))
            return self._loaded

    @contextmanager
    def being_saved(self) -> Iterator[None]:
        """Let those who look without a lock go on seeing what was last handed out."""
        self.saving = True
        try:
            yield
        finally:
            self.saving = False

    def adopt(self, segments: list[Segment[R]], view: V) -> None:
        """Take over what a draft has just written, so that nobody parses it again."""
        with self._guard:
            self.settled = frozenset()
            view.changed_ns = _changed_ns(segments)
            self._loaded = (segments, view)

    @contextmanager
    def reading(self, timeout: float | None = None) -> Iterator[D]:
        """The table under the shared lock.

        Raises:
            LockTimeout
        """
        with self.lock.reading(timeout):
            segments, view = self._load()
            yield self.draft_type(self, segments, view, False)

    @contextmanager
    def writing(self, timeout: float | None = None) -> Iterator[D]:
        """The table under the exclusive lock; saved on normal exit, left alone on an exception.

        Raises:
            LockTimeout
            StoreReadOnly: the table belongs to a read-only store.
            BadRecord: a file of the table cannot be parsed; it is never overwritten.
        """
        if self.read_only:
            raise StoreReadOnly(f"{self.directory} belongs to a read-only store")
        with self.lock.writing(timeout):
            segments, view = self._load()
            for segment in segments:
                if segment.unreadable:
                    raise BadRecord(
                        f"{segment.path} cannot be read, so it is not changed: {segment.unreadable}"
                    )
            draft = self.draft_type(self, segments, view, True)
            yield draft
            draft.flush()

    # -- parsing ---------------------------------------------------------------------------------

    def _parse(self, path: Path, mark: str, older: Segment[R] | None) -> Segment[R]:
        segment = Segment[R](path, mark)
        marks = tuple(filter(None, (mark, "read_only" if self.read_only else "")))
        data, segment.state = read_with_state(path)
        collecting = gc.isenabled()
        gc.disable()  # it would search the growing list for cycles again and again: half of the time
        try:
            segment.parse(data, older, lambda value, number: self._item(value, segment, number, marks))
        except (ValueError, RecursionError) as error:
            segment.unreadable = str(error) or "nested too deeply"
        finally:
            if collecting:
                gc.enable()
        return segment

    def _item(self, value: Any, segment: Segment[R], number: int, marks: tuple[str, ...]) -> R | Broken:
        try:
            return decode(self.record_type, value, marks)
        except BadRecord as error:
            shown = value.get("id") if isinstance(value, dict) else None
            name = shown if isinstance(shown, str) and shown else f"{segment.path.stem}-{number}"
            return Broken(self.name, name, str(error), segment.text_of(number))

    def _build(self, segments: list[Segment[R]]) -> V:
        by_id: dict[str, R] = {}
        broken: list[Broken] = []
        for segment in segments:
            if segment.unreadable:
                text = segment.path.read_bytes().decode("utf-8", "replace")
                broken.append(Broken(self.name, segment.path.name, segment.unreadable, text))
            for number, item in enumerate(segment.items):
                if not isinstance(item, Broken):
                    if by_id.setdefault(item.id, item) is item:
                        continue
                    if self.is_shadow(item, by_id[item.id]):
                        continue
                    item = segment.set_duplicate_aside(number, self.name)
                broken.append(item)
        self.settled = frozenset(settle_names(by_id))
        return self.view_type(by_id, tuple(broken), _changed_ns(segments))

    def is_shadow(self, record: R, first: R) -> bool:
        """Whether two files may have a record of this ID, of which the first counts."""
        return False


def _changed_ns(segments: list[Segment[Any]]) -> int:
    """When the files were last replaced; 0 if there are none."""
    return max((segment.state.mtime_ns for segment in segments), default=0)
