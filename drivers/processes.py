"""Names that tell which process uses something on disk, for sweeping what a crash left."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path


def private_name() -> str:
    """A name no one else makes: process ID, the process's start time, and random digits."""
    pid = os.getpid()
    return f"{pid}-{own_start(pid)}-{os.urandom(6).hex()}"


def is_alive(name: str) -> bool:
    """Whether the process that made a :func:`private_name` still runs, as far as this one can see."""
    pid, _, rest = name.partition("-")
    start = rest.partition("-")[0]
    return pid.isdigit() and start != "" and started(int(pid)) == start


@lru_cache(maxsize=1)
def own_start(pid: int) -> str:
    """:func:`started` of the calling process, whose ID this is: read once, and again after a fork."""
    return started(pid)


def stat_fields(pid: int) -> list[str]:
    """``/proc/PID/stat`` from its third field on: before it is the command's name, which may hold anything.

    Raises:
        OSError: there is no such process.
    """
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


def started(pid: int) -> str:
    """Start time of a process in clock ticks since boot (proc_pid_stat(5) field 22), empty if gone."""
    try:
        return stat_fields(pid)[19]
    except (FileNotFoundError, ProcessLookupError):
        return ""
