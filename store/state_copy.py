"""The state of a store: beside it, or, where that cannot be written, a private copy of that."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from drivers.processes import is_alive, private_name
from store.state import STATE_FILE, State

if TYPE_CHECKING:
    from pathlib import Path

    from store.core import StoreCore

_COPIES: Final = "fsd/read-only"
"""Below the runroot."""


def state_of(store: StoreCore) -> State:
    """The state of ``store``.

    Raises:
        OSError: the store is on read-only media, and its runroot cannot be written either.
    """
    kept = store.graphroot / STATE_FILE
    return State(_copied(store, kept), kept=False) if store.read_only else State(kept)


def _copied(store: StoreCore, kept: Path) -> Path:
    """A copy in the runroot that lives as long as this process; the next one sweeps it."""
    home = store.runroot / _COPIES
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in os.listdir(home):
        if not is_alive(name):
            shutil.rmtree(home / name, ignore_errors=True)
    directory = home / private_name()
    directory.mkdir(mode=0o700)
    for path in (kept, kept.with_name(f"{kept.name}-wal")):
        with suppress(FileNotFoundError):
            shutil.copyfile(path, directory / path.name)
    return directory / kept.name
