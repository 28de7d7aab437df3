"""A registry of images of the test's own: a process on the loopback interface, without TLS."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING

from tests.support.features import lacking

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

START_SECONDS = 60.0
STOP_SECONDS = 30.0


def free_port() -> int:
    """A port nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[str]:
    """The ``HOST:PORT`` of a registry that keeps its data in ``directory``; skips where there is none."""
    program = shutil.which("docker-registry")
    if program is None:
        lacking("docker-registry is not installed")
    directory.mkdir(parents=True)
    address, config, log = f"127.0.0.1:{free_port()}", directory / "config.yml", directory / "log"
    config.write_text(f"""\
version: 0.1
storage:
  filesystem:
    rootdirectory: {directory / "data"}
http:
  addr: {address}
""")
    env = {"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"}
    with (
        open(log, "wb") as said,
        subprocess.Popen(
            [program, "serve", config], env=env, stdin=subprocess.DEVNULL, stdout=said, stderr=said
        ) as process,
    ):
        try:
            _wait(process, address, log)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Wait until the registry takes connections."""
    host, _, port = address.partition(":")
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
            return
        time.sleep(0.02)
    raise AssertionError(f"the registry did not start:\n{log.read_text(errors='replace')}")
