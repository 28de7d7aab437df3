"""A table of records: JSON files, guarded by a lock file, replaced atomically.

:class:`View` is what a table holds at one moment and never changes. A table hands one out without
any lock (files are only ever replaced whole), or under the shared lock. :class:`Draft` exists only
under the exclusive lock; what it changed is saved once when the lock is released, or at
:meth:`Draft.flush`. Records that did not change are written back as the very text they were read
from, and so are records that cannot be understood (:class:`Broken`).
"""

from __future__ import annotations

import gc
import itertools
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeVar

from store import codec
from store.durable import FileState, file_state, read_with_state, write_atomic
from store.errors import BadRecord, DuplicateID, StoreReadOnly
from store.lockfile import LockFile
from store.records import Identified, decode, encode

R = TypeVar("R", bound=Identified)
V = TypeVar("V", bound="View[Any]")
D = TypeVar("D", bound="Draft[Any]")


_serials: Final = itertools.count(1)


class Broken(NamedTuple):
    """A record, or a whole file, that cannot be used: where, whose, why, and its text."""

    table: str
    id: str
    why: str
    text: str


class Segment(Generic[R]):
    """One file of a table, parsed: the items in file order and where each stands in the text."""

    __slots__ = ("items", "path", "spans", "state", "text", "unreadable", "volatile")

    def __init__(self, path: Path, volatile: bool) -> None:
        self.path = path
        self.volatile = volatile
        self.state = FileState()
        self.text = ""
        self.items: list[R | Broken] = []
        self.spans: list[int] = []
        self.unreadable = ""

    @property
    def fresh(self) -> bool:
        """Whether the file on disk is still the one that was parsed."""
        return file_state(self.path) == self.state


class View(Generic[R]):
    """The records of a table at one moment, in creation order; indexes are built when first asked."""

    __slots__ = ("_by_name", "_sorted_ids", "_tuple", "broken", "by_id", "changed_ns", "serial")

    def __init__(self, by_id: dict[str, R], broken: tuple[Broken, ...] = (), changed_ns: int = 0) -> None:
        self.by_id = by_id
        self.broken = broken
        self.serial = next(_serials)
        self.changed_ns = changed_ns
        """When the table's files were last replaced, in nanoseconds since the epoch."""
        self._tuple: tuple[R, ...] | None = None
        self._by_name: dict[str, R] | None = None
        self._sorted_ids: list[str] | None = None

    @property
    def records(self) -> tuple[R, ...]:
        """All records."""
        if self._tuple is None:
            self._tuple = tuple(self.by_id.values())
        return self._tuple

    def __iter__(self) -> Iterator[R]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.by_id)

    def get(self, record_id: str) -> R | None:
        """The record of exactly this ID."""
        return self.by_id.get(record_id)

    @property
    def names(self) -> dict[str, R]:
        """Every name and the record that has it."""
        if self._by_name is None:
            self._by_name = {name: record for record in self.records for name in getattr(record, "names", ())}
        return self._by_name

    def by_name(self, name: str) -> R | None:
        """The record of this name."""
        return self.names.get(name)

    def by_prefix(self, prefix: str) -> R | None:
        """The only record whose ID begins with ``prefix``; none if there are several."""
        if not prefix or " " in prefix:
            return None
        if self._sorted_ids is None:
            self._sorted_ids = sorted(self.by_id)
        ids = self._sorted_ids
        at = bisect_left(ids, prefix)
        if at == len(ids) or not ids[at].startswith(prefix):
            return None
        if at + 1 < len(ids) and ids[at + 1].startswith(prefix):
            return None
        return self.by_id[ids[at]]

    def resolve(self, text: str) -> R | None:
        """Look up by ID, then name, then unique ID prefix, as containers/storage does (FORMAT 2.5)."""
        return self.get(text) or self.by_name(text) or self.by_prefix(text)


class Draft(Generic[R]):
    """A table under its lock. ``view`` shows the state with all changes made so far.

    Attributes:
        writable: false under the shared lock; the mutators then raise ``RuntimeError``.
    """

    def __init__(self, table: Table[R, Any, Any], segments: list[Segment[R]], view: View[R], writable: bool):
        self._table = table
        self._segments = segments
        self._records = dict(view.by_id) if writable else view.by_id
        self._dropped: set[Broken] = set()
        self._dirty = False
        self._view: View[R] | None = view
        self.writable = writable

    @property
    def view(self) -> Any:
        """The present state; typed by the subclasses."""
        if self._view is None:
            broken = tuple(b for s in self._segments for b in s.items if isinstance(b, Broken))
            self._view = self._table.view_type(dict(self._records), broken, self._table.changed_ns)
        return self._view

    def get(self, record_id: str) -> R | None:
        """The record of exactly this ID."""
        return self._records.get(record_id)

    def __iter__(self) -> Iterator[R]:
        return iter(list(self._records.values()))

    def _touch(self) -> None:
        if not self.writable:
            raise RuntimeError(f"{self._table.name} is locked for reading only")
        self._dirty = True
        self._view = None

    def check_id_free(self, record_id: str) -> None:
        """Raise :class:`DuplicateID` if a record, also one that is broken, has the ID."""
        if record_id in self._records or any(record_id == broken.id for broken in self.view.broken):
            raise DuplicateID(f"the ID {record_id} is already in use in {self._table.name}")

    def add(self, record: R) -> R:
        """Append a new record; :class:`DuplicateID`."""
        self.check_id_free(record.id)
        self._touch()
        self._records[record.id] = record
        return record

    def put(self, record: R) -> R:
        """Replace the record of the same ID."""
        if self._records[record.id] != record:
            self._touch()
            self._records[record.id] = record
        return record

    def remove(self, record_id: str) -> None:
        """Drop a record."""
        self._touch()
        del self._records[record_id]

    def drop_broken(self, broken: Broken) -> None:
        """Drop a record that cannot be used (repair)."""
        self._touch()
        self._dropped.add(broken)

    def flush(self, *, anyway: bool = False) -> None:
        """Save now: stamp first, then each file that changed.

        Args:
            anyway: stamp and rewrite the main file even if it stays as it is.

        Raises:
            OSError
        """
        if not self._dirty and not anyway:
            return
        self._table.lock.stamp()
        known = {i.id for s in self._segments for i in s.items if not isinstance(i, Broken)}
        new = [record for record in self._records.values() if record.id not in known]
        self._segments = [self._save(segment, new, anyway) for segment in self._segments]
        self._dirty = False
        self._table.adopt(self._segments, self.view)

    def _save(self, segment: Segment[R], new: list[R], anyway: bool) -> Segment[R]:
        """Write one file unless it would stay as it is."""
        result = Segment[R](segment.path, segment.volatile)
        parts, same = self._rewrite(segment, result)
        for record in new:
            if getattr(record, "volatile", False) == segment.volatile:
                _append(result, parts, record, encode(record))
                same = False
        if same and (segment.volatile or not anyway):
            return segment
        result.text = "[" + ",".join(parts) + "]"
        data = codec.to_bytes(result.text)
        result.state = write_atomic(segment.path, data, durable=self._table.durable)
        return result

    def _rewrite(self, segment: Segment[R], result: Segment[R]) -> tuple[list[str], bool]:
        """Carry the old items over; tells whether none of them changed."""
        parts: list[str] = []
        text, spans, get = segment.text, segment.spans, self._records.get
        same = True
        for number, item in enumerate(segment.items):
            kept = text[spans[2 * number] : spans[2 * number + 1]]
            if isinstance(item, Broken):
                if item in self._dropped:
                    same = False
                else:
                    _append(result, parts, item, kept)
                continue
            record = get(item.id)
            if record is item:
                _append(result, parts, item, kept)
                continue
            same = False
            if record is not None:
                _append(result, parts, record, encode(record))
        return parts, same


def _append(segment: Segment[Any], parts: list[str], item: Any, text: str) -> None:
    start = segment.spans[-1] + 1 if segment.spans else 1
    segment.items.append(item)
    segment.spans += (start, start + len(text))
    parts.append(text)


class Table(Generic[R, V, D]):
    """One table of a store, or of an additional read-only store.

    Args:
        directory: where its files are.
        name: ``layers``, ``images``, ``containers`` or ``mountpoints``.
        record_type: class of its records.
        view_type, draft_type: what queries and changes it.
        lock_path: the lock file; ``<name>.lock`` beside the files otherwise.
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
    ) -> None:
        self.directory = directory
        self.name = name
        self.record_type = record_type
        self.view_type = view_type
        self.draft_type = draft_type
        self.read_only = read_only
        self.durable = durable
        self.lock = LockFile.get(directory / f"{name}.lock", read_only=read_only)
        self._files = [(directory / f"{name}.json", False)]
        if volatile_file:
            self._files.append((directory / f"volatile-{name}.json", True))
        self._guard = threading.Lock()
        self._segments: list[Segment[R]] = []
        self._view: V | None = None

    @property
    def path(self) -> Path:
        """The table's main file."""
        return self._files[0][0]

    @property
    def changed_ns(self) -> int:
        """When the files were last replaced, as of the last load; 0 if there are none."""
        return max((segment.state.mtime_ns for segment in self._segments), default=0)

    def peek(self) -> V:
        """The table now, without any lock; costs a stat per file when nothing changed."""
        segments, view = self._segments, self._view
        if view is not None and all(segment.fresh for segment in segments):
            return view
        return self._load()[1]

    def _load(self) -> tuple[list[Segment[R]], V]:
        with self._guard:
            old = {segment.path: segment for segment in self._segments}
            if self._view is not None and all(segment.fresh for segment in old.values()):
                return self._segments, self._view
            segments = [
                old[path] if path in old and old[path].fresh else self._parse(path, volatile)
                for path, volatile in self._files
            ]
            self._segments = segments
            self._view = self._build(segments)
            return segments, self._view

    def adopt(self, segments: list[Segment[R]], view: V) -> None:
        """Take over what a draft has just written, so that nobody parses it again."""
        with self._guard:
            self._segments = segments
            view.changed_ns = self.changed_ns
            self._view = view

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

    def _parse(self, path: Path, volatile: bool) -> Segment[R]:
        segment = Segment[R](path, volatile)
        data, segment.state = read_with_state(path)
        segment.text = data.decode("utf-8", "replace")
        collecting = gc.isenabled()
        gc.disable()  # it would search the growing list for cycles again and again: half of the time
        try:
            values, segment.spans = codec.scan_array(segment.text)
            segment.items = [self._item(value, segment, number) for number, value in enumerate(values)]
        except (ValueError, RecursionError) as error:
            segment.unreadable = str(error) or "nested too deeply"
        finally:
            if collecting:
                gc.enable()
        return segment

    def _item(self, value: Any, segment: Segment[R], number: int) -> R | Broken:
        try:
            record = decode(self.record_type, value)
        except BadRecord as error:
            text = segment.text[segment.spans[2 * number] : segment.spans[2 * number + 1]]
            shown = value.get("id") if isinstance(value, dict) else None
            name = shown if isinstance(shown, str) and shown else f"{segment.path.stem}-{number}"
            return Broken(self.name, name, str(error), text)
        if segment.volatile:
            return _replace(record, volatile=True)
        return _replace(record, read_only=True) if self.read_only else record

    def _build(self, segments: list[Segment[R]]) -> V:
        by_id: dict[str, R] = {}
        broken: list[Broken] = []
        for segment in segments:
            if segment.unreadable:
                broken.append(Broken(self.name, segment.path.name, segment.unreadable, segment.text))
            for number, item in enumerate(segment.items):
                if not isinstance(item, Broken):
                    if by_id.setdefault(item.id, item) is item:
                        continue
                    item = _duplicate(self.name, segment, number, item)
                broken.append(item)
        _settle_names(by_id)
        return self.view_type(by_id, tuple(broken), max(s.state.mtime_ns for s in segments))


def _replace(record: R, **changes: Any) -> R:
    """``dataclasses.replace`` for a record whose class only the caller knows."""
    anything: Any = record
    changed: R = replace(anything, **changes)
    return changed


def _duplicate(table: str, segment: Segment[Any], number: int, item: Any) -> Broken:
    """Set a second record of one ID aside; the first one counts."""
    text = segment.text[segment.spans[2 * number] : segment.spans[2 * number + 1]]
    broken = Broken(table, item.id, "another record before it has the same ID", text)
    segment.items[number] = broken
    return broken


def _settle_names(by_id: dict[str, Any]) -> None:
    """Where several records claim a name the last one has it (FORMAT 2.5)."""
    claims = [name for record in by_id.values() if (names := getattr(record, "names", ())) for name in names]
    if len(claims) == len(set(claims)):
        return
    owner: Final = {name: record.id for record in by_id.values() for name in record.names}
    for record in list(by_id.values()):
        names = tuple(dict.fromkeys(name for name in record.names if owner[name] == record.id))
        if names != record.names:
            by_id[record.id] = replace(record, names=names)
