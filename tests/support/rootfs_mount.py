"""A mount that serves nothing but real trees: a root directory with one entry per view.

``RootfsMount`` runs it in a child process, so that the tests may touch the mount freely. The child logs
what passes the gate of each writable view, one JSON line per call: ``[view, name or null]``.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import signal
import stat
import subprocess
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyfuse3
import trio

from fsd.exports import Exports, View
from fsd.plane import Event, Plane, Preparation, mount, unmount
from tests.support import forks, syscalls

if TYPE_CHECKING:
    from types import TracebackType

    from fsd.exports import Gate

STARTUP_SECONDS = 30
OPCODES = {
    1: "lookup",
    2: "forget",
    3: "getattr",
    4: "setattr",
    5: "readlink",
    10: "unlink",
    14: "open",
    15: "read",
    16: "write",
    18: "release",
    20: "fsync",
    22: "getxattr",
    23: "listxattr",
    25: "flush",
    27: "opendir",
    28: "readdir",
    29: "releasedir",
    35: "create",
    42: "batch_forget",
    44: "readdirplus",
    46: "lseek",
}
"""Names of the protocol's requests that are met often."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What to serve.

    While there is a file ``refuse`` in the scratch directory, every gate raises ``EDQUOT``; while there is
    a file ``hold-`` and a view's name, that view's gate lets nobody through.
    """

    mountpoint: str
    views: dict[str, tuple[str, bool]]  # name: (path, read-only)
    scratch: str
    use_handles: bool = True
    descriptors: int | None = None
    nofile: int | None = None
    umask: int = 0o022
    options: tuple[str, ...] = field(default=("allow_other",))
    plane: dict[str, Any] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    gated: bool = True
    prepared: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Snapshots laid ready: by view what of a preparation is not as usual; they are made in ``snapshots``."""
    snapshots: str = ""
    administrator: bool = True  # serve with CAP_SYS_ADMIN


class RootfsMount:
    """``with RootfsMount(point, views, scratch) as mount:`` serves the views until the block ends."""

    def __init__(
        self, mountpoint: Path, views: dict[str, tuple[Path, bool]], scratch: Path, **more: Any
    ) -> None:
        self.setup = Setup(
            mountpoint=str(mountpoint),
            views={name: (str(path), read_only) for name, (path, read_only) in views.items()},
            scratch=str(scratch),
            **more,
        )
        self.path = mountpoint
        self._scratch = scratch

    def __enter__(self) -> RootfsMount:
        self.path.mkdir(exist_ok=True)
        self._scratch.mkdir(exist_ok=True)
        self._stderr = (self._scratch / "stderr").open("w+")
        self.process = forks.start(__name__, json.dumps(asdict(self.setup)), stderr=self._stderr.fileno())
        if self.process.stdout.readline() != b"ready\n":
            self._end()
            raise RuntimeError(f"no mount: {self.stderr()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        alive = self.process.poll() is None
        self._end()
        if kind is None:
            assert alive, f"the daemon died: {self.stderr()}"
            assert self.process.returncode == 0
            assert self.stderr() == ""

    def _end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STARTUP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        subprocess.run(["umount", "-q", "-l", str(self.path)], check=False, capture_output=True)
        self.process.stdout.close()
        self._stderr.close()

    def stderr(self) -> str:
        """What the daemon complained about."""
        return (self._scratch / "stderr").read_text()

    def gates(self) -> list[tuple[str, str | None]]:
        """What passed the gates so far: view and name."""
        path = self._scratch / "gates"
        return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []

    def taken(self) -> list[str]:
        """Snapshots the plane took that were laid ready: holder and name."""
        path = self._scratch / "taken"
        return path.read_text().splitlines() if path.exists() else []

    def stats(self) -> dict[str, Any]:
        """The plane's figures, and in "modes" how each view's nodes were reopened: of now, or of its end."""
        path = self._scratch / "stats"
        if self.process.poll() is None:
            path.unlink(missing_ok=True)
            self.process.send_signal(signal.SIGUSR1)
            while not path.exists() and self.process.poll() is None:
                time.sleep(0.001)
        figures: dict[str, Any] = json.loads(path.read_text())
        return figures

    def operations(self) -> Counter[str]:
        """How often the plane was asked for what, by names of the protocol."""
        counts = self.stats()["operations"]
        return Counter({OPCODES.get(int(code), code): count for code, count in counts.items()})

    def descriptors(self) -> int:
        """How many descriptors the daemon holds."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


# -- the child -------------------------------------------------------------------------------------


class _Numbers:
    """Stable numbers in a JSON file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}

    def __call__(self, key: str) -> int:
        if key not in self._known:
            self._known[key] = len(self._known) + 1
            self._path.write_text(json.dumps(self._known))
        return self._known[key]


class _Operations(pyfuse3.Operations):
    """A root directory with one entry per view; what is below it, the plane serves."""

    enable_acl = True
    supports_dot_lookup = False

    def __init__(self, setup: Setup, plane: Plane) -> None:
        super().__init__()
        self.scratch = scratch = Path(setup.scratch)
        self._refuse = scratch / "refuse"
        self._prepared = dict(setup.prepared)
        self._log = (scratch / "gates").open("a", buffering=1)
        self.exports = Exports(
            plane,
            _Numbers(scratch / "numbers"),
            taken=self._taken,
            ended=pyfuse3.terminate,
            by_name=not setup.use_handles,
        )
        if setup.snapshots:
            plane.prepare_in(Path(setup.snapshots))
        self._views = {
            os.fsencode(name): View(
                key=name,
                path=Path(path),
                read_only=read_only,
                frozen=name in setup.frozen,
                gate=None if read_only or not setup.gated else self._gate(name),
            )
            for name, (path, read_only) in setup.views.items()
        }

    def _gate(self, view: str) -> Gate:
        async def gate(name: bytes | None) -> None:
            await trio.lowlevel.checkpoint()
            self._log.write(json.dumps([view, None if name is None else os.fsdecode(name)]) + "\n")
            while (self.scratch / f"hold-{view}").exists():  # noqa: ASYNC110 (another process makes it)
                await trio.sleep(0.005)
            if self._refuse.exists():
                raise OSError(errno.EDQUOT, "refused")

        return gate

    def _taken(self, event: Event) -> None:
        with (self.scratch / "taken").open("a") as log:
            log.write(" ".join(map(os.fsdecode, event.names)) + "\n")

    def _lay_ready(self, view: str) -> None:
        """Once for each view, when it is first looked at."""
        given = self._prepared.pop(view, None)
        if given is not None:
            usual = {"holder": view, "not_before": 0.0, "quiet": 60.0, "longest": 300.0, "generation": 0}
            self.exports.prepare(view, Preparation(**usual | {"needed": 0.0} | given))

    def _entry(self, view: View) -> pyfuse3.EntryAttributes:
        """Only the node id counts: the plane fills in the rest."""
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(self.exports.export(view))
        self._lay_ready(view.key)
        entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR)
        entry.entry_timeout = 0
        return entry

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if name not in self._views:
            raise pyfuse3.FUSEError(errno.ENOENT)
        try:
            return self._entry(self._views[name])
        except OSError as exc:
            raise pyfuse3.FUSEError(exc.errno or errno.EIO) from exc

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.ROOT_INODE
        entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o755)
        entry.st_nlink = 2
        return entry

    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        raise pyfuse3.FUSEError(errno.ENODATA)

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        return 0

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        for position, (name, view) in list(enumerate(self._views.items(), 1))[start_id:]:
            if not pyfuse3.readdir_reply(token, name, self._entry(view), position):
                return

    async def forget(self, inode_list: Any) -> None:
        """Lookups of the root need no counting."""


async def _serve(operations: _Operations) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_on_signal)
        await nursery.start(_write_stats_on_signal, operations)
        nursery.start_soon(operations.exports.serve)
        os.write(1, b"ready\n")
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


async def _stop_on_signal() -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            pyfuse3.terminate()
            return


async def _write_stats_on_signal(
    operations: _Operations, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        task_status.started()
        async for _ in signals:
            _write_stats(operations)


def _write_stats(operations: _Operations) -> None:
    figures = {**asdict(operations.exports.plane.stats()), "modes": operations.exports.modes()}
    new = operations.scratch / "stats.new"
    new.write_text(json.dumps(figures))
    new.rename(operations.scratch / "stats")


def main(text: str) -> int:
    """Mount, serve, unmount; ``text`` is a ``Setup`` as JSON."""
    setup = Setup(**json.loads(text))
    logging.basicConfig(level=logging.WARNING)
    os.umask(setup.umask)
    if setup.nofile:
        resource.setrlimit(resource.RLIMIT_NOFILE, (setup.nofile, setup.nofile))
    device = mount(Path(setup.mountpoint), allow_other="allow_other" in setup.options)
    if not setup.administrator:
        syscalls.administer(False)
    plane = Plane(device, descriptors=setup.descriptors, **setup.plane)
    operations = _Operations(setup, plane)
    pyfuse3.init(operations, plane.hand_over(), set())
    try:
        trio.run(_serve, operations)
    finally:
        syscalls.administer(True)
        unmount(Path(setup.mountpoint))
        pyfuse3.close(unmount=False)
        _write_stats(operations)
        plane.stop()
    return 0
