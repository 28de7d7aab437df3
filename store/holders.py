"""Which processes hold a directory tree: by root, working directory, program, open file, or mount.

Everything comes from ``/proc`` (proc(5)); processes that vanish or deny access are passed over.
Files below a tree that is a filesystem of its own to ``stat`` (a btrfs subvolume) are told by their
device number, which also finds those whose path another mount namespace hides; otherwise by path.
What other processes hold is never looked at in a way that asks a server: a FUSE filesystem that hangs
would hang whoever looks.
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from drivers import syscalls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Belongs = Callable[[str], bool]

PATIENCE = 1.0
OPEN_FILE = "an open file"
LINKS = {"root": "its root directory", "cwd": "its working directory", "exe": "its program"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process, its command name, and what it holds; ``str`` is a phrase for people."""

    pid: int
    command: str
    what: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command}) by {self.what}"


def holders(tree: Path, *, ignore: Iterable[int] = (), patience: float = PATIENCE) -> list[Holder]:
    """The processes that hold ``tree``, one entry each; our own and ``ignore`` are left out.

    Args:
        patience: seconds within which files open at first may be closed. Whoever measures the tree or takes
            a snapshot of it, as a daemon does on its own account, has it open for a moment.

    Raises:
        OSError: ``tree`` cannot be examined
    """
    belongs = _membership(tree)
    skipped = {os.getpid(), *ignore}
    ends = time.monotonic() + patience
    while True:
        found = {pid: what for pid in _pids() if pid not in skipped and (what := _held_by(pid, belongs))}
        for pid, point in _mounts_of(tree):
            found.setdefault(pid, f"a mount at {point}")
        if set(found.values()) != {OPEN_FILE} or time.monotonic() >= ends:
            return [Holder(pid=pid, command=_command(pid), what=what) for pid, what in found.items()]
        time.sleep(0.02)


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _held_by(pid: int, belongs: Belongs) -> str:
    for link, words in LINKS.items():
        if belongs(f"/proc/{pid}/{link}"):
            return words
    for fd in _entries(f"/proc/{pid}/fd"):
        if belongs(f"/proc/{pid}/fd/{fd}") and not _marks_a_place(pid, fd):
            return OPEN_FILE
    return ""


def _marks_a_place(pid: int, fd: str) -> bool:
    """Whether nothing is, or will be, read or written through a descriptor.

    That is so for ``O_PATH``, and for a directory in a private copy of a mount, as whoever serves the
    tree to others keeps it.
    """
    try:
        lines = Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines()
    except FileNotFoundError:
        return True  # closed meanwhile
    except OSError:
        return False
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    flags = int(fields.get("flags", "0"), 8)
    if flags & os.O_PATH:
        return True
    return bool(flags & os.O_DIRECTORY) and fields.get("mnt_id", "").strip() not in _mount_ids(pid)


def _mount_ids(pid: int) -> set[str]:
    """The mounts a process sees."""
    try:
        text = Path(f"/proc/{pid}/mountinfo").read_text(errors="surrogateescape")
    except OSError:
        return set()
    return {line.split(" ", 1)[0] for line in text.splitlines()}


def _membership(tree: Path) -> Belongs:
    """A test of a magic link of ``/proc``: does it lead into ``tree``?"""
    root = os.stat(tree)
    if root.st_dev != os.stat(tree.parent).st_dev:

        def on_device(link: str) -> bool:
            try:
                device, _, kind = syscalls.known_file(link)
            except OSError:
                return False
            return device == root.st_dev and not stat.S_ISSOCK(kind)

        return on_device
    prefix = os.path.realpath(tree)

    def below(link: str) -> bool:
        try:
            target = os.readlink(link)
        except OSError:
            return False
        return target == prefix or target.startswith(f"{prefix}/")

    return below


def _origin(tree: Path) -> tuple[str, str] | None:
    """Where ``tree`` is in its filesystem: device as ``major:minor``, and path from its root.

    This is how mountinfo names the source of a bind mount; ``None`` if no mount of ours shows it.
    """
    path = os.path.realpath(tree)
    best: tuple[int, str, str] | None = None
    for device, root, point in _mountinfo("self"):
        rest = _relative(path, point)
        if rest is not None and (best is None or len(point) >= best[0]):
            best = len(point), device, os.path.join(root, rest).rstrip("/") or "/"
    return best[1:] if best else None


def _mounts_of(tree: Path) -> Iterator[tuple[int, str]]:
    """Mounts of the tree, or of something in it: a process that sees the mount, and where.

    Each mount namespace is read once, our own included.
    """
    origin = _origin(tree)
    seen: set[str] = set()
    for pid in (*_pids(), os.getpid()) if origin else ():
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
        except OSError:
            continue
        if namespace not in seen:
            seen.add(namespace)
            for device, root, point in _mountinfo(str(pid)):
                if origin and device == origin[0] and _relative(root, origin[1]) is not None:
                    yield pid, point


def _mountinfo(pid: str) -> Iterator[tuple[str, str, str]]:
    """Device, root in the filesystem, and mount point of every mount a process sees."""
    try:
        text = Path(f"/proc/{pid}/mountinfo").read_text(errors="surrogateescape")
    except OSError:
        return
    for line in text.splitlines():
        fields = line.split(" ", 5)
        yield fields[2], _unescaped(fields[3]), _unescaped(fields[4])


def _unescaped(text: str) -> str:
    """Undo the octal escapes of space, tab, newline and backslash (proc(5))."""
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text


def _relative(path: str, base: str) -> str | None:
    """``path`` below ``base`` without leading slash, or ``None`` when it is not below it."""
    if path == base:
        return ""
    prefix = base.rstrip("/") + "/"
    return path[len(prefix) :] if path.startswith(prefix) else None


def _entries(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return "ended"
