"""The daemon as a test runs it: ``GRAPHROOT RUNROOT MOUNTPOINT [OPTION VALUE]…``.

``--driver`` and ``--imagestore`` say what the store is.

``--allow-other yes`` lets other users look in.

``--fail lookup:boom`` makes that handler raise ``KeyError`` when it is asked for ``boom``.
"""

from __future__ import annotations

import logging
from pathlib import Path

from fsd import daemon
from store.config import StoreOptions
from store.store import Store


def main(graphroot: str, runroot: str, mountpoint: str, *options: str) -> int:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    given = dict(zip(options[::2], options[1::2], strict=True))
    if "--fail" in given:
        _break(*given["--fail"].split(":"))
    wanted = StoreOptions(
        graphroot=Path(graphroot),
        runroot=Path(runroot),
        driver=given.get("--driver", "btrfs"),
        image_store=given.get("--imagestore", ""),
    )
    with Store(wanted) as store:
        return daemon.run(
            store,
            Path(mountpoint),
            ready=lambda: print("READY", flush=True),
            allow_other=given.get("--allow-other") == "yes",
        )


def _break(handler: str, name: str) -> None:
    """Put a defect below the barrier, where a real one would be."""
    from fsd.tables import Table

    real = getattr(Table, handler)

    def broken(self: Table, node: object, entry: str, *rest: object) -> object:
        if entry == name:
            raise KeyError("a defect")
        return real(self, node, entry, *rest)

    setattr(Table, handler, broken)
