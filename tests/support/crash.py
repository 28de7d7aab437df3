"""Kill a process in the middle of an operation on a store."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from store.store import Store

PROGRAM = """
    import os, signal, sys
    from store.archives import load_archive
    from store.commit import commit
    from store.config import StoreOptions
    from store.fill import fill
    from store.history import History
    from store.oci import import_rootfs
    from store.store import Store
    from store.trash import Trash

    graphroot, runroot, driver, target, when, call = sys.argv[1:]
    store = Store(StoreOptions(graphroot=graphroot, runroot=runroot, driver=driver))
    history = History(store)
    trash = Trash(history)
    *owners, method = target.split(".")
    owner = {"store": store, "history": history, "trash": trash}[owners.pop(0)]
    for part in owners:
        owner = getattr(owner, part)
    real = getattr(owner, method)

    def dying(*args, **kwargs):
        if when == "after":
            real(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, method, dying)
    eval(call)
"""


def crash(store: Store, when: str, target: str, call: str) -> None:
    """Run ``call`` in another process, which is killed ``before`` or ``after`` it calls ``target``.

    ``call`` knows ``store``, ``history``, ``trash``, ``fill``, ``import_rootfs``, ``load_archive`` and
    ``commit``; ``target`` is a method below one of the first three.
    """
    arguments = [store.graphroot, store.runroot, store.driver_name, target, when, call]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent.parent,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, f"{done.returncode}: {done.stderr}"
