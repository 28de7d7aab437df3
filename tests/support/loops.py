"""Loop-mounted file systems that never outlive the tests.

Everything lives in one private directory per run, ``<base>/<pid>-<start time>``, holding a file ``owner``.
A run begins with a sweep of what dead runs left there: a directory counts as ours only when it has our base
as its parent, an ``owner`` file that repeats its name, and no live process of that pid and start time.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

BASE = Path(os.environ.get("FSD_TEST_DIR", "/var/tmp/fsd-tests"))
UNFLUSHED = "noatime,nobarrier"
"""Options for ext4 and btrfs whose file nobody reads after a power failure: no waiting for the disk below."""
RUN_NAME = re.compile(r"(\d+)-(\d+)")


def run(*argv: str | os.PathLike[str]) -> str:
    """Run a command and return its output; the error text of a failure is part of the exception."""
    done = subprocess.run(
        argv, capture_output=True, text=True, errors="surrogateescape", stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, argv))}: exit {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def start_time(pid: int) -> str:
    """Clock ticks after boot at which ``pid`` began (proc(5), field 22), or "" for no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]


def new_run() -> Path:
    """Sweep, then make this run's directory."""
    BASE.mkdir(mode=0o700, parents=True, exist_ok=True)
    sweep()
    home = BASE / f"{os.getpid()}-{start_time(os.getpid())}"
    home.mkdir(mode=0o700)
    (home / "owner").write_text(home.name)
    return home


def sweep() -> None:
    """Remove what runs left whose process is gone."""
    for home in sorted(BASE.iterdir()):
        match = RUN_NAME.fullmatch(home.name)
        if match and _owned(home) and start_time(int(match[1])) != match[2]:
            remove_run(home)


def _owned(home: Path) -> bool:
    try:
        return home.stat().st_uid == os.geteuid() and (home / "owner").read_text() == home.name
    except OSError:
        return False


def remove_run(home: Path) -> None:
    """Unmount, detach and delete everything below a run's directory."""
    unmount_below(home)
    for device in loop_devices(home):
        with contextlib.suppress(RuntimeError):
            run("losetup", "--detach", device)
    if not mounts_below(home):
        shutil.rmtree(home, ignore_errors=True)


def mounts_below(path: Path) -> list[str]:
    """Mountpoints at or below ``path``, the latest first."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), line.split(" ")[4])
            if point == str(path) or point.startswith(f"{path}/"):
                found.append(point)
    return found[::-1]


def unmount_below(path: Path) -> None:
    """Unmount everything at or below ``path``; what is busy is detached lazily."""
    for point in mounts_below(path):
        if subprocess.run(["umount", point], capture_output=True, check=False).returncode:
            subprocess.run(["umount", "--lazy", point], capture_output=True, check=False)


def loop_devices(below: Path) -> list[str]:
    """Loop devices whose backing file is below ``below``."""
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if backing.read_text().startswith(f"{below}/"):
                found.append(f"/dev/{backing.parts[3]}")
    return found


@contextlib.contextmanager
def loop_mount(
    home: Path, name: str, *, mkfs: tuple[str, ...], size: int, options: str = "noatime"
) -> Iterator[Path]:
    """A new file system of ``size`` bytes in a sparse file, mounted at ``home/name``."""
    image, point = home / f"{name}.img", home / name
    with open(image, "xb") as file:
        file.truncate(size)
    try:
        run(*mkfs, image)
        point.mkdir()
        run("mount", "-o", f"loop,{options}", image, point)  # autoclear: unmounting detaches the device
        yield point
    finally:
        unmount_below(point)
        image.unlink()
        with contextlib.suppress(OSError):
            point.rmdir()


@contextlib.contextmanager
def memory_mount(home: Path, size: str = "50%") -> Iterator[Path]:
    """A tmpfs of that size, mounted below ``home``."""
    point = Path(tempfile.mkdtemp(prefix="memory-", dir=home))
    run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", point)
    try:
        yield point
    finally:
        unmount_below(point)
        point.rmdir()


def delete_tree(top: Path, directory: Path) -> None:
    """Delete ``directory`` with its mounts and subvolumes; ``top`` is where its btrfs is mounted."""
    unmount_below(directory)
    prefix = f"{directory.relative_to(top)}/"
    paths = [line.split(" path ", 1)[1] for line in run("btrfs", "subvolume", "list", top).splitlines()]
    for path in sorted((p for p in paths if p.startswith(prefix)), key=len, reverse=True):
        run("btrfs", "subvolume", "delete", top / path)
    shutil.rmtree(directory)
