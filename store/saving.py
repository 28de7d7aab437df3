"""Saves of tables between their writing and the moment others can see them."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from store.records import Identified
from store.replacing import Replacement, publish, secure, settle

if TYPE_CHECKING:
    from drivers.base import Driver
    from store.segment import Segment
    from store.table import Draft, Table
    from store.view import View

R = TypeVar("R", bound=Identified)


class Staged(Generic[R]):
    """One save of a table, written but not in place yet.

    Attributes:
        segments: the files as they will be.
        replacements: the contents of those that change.
        table: whose save it is.
    """

    def __init__(
        self,
        table: Table[R, Any, Any],
        draft: Draft[R],
        before: list[Segment[R]],
        unsaved: frozenset[str],
        view: View[R],
    ) -> None:
        self.segments: list[Segment[R]] = []
        self.replacements: list[Replacement] = []
        self.table = table
        self._draft = draft
        self._before = before
        self._unsaved = unsaved
        self._view = view

    def stamp(self) -> None:
        """Tell others that the table changes now."""
        self.table.lock.stamp()

    def adopt(self) -> None:
        """All files are in place: hand the new state out from now on."""
        for segment in self.segments:
            segment.place = segment.path
        self.table.adopt(self.segments, self._view)

    def discard(self) -> None:
        """Forget it; the draft has the changes still to be saved."""
        for made in self.replacements:
            made.discard()
        self._draft.restore(self._before, self._unsaved)


class Saving:
    """Saves of one or more tables that become visible together with a new tree.

    ::

        saving = Saving(undo)
        saving.add(tx.layers)  # written now, seen by nobody
        saving.settle()
        ...                    # make the tree the records name
        saving.publish(driver, layer_id)  # all of it is on the disk at return

    Args:
        undo: gives up what was not published when it is unwound.

    Attributes:
        begun: whether some of it is in place.
    """

    def __init__(self, undo: ExitStack) -> None:
        self.begun = False
        self._waiting: list[Staged[Any]] = []
        undo.callback(self.discard)

    def add(self, draft: Draft[Any], *, named: bool = True) -> None:
        """Write what changed in a table since it was saved or added last.

        Args:
            named: whether it is to be on the disk when it is published. Otherwise it gets there with the
                next commit, and what a power failure before that brings back has to be found some other way.
        """
        staged = draft.stage()
        if staged is not None:
            for made in staged.replacements:
                made.named = made.named and named
            self._waiting.append(staged)

    def settle(self) -> None:
        """Have what was added on the disk with the commit of the tree that is made next."""
        for staged in self._waiting:
            settle(staged.replacements)

    def publish(self, driver: Driver, layer_id: str) -> None:
        """Put everything in place, in the order it was added, and no record on the disk before its tree.

        Args:
            driver, layer_id: what made the tree.

        Raises:
            OSError: what was added after the failing one is not in place; the drafts have it unsaved.
        """
        contents = [made for staged in self._waiting for made in staged.replacements]
        durable = [made for made in contents if made.durable]
        commit = functools.partial(driver.settle, layer_id)
        together = bool(durable) and all(m.commit and driver.precedes(layer_id, m.fd) for m in durable)
        if not together:
            commit()
        last = {id(made): staged for staged in self._waiting for made in staged.replacements[-1:]}

        def placed(made: Replacement) -> None:
            self.begun = True
            if (staged := last.get(id(made))) is not None:
                self._waiting.remove(staged)
                staged.adopt()

        with ExitStack() as showing:
            for table in {staged.table for staged in self._waiting}:
                showing.enter_context(table.being_saved())
            try:
                if not together:
                    secure(contents)
                for staged in self._waiting:
                    staged.stamp()
                publish(contents, placed, commit if together else None)
            except BaseException:
                self.discard()
                raise

    def discard(self) -> None:
        """Give up what is not in place."""
        for staged in reversed(self._waiting):
            staged.discard()
        self._waiting.clear()
