"""A store's tables and subvolumes on disk, as another tool would read and change them."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from store.store import Store


def table(store: Store, name: str) -> Path:
    return store.graphroot / f"btrfs-{name}" / f"{name}.json"


def on_disk(store: Store, name: str) -> list[dict[str, object]]:
    return json.loads(table(store, name).read_bytes() or b"[]")


def edit(store: Store, name: str, change: Callable[[list[dict[str, object]]], object]) -> None:
    """Change a table as another tool would: a new file in its place."""
    path = table(store, name)
    records = on_disk(store, name) if path.exists() else []
    change(records)
    path.with_suffix(".new").write_text(json.dumps(records))
    path.with_suffix(".new").rename(path)


def subvolumes(store: Store) -> set[str]:
    return set(os.listdir(store.graphroot / "btrfs" / "subvolumes"))
