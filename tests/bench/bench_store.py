"""What listing and changing large stores costs, beside containers-storage in the same run.

    python -m tests.bench store [ROW ...]

Rows are ``commands``, ``listing``, ``reload``, ``create`` and ``fill``; all of them when none is named. What
is compared takes turns, and medians of all rounds are shown: elapsed milliseconds, and those of processor
time (user and system), which say the same on a busy machine. A ratio is the median of the rounds' ratios.
``least, durable`` is one snapshot and one save of the larger table that is on the disk at return, as every
save of this store (write, fsync, rename, fsync of the directory). ``least`` saves as containers-storage does
(write, fdatasync, rename), whose new name a power failure may still undo. But for the image that containers
are made from, the stores have no content: only their tables count.
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
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from drivers import btrfs_ioctl
from store.config import StoreOptions
from store.fill import fill
from store.state import STATE_FILE, State
from store.store import Store
from tests.support import loops

if TYPE_CHECKING:
    from collections.abc import Callable

    from store.records import Image

RUNS = int(os.environ.get("FSD_BENCH_RUNS", "15"))
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


# -- measuring -----------------------------------------------------------------------------------


@dataclass
class Times:
    """Elapsed and processor milliseconds of one action, round by round."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{statistics.median(self.wall):9.2f}{statistics.median(self.cpu):9.2f}"

    def against(self, other: Times) -> str:
        """Elapsed and processor time as multiples of another's."""
        walls = [a / b for a, b in zip(self.wall, other.wall, strict=True)]
        cpus = [a / b for a, b in zip(self.cpu, other.cpu, strict=True)]
        return f"{statistics.median(walls):8.2f}{statistics.median(cpus):8.2f}"


def rounds(actions: dict[str, Callable[[], object]], runs: int = RUNS) -> dict[str, Times]:
    """Let the actions take turns."""
    times = {name: Times() for name in actions}
    for number in range(runs + 1):
        for name, action in actions.items():
            wall, cpu = time.perf_counter(), time.process_time() + _children()
            action()
            spent = time.process_time() + _children() - cpu
            if number:  # the first round warms up
                times[name].wall.append((time.perf_counter() - wall) * 1e3)
                times[name].cpu.append(max(spent * 1e3, 0.001))
    return times


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def process(*argv: str) -> Callable[[], object]:
    """An action that runs a program."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return lambda: subprocess.run(argv, env=env, stdout=subprocess.DEVNULL, check=True)


def heading(what: str, columns: str) -> None:
    """Print the titles of a table."""
    print(f"\n{what:28}{columns}", flush=True)


# -- rows ----------------------------------------------------------------------------------------


def commands(scratch: Path) -> None:
    """Whole processes on 1,000 layers, 100 images and 200 containers."""
    options = write_store(scratch, 1000)
    flags = ("-g", options.graphroot, "-R", options.runroot, "-s", options.driver)
    call = (sys.executable, "-c", "import sys; from fsd.entry import main; sys.exit(main())")
    heading("command", f"{'ms':>9}{'cpu':>9}{'c/s ms':>9}{'cpu':>9}{'ratio':>8}{'cpu':>8}{'goal ms':>9}")
    start = rounds({"start": process(sys.executable, "-c", "pass")})["start"]
    print(f"{'the interpreter alone':28}{start}")
    for command, goal in COMMANDS.items():
        theirs = process("containers-storage", *flags, *command.split())
        found = rounds({"fsd": process(*call, *flags, *command.split()), "c/s": theirs})
        ours = found["fsd"]
        print(f"{command:28}{ours}{found['c/s']}{ours.against(found['c/s'])}{goal:9}", flush=True)


def listing(scratch: Path) -> None:
    """Open a store of 10,000 layers in this process and list it."""
    options = write_store(scratch, 10_000)

    def listed() -> None:
        with Store(options, lazy=True) as store:
            assert len(store.layers()) == 10_000

    def whole() -> None:
        with Store(options) as store:
            assert len(store.layers()) == 10_000

    heading("10,000 layers", f"{'ms':>9}{'cpu':>9}{'goal ms':>9}")
    for name, times in rounds({"open and list": listed, "with the driver": whole}, 7).items():
        print(f"{name:28}{times}{150:9}", flush=True)


def reload(scratch: Path) -> None:
    """See the container another process made in a store of 10,000 layers."""
    options = write_store(scratch, 10_000)
    path = Path(options.graphroot) / "vfs-layers/layers.json"
    with Store(options) as store:
        numbers = count()

        def peer() -> None:
            record = _layer(0, [f"{next(numbers):064x}"]) | {"names": []}
            text = path.read_text()[:-1] + "," + json.dumps(record, separators=(",", ":")) + "]"
            path.with_name("new").write_text(text)
            path.with_name("new").rename(path)

        def seen() -> None:
            store.layers()

        heading("10,000 layers", f"{'ms':>9}{'cpu':>9}")
        store.layers()
        print(f"{'after a change by another':28}{rounds({'peer': peer, 'seen': seen})['seen']}", flush=True)


class Large:
    """A store on btrfs with an image to make containers from."""

    def __init__(self, top: Path, layers: int) -> None:
        self.options = write_store(top / f"s{layers}", layers, "btrfs")
        self.label = f"{layers:,} layers"
        self.store = Store(self.options)
        self.image: Image = self.store.create_image(names=["base"], layer=self.store.create_layer().id)
        self.state = State(self.store.graphroot / STATE_FILE)
        self._numbers = count()

    def close(self) -> None:
        """Forget it."""
        self.state.close()
        self.store.close()

    def create(self) -> None:
        """A container from the image."""
        self.store.create_container(image=self.image.id)

    def fill(self) -> None:
        """What ``mkdir`` and ``from`` ask the store for."""
        made = self.store.create_container(names=[f"filled{next(self._numbers)}"])
        fill(self.store, made.id, "base", state=self.state)

    def least(self) -> None:
        """A snapshot, and the save of one table as containers-storage does it."""
        self._snapshot()
        self._save(os.fdatasync)

    def durable(self) -> None:
        """A snapshot, and the save of one table that is on the disk at return."""
        self._snapshot()
        self._save(os.fsync)
        fd = os.open(self.store.graphroot, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(fd)
        os.close(fd)

    def _snapshot(self) -> None:
        root = self.store.graphroot
        name = f"least{next(self._numbers)}"
        btrfs_ioctl.snapshot(root / "btrfs/subvolumes" / self.image.layer, root, name)

    def _save(self, sync: Callable[[int], None]) -> None:
        temporary = self.store.graphroot / ".tmp-least"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(fd, self._text)
        sync(fd)
        os.close(fd)
        os.rename(temporary, self.store.graphroot / "least.json")

    @property
    def process(self) -> Callable[[], object]:
        """The same by the original."""
        where = ("-g", self.options.graphroot, "-R", self.options.runroot, "-s", "btrfs")
        return process("containers-storage", *where, "create-container", self.image.id)

    def prepare(self) -> None:
        """Take the text that ``least`` saves from the table as it is now."""
        self._text = self.store.tables.layers.path.read_bytes()


def create(top: Path) -> None:
    """``create_container`` in a small store and in a large one."""
    heading("create_container", f"{'ms':>9}{'cpu':>9}{'ratio':>8}{'cpu':>8}  goal 1.3")
    with ExitStack() as stack:
        small, large = (_opened(stack, top / "create", layers) for layers in (10, 10_000))
        for store in (small, large):
            _beside_least(store, store.create)
        found = rounds({"large": large.create, "small": small.create})
        print(f"{'10,000 layers against 10':46}{found['large'].against(found['small'])}  goal 3", flush=True)


def _beside_least(store: Large, action: Callable[[], object]) -> None:
    """Lines for an action and what it is measured by."""
    found = rounds({"fsd": action, "least, durable": store.durable, "least": store.least})
    print(f"{store.label:28}{found['fsd']}", flush=True)
    for name in ("least, durable", "least"):
        print(f"  {name:26}{found[name]}{found['fsd'].against(found[name])}", flush=True)


def filling(top: Path) -> None:
    """The store's half of ``mkdir containers/N`` and ``echo IMAGE > containers/N/from``."""
    heading("mkdir and from", f"{'ms':>9}{'cpu':>9}{'ratio':>8}{'cpu':>8}  goal 1.5")
    with ExitStack() as stack:
        stores = [_opened(stack, top / "fill", layers) for layers in (10, 10_000)]
        for store in stores:
            _beside_least(store, store.fill)
        heading(
            "containers-storage", f"{'ms':>9}{'cpu':>9}{'fsd ms':>9}{'cpu':>9}{'ratio':>8}{'cpu':>8}  goal 3"
        )
        for store in stores:
            found = rounds({"c/s": store.process, "fsd": store.fill}, 5)
            theirs, ours = found["c/s"], found["fsd"]
            print(f"{store.label:28}{theirs}{ours}{theirs.against(ours)}", flush=True)


def _opened(stack: ExitStack, top: Path, layers: int) -> Large:
    opened = Large(top, layers)
    stack.callback(opened.close)
    opened.create()
    opened.prepare()
    return opened


ROWS: dict[str, tuple[Callable[[Path], None], bool]] = {
    "commands": (commands, False),
    "listing": (listing, False),
    "reload": (reload, False),
    "create": (create, True),
    "fill": (filling, True),
}
"""What may be measured, and whether it needs btrfs."""


def main(names: list[str]) -> int:
    """Measure the rows named, or all, and print them."""
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        print(f"{unknown[0]} is none of {', '.join(ROWS)}", file=sys.stderr)
        return 2
    home = loops.new_run()
    try:
        for name in names or ROWS:
            action, on_btrfs = ROWS[name]
            with (
                loops.loop_mount(home, name, mkfs=("mkfs.btrfs", "-q"), size=2 << 30) as top,
                tempfile.TemporaryDirectory() as scratch,
            ):
                action(top if on_btrfs else Path(scratch))
    finally:
        loops.remove_run(home)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
