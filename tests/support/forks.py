"""Processes of our own modules without the half second that Python needs to import what they use.

One process for each module has imported it, and forks for every start: ``start("tests.support.daemon_child",
"a", "b", stdout=…, stderr=…)`` is ``python -m tests.support.daemon_child a b`` but for the imports.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]
LONGEST = 1 << 17
"""Bytes of a request: arguments and environment."""


class Child:
    """A started process; the same words as ``subprocess.Popen``, as far as the tests need them."""

    def __init__(self, pid: int, link: socket.socket, stdout: int) -> None:
        self.pid = pid
        self.stdout = open(stdout, "rb")  # noqa: SIM115 (closed by who started it)
        self.returncode: int | None = None
        self._link = link

    def poll(self) -> int | None:
        """Its exit status, a negative number for a signal, or None as long as it runs."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """The same when it has ended; ``TimeoutExpired`` after ``timeout`` seconds."""
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._link], [], [], timeout)[0]:
            said = self._link.recv(64)
            self._link.close()
            assert said, "the process was lost"
            self.returncode = os.waitstatus_to_exitcode(int(said))
        return self.returncode


def start(module: str, *args: str, stderr: int) -> Child:
    """Run ``main(*args)`` of ``module`` in a process of its own, in this process's environment.

    Its standard output is a pipe, its standard error the descriptor ``stderr``.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    out, their_out = os.pipe()
    request = json.dumps({"args": args, "environment": dict(os.environ)}).encode()
    try:
        socket.send_fds(_parent(module), [request], [their_out, stderr, theirs.fileno()])
    finally:
        os.close(their_out)
        theirs.close()
    return Child(int(ours.recv(64)), ours, out)


@functools.cache
def _parent(module: str) -> socket.socket:
    """The way to the process that has imported ``module``; it ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * LONGEST)
    with theirs:
        process = subprocess.Popen([sys.executable, "-m", __name__, module], stdin=theirs, cwd=PROJECT)

    @atexit.register
    def end() -> None:
        ours.close()
        process.wait()

    return ours


# -- that process ----------------------------------------------------------------------------------


def _serve(module: str) -> int:
    """Start what is asked for until nobody can ask any more; in a child, its exit status."""
    main = importlib.import_module(module).main
    requests = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()  # a collection in a child would copy all of it
    while True:
        said, descriptors, _, _ = socket.recv_fds(requests, LONGEST, 3)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not said:
            return 0
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    requests.close()
    _become(*descriptors)
    request = json.loads(said)
    os.environ.clear()
    os.environ.update(request["environment"])
    return int(main(*request["args"]) or 0)


def _become(out: int, err: int, link: int) -> None:
    """Return in a child with these descriptors; this process stays, waits for it and says how it ended."""
    pid = os.fork()
    if pid == 0:
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.closerange(3, max(out, err, link) + 1)
        return
    os.closerange(0, min(out, err, link))
    os.close(out)
    os.close(err)
    with socket.socket(fileno=link) as told:
        told.send(b"%d" % pid)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        ended = os.waitpid(pid, 0)[1]
        try:
            told.send(b"%d" % ended, socket.MSG_NOSIGNAL)
        finally:
            os._exit(0)


if __name__ == "__main__":
    sys.exit(_serve(sys.argv[1]))
