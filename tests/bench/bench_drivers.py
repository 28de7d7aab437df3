"""How long drivers take, as ratios to what they are made of and to containers-storage.

::

    python -m tests.bench.bench_drivers [--rounds 200] [--files 100000] [--layers 10000] [--json]

Makes a btrfs in a sparse file, measures, prints one table, and removes everything. Needs root. Times are
medians in milliseconds; a ratio below 1 means faster than what it is compared with. Nothing fails on time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from drivers import btrfs_ioctl
from drivers.btrfs import BtrfsDriver
from drivers.vfs import VfsDriver
from tests.support import features, loops
from tests.support.tools import StoreDirs, ToolBox


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what, its time, what it is compared with, that one's time, and the aim."""

    subject: str
    milliseconds: float
    against: str
    reference: float
    aim: str

    @property
    def ratio(self) -> float:
        """Our time by the reference's."""
        return self.milliseconds / self.reference


def median_ms(rounds: int, work: Callable[[int], object]) -> float:
    """Median wall time of ``work(number)`` in milliseconds."""
    times = []
    for number in range(rounds):
        start = time.perf_counter_ns()
        work(number)
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1e6


def child_rows(point: Path, rounds: int) -> list[Row]:
    """Create and remove a child: bare ioctls, the driver, containers-storage as processes."""
    driver = BtrfsDriver(point / "child" / "btrfs")
    driver.create("base")
    (driver.present("base") / "file").write_bytes(bytes(4096))
    parent, base = driver.subvolumes, driver.present("base")

    def bare(_: int) -> None:
        btrfs_ioctl.snapshot(base, parent, "child")
        btrfs_ioctl.destroy(parent, "child")

    def ours(_: int) -> None:
        driver.create("child", "base")
        driver.remove("child")

    median_ms(rounds // 4, bare)
    times = [(median_ms(rounds // 4, ours), median_ms(rounds // 4, bare)) for _ in range(4)]
    own = statistics.median(pair[0] for pair in times)
    ioctls = statistics.median(pair[1] for pair in times)
    driver.cleanup()
    rows = [Row("btrfs create + remove child", own, "bare ioctls", ioctls, "<= 1.5")]
    if features.present("containers-storage"):
        peer = _peer_child(point / "peer")
        rows.append(Row("btrfs create + remove child", own, "containers-storage", peer, "<= 0.2"))
    return rows


def _peer_child(place: Path) -> float:
    dirs = StoreDirs(place / "g", place / "r")
    tool = ToolBox(dirs, "btrfs", place / "conf").containers_storage()
    base = tool("create-layer").stdout.split()[0]

    def peer(_: int) -> None:
        tool("delete-layer", tool("create-layer", base).stdout.split()[0])

    return median_ms(9, peer)


def fill(root: Path, files: int) -> None:
    """Files of 1 KiB, a thousand to a directory."""
    for number in range(files):
        directory = root / f"d{number // 1000}"
        if number % 1000 == 0:
            directory.mkdir()
        (directory / f"f{number}").write_bytes(b"%08d" % number * 128)


def removal_rows(point: Path, image: Path, files: int) -> list[Row]:
    """Remove a layer with many files up to where the cleaner takes over: not cached, and all cached."""
    home = point / "large" / "btrfs"
    driver = BtrfsDriver(home)
    driver.create("large")
    fill(driver.present("large"), files)
    driver.create("copy", "large")
    btrfs_ioctl.sync(point)
    driver.cleanup()
    loops.unmount_below(point)
    loops.run("mount", "-o", "loop,noatime", image, point)
    driver = BtrfsDriver(home)
    cold = median_ms(1, lambda _: driver.remove("copy"))
    driver.read_write_disk_usage("large")
    warm = median_ms(1, lambda _: driver.remove("large"))
    driver.cleanup()
    return [
        Row(f"btrfs remove of {files} files", cold, "50 ms", 50.0, "<= 1"),
        Row(f"btrfs remove of {files} cached files", warm, "50 ms", 50.0, "<= 1"),
    ]


def copy_row(point: Path, files: int) -> Row:
    """A vfs child against ``cp -a --reflink=always``."""
    driver = VfsDriver(point / "copies" / "vfs")
    driver.create("base")
    root = driver.present("base")
    fill(root, files)
    btrfs_ioctl.sync(point)
    target = point / "copies" / "by-cp"

    def by_cp(_: int) -> None:
        subprocess.run(["cp", "-a", "--reflink=always", root, target], check=True)

    def clean() -> None:
        subprocess.run(["rm", "-rf", target], check=True)
        driver.remove("child")
        btrfs_ioctl.sync(point)

    pairs = []
    for _ in range(3):
        pairs.append((median_ms(1, lambda _: driver.create("child", "base")), median_ms(1, by_cp)))
        clean()
    own, reference = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Row(f"vfs child of {files} files", own, "cp -a --reflink=always", reference, "<= 1.2")


def listing_row(point: Path, layers: int) -> Row:
    """Status and a complete listing with many layers."""
    driver = BtrfsDriver(point / "many" / "btrfs")
    driver.create("base")
    for number in range(layers - 1):
        driver.create(f"{number:064x}", "base")
    assert len(list(driver.layer_ids())) == layers
    took = median_ms(9, lambda _: (driver.status(), list(driver.layer_ids())))
    driver.cleanup()
    return Row(f"btrfs status + listing, {layers} layers", took, "100 ms", 100.0, "<= 1")


def measure(rounds: int, files: int, layers: int) -> list[Row]:
    """Every row, on a filesystem made for it."""
    home = loops.new_run()
    try:
        with loops.loop_mount(home, "bench", mkfs=("mkfs.btrfs", "-q"), size=16 << 30) as point:
            rows = child_rows(point, rounds)
            rows += removal_rows(point, home / "bench.img", files)
            rows.append(copy_row(point, files // 2))
            rows.append(listing_row(point, layers))
            return rows
    finally:
        loops.remove_run(home)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="measure the drivers")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--layers", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = measure(options.rounds, options.files, options.layers)
    if options.json:
        print(json.dumps([asdict(row) | {"ratio": row.ratio} for row in rows], indent=1))
        return
    print(f"{'what':40} {'ms':>9}  {'against':24} {'ms':>9}  {'ratio':>7}  aim")
    for row in rows:
        print(
            f"{row.subject:40} {row.milliseconds:9.2f}  {row.against:24} {row.reference:9.2f}"
            f"  {row.ratio:7.2f}  {row.aim}"
        )


if __name__ == "__main__":
    main()
