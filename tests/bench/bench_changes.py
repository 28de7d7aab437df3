"""How long ``changes`` and ``diff_size`` take beside containers-storage.

Run with ``python -m tests.bench.bench_changes``.

One layer of 54,000 files, and children that changed 10 to 10,000 of them. Each line gives the medians of
``RUNS`` runs in milliseconds and their ratio. *call* is the library's call, *process* a fresh interpreter
that does it, as a command does; the peer is always a process. Cold means that the kernel's caches were
dropped before each run; it is measured for the least and the most changes. The last column is the peak
memory of the process.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from drivers.btrfs import BtrfsDriver
from tests.support import loops
from tests.support.tools import StoreDirs, ToolBox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FILES = int(os.environ.get("FSD_BENCH_FILES", "54000"))
CHANGED = (10, 100, 1000, 10_000)
RUNS = int(os.environ.get("FSD_BENCH_RUNS", "5"))
PARENT = f"{0:064x}"
PROCESS = """
import resource, sys
from pathlib import Path
from drivers.btrfs import BtrfsDriver
getattr(BtrfsDriver(Path(sys.argv[1])), sys.argv[2])(sys.argv[3], sys.argv[4])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def names() -> Iterator[str]:
    """Files in directories of 100."""
    return (f"{number // 100:04}/{number:06}" for number in range(FILES))


def fill(root: Path) -> None:
    """The base layer's files, 200 bytes each."""
    for name in names():
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 200)


def change(root: Path, count: int) -> None:
    """Append to ``count`` files spread over the layer."""
    for name in list(names())[:: max(FILES // count, 1)][:count]:
        with open(root / name, "ab") as file:
            file.write(b"y")


def median(action: Callable[[], object], *, cold: bool) -> float:
    """Milliseconds of the median run."""
    times = []
    for _ in range(RUNS):
        if cold:
            os.sync()
            Path("/proc/sys/vm/drop_caches").write_text("3")
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def measure(box: ToolBox, driver: BtrfsDriver, layer_id: str, count: int) -> None:
    """Print the lines of one child layer."""
    peer = box.containers_storage()
    for ours, theirs in (("changes", "changes"), ("diff_size", "diffsize")):
        call = getattr(driver, ours)
        argv = [sys.executable, "-c", PROCESS, str(driver.home), ours, layer_id, PARENT]
        memory = int(subprocess.run(argv, check=True, capture_output=True).stdout)
        cold_too = ours == "changes" and count in (CHANGED[0], CHANGED[-1])
        for cold in (False, True) if cold_too else (False,):
            times = [
                median(lambda: peer(theirs, layer_id, PARENT), cold=cold),  # noqa: B023 called at once
                median(lambda: call(layer_id, PARENT), cold=cold),  # noqa: B023
                median(lambda: subprocess.run(argv, check=True, capture_output=True), cold=cold),  # noqa: B023
            ]
            ratios = [f"{ms:9.1f} {times[0] / ms:6.1f}x" for ms in times[1:]]
            label = f"{ours:10} {count:6} {'cold' if cold else 'warm'}"
            print(f"{label} {times[0]:9.1f}", *ratios, f"{memory / 1024:6.0f} MB", flush=True)


def main() -> None:
    """Build the layers and print the table."""
    home = loops.new_run()
    try:
        with loops.loop_mount(home, "b", mkfs=("mkfs.btrfs", "-q"), size=8 << 30) as point:
            dirs = StoreDirs(point / "g", point / "r")
            box = ToolBox(dirs, "btrfs", point / "conf")
            peer = box.containers_storage()
            peer("create-layer", "--id", PARENT)
            driver = BtrfsDriver(dirs.graphroot / "btrfs")
            fill(driver.present(PARENT))
            print("operation  changed         peer      call   ratio   process   ratio      peak")
            for count in CHANGED:
                layer_id = f"{count:064x}"
                peer("create-layer", "--id", layer_id, PARENT)
                change(driver.present(layer_id), count)
                measure(box, driver, layer_id, count)
            driver.cleanup()
            peer("shutdown", check=False)
    finally:
        loops.remove_run(home)


if __name__ == "__main__":
    main()
