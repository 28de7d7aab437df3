"""What the tree of a large store costs: 1,000 images, 10,000 layers, 2,000 containers.

    python -m tests.bench tree [ROW ...]

Rows are ``up``, ``ls``, ``walk``, ``make``, ``changes`` and ``write``; all of them when none is named. Every
line is what was measured, its unit, and the goal. The store is real, with a tiny subvolume for every layer,
on a btrfs of its own; cold means that the kernel's caches were dropped before. From the environment:

- ``FSD_BENCH_IMAGES``: how many images; each has eight layers and two containers;
- ``FSD_BENCH_RUNS``: runs of what is measured more than once;
- ``FSD_BENCH_HOME``: a directory whose disk is made by the first run and kept for those that follow.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import secrets
import statistics
import subprocess
import sys
import tarfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from drivers import btrfs_ioctl
from drivers.btrfs import BtrfsDriver
from store import durable
from store.bigdata import file_name
from tests.support import loops
from tests.support.daemon import Daemon, running
from tests.support.tools import StoreDirs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

IMAGES = int(os.environ.get("FSD_BENCH_IMAGES", "1000"))
CHAIN, CONTAINERS = 8, 2
"""Layers and containers of each image; each container has a layer of its own."""
RUNS = int(os.environ.get("FSD_BENCH_RUNS", "7"))
TIME = "2026-01-02T03:04:05.678901234Z"
WALK = "ls -lR -I rootfs -I userdata -I rundata {0}/layers {0}/images {0}/containers | wc -l"


@dataclass(frozen=True)
class Bench:
    """One running daemon over the large store."""

    dirs: StoreDirs
    daemon: Daemon
    started: float


# -- the store ---------------------------------------------------------------------------------


def _layer(key: str, parent: str, size: int) -> dict[str, object]:
    above = {"parent": parent} if parent else {}
    digests = {
        "compressed-diff-digest": f"sha256:{key}",
        "compressed-size": 123,
        "diff-digest": f"sha256:{key}",
    }
    return {"id": key, **above, "created": TIME, **digests, "diff-size": size, "compression": 2}


def _image(number: int, top: str, layers: list[str], home: Path) -> dict[str, object]:
    key = secrets.token_hex(32)
    config = {"rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer}" for layer in layers]}}
    config["history"] = [{"created": TIME, "created_by": f"step {n}"} for n in range(len(layers))]
    items = {
        f"sha256:{key}": json.dumps(config),
        "manifest": json.dumps({"schemaVersion": 2, "config": {"digest": f"sha256:{key}"}, "layers": []}),
    }
    (home / key).mkdir(parents=True)
    for name, text in items.items():
        (home / key / file_name(name)).write_text(text)
    return {
        "id": key,
        "digest": f"sha256:{key}",
        "names": [f"localhost/team{number // 100}/image{number}:1"],
        "layer": top,
        "big-data-names": list(items),
        "big-data-sizes": {name: len(text) for name, text in items.items()},
        "big-data-digests": dict.fromkeys(items, f"sha256:{key}"),
        "created": TIME,
    }


def _container(name: str, image: object, layer: str) -> dict[str, object]:
    return {
        "id": secrets.token_hex(32),
        "names": [name],
        "image": image,
        "layer": layer,
        "metadata": "",
        "created": TIME,
        "flags": {"MountLabel": "", "ProcessLabel": ""},
    }


def tables(home: Path, size: int) -> dict[str, list[dict[str, object]]]:
    """The records of layers made from ``size`` bytes each; big data of images is written below ``home``."""
    found: dict[str, list[dict[str, object]]] = {"layers": [], "images": [], "containers": []}
    for number in range(IMAGES):
        chain = [secrets.token_hex(32) for _ in range(CHAIN)]
        found["layers"] += [_layer(key, chain[n - 1] if n else "", size) for n, key in enumerate(chain)]
        image = _image(number, chain[-1], chain, home)
        found["images"].append(image)
        for n in range(CONTAINERS):
            own = secrets.token_hex(32)
            found["layers"].append({"id": own, "parent": chain[-1], "created": TIME})
            found["containers"].append(_container(f"c{number}-{n}", image["id"], own))
    return found


def archive() -> bytes:
    """What each layer was made from: one tiny file."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        member = tarfile.TarInfo("hello")
        member.size = 6
        tar.addfile(member, io.BytesIO(b"hello\n"))
    return made.getvalue()


def build(dirs: StoreDirs) -> None:
    """The store: records, and a snapshot of its parent for every layer, as if made from an archive."""
    packed, lines = archive(), io.BytesIO()
    records = tables(dirs.graphroot / "btrfs-images", len(packed))
    driver = BtrfsDriver(dirs.graphroot / "btrfs")
    first = str(records["layers"][0]["id"])
    driver.create(first)
    driver.apply_diff(first, io.BytesIO(packed), tar_split=lines)
    subvolumes = driver.path_of(first).parent
    for kind, found in records.items():
        path = dirs.graphroot / f"btrfs-{kind}" / f"{kind}.json"
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.write_text(json.dumps(found, separators=(",", ":")))
    split = gzip.compress(lines.getvalue())
    for record in records["layers"]:
        if record["id"] != first:
            source = subvolumes / str(record.get("parent", first))
            btrfs_ioctl.snapshot(source, subvolumes, str(record["id"]))
        if "diff-digest" in record:
            (dirs.graphroot / "btrfs-layers" / f"{record['id']}.tar-split.gz").write_bytes(split)


@contextmanager
def bench_disk(home: Path) -> Iterator[Path]:
    """A mounted btrfs with the store; kept only below ``FSD_BENCH_HOME``."""
    kept = os.environ.get("FSD_BENCH_HOME")
    if kept is None:
        with loops.loop_mount(home, "b", mkfs=("mkfs.btrfs", "-q"), size=16 << 30) as top:
            build(StoreDirs(top / "g", top / "r"))
            yield top
        return
    image, top = Path(kept) / f"tree-{IMAGES}.img", home / "b"
    if not image.exists():
        image.parent.mkdir(exist_ok=True)
        with image.open("wb") as file:
            file.truncate(16 << 30)
        subprocess.run(["mkfs.btrfs", "-q", image], check=True)
    top.mkdir()
    subprocess.run(["mount", "-o", "loop,noatime", image, top], check=True)
    try:
        if not (top / "built").exists():
            build(StoreDirs(top / "g", top / "r"))
            (top / "built").touch()
        yield top
    finally:
        loops.unmount_below(top)


# -- measuring ---------------------------------------------------------------------------------


def timed(action: Callable[[], object]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def median(action: Callable[[], object], runs: int = RUNS) -> float:
    """Median seconds of several calls."""
    return statistics.median(timed(action) for _ in range(runs))


def shell(command: str) -> str:
    """Output of a shell command that must succeed."""
    return subprocess.run(["bash", "-ec", command], capture_output=True, check=True, text=True).stdout


def drop_caches() -> None:
    """Make the next look a cold one."""
    Path("/proc/sys/vm/drop_caches").write_text("2")


def line(what: str, value: float, unit: str, goal: str = "") -> None:
    """One line of the table."""
    print(f"{what:44}{value:10.3f} {unit:7}{goal}", flush=True)


def memory(daemon: Daemon) -> float:
    """Resident megabytes of the daemon."""
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def up(bench: Bench) -> None:
    """From the start of the process until READY."""
    line("up until ready", bench.started, "s", "<= 2")


def ls(bench: Bench) -> None:
    """Names of each table."""
    for table in ("layers", "containers"):
        command = f"ls {bench.daemon / table} | wc -l"
        drop_caches()
        line(f"ls {table}, cold", timed(lambda command=command: shell(command)), "s", "<= 0.3")
        line(f"ls {table}, warm", median(lambda command=command: shell(command)), "s", "<= 0.05")


def walk(bench: Bench) -> None:
    """Everything but the real directory trees, twice."""
    line("memory before", memory(bench.daemon), "MiB")
    for turn in ("first", "second"):
        drop_caches()
        began = time.perf_counter()
        count = int(shell(WALK.format(bench.daemon.mountpoint)))
        line(f"ls -lR, {turn}, {count} lines", time.perf_counter() - began, "s", "<= 10")
        line(f"memory after the {turn}", memory(bench.daemon), "MiB", "<= 150")


def make(bench: Bench) -> None:
    """A container by mkdir and from, beside the least it could cost and containers-storage."""
    image = json.loads((bench.dirs.graphroot / "btrfs-images/images.json").read_text())[0]

    def made() -> None:
        path = bench.daemon / f"containers/new{secrets.token_hex(4)}"
        path.mkdir()
        (path / "from").write_text(image["names"][0])

    flags = ["-g", bench.dirs.graphroot, "-R", bench.dirs.runroot, "-s", "btrfs"]
    argv = ["containers-storage", *flags, "create-container", image["id"]]
    made()
    pairs = [(timed(made), timed(lambda: least_cost(bench, image["layer"]))) for _ in range(3 * RUNS)]
    ours, least = (statistics.median(side) for side in zip(*pairs, strict=True))  # in turn: disks have moods
    peer = median(lambda: subprocess.run(argv, check=True, capture_output=True), 3)
    line("mkdir + from", ours * 1e3, "ms")
    line("  beside a snapshot and one save", ours / least, "times", f"<= 1.5 ({least * 1e3:.1f} ms)")
    line("  containers-storage create-container", peer / ours, "times", f">= 3 ({peer * 1e3:.0f} ms)")


def least_cost(bench: Bench, layer: str) -> None:
    """The snapshot ioctl, and writing each table that changes once."""
    graphroot = bench.dirs.graphroot
    name = f"least{secrets.token_hex(4)}"
    btrfs_ioctl.snapshot(graphroot / "btrfs/subvolumes" / layer, graphroot, name)
    for kind in ("layers", "containers"):
        data = (graphroot / f"btrfs-{kind}/{kind}.json").read_bytes()
        durable.write_atomic(graphroot / f"least-{kind}.json", data)


def changes(bench: Bench) -> None:
    """``cat changes`` after a write, beside the driver's own answer."""
    point = bench.daemon / "containers/c1-0"
    layer = os.readlink(point / "layer").rpartition("/")[2]
    parent = os.readlink(bench.daemon / f"layers/{layer}/parent").rpartition("/")[2]
    driver = BtrfsDriver(bench.dirs.graphroot / "btrfs")
    root = driver.path_of(layer)
    times: dict[str, list[float]] = {"tree": [], "driver": []}
    for number in range(2 * RUNS):
        (root / f"new{number}").write_text("x")
        side = "tree" if number % 2 else "driver"
        read = (point / "changes").read_bytes if number % 2 else lambda: driver.changes(layer, parent)
        times[side].append(timed(read))
    ours, theirs = (statistics.median(times[side]) * 1e3 for side in ("tree", "driver"))
    line("cat changes", ours, "ms", f"<= {theirs:.1f} + 5")
    line("cat changes again", median(lambda: (point / "changes").read_bytes()) * 1e3, "ms")


def put(directory: int, name: str) -> None:
    """Make a small file in an open directory."""
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, dir_fd=directory)
    os.write(fd, b"x")
    os.close(fd)


def write(bench: Bench) -> None:
    """The first write of a burst in an open directory, those after it, and the ioctl they are measured by."""
    chosen = random.sample(range(IMAGES), 2 * RUNS)  # on a kept disk the run before left bursts that go on
    roots = [bench.daemon / f"containers/c{number}-1/rootfs" for number in chosen]
    reals = [Path(os.readlink(root.parent / "path")) for root in roots]
    for root, real in zip(roots, reals, strict=True):
        os.listdir(root)
        (real / "before").write_text("x")
    firsts, plains = [], []
    with ExitStack() as stack:
        here, there = (
            [stack.enter_context(btrfs_ioctl.opened(path)) for path in paths] for paths in (roots, reals)
        )
        for written, other in zip(here[:RUNS], reals[RUNS:], strict=True):
            time.sleep(0.05)  # bursts are far apart: what the one before left to write down is written
            firsts.append(timed(lambda at=written: put(at, "new")))
            time.sleep(0.05)
            name = f"plain{secrets.token_hex(4)}"
            plains.append(timed(lambda at=other, to=name: btrfs_ioctl.snapshot(at, bench.dirs.graphroot, to)))
        later = statistics.median(timed(lambda at=at: put(at, "more")) for at in here[:RUNS])
        native = statistics.median(timed(lambda at=at: put(at, "most")) for at in there[:RUNS])
    first, plain = statistics.median(firsts), statistics.median(plains)
    line("first write of a burst", first * 1e3, "ms")
    line("  beside the ioctl", first / plain, "times", f"<= 1.3 ({plain * 1e3:.2f} ms)")
    line("later write, beside a native one", later / native, "times", f"{native * 1e6:.0f} us")


ROWS = {"up": up, "ls": ls, "walk": walk, "make": make, "changes": changes, "write": write}


def main(names: list[str]) -> int:
    """Build the store, serve it, and measure the rows of those names."""
    rows = [row for name, row in ROWS.items() if not names or name in names]
    if set(names) - set(ROWS):
        sys.exit(f"rows are {' '.join(ROWS)}")
    with ExitStack() as stack:
        home = loops.new_run()
        stack.callback(loops.remove_run, home)
        top = stack.enter_context(bench_disk(home))
        dirs = StoreDirs(top / "g", top / "r")
        subprocess.run(["sync"], check=True)
        began = time.perf_counter()
        daemon = stack.enter_context(running(dirs, top / "mnt", quiet=False))
        bench = Bench(dirs, daemon, time.perf_counter() - began)
        for row in rows:
            row(bench)
    return 0
