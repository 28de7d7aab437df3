"""Trees with everything a root filesystem may hold, and small tools to act on them as other users."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

LONG = b"n" * 255
ODD = b"caf\xe9 \xff\n'\"*"
USER, GROUP = 1234, 2345


def make_sample(top: Path) -> None:
    """Fill the directory ``top``: kinds, modes, owners, names, links, xattrs, ACLs, holes."""
    root = os.fsencode(top)
    (top / "etc").mkdir()
    (top / "etc/hostname").write_text("box\n")
    (top / "etc/alias").hardlink_to(top / "etc/hostname")
    (top / "empty").touch()
    (top / "up").symlink_to("../../etc/passwd")
    (top / "absolute").symlink_to("/etc/hostname")
    (top / "dangling").symlink_to("x" * 4000)
    (top / "loop").symlink_to("loop")
    for name in (LONG, ODD):
        with open(os.path.join(root, name), "wb") as file:
            file.write(name)
    _make_special(top)
    _make_rights(top)
    deep = top / "deep"
    for number in range(60):
        deep = deep / f"level{number}"
    deep.mkdir(parents=True)
    (deep / "bottom").write_text("here")
    with (top / "sparse").open("wb") as file:
        file.seek(64 << 20)
        file.write(b"end")
    (top / "big").write_bytes(os.urandom(3 << 20) + b"tail")


def _make_special(top: Path) -> None:
    os.mkfifo(top / "fifo", 0o640)
    os.mknod(top / "null", 0o020666, os.makedev(1, 3))
    os.mknod(top / "disk", 0o060660, os.makedev(7, 0))
    os.mknod(top / "whiteout", 0o020000, os.makedev(0, 0))
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as server:
        directory = os.open(top, os.O_RDONLY)
        try:
            server.bind(f"/proc/self/fd/{directory}/socket")
        finally:
            os.close(directory)


def _make_rights(top: Path) -> None:
    (top / "su").write_text("#!/bin/sh\n")
    os.chown(top / "su", USER, GROUP)
    os.chmod(top / "su", 0o6755)
    (top / "sticky").mkdir()
    os.chmod(top / "sticky", 0o1777)
    (top / "closed").write_text("secret")
    os.chmod(top / "closed", 0)
    (top / "attributes").write_text("x")
    os.setxattr(top / "attributes", "user.one", b"1")
    os.setxattr(top / "attributes", "user.two", b"\0" * 1000)
    os.setxattr(top / "attributes", "trusted.three", b"3")
    os.setxattr(top / "attributes", "security.capability", bytes.fromhex("0100000200200000" + "00" * 12))
    run("setfacl", "-m", f"u:{USER}:rw", str(top / "attributes"))
    run("setfacl", "-d", "-m", f"u:{USER}:rwx", str(top / "sticky"))
    os.utime(top / "etc/hostname", ns=(1_111_111_111_123_456_789, 1_222_222_222_987_654_321))
    os.lchown(top / "up", USER, GROUP)
    os.utime(top / "up", ns=(1, 1_333_333_333_000_000_007), follow_symlinks=False)


def run(*argv: str | Path, check: bool = True, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; its complaints are part of the failure."""
    done = subprocess.run(
        [os.fspath(a) for a in argv],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        cwd=cwd,
        check=False,
        timeout=120,
        env={**os.environ, "LC_ALL": "C.UTF-8", "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"},
    )
    if check and done.returncode:
        raise AssertionError(f"{argv[0]}: exit {done.returncode}: {done.stdout}{done.stderr}")
    return done


def as_user(
    code: str,
    *args: str | Path,
    uid: int = USER,
    gid: int = GROUP,
    groups: tuple[int, ...] = (),
    umask: int = 0o022,
) -> str:
    """Run Python code (with ``os``, ``sys`` and the arguments in ``a``) as another user; its output.

    The interpreter starts as root, since it may be installed where other users cannot look.
    """
    prologue = (
        f"import os, sys\na = sys.argv[1:]\nos.setgroups({list(groups)})\nos.umask({umask})\n"
        f"os.setresgid({gid}, {gid}, {gid})\nos.setresuid({uid}, {uid}, {uid})\n"
    )
    return run(sys.executable, "-S", "-c", prologue + code, *args).stdout.strip()


def make_many(top: Path, directories: int, files: int) -> int:
    """Empty files in directories; how many entries there are with ``top``."""
    for number in range(directories):
        (top / f"d{number}").mkdir()
        for name in range(files):
            os.close(os.open(top / f"d{number}/f{name}", os.O_CREAT | os.O_WRONLY))
    return 1 + directories * (files + 1)
