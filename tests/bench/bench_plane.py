"""How fast the data plane is: the table beside native btrfs and fuse-overlayfs.

Run with ``python -m tests.bench.bench_plane [ROW ...]``. Every row does the same on four sides in turn and
compares what was found there; a difference fails the run. Columns are medians in seconds, and medians of
the ratios of one round. Cold means that the kernel's caches were dropped before. Sizes come from
``FSD_BENCH_ENTRIES`` and ``FSD_BENCH_MIB``, rounds from ``FSD_BENCH_RUNS``.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.support import loops
from tests.support.bigtree import build_big_tar
from tests.support.rootfs_mount import RootfsMount

ENTRIES = int(os.environ.get("FSD_BENCH_ENTRIES", "100000"))
MIB = int(os.environ.get("FSD_BENCH_MIB", "1024"))
RUNS = int(os.environ.get("FSD_BENCH_RUNS", "3"))
SIDES = ("native", "plane", "plane-rw", "no-passthrough", "fuse-overlayfs")
CREATED = 20_000
_FIND = """find $T -printf '%y %s\\n' | awk '$1=="f"{s+=$2}{n++}END{print n,s}'"""
_READ = "import sys\nf=open(sys.argv[1],'rb',buffering=0)\nn=0\nwhile d:=f.read(1<<20): n+=len(d)\nprint(n)"
_WRITE = (
    "import sys,os\nb=bytes(1<<20)\nf=os.open(sys.argv[1],os.O_RDWR|os.O_CREAT,0o644)\n"
    "for n in range(int(sys.argv[2])): os.write(f,b)\nos.fsync(f)\nprint(os.fstat(f).st_size)"
)
_MAP = (
    "import sys,mmap\nf=open(sys.argv[1],'rb')\nm=mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ)\n"
    "print(sum(m[a] for a in range(0,len(m),4096)), len(m))"
)
_CREATE = (
    "import os,sys\nos.chdir(sys.argv[1])\n"
    "for n in range(20000): os.close(os.open(f'n{n}',os.O_CREAT|os.O_WRONLY))\n"
    "print(len(os.listdir('.')))\nfor n in range(20000): os.unlink(f'n{n}')\nprint(len(os.listdir('.')))"
)


@dataclass(frozen=True)
class Row:
    """One line of the table: a shell command with ``$T`` the tree, ``$W`` a place to write."""

    name: str
    command: str
    cold: bool = False
    limit: float = 0.0
    writes: bool = False


def python(code: str, *args: str) -> str:
    """A command line that runs Python code."""
    return " ".join(["python3", "-S", "-c", "'" + code.replace("'", '"') + "'", *args])


def fio(how: str) -> str:
    """A command line for random 4 KiB I/O; its own verdict in bytes is what is compared."""
    return (
        f"fio --name=x --filename=$W/big --rw={how} --bs=4k --size={MIB}M --io_size=128M --ioengine=psync "
        "--randseed=1 --output-format=json --invalidate=0 | python3 -c 'import json,sys; "
        'j=json.load(sys.stdin)["jobs"][0]; print(j["read"]["io_bytes"]+j["write"]["io_bytes"])\''
    )


ROWS = (
    Row("cold find -printf %s", _FIND, cold=True, limit=1.3),
    Row("warm find -printf %s", _FIND, limit=2.0),
    Row("cold tar -c", "tar -C $T -cf - . | wc -c", cold=True, limit=1.6),
    Row("warm tar -c", "tar -C $T -cf - . | wc -c", limit=2.5),
    Row("sequential write", python(_WRITE, "$W/big", str(MIB)), limit=1.05, writes=True),
    Row("cold sequential read", python(_READ, "$W/big"), cold=True, limit=1.05, writes=True),
    Row("warm sequential read", python(_READ, "$W/big"), limit=1.05, writes=True),
    Row("warm mmap read", python(_MAP, "$W/big"), limit=1.05, writes=True),
    Row("random 4k read", fio("randread"), limit=1.05, writes=True),
    Row("random 4k write", fio("randwrite"), limit=1.05, writes=True),
    Row("create + unlink 20000", python(_CREATE, "$W/new"), limit=3.0, writes=True),
    Row(
        "git status",
        "cd $W/git && git -c safe.directory=* status --porcelain | wc -l",
        limit=1.5,
        writes=True,
    ),
    Row(
        "compileall",
        "cd $W/py && find . -name __pycache__ -prune -exec rm -r {} + ; python3 -S -m compileall -q . ; "
        "find . -name '*.pyc' | wc -l",
        limit=1.5,
        writes=True,
    ),
)


def prepare(work: Path) -> None:
    """What the writing rows work on, made natively and the same for every side."""
    for side in SIDES:
        place = work / side
        (place / "new").mkdir(parents=True)
        shutil.copytree(Path(json.__file__).parents[1] / "asyncio", place / "py/asyncio")
        shutil.copytree(Path(json.__file__).parents[1] / "email", place / "py/email")
        (place / "git").mkdir()
        script = (
            "git init -q . && "
            "for d in $(seq 100); do mkdir d$d; for f in $(seq 50); do echo $f >d$d/f$f; done; "
            "done; git add . && git -c user.name=n -c user.email=e commit -qm one"
        )
        subprocess.run(["bash", "-ec", script], cwd=place / "git", check=True, capture_output=True)


def timed(command: str, tree: Path, work: Path, cold: bool) -> tuple[float, str]:
    """Seconds and output."""
    if cold:
        subprocess.run(["sync"], check=True)
        Path("/proc/sys/vm/drop_caches").write_text("3")
    began = time.perf_counter()
    done = subprocess.run(
        ["bash", "-ec", "set -o pipefail; " + command],
        env={**os.environ, "T": str(tree), "W": str(work)},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{command} in {tree}: {done.stderr}")
    return seconds, done.stdout


def measure(row: Row, sides: dict[str, tuple[Path, Path]]) -> bool:
    """Print one line; whether every side found the same."""
    times: dict[str, list[float]] = {side: [] for side in sides}
    found: dict[str, set[str]] = {side: set() for side in sides}
    if not row.cold:
        for tree, work in sides.values():
            timed(row.command, tree, work, False)
    for _ in range(RUNS):
        for side, (tree, work) in sides.items():
            seconds, output = timed(row.command, tree, work, row.cold)
            times[side].append(seconds)
            found[side].add(output)
    line = f"{row.name:24}"
    for side in sides:
        ratio = statistics.median(a / b for a, b in zip(times[side], times["native"], strict=True))
        line += f" {statistics.median(times[side]):8.2f} {ratio:5.2f}x"
    same = len(set.union(*found.values())) == 1
    print(line, f"  <= {row.limit}", "" if same else f"  DIFFERENT: {found}", flush=True)
    return same


def overlay(stack: ExitStack, home: Path, tree: Path) -> Path:
    """A fuse-overlayfs mount over the tree."""
    for name in ("upper", "workdir", "merged"):
        (home / name).mkdir()
    where = home / "merged"
    options = f"lowerdir={tree},upperdir={home / 'upper'},workdir={home / 'workdir'}"
    subprocess.run(["fuse-overlayfs", "-o", options, where], check=True)
    stack.callback(subprocess.run, ["umount", "-l", where], check=False)
    return where


def mounts(stack: ExitStack, disk: Path, scratch: Path) -> dict[str, tuple[Path, Path]]:
    """Where the tree and the place to write are on every side."""
    tree, work = disk / "tree", disk / "work"
    sides = {"native": (tree, work / "native")}
    for side, passthrough in (("plane", True), ("no-passthrough", False)):
        (scratch / side).mkdir()
        views = {"ro": (tree, True), "rw": (tree, False), "work": (work, False)}
        mount = RootfsMount(
            scratch / side / "mnt",
            views,
            scratch / side / "scratch",
            frozen=("ro",),
            gated=False,
            plane={"passthrough": passthrough},
        )
        stack.enter_context(mount)
        sides[side] = (mount.path / "ro", mount.path / "work" / side)
        if passthrough:
            sides["plane-rw"] = (mount.path / "rw", mount.path / "work/plane-rw")
    (disk / "overlay").mkdir()
    merged = overlay(stack, disk / "overlay", disk)
    sides["fuse-overlayfs"] = (merged / "tree", merged / "work/fuse-overlayfs")
    return sides


def main(names: list[str]) -> int:
    """Build, mount, measure; 1 when any side found something else."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fsd-bench-", dir="/var/tmp")))
        disk = stack.enter_context(
            loops.loop_mount(home, "bench", mkfs=("mkfs.btrfs", "-q"), size=(12 + 8 * MIB // 1024) << 30)
        )
        for name in ("tree", "work"):
            subprocess.run(["btrfs", "-q", "subvolume", "create", disk / name], check=True)
        count = build_big_tar(home / "tree.tar", ENTRIES)
        subprocess.run(["tar", "-C", disk / "tree", "-xf", home / "tree.tar"], check=True)
        (home / "tree.tar").unlink()
        prepare(disk / "work")
        sides = mounts(stack, disk, home)
        print(f"{count} entries, {MIB} MiB, {RUNS} rounds, {os.cpu_count()} processors")
        print(" " * 24, *(f"{side:>15}" for side in sides))
        wanted = [row for row in ROWS if not names or any(name in row.name for name in names)]
        results = [measure(row, sides) for row in wanted]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
