"""Other options for a store that is open, as when storage.conf was edited."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from drivers import driver_options
from store.config import load_options
from store.core import StoreCore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from store.config import StoreOptions

_LIVE: Final = (
    "additional_image_stores",
    "auto_userns_max_size",
    "auto_userns_min_size",
    "disable_volatile",
    "driver_options",
    "gidmap",
    "lock_timeout",
    "pull_options",
    "root_auto_userns_user",
    "shift_ids",
    "uidmap",
)
"""Fields of the options that an open store asks anew each time, or that can be exchanged in it."""
_NOTES: Final = ("sources", "warnings")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reloaded:
    """What became of new options.

    Attributes:
        changed: fields of :class:`store.config.StoreOptions` that are in force with another value now.
        pending: fields, and ``driver.key`` of the driver's options, that the store must be opened anew for.
        warnings: what was odd in the configuration files: file, line and text.
    """

    changed: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Reloads(StoreCore):
    """The method of :class:`store.store.Store` that takes other options."""

    def reload_options(self, wanted: StoreOptions | None = None) -> Reloaded:
        """Let other options be in force from the next call on, as far as an open store can take them.

        Pull options, mappings, automatic user namespaces, additional image stores and the options that the
        graph driver can change (:attr:`drivers.base.Driver.live_options`) are; directories, the driver
        and a transient store are not. What exists already stays as it was made.

        Args:
            wanted: the options; those of the configuration files and the environment, with the places of
                this store, if they are not given.

        Raises:
            BadValue, InvalidMappings, OSError: as :func:`store.config.load_options`.
            drivers.errors.BadOption, drivers.errors.NotSupported: an option the driver refuses.
            After any of them all options are what they were.
        """
        if wanted is None:
            wanted = self._with_our_places(load_options())
        before = self.options
        driver_before = dict(self._driver.options) if self._driver is not None else None
        pending = list(self._fixed_differences(wanted))
        taken: dict[str, Any] = {name: getattr(wanted, name) for name in (*_LIVE, *_NOTES)}
        options = replace(before, **taken)
        with self._driver_guard:
            if self._driver is not None:
                texts = driver_options(self.driver_name, self.driver_texts(options))
                pending += [f"{self.driver_name}.{key}" for key in self._driver.reconfigure(texts)]
            self.options = options
        self.additional = tuple(self.additional_tables(options))
        changed = [name for name in _LIVE if getattr(before, name) != getattr(options, name)]
        if self._driver is not None and self._driver.options == driver_before:
            changed = [name for name in changed if name != "driver_options"]
        return Reloaded(changed=tuple(changed), pending=tuple(pending), warnings=options.warnings)

    def _with_our_places(self, options: StoreOptions) -> StoreOptions:
        ours = self.options
        return replace(
            options,
            graphroot=ours.graphroot,
            runroot=ours.runroot,
            lock_timeout=ours.lock_timeout,
            shift_ids=ours.shift_ids,
        )

    def _fixed_differences(self, wanted: StoreOptions) -> Iterator[str]:
        places = (("graphroot", self.graphroot), ("runroot", self.runroot))
        yield from (name for name, path in places if os.path.abspath(getattr(wanted, name)) != str(path))
        if wanted.driver not in ("", self.driver_name):
            yield "driver"
        for name in ("image_store", "transient_store"):
            if getattr(wanted, name) != getattr(self.options, name):
                yield name
