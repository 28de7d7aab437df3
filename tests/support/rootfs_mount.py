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
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyfuse3
import trio

from fsd.errnos import barrier
from fsd.rootfs import Rootfs, View
from fsd.rootfs_nodes import NodeTable

if TYPE_CHECKING:
    from types import TracebackType

    from fsd.rootfs_nodes import Gate

REPOSITORY = Path(__file__).resolve().parents[2]
STARTUP_SECONDS = 30
_MUTATIONS = ("create", "mkdir", "mknod", "symlink", "unlink", "rmdir", "rename", "setattr")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What to serve. ``refuse`` names a file whose presence makes every gate raise ``EDQUOT``."""

    mountpoint: str
    views: dict[str, tuple[str, bool]]  # name: (path, read-only)
    scratch: str
    use_handles: bool = True
    descriptors: int | None = None
    nofile: int | None = None
    umask: int = 0o022
    options: tuple[str, ...] = field(default=("allow_other",))


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
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps(asdict(self.setup))],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            stdin=subprocess.DEVNULL,
        )
        assert self.process.stdout is not None
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
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._stderr.close()

    def stderr(self) -> str:
        """What the daemon complained about."""
        return (self._scratch / "stderr").read_text()

    def gates(self) -> list[tuple[str, str | None]]:
        """What passed the gates so far: view and name."""
        path = self._scratch / "gates"
        return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []

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


@barrier
class _Operations(pyfuse3.Operations):
    """Root directory here, everything else in ``Rootfs``."""

    enable_acl = True
    supports_dot_lookup = False

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        scratch = Path(setup.scratch)
        nodes = NodeTable(
            _Numbers(scratch / "numbers"), use_handles=setup.use_handles, descriptors=setup.descriptors
        )
        self.rootfs = Rootfs(nodes.number, scratch, nodes)
        self._refuse = scratch / "refuse"
        self._log = (scratch / "gates").open("a", buffering=1)
        self._views = {
            os.fsencode(name): View(name, Path(path), read_only, None if read_only else self._gate(name))
            for name, (path, read_only) in setup.views.items()
        }

    def _gate(self, view: str) -> Gate:
        async def gate(name: bytes | None) -> None:
            await trio.lowlevel.checkpoint()
            self._log.write(json.dumps([view, None if name is None else os.fsdecode(name)]) + "\n")
            if self._refuse.exists():
                raise OSError(errno.EDQUOT, "refused")

        return gate

    def report(self, operation: str, args: tuple[Any, ...], number: int, text: str) -> None:
        logging.error("%s%r: %s", operation, args, text)

    def _root(self) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.ROOT_INODE
        entry.st_mode = stat.S_IFDIR | 0o755
        entry.st_nlink = 2
        return entry

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if parent_inode != pyfuse3.ROOT_INODE:
            return await self.rootfs.lookup(parent_inode, name, ctx)
        if name not in self._views:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.rootfs.export(self._views[name])

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._root() if inode == pyfuse3.ROOT_INODE else await self.rootfs.getattr(inode, ctx)

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        return 0 if inode == pyfuse3.ROOT_INODE else await self.rootfs.opendir(inode, ctx)

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        if fh:
            await self.rootfs.readdir(fh, start_id, token)
            return
        for position, (name, view) in list(enumerate(self._views.items(), 1))[start_id:]:
            entry = await self.rootfs.export(view)
            if not pyfuse3.readdir_reply(token, name, entry, position):
                self.rootfs.unref(entry.st_ino)
                return

    async def releasedir(self, fh: int) -> None:
        if fh:
            await self.rootfs.releasedir(fh)

    async def forget(self, inode_list: Any) -> None:
        await self.rootfs.forget([item for item in inode_list if self.rootfs.owns(item[0])])


def _forward() -> None:
    """Hand every handler not written above to ``Rootfs`` as it is."""
    for name in dir(pyfuse3.Operations):
        if name not in vars(_Operations) and name not in ("init", "poll", "stacktrace") and name[0] != "_":
            method = getattr(Rootfs, name, None)
            if callable(method):
                setattr(_Operations, name, _forwarder(name))


def _forwarder(name: str) -> Any:
    async def handler(self: _Operations, *args: Any) -> Any:
        if args and args[0] == pyfuse3.ROOT_INODE:
            raise pyfuse3.FUSEError(errno.EPERM if name in _MUTATIONS else errno.ENODATA)
        return await getattr(self.rootfs, name)(*args)

    return handler


async def _serve(operations: _Operations) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_on_signal)
        os.write(1, b"ready\n")
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


async def _stop_on_signal() -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            pyfuse3.terminate()
            return


def main() -> None:
    """Mount, serve, unmount."""
    setup = Setup(**json.loads(sys.argv[1]))
    logging.basicConfig(level=logging.WARNING)
    os.umask(setup.umask)
    if setup.nofile:
        resource.setrlimit(resource.RLIMIT_NOFILE, (setup.nofile, setup.nofile))
    _forward()
    operations = barrier(_Operations)(setup)
    options = {*pyfuse3.default_options, "fsname=rootfs-test", "default_permissions", *setup.options}
    pyfuse3.init(operations, setup.mountpoint, options)
    try:
        trio.run(_serve, operations)
    finally:
        pyfuse3.close(unmount=True)
        operations.rootfs.close()


if __name__ == "__main__":
    main()
