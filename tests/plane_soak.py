"""Whether the data plane keeps anything: descriptors, nodes and memory over many operations on a real mount.

    python -m tests.plane_soak [OPERATIONS [WAYS]]

Files and directories are made, written, listed, renamed and removed through a mount with passthrough and one
without, in twelve parts. What is held after a quarter of them must be what is held at the end.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support import loops
from tests.support.rootfs_mount import RootfsMount
from tests.support.rootfs_samples import run

PARTS = 12
WARM = 3
"""Parts until every table and cache has its size."""
WORKERS = 2
ROUND = 14
"""Operations of one round of the worker."""
SLACK_KIB = 4096
FIGURES_SECONDS = 30
WORKER = """
import os, sys
top, rounds = sys.argv[1], int(sys.argv[2])
os.makedirs(top, exist_ok=True)
for n in range(rounds):
    d = os.path.join(top, 'd%d' % (n % 50)); os.mkdir(d)
    a, b = os.path.join(d, 'a'), os.path.join(d, 'b%d' % n)
    fd = os.open(a, os.O_CREAT | os.O_RDWR); os.pwrite(fd, b'x' * 5000, 0); os.pread(fd, 100, 0); os.close(fd)
    os.rename(a, b); os.listdir(d); os.stat(b); os.symlink('x', a); os.readlink(a)
    fd = os.open(b, os.O_RDONLY); os.unlink(b); os.read(fd, 10); os.close(fd)
    os.unlink(a); os.rmdir(d)
"""


@dataclass(frozen=True)
class Figures:
    """What a daemon holds."""

    descriptors: int
    resident: int
    nodes: int
    files: int
    requests: int


def figures(mount: RootfsMount, scratch: Path) -> Figures:
    """Of now; the daemon writes its own on SIGUSR1."""
    path = scratch / "stats"
    path.unlink(missing_ok=True)
    mount.process.send_signal(signal.SIGUSR1)
    end = time.monotonic() + FIGURES_SECONDS
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError("no figures")
        time.sleep(0.01)
    stats = json.loads(path.read_text())
    status = Path(f"/proc/{mount.process.pid}/status").read_text()
    resident = int(status.partition("VmRSS:")[2].split()[0])
    return Figures(mount.descriptors(), resident, stats["nodes"], stats["files"], stats["requests"])


def soak(home: Path, real: Path, operations: int, passthrough: bool) -> list[Figures]:
    """Figures before, and after each part."""
    scratch = home / f"s{passthrough:d}"
    views = {"c": (real, False)}
    plane = {"passthrough": passthrough}
    found = []
    with RootfsMount(home / "mnt", views, scratch, plane=plane, descriptors=32, gated=False) as mount:
        rounds = str(operations // PARTS // WORKERS // ROUND)
        for _ in range(PARTS):
            found.append(figures(mount, scratch))
            workers = [
                subprocess.Popen([sys.executable, "-c", WORKER, mount.path / f"c/w{at}", rounds])
                for at in range(WORKERS)
            ]
            codes = [worker.wait() for worker in workers]
            if any(codes):
                raise RuntimeError(f"a worker failed: {codes}")
        found.append(figures(mount, scratch))
    return found


def kept(found: list[Figures]) -> str:
    """What grew since it was warm; empty for nothing."""
    warm, last = found[WARM], found[-1]
    grown = {
        "descriptors": last.descriptors - max(f.descriptors for f in found[WARM:-1]),
        "files": last.files - warm.files,
        "nodes": last.nodes - max(f.nodes for f in found[WARM:-1]) - 64,
        "KiB": last.resident - warm.resident - SLACK_KIB,
    }
    return ", ".join(f"{number} more {what}" for what, number in grown.items() if number > 0)


def main(operations: int = 1_000_000, *ways: int) -> int:
    """Soak with passthrough (1), without (0), or both ways; 0 if nothing is kept."""
    home = loops.new_run()
    code = 0
    try:
        with loops.loop_mount(home, "b", mkfs=("mkfs.btrfs", "-q"), size=4 << 30) as top:
            for passthrough in map(bool, ways or (1, 0)):
                real = top / f"c{passthrough:d}"
                run("btrfs", "subvolume", "create", real)
                found = soak(home, real, operations, passthrough)
                print("passthrough" if passthrough else "by request", f"{operations} operations", sep=", ")
                for number in (0, PARTS // 2, PARTS):
                    print(" ", found[number])
                grown = kept(found)
                print(" ", grown or "nothing is kept")
                code |= bool(grown)
    finally:
        loops.remove_run(home)
    return code


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
