"""One run of the containers-storage command line: which store it means, and what it prints."""

from __future__ import annotations

import os
import sys

from store.glance import KINDS, Glance, Odd, is_complete

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from fsd.storage_flags import Values
    from store.config import StoreOptions
    from store.store import Store


class Failure(Exception):
    """The command failed; the text goes to standard error, and the exit code is 1."""


class CannotOpen(Exception):
    """The store cannot be opened."""


class Run:
    """What a subcommand works with.

    Attributes:
        values: the flags' values by name.
        args: the arguments.
        defaults: what storage.conf says, if no flag said which store is meant.
    """

    def __init__(self, values: Values, args: list[str], defaults: StoreOptions | None = None) -> None:
        self.values = values
        self.args = args
        self.defaults = defaults
        self._store: Store | None = None

    # -- flags -----------------------------------------------------------------------------------

    def text(self, flag: str) -> str:
        """The value of a flag that takes text."""
        value = self.values.get(flag, "")
        return value if isinstance(value, str) else ""

    def on(self, flag: str) -> bool:
        """Whether a flag without value was given."""
        return self.values.get(flag) is True

    def texts(self, flag: str) -> list[str]:
        """The values of a flag that may be repeated."""
        value = self.values.get(flag)
        return list(value) if isinstance(value, list) else []

    @property
    def json(self) -> bool:
        """Whether JSON is wanted."""
        return self.on("json")

    # -- the store -------------------------------------------------------------------------------

    def glance(self, kinds: tuple[str, ...] = KINDS) -> Glance:
        """The store's tables as they are now; opening the whole library only where that is needed.

        Raises:
            CannotOpen
        """
        graph, run, driver = (self.text(name) for name in ("graph", "run", "storage-driver"))
        elsewhere = self.texts("storage-opt") or self.text("image-store") or self.on("transient-store")
        if graph and run and not elsewhere and is_complete(graph, run, driver):
            try:
                return Glance.read(os.path.abspath(graph), os.path.abspath(run), driver, kinds)
            except Odd:
                pass
        return Glance.of_catalog(self.store.catalog())

    @property
    def store(self) -> Store:
        """The opened store; :class:`CannotOpen`."""
        if self._store is None:
            from drivers.errors import DriverError
            from fsd.storage_errors import opening_text
            from store.errors import StoreError
            from store.store import Store

            options = self._options()
            try:
                self._store = Store(options)
            except (StoreError, DriverError, OSError) as error:
                raise CannotOpen(opening_text(error, options)) from error
        return self._store

    def _options(self) -> StoreOptions:
        from dataclasses import replace

        from store.config import StoreOptions, load_options

        graph, run = self.text("graph"), self.text("run")
        if not graph and not run:
            raise CannotOpen("no storage runroot or graphroot specified: missing necessary StoreOptions")
        known = StoreOptions() if graph and run else load_options()
        driver, image_store = self.text("storage-driver"), self.text("image-store")
        return replace(
            self.defaults or StoreOptions(),
            graphroot=os.path.abspath(graph or known.graphroot),
            runroot=os.path.abspath(run or known.runroot),
            driver="overlay" if driver == "overlay2" else driver,
            driver_options=tuple(self.texts("storage-opt")),
            driver_priority=(),
            image_store=os.path.abspath(image_store) if image_store else "",
            transient_store=self.on("transient-store"),
        )

    # -- output ----------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Print text as it is."""
        sys.stdout.flush()
        write_all(1, text.encode("utf-8", "surrogateescape"))

    def complain(self, text: str) -> None:
        """Print a line to standard error."""
        sys.stderr.flush()
        write_all(2, text.encode("utf-8", "surrogateescape") + b"\n")

    def dump(self, value: object) -> None:
        """Print a value as a line of JSON, spelt as Go spells it."""
        from store.codec import dumps, to_bytes

        sys.stdout.flush()
        write_all(1, to_bytes(dumps(value, sort_keys=False)) + b"\n")

    def fail(self, text: str) -> NoReturn:
        """End the command with an error."""
        raise Failure(text)


def write_all(fd: int, data: bytes) -> None:
    """Write all of ``data``."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
