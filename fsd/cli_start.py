"""``up``: start the daemon, in the background or as the supervised foreground process."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fsd import mounts, output, runfile, sdnotify
from fsd.cli_store import missing_pool, on_pool, pool_of, store_options
from fsd.mounts import MountError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from fsd.pool import Pool
    from store.config import StoreOptions

log = logging.getLogger("fsd")

START_SECONDS = 60.0
"""How long a start may take; making a pool is the slow part."""
GROW_SECONDS = 10.0


def real_mountpoint(given: str | None) -> Path:
    """The mountpoint without symbolic links above it; it may be dead itself, so it is not asked."""
    path = Path(given).absolute() if given else mounts.default_mountpoint()
    if path is None:
        raise MountError("XDG_RUNTIME_DIR is not set: name a mountpoint")
    return path.parent.resolve() / path.name


def up(args: argparse.Namespace) -> int:
    """``fsd up``."""
    options = store_options(args)
    mountpoint = real_mountpoint(args.mountpoint)
    if args.foreground:
        return serve(args, options, mountpoint)
    running = runfile.read(Path(options.runroot))
    if running is not None:
        return _already_up(args, running, Path(options.graphroot))
    try:
        _start(args, options, mountpoint)
    except MountError:
        other = runfile.read(Path(options.runroot))
        if other is None or not mounts.wait_until_mounted(other.mountpoint, START_SECONDS):
            raise
        # Somebody else started it at the same moment.
        return _already_up(args, other, Path(options.graphroot))
    return _say_up(args, mountpoint)


def _already_up(args: argparse.Namespace, running: runfile.Running, graphroot: Path) -> int:
    """Nothing to do, unless another place or store was asked for, or the daemon does not answer."""
    wanted = real_mountpoint(args.mountpoint) if args.mountpoint else running.mountpoint
    if wanted != running.mountpoint or not running.serves(graphroot):
        runfile.refuse(running, graphroot)
    if not _answers(running):
        raise MountError(
            f"fsd is up at {running.mountpoint} but does not answer: fsd down --force, then fsd up"
        )
    return _say_up(args, running.mountpoint)


def _answers(running: runfile.Running) -> bool:
    """Whether a daemon answers; one that has just been started, perhaps by somebody else, has time for it."""
    while not mounts.answers(running.mountpoint / "control"):
        if time.time() - running.started > START_SECONDS or not running.alive:
            return False
        time.sleep(0.05)
    return True


def _say_up(args: argparse.Namespace, mountpoint: Path) -> int:
    if args.json:
        output.print_json({"state": "up", "mountpoint": str(mountpoint)})
    else:
        print(f"fsd is up at {mountpoint}")
    return 0


# -- background ------------------------------------------------------------------------------------


def _start(args: argparse.Namespace, options: StoreOptions, mountpoint: Path) -> None:
    """Run the foreground command in a session of its own until READY; ``MountError`` with its words."""
    home = runfile.directory(Path(options.runroot))
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(home / "log", "ab") as log_file, _ready_socket() as (receiver, address):
        began = log_file.tell()
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "fsd",
                *_flags(args),
                "up",
                "--foreground",
                *_up_flags(args),
                str(mountpoint),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            start_new_session=True,
            cwd="/",
            env=os.environ | {"NOTIFY_SOCKET": address},
        )
        if not _wait_ready(process, receiver):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            raise MountError(_why(home / "log", began) or f"the daemon did not start; see {home / 'log'}")
        process.returncode = 0  # disowned: it outlives this command, and init reaps it


def _flags(args: argparse.Namespace) -> list[str]:
    """The command line options that make the daemon see the same store."""
    flags = []
    for flag, value in (
        ("--graph", args.graph),
        ("--run", args.run),
        ("--imagestore", args.imagestore),
        ("--storage-driver", args.storage_driver),
    ):
        if value is not None:
            flags += [flag, os.path.abspath(value) if flag != "--storage-driver" else value]
    flags += [f"--storage-opt={option}" for option in args.storage_opt or ()]
    return flags + (["--debug"] if args.debug else [])


def _up_flags(args: argparse.Namespace) -> list[str]:
    return [flag for flag in ("--no-pool", "--allow-other") if getattr(args, flag[2:].replace("-", "_"))]


@contextlib.contextmanager
def _ready_socket() -> Iterator[tuple[socket.socket, str]]:
    """A socket for one readiness notification, in the abstract name space: nothing to clean up."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        name = f"fsd-up-{os.getpid()}-{secrets.token_hex(8)}"
        receiver.bind(f"\0{name}")
        receiver.settimeout(0.1)
        yield receiver, f"@{name}"


def _wait_ready(process: subprocess.Popen[bytes], receiver: socket.socket) -> bool:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(TimeoutError):
            if b"READY=1" in receiver.recv(4096).split(b"\n"):
                return True
        if process.poll() is not None:
            return False
    return False


def _why(path: Path, began: int) -> str:
    """What this start wrote to the log, without the prefix that our caller prints again."""
    with open(path, "rb") as file:
        file.seek(began)
        return file.read().decode(errors="replace").strip().removeprefix("fsd: ")


# -- foreground ------------------------------------------------------------------------------------


def serve(args: argparse.Namespace, options: StoreOptions, mountpoint: Path) -> int:
    """Be the daemon: pool, run-file, store, mount; until something unmounts it."""
    runroot, graphroot = Path(options.runroot), Path(options.graphroot)
    with contextlib.ExitStack() as stack:
        stack.enter_context(runfile.registered(runroot, graphroot=graphroot, mountpoint=mountpoint))
        pool = pool_of(options)
        if pool is not None:
            stack.enter_context(_attached(pool, no_pool=args.no_pool))
        _prepare_mountpoint(mountpoint)
        stack.enter_context(Keeper(mountpoint, pool).running())
        placed = on_pool if pool is not None else _as_they_are
        code = _run(placed(options), mountpoint, args.allow_other, lambda: placed(store_options(args)))
        sdnotify.notify("STOPPING=1")
        return code


@contextlib.contextmanager
def _attached(pool: Pool, *, no_pool: bool) -> Iterator[None]:
    """Make and attach the pool; it stays attached after, until ``fsd down``."""
    if no_pool and pool.device is None:
        raise missing_pool(pool)
    made = pool.ensure()
    log.info("pool %s is attached%s", pool.image, " (new)" if made else "")
    with pool.shared():
        yield


def _as_they_are(options: StoreOptions) -> StoreOptions:
    return options


def _run(options: StoreOptions, mountpoint: Path, allow_other: bool, load: Callable[[], StoreOptions]) -> int:
    from fsd import daemon
    from store.store import Store

    def ready() -> None:
        _announce(mountpoint)

    with Store(options) as store:
        return daemon.run(store, mountpoint, ready=ready, allow_other=allow_other, load=load)


def _announce(mountpoint: Path) -> None:
    sdnotify.notify("READY=1", f"STATUS=serving {mountpoint}")


def _prepare_mountpoint(mountpoint: Path) -> None:
    """Detach what a dead daemon left there, and make the directory; ``MountError`` if it is taken."""
    if mounts.detach_dead(mountpoint):
        log.warning("detached the dead mount at %s", mountpoint)
    taken = mounts.mount_at(mountpoint)
    if taken is not None:
        raise MountError(f"{mountpoint} is a mountpoint already ({taken.fstype} of {taken.source})")
    try:
        mountpoint.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        text = f"{mountpoint} is no directory; name one that is empty, or is not there yet"
        raise MountError(text) from None
    if any(mountpoint.iterdir()):
        raise MountError(f"{mountpoint} is not empty: the mount would hide what is in it")


class Keeper:
    """Chores beside the daemon, in a thread: the supervisor's watchdog, and growing the pool."""

    def __init__(self, mountpoint: Path, pool: Pool | None) -> None:
        self._mountpoint, self._pool = mountpoint, pool
        self._ended = threading.Event()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Do the chores for the length of a ``with`` block."""
        thread = threading.Thread(target=self._loop, name="keeper", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _loop(self) -> None:
        watchdog = sdnotify.watchdog_seconds()
        while not self._ended.wait(min(watchdog or GROW_SECONDS, GROW_SECONDS)):
            if watchdog and mounts.answers(self._mountpoint / "control"):
                sdnotify.notify("WATCHDOG=1")
            if self._pool is not None:
                self._grow(self._pool)

    def _grow(self, pool: Pool) -> None:
        try:
            gained = pool.grow()
        except (MountError, OSError) as error:
            log.error("the pool cannot grow: %s", error)
        else:
            if gained:
                log.info("the pool grew by %s", output.human_size(gained))
