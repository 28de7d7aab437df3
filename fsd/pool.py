"""The embedded default: a btrfs in a sparse file beside the graphroot, mounted on the graphroot.

``/var/lib/containers/storage`` gets ``/var/lib/containers/storage.btrfs``. The file is made under a
temporary name and renamed when mkfs and fsync are done, so a pool either exists whole or not at all. The
loop device clears itself when the pool is unmounted. Sizes are bytes.

Two locks, both flock(2): the directory that holds the image, while a pool is made, attached or detached;
and the image, shared, by every process that uses the pool, so that none detaches it under another.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fsd import mounts
from fsd.mounts import MountError
from store.durable import sync_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fsd.mounts import Holder

MIB, GIB = 1 << 20, 1 << 30
SMALLEST = 256 * MIB
"""Least useful pool: below about 110 MiB mkfs.btrfs refuses."""
FIRST = 16 * GIB
"""Size of a new pool where the host has room for it; the file is sparse."""
STEP = 64 * MIB
LOCK_BYTES = 64
"""Size of a stamped lock file (FORMAT 3.3)."""
PODMANS_STATE = ("libpod/bolt_state.db", "db.sql")
"""What podman makes in a graphroot before it looks for a store there, and leaves when it finds none."""
MAGIC_OFFSET, MAGIC = 0x10040, b"_BHRfS_M"
"""Where a btrfs superblock carries its magic (btrfs(5), on-disk format)."""
OPTIONS = "loop,noatime,discard=async"
"""discard=async gives the space of deleted files back to the host; kernels before 6.2 want it named."""
SETTLE_SECONDS = 5.0
"""How long an unmount waits for the kernel."""


class PoolError(MountError):
    """The pool cannot be made, attached or detached; the text says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """``size`` the pool may reach now, ``used`` and ``free`` inside it, ``allocated`` on the host."""

    size: int
    used: int
    free: int
    allocated: int
    host_free: int

    @property
    def promised(self) -> int:
        """What the pool may still take from the host without growing."""
        return max(0, self.size - self.allocated)


@dataclass(frozen=True, slots=True)
class Pool:
    """The pool of one graphroot."""

    graphroot: Path

    @property
    def image(self) -> Path:
        """The sparse file."""
        return self.graphroot.with_name(f"{self.graphroot.name}.btrfs")

    @property
    def exists(self) -> bool:
        """Whether the pool was made."""
        return self.image.exists()

    @property
    def device(self) -> str | None:
        """The loop device of the mounted pool (``/dev/loop3``); ``None`` while it is detached."""
        mount = mounts.mount_at(self.graphroot)
        return mount.source if mount and mount.source in self.devices() else None

    def devices(self) -> list[str]:
        """Loop devices backed by the image."""
        found = []
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            with contextlib.suppress(OSError):
                if backing.read_text().rstrip("\n") == str(self.image.resolve()):
                    found.append(f"/dev/{backing.parts[3]}")
        return found

    @property
    def wanted(self) -> bool:
        """Whether the graphroot needs a pool: it is not on btrfs, or it is on this very pool."""
        return self.device is not None or mounts.filesystem_of(self.graphroot).fstype != "btrfs"

    # -- making and attaching ----------------------------------------------------------------------

    def ensure(self) -> bool:
        """Make the pool unless it exists, and attach it; whether it was made just now.

        Raises:
            PoolError: no privilege, no space, files in the graphroot that the pool would hide, or an
                image that is no btrfs.
        """
        with self._lock() as lock:
            made = not self.exists
            if made:
                self._create(lock)
            self._attach(lock)
        return made

    def attach(self) -> bool:
        """Attach an existing pool; whether it was detached. ``PoolError``."""
        if self.device is not None:
            return False
        with self._lock() as lock:
            return self._attach(lock)

    def _create(self, lock: int) -> None:
        self._refuse_hiding()
        half_made = self.image.with_name(f".{self.image.name}.new")
        half_made.unlink(missing_ok=True)  # an earlier attempt did not live to rename it
        size = first_size(free_bytes(self.image.parent))
        try:
            with open(half_made, "xb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.truncate(size)
                mounts.run("mkfs.btrfs", "--quiet", "--label", "fsd", half_made, hold=lock)
                os.fsync(file.fileno())
            half_made.rename(self.image)
        except BaseException:
            half_made.unlink(missing_ok=True)
            raise
        sync_directory(self.image.parent)

    def _attach(self, lock: int) -> bool:
        if self.device is not None:
            return False
        self._check_image()
        self._refuse_hiding()
        self.graphroot.mkdir(mode=0o700, parents=True, exist_ok=True)
        mounts.run("mount", "-t", "btrfs", "-o", OPTIONS, self.image, self.graphroot, hold=lock)
        if not any(self.graphroot.iterdir()):
            self.graphroot.chmod(0o700)
        with contextlib.suppress(MountError):  # spares a second page cache; not every host offers it
            mounts.run("losetup", "--direct-io=on", self.device or "")
        self._fit()
        return True

    def _check_image(self) -> None:
        with open(self.image, "rb") as file:
            file.seek(MAGIC_OFFSET)
            if file.read(len(MAGIC)) != MAGIC:
                raise PoolError(f"{self.image} is no btrfs image; move it away, or restore it from a backup")

    @property
    def vacant(self) -> bool:
        """Whether the graphroot without a mount holds nothing but empty directories and lock files."""
        return self._hidden() is None

    def _hidden(self) -> Path | None:
        """A file that a pool mounted on the graphroot would hide."""
        for directory, _, files in os.walk(self.graphroot):
            for name in files:
                path = Path(directory, name)
                is_lock = name.endswith(".lock") and path.lstat().st_size <= LOCK_BYTES
                if not is_lock and not self._made_beside(path):
                    return path
        return None

    def _made_beside(self, path: Path) -> bool:
        """Whether podman made a file because it was run while the pool, which has its store, was detached."""
        return self.exists and str(path.relative_to(self.graphroot)) in PODMANS_STATE

    def _refuse_hiding(self) -> None:
        hidden = self._hidden()
        if hidden is not None:
            raise PoolError(
                f"{self.graphroot} is not on btrfs and is in use, for example {hidden}: a pool mounted there "
                "would hide it; move it away, or choose another graphroot with --graph"
            )

    # -- size --------------------------------------------------------------------------------------

    def usage(self) -> Usage:
        """Sizes of the attached pool and of the file system that holds its image."""
        inside, info = os.statvfs(self.graphroot), self.image.stat()
        return Usage(
            size=info.st_size,
            used=(inside.f_blocks - inside.f_bfree) * inside.f_frsize,
            free=inside.f_bavail * inside.f_frsize,
            allocated=info.st_blocks * 512,
            host_free=free_bytes(self.image.parent),
        )

    def grow(self) -> int:
        """Enlarge the attached pool when it runs short and the host has room; bytes gained."""
        with self._lock():
            extra = growth(self.usage())
            if extra and self.device:
                os.truncate(self.image, self.image.stat().st_size + extra)
                self._fit()
            return extra

    def _fit(self) -> None:
        """Let loop device and btrfs fill the image, also after a growth that was cut short."""
        inside = os.statvfs(self.graphroot)
        if self.device and self.image.stat().st_size - inside.f_blocks * inside.f_frsize >= STEP:
            mounts.run("losetup", "--set-capacity", self.device)
            mounts.run("btrfs", "filesystem", "resize", "max", self.graphroot)

    # -- detaching ---------------------------------------------------------------------------------

    def detach(self) -> bool:
        """Unmount the pool and free its loop device; whether it was attached.

        Raises:
            PoolError: the pool is in use; the text names who holds it.
        """
        with self._lock():
            if self.device is None and not self.devices():
                return False
            self._unmount()
            for device in self.devices():
                with contextlib.suppress(MountError):
                    mounts.run("losetup", "--detach", device)
            return True

    def await_release(self, users: Sequence[Holder]) -> None:
        """Wait until a detached pool is no filesystem any more.

        Args:
            users: who had files open in the mount that served it: what the kernel passed through stays open.

        Raises:
            PoolError: it is in use still, and may be written to
        """
        end = time.monotonic() + SETTLE_SECONDS
        while devices := self.devices():
            if time.monotonic() > end:
                busy = (
                    ", ".join(map(str, users)) or "a program that has a file of it open, or a mount namespace"
                )
                raise PoolError(
                    f"the pool stays attached: {devices[0]} is in use by {busy}; end that, then fsd down"
                )
            time.sleep(0.02)

    def _unmount(self) -> None:
        for mount in mounts.below(self.graphroot):
            if mount.point.parent != self.graphroot or mount.root != f"/{mount.point.name}":
                raise PoolError(f"the pool stays attached: {mount.point} is mounted; unmount it first")
            self._release(mount.point)  # a graph driver's home, which peers bind onto itself and leave
        while self.device is not None:
            self._release(self.graphroot)

    def _release(self, point: Path) -> None:
        """Unmount the pool, or a part of it; ``PoolError`` with who uses it."""
        try:
            _unmount(point)
        except MountError as error:
            busy = ", ".join(map(str, mounts.holders(self.graphroot)))
            raise PoolError(f"the pool stays attached: {f'in use by {busy}' if busy else error}") from None

    @contextlib.contextmanager
    def session(self, *, make: bool = False) -> Iterator[None]:
        """The pool attached for the length of a ``with`` block; detached after by the last one to leave.

        A pool that was attached before the block stays attached. ``make`` also makes a missing pool.
        """
        if not (make or self.exists):
            yield
            return
        was_attached = self.device is not None
        if make:
            self.ensure()
        with self.shared() as image:
            self.attach()
            try:
                yield
            finally:
                if not was_attached and _try_lock(image, fcntl.LOCK_EX):
                    with contextlib.suppress(MountError):  # a peer came to use it meanwhile
                        self.detach()

    @contextlib.contextmanager
    def shared(self) -> Iterator[int]:
        """Hold the image's shared lock: this process uses the pool."""
        descriptor = os.open(self.image, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[int]:
        """Lock out other processes.

        The descriptor is for tools to inherit: one that outlives a killed process keeps the lock until
        it has ended, so nobody mounts the image beside it.
        """
        if os.geteuid() != 0:
            raise PoolError("a pool needs root: loop devices and mounts are privileged")
        self.image.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.image.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)


def first_size(host_free: int) -> int:
    """Size of a new pool on a host with ``host_free`` bytes: at most nine tenths of them. ``PoolError``."""
    size = min(FIRST, host_free // 10 * 9) // STEP * STEP
    if size < SMALLEST:
        raise PoolError(f"only {host_free // MIB} MiB are free; a pool needs {SMALLEST // MIB} MiB")
    return size


def growth(usage: Usage) -> int:
    """Bytes to add: the pool doubles when less than a fifth (and 2 GiB) is free and the host can back it."""
    if usage.free >= min(usage.size // 5, 2 * GIB):
        return 0
    backed = usage.host_free // 10 * 9 - usage.promised
    extra = min(usage.size, backed) // STEP * STEP
    return extra if extra >= STEP else 0


def free_bytes(path: Path) -> int:
    """Bytes an ordinary user may still write on the file system of ``path``."""
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize


def _unmount(point: Path) -> None:
    """Unmount what no process uses: the kernel lets go of what an ended one had open a moment later."""
    end = time.monotonic() + SETTLE_SECONDS
    while True:
        try:
            mounts.unmount(point)
            return
        except MountError:
            if mounts.holders(point) or time.monotonic() > end:
                raise
            time.sleep(0.02)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
