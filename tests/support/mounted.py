"""A mounted store in a child process: ready when the tree answers, gone when the test ends, never noisy."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.tools import StoreDirs

READY_SECONDS = 30
END_SECONDS = 20
PROJECT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Mounted:
    """A serving daemon: the mount point, its process, and the file its log goes to."""

    path: Path
    process: subprocess.Popen[bytes]
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
    argv = [
        sys.executable,
        "-m",
        "tests.support.daemon_child",
        str(dirs.graphroot),
        str(dirs.runroot),
        str(point),
    ]
    with open(log, "wb") as sink:
        child = subprocess.Popen(
            [*argv, *child_options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=sink,
            cwd=PROJECT,
        )
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


def _wait_ready(child: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    assert child.stdout is not None
    os.set_blocking(child.stdout.fileno(), False)
    said = b""
    while time.monotonic() < deadline:
        # The line may come in pieces: with PYTHONUNBUFFERED its end is written by itself.
        said += child.stdout.read() or b""
        if said == b"READY\n":
            return
        assert child.poll() is None, log.read_text()
        time.sleep(0.02)
    raise AssertionError(f"the daemon was not ready in time:\n{log.read_text()}")


def _end(child: subprocess.Popen[bytes], point: Path) -> None:
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(END_SECONDS)
    if child.poll() is None:
        child.kill()
        child.wait()
    if child.stdout is not None:
        child.stdout.close()
    if os.path.ismount(point) or _dead(point):
        subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)


def _dead(point: Path) -> bool:
    try:
        os.stat(point)
    except OSError:
        return True
    return False
