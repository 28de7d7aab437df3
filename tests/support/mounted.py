"""A mounted store in a child process: ready when the tree answers, gone when the test ends, never noisy."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support import forks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.tools import StoreDirs

READY_SECONDS = 30
END_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Mounted:
    """A serving daemon: the mount point, its process, and the file its log goes to."""

    path: Path
    process: forks.Child
    log: Path

    def errors(self) -> str:
        """What ``control/errors`` says."""
        return (self.path / "control" / "errors").read_text()


@contextlib.contextmanager
def mounted(
    dirs: StoreDirs, point: Path, *child_options: str, expect_trouble: bool = False
) -> Iterator[Mounted]:
    """Serve the store of ``dirs`` at ``point``; afterwards nothing of it may be left.

    A log line at level ERROR or a traceback fails the test unless ``expect_trouble`` is set.
    """
    point.mkdir(exist_ok=True)
    log = point.with_name(f"{point.name}.log")
    argv = map(str, (dirs.graphroot, dirs.runroot, point, *child_options))
    with open(log, "wb") as sink:
        child = forks.start("tests.support.daemon_child", *argv, stderr=sink.fileno())
    try:
        _wait_ready(child, log)
        yield Mounted(point, child, log)
        assert child.poll() is None, f"the daemon died:\n{log.read_text()}"
    finally:
        _end(child, point)
    text = log.read_text()
    assert child.returncode == 0, text
    if not expect_trouble:
        assert "ERROR" not in text, text
        assert "Traceback" not in text, text


def _wait_ready(child: forks.Child, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    said = b""
    while select.select([child.stdout], [], [], max(deadline - time.monotonic(), 0))[0]:
        # The line may come in pieces: with PYTHONUNBUFFERED its end is written by itself.
        more = os.read(child.stdout.fileno(), 100)
        said += more
        if said == b"READY\n":
            return
        assert more, log.read_text()
    raise AssertionError(f"the daemon was not ready in time:\n{log.read_text()}")


def _end(child: forks.Child, point: Path) -> None:
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(END_SECONDS)
    if child.poll() is None:
        child.kill()
        child.wait()
    child.stdout.close()
    if os.path.ismount(point) or _dead(point):
        subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)


def _dead(point: Path) -> bool:
    try:
        os.stat(point)
    except OSError:
        return True
    return False
