"""How long common commands take through the mount, beside the same on the real path.

Prints one line a command: seconds through fsd, seconds natively, their ratio; the best of three runs. Cold
means that the kernel's caches were dropped before.
"""

from __future__ import annotations

import io
import statistics
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import bench_plane, bench_store, bench_tree
from tests.support import loops
from tests.support.daemon import fsd, fsd_argv, fsd_env, running
from tests.support.tools import StoreDirs

if TYPE_CHECKING:
    from collections.abc import Callable

RUNS = 3
WALKS = {
    "find": "find {} | wc -l",
    "ls -lR": "ls -lR {} | wc -l",
    "tar": "tar -C {} -cf - . | wc -c",
    "grep -r": "grep -r nothing-says-this {} | wc -l",
}


def many_files_tar(path: Path, count: int) -> Path:
    """An archive of ``count`` files of 2 KiB in directories of 100."""
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            member = tarfile.TarInfo(f"tree/{number // 10_000}/{number // 100}/{number}")
            member.size = 2048
            archive.addfile(member, io.BytesIO(number.to_bytes(8, "big") * 256))
    return path


def best(action: Callable[[], object], *, cold: bool) -> float:
    """Seconds of the fastest of ``RUNS`` runs."""
    times = []
    for _ in range(RUNS):
        if cold:
            subprocess.run(["sync"], check=True)
            Path("/proc/sys/vm/drop_caches").write_text("3")
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return min(times)


def shell(command: str) -> bytes:
    """Output of a shell command that must succeed."""
    return subprocess.run(["bash", "-ec", command], capture_output=True, check=True).stdout


def compare_walks(through: Path, real: Path) -> None:
    """Every command of ``WALKS``, cold and warm; both sides must give the same count."""
    for name, command in WALKS.items():
        assert shell(command.format(through)) == shell(command.format(real)), name
        for cold in (True, False):
            ours = best(lambda command=command: shell(command.format(through)), cold=cold)
            native = best(lambda command=command: shell(command.format(real)), cold=cold)
            label = f"{name} {'cold' if cold else 'warm'}"
            print(f"{label:16}{ours:9.3f}{native:9.3f}{ours / native:8.1f}", flush=True)


def first_writes(point: Path, dirs: StoreDirs, count: int = 10) -> None:
    """The first write to each of ``count`` containers, which waits for a snapshot."""
    times = []
    for number in range(count):
        fsd(dirs, "create", f"c{number}", "bench")
        began = time.perf_counter()
        (point / f"containers/c{number}/rootfs/new").write_text("x")
        times.append(time.perf_counter() - began)
    print(f"{'first write':16}{statistics.median(times):9.3f}   median of {count}, with its snapshot")


def command_start(dirs: StoreDirs) -> None:
    """What a listing costs from the shell."""
    argv = fsd_argv(dirs, "images")
    seconds = best(lambda: subprocess.run(argv, env=fsd_env(), capture_output=True, check=True), cold=False)
    print(f"{'fsd images':16}{seconds:9.3f}")


def main() -> int:
    """Measure on an image of as many files as the first argument says (10,000), or what it names."""
    named = {"plane": bench_plane.main, "store": bench_store.main, "tree": bench_tree.main}
    if sys.argv[1:] and sys.argv[1] in named:
        return named[sys.argv[1]](sys.argv[2:])
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    home = loops.new_run()
    try:
        with loops.loop_mount(home, "b", mkfs=("mkfs.btrfs", "-q"), size=16 << 30) as top:
            dirs = StoreDirs(top / "g", top / "r")
            archive = many_files_tar(home / "many.tar", count)
            seconds = best(lambda: fsd(dirs, "import", archive, "bench"), cold=False)
            print(f"{count} files, {RUNS} runs\n{'':16}{'fsd s':>9}{'native s':>9}{'ratio':>8}")
            print(f"{'fsd import':16}{seconds:9.3f}")
            command_start(dirs)
            with running(dirs, top / "mnt", quiet=False) as daemon:
                (layer,) = (dirs.graphroot / "btrfs/subvolumes").iterdir()
                compare_walks(daemon / "images/localhost/bench:latest/rootfs", layer)
                first_writes(daemon.mountpoint, dirs)
    finally:
        loops.remove_run(home)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
