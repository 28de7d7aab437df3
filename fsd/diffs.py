"""``changes`` and ``diff.tar``: what differs between two trees, with sizes a ``stat`` can afford.

A comparison costs about as much as there are changes, so its results are kept: the text in memory, the
sizes in fsd's state, both with the generations of the two trees. A ``stat`` compares as long as the
budget lasts; beyond it, and where a whole tree would have to be walked, the size shows as 0 (or as it
last was) until the background has measured it. Reading always compares when nothing current is known.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from drivers.base import Compression
from drivers.errors import DriverError
from fsd.budget import Budget
from fsd.contents import Archive, Content, Rendered, Streamed
from store.comparison import Side, compared, describe_changes, generation_of
from store.errors import StoreError
from store.state import Size
from store.virtual import of_stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from drivers.base import Compared
    from drivers.tarindex import SeekableDiff
    from store.records import Layer
    from store.state import State
    from store.store import Store

log = logging.getLogger("fsd")

EMPTY_ARCHIVE = 1024
"""Bytes of a tar with nothing in it: two blocks of zeros."""
KEPT_BYTES = 16 << 20
SHARE, BURST = 0.1, 2.0
"""A stat may start comparisons for 2 s at once, and for a tenth of the time in the long run."""
_GENERATION_BITS = 32


@dataclass(frozen=True, slots=True)
class Pair:
    """What ``new`` changes against ``old``; all of it where there is no old tree."""

    new: Side
    old: Side | None

    @property
    def key(self) -> str:
        """What tells the pair from any other."""
        return f"{self.new.key}..{self.old.key if self.old else ''}"


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of the list of changes and of their archive."""

    changes: int
    archive: int
    generation: int | None = None
    """Of the new tree, where they are those of now; they hold until that changes."""


_ANY_TIME = -1
"""In the place of a generation: the trees did not change when that was found, and will not."""
_NOTHING = Sizes(0, EMPTY_ARCHIVE)


class Differences:
    """Comparisons of one store's trees, each done once as long as the trees stay as they are."""

    def __init__(self, store: Store, state: State) -> None:
        self._store = store
        self._state = state
        self._budget = Budget(SHARE, BURST)
        self._texts: OrderedDict[str, tuple[int, bytes]] = OrderedDict()
        self._sizes: dict[str, tuple[int, Sizes]] = {}
        self._wanted: OrderedDict[str, Pair] = OrderedDict()
        self._lock = threading.Lock()
        self.changed: Callable[[str], object] = lambda layer_id: None
        """Told of layers whose sizes are known better now."""
        self._working: dict[str, threading.Lock] = {}

    # -- what is shown -------------------------------------------------------------------------

    def sizes(self, pair: Pair, *, final: bool = False) -> Sizes:
        """The sizes as far as they can be had cheaply; never walks a tree.

        Args:
            final: nobody writes to the trees any more, so that what was found once holds.
        """
        known = self._sizes.get(pair.key)
        if final and known is not None:
            return known[1]
        stamp = None if final else self._stamp(pair)  # first: a write may come in between
        if known is not None and known[0] == stamp:
            return _current(known[1], stamp)
        if self._untouched(pair):
            self._sizes[pair.key] = _ANY_TIME if stamp is None else stamp, _NOTHING
            return _current(_NOTHING, stamp)
        stamp = self._stamp(pair) if final else stamp
        known = self._known(pair, stamp)
        if known is not None and known[0] == stamp:
            return _current(known[1], stamp)
        if stamp is not None and pair.old is not None and self._budget.left > 0:
            with self._budget.spending():
                return _current(self._compare(pair)[1], stamp)
        if stamp is not None:
            self._want(pair)
        return known[1] if known else Sizes(0, 0)

    def changes(self, pair: Pair) -> bytes:
        """The list of changes as it is now, writes that are under way included."""
        stamp = self._stamp(pair, settle=True)
        with self._lock:
            kept = self._texts.get(pair.key)
        if kept and stamp is not None and kept[0] == stamp:
            return kept[1]
        return b"" if self._untouched(pair) else self._compare(pair)[0]

    def archive(self, pair: Pair) -> Content:
        """The archive of the changes, of one point in time where the driver can."""
        stamp = self._stamp(pair, settle=True)
        if self._untouched(pair):
            return Rendered(bytes(EMPTY_ARCHIVE))
        with ExitStack() as stack:
            found = stack.enter_context(compared(self._store, pair.new, pair.old))
            size = found.archive_size()
            self._keep(pair, stamp, describe_changes(found), size, found)
            return Streamed(of_stream(size, found.archive), stack.pop_all())

    # -- in the background ---------------------------------------------------------------------

    def measure_wanted(self) -> int:
        """Compare what stats have asked for, as far as the budget goes; the number of pairs done."""
        done = 0
        while self._budget.left > 0:
            with self._lock:
                if not self._wanted:
                    break
                _, pair = self._wanted.popitem(last=False)
            try:
                with self._budget.spending():
                    self._compare(pair)
            except (StoreError, DriverError, OSError) as exc:
                log.info("%s was not compared: %s", pair.key, exc)  # most often one side was removed
            done += 1
        return done

    @property
    def backlog(self) -> int:
        """Pairs that wait to be measured."""
        return len(self._wanted)

    # -- inside --------------------------------------------------------------------------------

    def _stamp(self, pair: Pair, *, settle: bool = False) -> int | None:
        """Both generations in one number; ``None`` where the driver has none."""
        new = generation_of(self._store, pair.new, settle=settle)
        old = generation_of(self._store, pair.old) if pair.old else 0
        return None if new is None or old is None else _stamp_of(new, old)

    def _untouched(self, pair: Pair) -> bool:
        """Whether a copy was never written since it was made."""
        new, old = pair.new, pair.old
        if old is None or not new.layer or not old.layer:
            return False
        return self._store.driver.is_untouched(new.layer, old.layer)

    def _known(self, pair: Pair, stamp: int | None) -> tuple[int, Sizes] | None:
        known = self._sizes.get(pair.key)
        if known is None and stamp is not None:
            rows = [self._state.size(f"{kind}/{pair.key}") for kind in ("changes", "diff")]
            if rows[0] and rows[1] and rows[0].generation == rows[1].generation:
                known = rows[0].generation, Sizes(rows[0].bytes, rows[1].bytes)
                self._sizes[pair.key] = known
        return known

    def _compare(self, pair: Pair) -> tuple[bytes, Sizes]:
        """Compare now; who asks for the same meanwhile waits for the same answer."""
        with self._lock:
            working = self._working.setdefault(pair.key, threading.Lock())
        with working:
            self._working.pop(pair.key, None)
            stamp = self._stamp(pair)
            with self._lock:
                kept = self._texts.get(pair.key)
                sizes = self._sizes.get(pair.key)
            if stamp is not None and kept and sizes and kept[0] == sizes[0] == stamp:
                return kept[1], sizes[1]
            with compared(self._store, pair.new, pair.old) as found:
                text, size = describe_changes(found), found.archive_size()
            return text, self._keep(pair, stamp, text, size, found)

    def _keep(self, pair: Pair, stamp: int | None, text: bytes, size: int, found: Compared) -> Sizes:
        """Remember a result.

        Where the driver does not tell which content it compared, the generations were read before: a write
        in between makes the result newer than its stamp, and the next look compares once more.
        """
        if stamp is not None and found.generations is not None:
            stamp = _stamp_of(*found.generations)
        sizes = Sizes(len(text), size)
        generation = -1 if stamp is None else stamp
        with self._lock:
            self._texts[pair.key] = generation, text
            self._texts.move_to_end(pair.key)
            before = self._sizes.get(pair.key)
            self._sizes[pair.key] = generation, sizes
            kept = sum(len(data) for _, data in self._texts.values())
            while kept > KEPT_BYTES and len(self._texts) > 1:
                kept -= len(self._texts.popitem(last=False)[1][1])
        if stamp is not None:
            now, counts = time.time_ns(), {"changes": sizes.changes, "diff": sizes.archive}
            self._state.put_sizes(
                {
                    f"{kind}/{pair.key}": Size(bytes=count, generation=stamp, measured_ns=now)
                    for kind, count in counts.items()
                }
            )
        if before is None or before[1] != sizes:
            self.changed(pair.new.layer)
        return sizes

    def _want(self, pair: Pair) -> None:
        with self._lock:
            self._wanted[pair.key] = pair


def _current(sizes: Sizes, stamp: int | None) -> Sizes:
    """Sizes of now, with the generation they belong to."""
    return sizes if stamp is None else replace(sizes, generation=stamp >> _GENERATION_BITS)


def _stamp_of(new: int, old: int) -> int:
    return new << _GENERATION_BITS | old


# -- archives layers were made from ----------------------------------------------------------------


def exact_archive(store: Store, layer: Layer) -> Content | None:
    """The archive a layer was made from, byte for byte; ``None`` where it cannot be rebuilt."""
    if not has_exact_archive(store, layer):
        return None
    file = of_stream(layer.diff_size, partial(store.diff, layer.id, compression=Compression.NONE))
    return Archive(file, partial(_index, store, layer))


def has_exact_archive(store: Store, layer: Layer) -> bool:
    """Whether :func:`exact_archive` gives one."""
    return bool(layer.diff_digest and store.find_tar_split(layer.id))


@contextmanager
def _index(store: Store, layer: Layer) -> Iterator[SeekableDiff]:
    from drivers.tarindex import SeekableDiff

    with store.driver.mounted(layer.id) as root, SeekableDiff(store.find_tar_split(layer.id), root) as index:
        yield index
