"""Take a snapshot of a container, break the container, and go back; then go forward again.

Run as root: python examples/undo_a_change.py GRAPHROOT RUNROOT CONTAINER
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from store.config import StoreOptions
from store.history import History
from store.store import Store


def main(graphroot: str, runroot: str, name: str) -> None:
    with Store(StoreOptions(graphroot=graphroot, runroot=runroot)) as store:
        history = History(store)

        def etc() -> Path:
            return store.driver.get(store.container(name).layer) / "etc"

        history.take(name, "before-the-accident")
        shutil.rmtree(etc())
        print(f"etc exists: {etc().exists()}")

        kept = history.rollback(name, "before-the-accident")
        print(f"etc exists: {etc().exists()}; the accident is kept as a snapshot ({kept.reason})")

        history.rollback(name, kept.name)
        print(f"etc exists: {etc().exists()}")
        history.rollback(name, "before-the-accident")
        for snapshot in history.list(name):
            print(f"snapshot ({snapshot.reason})")
        history.state.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
