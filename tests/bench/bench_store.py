"""What listing and changing large stores costs, beside containers-storage in the same run.

CPU time (user and system, of the process) and its median over several runs, because it says the same on a
busy machine; ``start`` is what the interpreter alone takes. The store has no content: only its tables count.

    python -m tests.bench.bench_store
"""

from __future__ import annotations

import json
import os
import resource
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from drivers import btrfs_ioctl
from store import durable
from store.config import StoreOptions
from store.store import Store
from tests.support import loops

if TYPE_CHECKING:
    from collections.abc import Callable

RUNS = 15
ROOT = Path(__file__).parents[2]
TIME = "2026-01-02T03:04:05.678901234Z"
COMMANDS = {
    "layers": 80,
    "layers -j": 80,
    "images": 80,
    "containers": 80,
    "exists c5": 60,
    "metadata c5": 60,
}
"""Milliseconds each may take."""


def tables(layers: int) -> dict[str, list[dict[str, object]]]:
    """Records of a store with a tenth as many images and a fifth as many containers."""
    ids = [secrets.token_hex(32) for _ in range(layers)]
    images = [secrets.token_hex(32) for _ in range(layers // 10)]
    return {
        "layers": [_layer(number, ids) for number in range(layers)],
        "images": [_image(number, images, ids) for number in range(len(images))],
        "containers": [_container(number, images, ids) for number in range(layers // 5)],
    }


def _layer(number: int, ids: list[str]) -> dict[str, object]:
    record: dict[str, object] = {"id": ids[number]}
    if number % 3 == 0:
        record["names"] = [f"layer{number}"]
    if number % 10:
        record["parent"] = ids[number - 1]
    digests = {"compressed-diff-digest": f"sha256:{ids[number]}", "compressed-size": 12345}
    digests |= {"diff-digest": f"sha256:{ids[number]}", "diff-size": 45678, "compression": 2}
    return record | {"created": TIME} | digests | {"uidset": [0], "gidset": [0]}


def _image(number: int, images: list[str], ids: list[str]) -> dict[str, object]:
    key = images[number]
    names = [f"sha256:{key}", f"manifest-sha256:{key}", "manifest"]
    return {
        "id": key,
        "digest": f"sha256:{key}",
        "names": [f"localhost/image{number}:1"],
        "layer": ids[number * 10 + 9],
        "big-data-names": names,
        "big-data-sizes": dict.fromkeys(sorted(names), 1234),
        "big-data-digests": dict.fromkeys(sorted(names), f"sha256:{key}"),
        "created": TIME,
    }


def _container(number: int, images: list[str], ids: list[str]) -> dict[str, object]:
    return {
        "id": secrets.token_hex(32),
        "names": [f"c{number}"],
        "image": images[number % len(images)],
        "layer": ids[number * 5],
        "metadata": "about",
        "created": TIME,
        "flags": {"MountLabel": "", "ProcessLabel": ""},
    }


def write_store(home: Path, layers: int, driver: str = "vfs") -> StoreOptions:
    """A store of that many layers without content."""
    for kind, records in tables(layers).items():
        directory = home / f"g/{driver}-{kind}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{kind}.json").write_text(json.dumps(records, separators=(",", ":")))
        (directory / f"{kind}.lock").touch()
    for directory in (home / f"g/{driver}", home / f"r/{driver}-layers"):
        directory.mkdir(parents=True, exist_ok=True)
    return StoreOptions(graphroot=str(home / "g"), runroot=str(home / "r"), driver=driver)


def cpu_ms(argv: list[str]) -> float:
    """Median CPU milliseconds of a process."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    times = []
    for _ in range(RUNS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(argv, env=env, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return statistics.median(times) * 1e3


def processes(home: Path) -> None:
    """Whole processes on 1,000 layers, 100 images and 200 containers."""
    options = write_store(home, 1000)
    flags = ["-g", options.graphroot, "-R", options.runroot, "-s", options.driver]
    start = cpu_ms([sys.executable, "-c", "pass"])
    print(f"{'command':14}{'fsd ms':>9}{'c/s ms':>9}{'ratio':>7}{'goal ms':>9}   start {start:.1f} ms")
    call = "import sys; from fsd.entry import main; sys.exit(main())"
    for command, goal in COMMANDS.items():
        ours = cpu_ms([sys.executable, "-c", call, *flags, *command.split()])
        theirs = cpu_ms(["containers-storage", *flags, *command.split()])
        print(f"{command:14}{ours:9.1f}{theirs:9.1f}{ours / theirs:7.2f}{goal:9}", flush=True)


def seconds(action: Callable[[], object], runs: int = RUNS) -> float:
    """Median CPU seconds of a call."""
    times = []
    for _ in range(runs):
        began = time.process_time()
        action()
        times.append(time.process_time() - began)
    return statistics.median(times)


def listing(home: Path) -> None:
    """Open a store of 10,000 layers in this process and list it."""
    options = write_store(home, 10_000)

    def listed() -> None:
        with Store(options, lazy=True) as store:
            assert len(store.layers()) == 10_000

    print(f"{'open and list 10,000 layers':40}{seconds(listed, 7) * 1e3:9.1f} ms, goal 150")


def creations(top: Path) -> None:
    """A container on btrfs in stores of 10 and of 10,000 layers, beside its least possible cost."""
    cost = {}
    for layers in (10, 10_000):
        home = top / f"s{layers}"
        options = write_store(home, layers, "btrfs")
        with Store(options) as store:
            image = store.create_image(layer=store.create_layer().id)
            cost[layers] = seconds(lambda store=store, image=image: store.create_container(image=image.id))
            least = least_cost(store, store.image(image.id).layer)
            ratio = cost[layers] / least
            print(f"{f'create_container at {layers:,} layers':40}{cost[layers] * 1e3:9.2f} ms CPU, ", end="")
            print(f"{ratio:.2f} times a snapshot and the saves of its records ({least * 1e3:.2f} ms)")
    print(f"{'10,000 layers against 10':40}{cost[10_000] / cost[10]:9.2f} times, goal 3")


def least_cost(store: Store, layer: str) -> float:
    """A snapshot, and writing the tables once each as they are."""
    subvolumes = store.graphroot / "btrfs/subvolumes"
    data = [table.path.read_bytes() for table in (store.tables.layers, store.tables.containers)]
    made = iter(range(1 << 30))

    def least() -> None:
        btrfs_ioctl.snapshot(subvolumes / layer, store.graphroot, f"least{next(made)}")
        for number, content in enumerate(data):
            durable.write_atomic(store.graphroot / f"least{number}.json", content)

    return seconds(least)


def main() -> int:
    """Measure everything and print it."""
    with tempfile.TemporaryDirectory() as scratch:
        processes(Path(scratch) / "a")
        listing(Path(scratch) / "b")
    home = loops.new_run()
    try:
        with loops.loop_mount(home, "b", mkfs=("mkfs.btrfs", "-q"), size=2 << 30) as top:
            creations(top)
    finally:
        loops.remove_run(home)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
