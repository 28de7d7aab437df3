"""The system's mount table as data (proc(5), mountinfo), and unmounting.

Nothing here touches a mounted tree from the calling thread without a bound: a hung FUSE server makes any
``stat`` on it uninterruptible.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

DEAD = (errno.ENOTCONN, errno.ECONNABORTED, errno.EHOSTDOWN, errno.ESTALE)
"""What ``stat`` says on a FUSE mountpoint whose server is gone."""

PROBE = """\
import os, sys
try:
    os.stat(sys.argv[1])
except OSError as error:
    sys.exit(error.errno)
"""


class MountError(Exception):
    """A mount, unmount or attach failed; the text carries the tool's own words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One line of mountinfo."""

    point: Path
    fstype: str
    source: str
    root: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process that keeps a file system busy: through ``what`` (cwd, root, or an open file)."""

    pid: int
    name: str
    what: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid}, {self.what})"


def default_mountpoint() -> Path | None:
    """``/run/fsd`` for root, ``$XDG_RUNTIME_DIR/fsd`` for everyone else; ``None`` where that is not set."""
    if os.geteuid() == 0:
        return Path("/run/fsd")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "fsd" if runtime else None


def mounts() -> list[Mount]:
    """Every mount of this process's namespace, oldest first."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        return [_parse(line) for line in lines]


def _parse(line: str) -> Mount:
    left, _, right = line.partition(" - ")
    fields, (fstype, source, *_) = left.split(" "), right.split(" ")
    return Mount(
        point=Path(_unescape(fields[4])), fstype=fstype, source=_unescape(source), root=_unescape(fields[3])
    )


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def mount_at(path: Path) -> Mount | None:
    """The topmost mount whose mountpoint is exactly ``path``."""
    found = [mount for mount in mounts() if mount.point == path]
    return found[-1] if found else None


def below(path: Path) -> list[Mount]:
    """Mounts strictly below ``path``, newest first."""
    return [mount for mount in reversed(mounts()) if path in mount.point.parents]


def filesystem_of(path: Path) -> Mount:
    """The mount that holds ``path``, or that would hold it once it is made."""
    real = path.resolve()
    held = [mount for mount in mounts() if mount.point == real or mount.point in real.parents]
    deepest = max(len(mount.point.parts) for mount in held)
    return [mount for mount in held if len(mount.point.parts) == deepest][-1]


def is_dead(point: Path, wait: float = 5.0) -> bool:
    """Whether ``point`` is a FUSE mountpoint whose server is gone; a server that hangs is not dead."""
    mount = mount_at(point)
    return mount is not None and mount.fstype.startswith("fuse") and _probe(point, wait) in DEAD


def answers(path: Path, wait: float = 5.0) -> bool:
    """Whether ``path`` can be looked up within ``wait`` seconds."""
    return _probe(path, wait) == 0


def _probe(path: Path, wait: float) -> int | None:
    """errno of a ``stat`` on ``path`` in a process of its own; ``None`` when it hangs.

    A process that hangs is left to the kernel: nothing can end a request its server has taken.
    """
    quiet = subprocess.DEVNULL
    argv = [sys.executable, "-I", "-S", "-c", PROBE, os.fspath(path)]
    process = subprocess.Popen(argv, stdin=quiet, stdout=quiet, stderr=quiet)
    try:
        return process.wait(wait)
    except subprocess.TimeoutExpired:
        process.kill()
        return None


def run(*argv: str | os.PathLike[str], hold: int | None = None) -> str:
    """Run a system tool and return its output; ``MountError`` with its error text.

    The tool inherits the descriptor ``hold``: a lock on it lasts until the tool has ended, too.
    """
    kept = () if hold is None else (hold,)
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, pass_fds=kept
        )
    except FileNotFoundError:
        raise MountError(f"{argv[0]} is not installed") from None
    if done.returncode:
        raise MountError(
            f"{' '.join(os.fspath(word) for word in argv)}: {_last_line(done.stderr) or done.returncode}"
        )
    return done.stdout


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def unmount(point: Path, *, lazy: bool = False) -> None:
    """Unmount ``point``; ``lazy`` detaches it although it is in use. ``MountError``."""
    if os.geteuid() == 0 or not shutil.which("fusermount3"):
        run("umount", *(["--lazy"] if lazy else []), point)
    else:
        run("fusermount3", "-u", *(["-z"] if lazy else []), point)


def detach_dead(point: Path) -> bool:
    """Detach ``point`` while its server is gone (several may be stacked); whether there was one."""
    found = False
    while is_dead(point):
        unmount(point, lazy=True)
        found = True
    return found


def holders(path: Path, limit: int = 5) -> list[Holder]:
    """Processes with a working directory, root or open file at or below ``path``, at most ``limit``."""
    found: list[Holder] = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            links = [process / "cwd", process / "root", *(process / "fd").iterdir()]
            what = next((link.name for link in links if _points_below(link, path)), None)
            if what is not None:
                name = (process / "comm").read_text().strip()
                found.append(
                    Holder(pid=int(process.name), name=name, what=what if what.isalpha() else f"fd {what}")
                )
        if len(found) == limit:
            break
    return found


def _points_below(link: Path, path: Path) -> bool:
    try:
        target = os.readlink(link)
    except OSError:
        return False
    return target == str(path) or target.startswith(f"{path}/")


def wait_until_mounted(point: Path, seconds: float) -> bool:
    """Whether something is mounted at ``point`` within ``seconds``."""
    deadline = time.monotonic() + seconds
    while mount_at(point) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
