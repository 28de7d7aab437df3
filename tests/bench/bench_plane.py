"""How fast the data plane is: the table beside native btrfs and fuse-overlayfs.

Run with ``python -m tests.bench.bench_plane [ROW ...]``; a part of a row's name will do. Every row
does the same on every side in turn and compares what was found there; a difference fails the run. Columns are
medians in seconds, and medians of the ratios of one round. Cold means that the kernel's caches were dropped
before. From the environment:

- ``FSD_BENCH_ENTRIES``, ``FSD_BENCH_MIB``: sizes; ``FSD_BENCH_RUNS``: rounds;
- ``FSD_BENCH_SIDES``: sides beside native, by commas;
- ``FSD_BENCH_HOME``: a directory whose disk is made by the first run and kept for those that follow;
- ``FSD_BENCH_OPS=1``: show what the plane was asked in the last round.

The row ``memory`` says what each daemon held when it began, what it holds once the kernel knows every
entry of the tree, and how much that is for a node.
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
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import loops
from tests.support.bigtree import build_big_tar
from tests.support.rootfs_mount import RootfsMount

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRIES = int(os.environ.get("FSD_BENCH_ENTRIES", "100000"))
MIB = int(os.environ.get("FSD_BENCH_MIB", "1024"))
RUNS = int(os.environ.get("FSD_BENCH_RUNS", "3"))
ALL = "image,container,no-passthrough,fuse-overlayfs"
SIDES = ("native", *os.environ.get("FSD_BENCH_SIDES", ALL).split(","))
OPS = os.environ.get("FSD_BENCH_OPS") == "1"
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
    for side in ("native", *ALL.split(",")):
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


@dataclass(frozen=True)
class Side:
    """Where one side has the tree and the place to write; what serves it, if the plane does."""

    tree: Path
    work: Path
    mount: RootfsMount | None = None


def measure(row: Row, sides: dict[str, Side]) -> bool:
    """Print one line; whether every side found the same."""
    sides = {name: side for name, side in sides.items() if not (row.writes and name == "image")}
    times: dict[str, list[float]] = {name: [] for name in sides}
    found: set[str] = set()
    asked: dict[str, str] = {}
    for number in range(RUNS if row.cold else RUNS + 1):  # warm rows begin with one that does not count
        for name in _beginning_with(list(sides), number):
            side = sides[name]
            before = side.mount.operations() if OPS and side.mount else Counter[str]()
            seconds, output = timed(row.command, side.tree, side.work, row.cold)
            if number or row.cold:
                times[name].append(seconds)
            found.add(output)
            if OPS and side.mount:
                asked[name] = str(dict((side.mount.operations() - before).most_common()))
    print(
        f"{row.name:24}",
        *(_cell(times, name) for name in ("native", *ALL.split(","))),
        f"<= {row.limit}",
        end="",
    )
    print("" if len(found) == 1 else f"  DIFFERENT: {found}", flush=True)
    for name, operations in asked.items():
        print(f"    {name}: {operations}")
    return len(found) == 1


def _beginning_with(names: list[str], number: int) -> list[str]:
    """Another side is the first in each round: some disks are fast only until they were written to."""
    first = number % len(names)
    return names[first:] + names[:first]


def _cell(times: dict[str, list[float]], name: str) -> str:
    if name not in times:
        return f"{'-':>16}"
    ratio = statistics.median(a / b for a, b in zip(times[name], times["native"], strict=True))
    return f"{statistics.median(times[name]):9.3f} {ratio:5.2f}x"


def resident(mount: RootfsMount) -> int:
    """KiB of the daemon's memory."""
    status = Path(f"/proc/{mount.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def memory(sides: dict[str, Side], before: dict[str, int]) -> None:
    """Print what the daemons hold; ``before`` is the KiB they began with."""
    for name, side in sides.items():
        if side.mount is not None:
            timed(_FIND, side.tree, side.work, cold=False)
            held, nodes = resident(side.mount), side.mount.stats()["nodes"]
            each = (held - before[name]) * 1024 / nodes
            print(
                f"{'memory':24} {name}: {before[name] / 1024:.1f} MiB at first, {held / 1024:.1f} MiB with "
                f"{nodes:,} nodes, {each:.0f} bytes each (<= 80 MB and 200 bytes each)"
            )


def overlay(stack: ExitStack, home: Path, tree: Path) -> Path:
    """A fuse-overlayfs mount over the tree."""
    shutil.rmtree(home, ignore_errors=True)
    for name in ("upper", "workdir", "merged"):
        (home / name).mkdir(parents=True)
    where = home / "merged"
    options = f"lowerdir={tree},upperdir={home / 'upper'},workdir={home / 'workdir'}"
    subprocess.run(["fuse-overlayfs", "-o", options, where], check=True)
    stack.callback(lambda: subprocess.run(["umount", "-l", where], check=False))
    return where


def served(stack: ExitStack, disk: Path, scratch: Path, name: str) -> RootfsMount:
    """A mount of a plane of its own, so that sides share neither caches nor threads."""
    scratch.mkdir()
    views = {"tree": (disk / "tree", name != "container"), "work": (disk / "work", False)}
    mount = RootfsMount(
        scratch / "mnt",
        views,
        scratch / "scratch",
        frozen=("tree",) if name != "container" else (),
        gated=False,
        plane={"passthrough": name != "no-passthrough"},
    )
    return stack.enter_context(mount)


def make_sides(stack: ExitStack, disk: Path, scratch: Path) -> dict[str, Side]:
    """Every side that is wanted, by name."""
    sides = {"native": Side(disk / "tree", disk / "work/native")}
    for name in SIDES[1:]:
        if name == "fuse-overlayfs":
            merged = overlay(stack, disk / "overlay", disk)
            sides[name] = Side(merged / "tree", merged / "work" / name)
        else:
            mount = served(stack, disk, scratch / name, name)
            sides[name] = Side(mount.path / "tree", mount.path / "work" / name, mount)
    return sides


def fill(disk: Path, home: Path) -> None:
    """Make what is measured."""
    for name in ("tree", "work"):
        subprocess.run(["btrfs", "-q", "subvolume", "create", disk / name], check=True)
    build_big_tar(home / "tree.tar", ENTRIES)
    subprocess.run(["tar", "-C", disk / "tree", "-xf", home / "tree.tar"], check=True)
    (home / "tree.tar").unlink()
    prepare(disk / "work")
    (disk / "filled").touch()


@contextmanager
def bench_disk(home: Path) -> Iterator[Path]:
    """The mounted btrfs, made when it is not there yet; kept only below ``FSD_BENCH_HOME``."""
    kept = os.environ.get("FSD_BENCH_HOME")
    if kept is None:
        size = (12 + 8 * MIB // 1024) << 30
        with loops.loop_mount(home, "bench", mkfs=("mkfs.btrfs", "-q"), size=size) as disk:
            fill(disk, home)
            yield disk
        return
    image, disk = Path(kept) / "bench.img", home / "bench"
    if not image.exists():
        image.parent.mkdir(exist_ok=True)
        with image.open("wb") as file:
            file.truncate((12 + 8 * MIB // 1024) << 30)
        subprocess.run(["mkfs.btrfs", "-q", image], check=True)
    disk.mkdir()
    subprocess.run(["mount", "-o", "loop,noatime", image, disk], check=True)
    try:
        if not (disk / "filled").exists():
            fill(disk, home)
        yield disk
    finally:
        loops.unmount_below(disk)


def main(names: list[str]) -> int:
    """Build, mount, measure; 1 when any side found something else."""
    wanted = [row for row in ROWS if not names or any(name in row.name for name in names)]
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fsd-bench-", dir="/var/tmp")))
        disk = stack.enter_context(bench_disk(home))
        sides = make_sides(stack, disk, home)
        print(f"{RUNS} rounds, {os.cpu_count()} processors")
        print(" " * 24, *(f"{name:>16}" for name in ("native", *ALL.split(","))), flush=True)
        before = {name: resident(side.mount) for name, side in sides.items() if side.mount is not None}
        results = [measure(row, sides) for row in wanted]
        if not names or "memory" in names:
            memory(sides, before)
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
