"""A store's lock files, and who holds them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from store.lockfile import LockFile
from store.objects import TABLES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from store.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """One lock file; ``holders`` are processes that have it, as ``pid (command)``, where they can be told."""

    path: Path
    held: bool
    holders: tuple[str, ...] = ()

    def __str__(self) -> str:
        by = f" by {', '.join(self.holders)}" if self.holders else ""
        return f"{self.path}: {'held' if self.held else 'free'}{by}"


def locks(store: Store) -> Iterator[Lock]:
    """Every lock file of the store; none is taken or waited for."""
    for path in _paths(store):
        lock = LockFile.get(path)
        held = lock.held()
        yield Lock(path=path, held=held, holders=tuple(map(_named, lock.holders())) if held else ())


def _paths(store: Store) -> Iterator[Path]:
    homes = [store.graphroot, store.runroot]
    for table in TABLES:
        homes += [*store.table_directories(table), store.run_directory(table)]
    for home in homes:
        yield from sorted(home.glob("*.lock"))


def _named(pid: int) -> str:
    try:
        return f"{pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    except OSError:
        return str(pid)
