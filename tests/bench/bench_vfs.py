"""How long the vfs and overlay drivers take, beside ``cp``, ``rm`` and containers-storage.

Run with ``python -m tests.bench.bench_vfs [FILES]``.

A layer of 50,000 files of 0 to 60,000 bytes in directories of 50, copied and removed on each filesystem;
the sides take turns, and each line gives the medians of ``RUNS`` runs in seconds and their ratio. Then the
same layer as an overlay's, with a child that changed 10 files: changes and a read-only mount.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from drivers.base import MountOptions
from drivers.overlay import OverlayDriver
from drivers.vfs import VfsDriver
from tests.support import loops
from tests.support.tools import StoreDirs, ToolBox

if TYPE_CHECKING:
    from collections.abc import Callable

FILES = 50_000
RUNS = int(os.environ.get("FSD_BENCH_RUNS", "3"))
SIZES = (0, 100, 1500, 5000, 20_000, 60_000)
GIB = 1 << 30
MAKE = {"btrfs": ("mkfs.btrfs", "-q"), "xfs": ("mkfs.xfs", "-q"), "ext4": ("mkfs.ext4", "-q")}
PARENT, CHILD = "a" * 64, "b" * 64


def populate(tree: Path, files: int) -> None:
    """Write the layer."""
    rng, block = random.Random(1), os.urandom(max(SIZES))
    for number in range(files):
        directory = tree / str(number // 2000) / str(number // 50)
        if number % 50 == 0:
            directory.mkdir(parents=True)
        (directory / str(number)).write_bytes(block[: rng.choice(SIZES)])


def seconds(action: Callable[[], object]) -> float:
    """How long one call takes, with what was pending before it on the disk."""
    os.sync()
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def line(label: str, ours: list[float], theirs: list[float]) -> None:
    """Print one comparison."""
    one, two = statistics.median(ours), statistics.median(theirs)
    print(f"{label:34}{one:9.3f}{two:9.3f}{one / two:8.2f}", flush=True)


def run(*argv: str | Path) -> None:
    """A command that must succeed."""
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


def copies(top: Path, filesystem: str, files: int) -> None:
    """Creation of a child against ``cp -a``, and removal against ``rm -r``."""
    driver = VfsDriver(top / "vfs")
    driver.create(PARENT)
    populate(driver.get(PARENT), files)
    how = "auto" if filesystem == "ext4" else "always"
    made: tuple[list[float], list[float]] = [], []
    gone: tuple[list[float], list[float]] = [], []
    for _ in range(RUNS):
        made[0].append(seconds(lambda: driver.create(CHILD, PARENT)))
        made[1].append(seconds(lambda: run("cp", "-a", f"--reflink={how}", driver.get(PARENT), top / "copy")))
        gone[0].append(seconds(lambda: driver.remove(CHILD)))
        gone[1].append(seconds(lambda: run("rm", "-r", top / "copy")))
    line(f"{filesystem}: vfs create / cp -a", *made)
    line(f"{filesystem}: vfs remove / rm -r", *gone)
    driver.remove(PARENT)


def overlays(top: Path, files: int) -> None:
    """Changes and mounts against the containers-storage command."""
    dirs = StoreDirs(top / "g", top / "r")
    tool = ToolBox(dirs, "overlay", top / "conf").containers_storage()
    tool("create-layer", "-i", PARENT)
    tool("create-layer", "-i", CHILD, PARENT)
    driver = OverlayDriver(dirs.graphroot / "overlay", {"runroot": str(dirs.runroot)})
    populate(driver.place(PARENT).diff, files)
    with driver.mounted(CHILD) as tree:
        for number in range(0, 500, 50):
            (tree / "0" / str(number // 50) / str(number)).write_text("changed")
    ours, theirs = [], []
    for _ in range(RUNS):
        ours.append(seconds(lambda: driver.changes(CHILD, PARENT)))
        theirs.append(seconds(lambda: tool("changes", CHILD)))
    line("overlay: changes / as a process", ours, theirs)
    ours, theirs = [], []
    for _ in range(RUNS):
        ours.append(seconds(lambda: (driver.get(CHILD, MountOptions()), driver.put(CHILD))))
        theirs.append(seconds(lambda: (tool("mount", CHILD), tool("unmount", CHILD))))
    line("overlay: mount, unmount / processes", ours, theirs)
    driver.cleanup()


def main() -> int:
    """Measure everything."""
    files = int(sys.argv[1]) if len(sys.argv) > 1 else FILES
    print(f"{files} files, {RUNS} runs\n{'':34}{'fsd s':>9}{'other s':>9}{'ratio':>8}")
    home = loops.new_run()
    try:
        for filesystem, mkfs in MAKE.items():
            with loops.loop_mount(home, filesystem, mkfs=mkfs, size=8 * GIB) as top:
                copies(top, filesystem, files)
                if filesystem == "btrfs":
                    overlays(top, files)
    finally:
        loops.remove_run(home)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
