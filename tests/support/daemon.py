"""fsd as its users run it: the command line in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.loops import mounts_below

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.tools import StoreDirs

ROOT = Path(__file__).parents[2]
START_SECONDS = 60.0
STOP_SECONDS = 30.0


def fsd_env() -> dict[str, str]:
    """An environment in which no configuration of this machine decides which store is meant."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "HOME") if name in os.environ}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", "CONTAINERS_STORAGE_CONF": os.devnull}


def fsd_argv(dirs: StoreDirs, *args: str | Path) -> list[str]:
    """The command line ``fsd -g … -R … ARGS``."""
    flags = ["-g", str(dirs.graphroot), "-R", str(dirs.runroot)]
    return [sys.executable, "-m", "fsd", *flags, *map(str, args)]


def fsd(
    dirs: StoreDirs, *args: str | Path, check: bool = True, input: bytes | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one ``fsd`` command; ``AssertionError`` with its output unless it exits 0 or ``check`` is off."""
    stdin = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
    done = subprocess.run(
        fsd_argv(dirs, *args), env=fsd_env(), capture_output=True, timeout=120, check=False, **stdin
    )
    text = subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())
    if check and text.returncode:
        raise AssertionError(f"exit {text.returncode}: {' '.join(text.args)}\n{text.stdout}{text.stderr}")
    return text


def rows(dirs: StoreDirs, *args: str | Path, check: bool = True) -> Any:
    """What one ``fsd`` command prints as JSON."""
    return json.loads(fsd(dirs, *args, "--json", check=check).stdout)


def with_small_image(dirs: StoreDirs, rootfs_tar: Path) -> StoreDirs:
    """``dirs`` with one image, ``localhost/small:1``, labelled ``kind=test``."""
    fsd(dirs, "import", rootfs_tar, "localhost/small:1", "--label", "kind=test")
    return dirs


@dataclass(frozen=True, slots=True)
class Daemon:
    """A running ``fsd up --foreground``."""

    mountpoint: Path
    process: subprocess.Popen[bytes]
    log: Path

    def __truediv__(self, relative: str) -> Path:
        """A path in the tree."""
        return self.mountpoint / relative

    def errors(self) -> str:
        """The tree's own account of what was refused."""
        return (self.mountpoint / "control/errors").read_text()


@contextlib.contextmanager
def running(
    dirs: StoreDirs, mountpoint: Path, *args: str, quiet: bool = True, conf: Path | None = None
) -> Iterator[Daemon]:
    """A daemon serving ``dirs`` at ``mountpoint``, ended by SIGTERM; ``conf`` is its storage.conf.

    Afterwards it must have exited with 0 and left no mount; ``quiet`` also demands that it said nothing.
    """
    log = mountpoint.with_name(f"{mountpoint.name}.log")
    with _notify_socket() as (receiver, address), open(log, "wb") as output:
        process = subprocess.Popen(
            fsd_argv(dirs, "up", "--foreground", *args, mountpoint),
            env=fsd_env()
            | {"NOTIFY_SOCKET": address}
            | ({"CONTAINERS_STORAGE_CONF": str(conf)} if conf else {}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            _wait_ready(process, receiver, log)
            yield Daemon(mountpoint, process, log)
        finally:
            code = _stop(process, mountpoint)
    said = log.read_text(errors="replace")
    assert code == 0, f"the daemon ended with {code}:\n{said}"
    assert not (quiet and said), f"the daemon said:\n{said}"


@contextlib.contextmanager
def _notify_socket() -> Iterator[tuple[socket.socket, str]]:
    name = f"fsd-tests-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{name}")
        receiver.settimeout(0.1)
        yield receiver, f"@{name}"


def _wait_ready(process: subprocess.Popen[bytes], receiver: socket.socket, log: Path) -> None:
    for _ in range(int(START_SECONDS * 10)):
        with contextlib.suppress(TimeoutError):
            if b"READY=1" in receiver.recv(4096):
                return
        if process.poll() is not None:
            break
    raise AssertionError(f"the daemon did not start:\n{log.read_text(errors='replace')}")


def _stop(process: subprocess.Popen[bytes], mountpoint: Path) -> int:
    """End the daemon and make sure that nothing of it stays, whatever state it is in."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        code = process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    for left in mounts_below(mountpoint):
        subprocess.run(["umount", "--lazy", left], check=False)
        code = code or -1
    return code
